"""How networks are trained, in both stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from beco.schema.base import Count, Fraction, Positive, Section


class Optimiser(Section):
    """Optimiser and polynomial schedule, shared by both stages."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="sgd has momentum 0.9")
    lr: Positive = Field(0.01, description="initial learning rate of the encoder")
    head_lr_factor: Positive = Field(1.0, description="the head's or decoder's learning rate relative to `lr`")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="on every parameter, as published")
    poly_power: Positive = Field(0.9, description="lr · (1 − step/steps)^power")
    min_lr: Annotated[float, Field(ge=0)] = Field(0.0, description="floor of the schedule")


class ClassifierOptimiser(Optimiser):
    """As in IRN: a high learning rate, ten times that for the head."""

    lr: Positive = Field(0.1, description="initial learning rate of the backbone")
    head_lr_factor: Positive = Field(10.0, description="the head's learning rate relative to `lr`")


class SegmenterOptimiser(Optimiser):
    """As in BECO: one learning rate for all, and a floor."""

    min_lr: Annotated[float, Field(ge=0)] = Field(1e-5, description="floor of the schedule")


class Schedule(Section):
    """How long to train, and how often to save."""

    epochs: Count | None = Field(None, description="passes over the training split; give this or `steps`")
    steps: Count | None = Field(None, description="optimiser steps; give this or `epochs`")
    batch_size: Annotated[int, Field(ge=2)] = Field(16, description="pictures a step; even where pairs are mixed")
    precision: Literal["32", "bf16", "fp16"] = Field(
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


class Crop(Section):
    """Weak augmentation: a random part of the picture, resized; then a horizontal flip."""

    size: Annotated[int, Field(ge=32)] = Field(512, description="side of the square crop fed to the network, pixels")
    area: tuple[Positive, Positive] = Field(
        (0.5, 0.75), description="range of the crop's share of the picture; as the official code effectively does"
    )
    scales: list[Positive] | None = Field(
        None, description="instead of `area`: resize by one of these, pad with void, cut a square of `size`"
    )
    ratio: tuple[Positive, Positive] = Field((0.75, 4 / 3), description="range of the crop's width / height")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")

    @field_validator("area", "ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the lower end of the range comes first")
        return value

    @field_validator("area")
    @classmethod
    def _at_most_all(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("a crop cannot exceed the picture: at most 1")
        return value
