"""What every section of the configuration is made of."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=100)]


def expanded(path: str) -> str:
    """A path with its `~` spelt out, which a shell does only outside of quotes; ValueError if it cannot be."""
    full = os.path.expanduser(path)  # noqa: PTH111  (Path's takes `./~` for `~`)
    if full.startswith("~"):
        raise ValueError(f"`{path}`: no home folder is known for that; write the whole path, or ./~ for a name with ~")
    return full


Place = Annotated[str, Field(min_length=1), AfterValidator(expanded)]
"""A path of a file or folder."""


def braced(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text with a brace within nested values, and the dotted key that it stands under."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from braced(str(key), path)
            yield from braced(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from braced(entry, path)
    elif isinstance(value, str) and set(value) & set("{}"):
        yield path, value


def nearest(word: str, known: Any) -> str:
    """`, did you mean …?` or nothing."""
    close = difflib.get_close_matches(word, [str(key) for key in known], n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else (f"; known: {', '.join(map(str, known))}" if known else "")


class Section(BaseModel):
    """A section of the configuration; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any) -> Any:
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) >= 2**63:  # what numpy and torch raise OverflowError for
                raise ValueError("the number is too large; write one of at most 18 digits")
        return value
