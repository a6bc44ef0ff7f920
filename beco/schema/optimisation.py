"""How networks are trained, in both stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from beco.schema.base import Count, Fraction, Positive, Section


class Optimiser(Section):
    """Optimiser and polynomial schedule, shared by both stages."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="sgd has a `momentum`, adamw betas 0.9 and 0.999")
    lr: Positive = Field(0.01, description="initial learning rate of the encoder")
    head_lr_factor: Positive = Field(1.0, description="the head's or decoder's learning rate relative to `lr`")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="of a ViT or a Swin, others have no layers for it: each block learns at this share of the rate of "
        "the block after it, and "
        "the embeddings at that of the first; 1: all alike",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="of sgd alone; steps grow to 1 / (1 − momentum) times `lr`"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="on every parameter, as published")
    poly_power: Positive = Field(0.9, description="lr · (1 − step/steps)^power")
    min_lr: Annotated[float, Field(ge=0)] = Field(0.0, description="floor of the schedule")


class ClassifierOptimiser(Optimiser):
    """As in IRN: a high learning rate, ten times that for the head, and next to no momentum.

    The rate belongs to the momentum: IRN's code hands the weight decay to SGD where the momentum is expected. With 0.9
    its rate of 0.1 would make steps ten times as long as those that its figures come from.
    """

    lr: Positive = Field(0.1, description="initial learning rate of the backbone")
    head_lr_factor: Positive = Field(10.0, description="the head's learning rate relative to `lr`")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(1e-4, description="of sgd alone; 1e-4 belongs to lr 0.1")


class SegmenterOptimiser(Optimiser):
    """As in BECO: one learning rate for all, and a floor."""

    min_lr: Annotated[float, Field(ge=0)] = Field(1e-5, description="floor of the schedule")


def _as_text(value: object) -> object:
    """The number 32, which YAML makes of it without quotes, as what it says."""
    return "32" if value == 32 and not isinstance(value, bool) else value


class Schedule(Section):
    """How long to train, and how often to save."""

    epochs: Count | None = Field(None, description="passes over the training split; give this or `steps`")
    steps: Count | None = Field(None, description="optimiser steps; give this or `epochs`")
    batch_size: Annotated[int, Field(ge=2)] = Field(16, description="pictures a step; even where pairs are mixed")
    precision: Annotated[Literal["32", "bf16", "fp16"], BeforeValidator(_as_text)] = Field(
        "32", description="autocast precision of the networks; fp16 needs a GPU and scales the loss"
    )
    accumulate: Count = Field(
        1, description="parts into which a batch is cut where memory is short; batch norm then sees a part at a time"
    )
    checkpoint_minutes: Positive = Field(10.0, description="save at least this often, and after every epoch")

    @model_validator(mode="after")
    def _one_length(self) -> Schedule:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


Side = Annotated[int, Field(ge=32)]


class Crop(Section):
    """Weak augmentation: a random part of the picture, resized; then a horizontal flip.

    `scales`, `long_side` and `rescale` resize the whole picture instead and cut a square out of it, padded where the
    picture is smaller; the last two as IRN does: drawn from a range, padded with the encoder's mean colour.
    """

    size: Annotated[int, Field(ge=32)] = Field(512, description="side of the square crop fed to the network, pixels")
    area: tuple[Positive, Positive] = Field(
        (0.5, 0.75), description="range of the crop's share of the picture; as the official code effectively does"
    )
    scales: Annotated[list[Positive], Field(min_length=1)] | None = Field(
        None, description="instead of `area`: resize by one of these, pad with void, cut a square of `size`"
    )
    long_side: tuple[Side, Side] | None = Field(
        None, description="instead of `area`: resize the long side to a length in this range, pixels (IRN's CAMs)"
    )
    rescale: tuple[Positive, Positive] | None = Field(
        None, description="instead of `area`: resize by a factor in this range (IRN's own network: 0.5 to 1.5)"
    )
    ratio: tuple[Positive, Positive] = Field((0.75, 4 / 3), description="range of the crop's width / height")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")

    @field_validator("area", "ratio", "long_side", "rescale")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("the lower end of the range comes first")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Crop:
        given = [key for key in ("scales", "long_side", "rescale") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}; set the others to null")
        return self

    @field_validator("area")
    @classmethod
    def _at_most_all(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("a crop cannot exceed the picture: at most 1")
        return value
