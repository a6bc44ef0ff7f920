"""What every section of the configuration is made of."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]


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
