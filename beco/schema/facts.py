"""What stands at the top of a method's file as constants, and is known of it before it is imported."""

from __future__ import annotations

import keyword
import math
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationError, create_model, model_validator

from beco.schema.base import Section

SCALARS = (bool, int, float, str)
Number = Annotated[float, Field(strict=True)]  # takes integers, too
BOUNDS = ("gt", "ge", "lt", "le", "multiple_of")
Input = Literal["labels", "start", "saliency", "text"]
"""What a localiser may want besides pictures and their labels, see `beco.stage1.localisers.base.Inputs`."""


class Facts(Section):
    """The constants of a method of any slot."""


class RecipeFacts(Facts):
    """Those of a recipe."""

    NETWORKS: Annotated[StrictInt, Field(ge=1)] = Field(1, description="how many it trains")
    PAIRS: StrictBool = Field(False, description="it works on pairs of pictures, so a batch is even")
    UNUSED: tuple[StrictStr, ...] = Field(
        (), description="beginnings of settings, such as `training.mix`, that it does not look at"
    )


class Option(Section):
    """A setting of a method's own; its type is that of its default."""

    default: Any
    description: StrictStr
    gt: Number | None = None
    ge: Number | None = None
    lt: Number | None = None
    le: Number | None = None
    multiple_of: Number | None = None
    choices: Annotated[list[Any], Field(min_length=1)] | None = None
    of_maps: StrictBool = Field(False, description="no training looks at it, and only maps follow from it")
    want: dict[Any, tuple[Input, ...]] = Field({}, description="what a choice wants besides INPUTS")
    tried: Any = Field(None, description="its value in the trials of `beco plan`, whose networks know next to nothing")

    @model_validator(mode="after")
    def _fit_the_default(self) -> Option:
        """Bounds are of numbers, and the default is within them, or among the choices."""
        tried = [] if self.tried is None else [self.tried]
        for value in [self.default, *(self.choices or []), *tried]:
            if type(value) not in SCALARS or value in (math.inf, -math.inf):
                raise ValueError(f"`{value}` is no single value; write True or False, a number or a text")
        given = [key for key in BOUNDS if getattr(self, key) is not None]
        if given and (type(self.default) not in (int, float) or self.choices is not None):
            raise ValueError(f"{given[0]}: is for a default that is a number, and without choices; leave it out")
        if self.of_maps and self.want:
            raise ValueError("of_maps: what a choice wants is wanted by the training; leave out one of the two")
        if strange := [value for value in self.want if value not in (self.choices or [])]:
            raise ValueError(f"want: `{strange[0]}` is none of the choices; write one of them")
        for key, values in (("default", [self.default]), ("tried", tried)):
            try:
                for value in values:
                    create_model("One", value=self.field())(value=value)
            except ValidationError as error:
                raise ValueError(f"{key}: {error.errors()[0]['msg'].lower()}") from None
        return self

    def field(self) -> tuple[Any, Any]:
        """Type and description, as pydantic makes a field of them."""
        kind = type(self.default) if self.choices is None else Literal[tuple(self.choices)]
        bounds = {key: getattr(self, key) for key in BOUNDS if getattr(self, key) is not None}
        return kind, Field(self.default, description=self.description, **bounds)


class LocaliserFacts(Facts):
    """Those of a localiser."""

    OPTIONS: dict[StrictStr, Option] = Field({}, description="the settings of its own")
    EXTENDS: StrictStr | None = Field(None, description="the localiser whose OPTIONS it has, too")
    INPUTS: tuple[Input, ...] = Field((), description="what its training wants besides pictures and their labels")
    MAP_INPUTS: tuple[Literal["labels"], ...] = Field(
        (), description="what of it the inference of its maps wants again"
    )
    TRAINS: StrictBool = Field(True, description="false where nothing is learnt before the maps")

    @model_validator(mode="after")
    def _fit_together(self) -> LocaliserFacts:
        for name in self.OPTIONS:
            if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or hasattr(Section, name):
                raise ValueError(f"OPTIONS.{name}: a setting cannot be called so; choose another name")
        if wrong := set(self.MAP_INPUTS) - set(self.INPUTS):
            raise ValueError(f"MAP_INPUTS: `{min(wrong)}` is not among INPUTS; add it there")
        return self
