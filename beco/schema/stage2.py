"""Stage two: learning from noisy labels, and inference."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from beco.schema.base import Count, Fraction, Positive, Section
from beco.schema.optimisation import Crop, Schedule, SegmenterOptimiser
from beco.schema.stage1 import Crf


def not_kept(fraction: float | None, threshold: float | None) -> str:
    """What to say of a reliable fraction or threshold that `labels.h5` cannot tell exactly; "" if it can."""
    if threshold is not None and threshold > 0.995 + 1e-6:
        return "confidences above 0.995 are not told apart; take 0.995, or a fraction"
    for value, steps, what in ((fraction, 20, "reliable shares"), (threshold, 200, "confidences")):
        if value is not None and abs(value * steps - round(value * steps)) > 1e-6:
            down = math.floor(value * steps)
            return f"{what} are kept in steps of {1 / steps:g}; take {down / steps:g} or {(down + 1) / steps:g}"
    return ""


class Mix(Section):
    """Artificial boundaries: objects of one picture of a pair pasted into the other (BECO)."""

    probability: Fraction = Field(0.5, description="chance that a picture receives its partner's objects")
    labels: Literal["online", "offline", "offline_reliable"] = Field(
        "online",
        description="what is pasted and supervises mixed pictures after warm-up. online: the networks' confident "
        "decisions (published); offline: the pseudo-labels, whole classes of them, pasted pixels being as reliable as "
        "they were (published for the warm-up); offline_reliable: the reliable pixels alone, in the warm-up too",
    )
    online_threshold: Fraction = Field(0.95, description="softmax above which an online label is trusted")
    ignore_background: bool = Field(True, description="never paste background")
    band_width: Annotated[int, Field(ge=0)] = Field(1, description="dilate − erode radius of the band, pixels")
    band_weight: Annotated[float, Field(ge=0)] = Field(0.2, description="extra loss weight on the band, trusted pixels")
    band_weight_peer: Annotated[float, Field(ge=0)] = Field(
        0.0, description="extra loss weight on the band, the other pixels"
    )


class Training(Section):
    """Stage two: learning from noisy pseudo-labels."""

    reliable_fraction: Fraction = Field(
        0.5,
        description="share of each class's pixels, per picture, that is reliable (co-training), in steps of 0.05",
    )
    reliable_threshold: Fraction | None = Field(
        None,
        description="instead of the fraction: reliable is what has at least this confidence, in steps of 0.005, "
        "up to 0.995",
    )
    warmup: Fraction = Field(
        1 / 80,
        description="first share of the steps: offline labels, no boundary weight (published: 1 epoch of 80)",
    )
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        None, description="warm-up in optimiser steps, instead of `warmup`; published: 661"
    )
    loss_mean: Literal["all", "labelled"] = Field(
        "all",
        description="mean of each loss term over all pixels of the batch (official code) or those that it applies to",
    )
    peer_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the peer loss (co-training)")
    peer_start: Fraction = Field(0.0, description="share of the steps after which the peer loss is on; published: 0")
    mix: Mix = Field(default_factory=Mix, description="artificial boundaries (recipe: beco)")
    crop: Crop = Field(default_factory=Crop, description="weak augmentation")
    colour: Literal["none", "rgb", "bgr"] = Field(
        "rgb",
        description="strong colour augmentation of what the loss sees, alike in all recipes; bgr: with red and blue "
        "swapped under hue and gray, and colours cut to 8 bits, as the official code has it",
    )
    validate_every: Count | None = Field(
        None, description="epochs between scores on the validation split during training; null: none"
    )
    watch_labels: Count | None = Field(
        None,
        description="training pictures with masks on which online labels are compared with the truth, whenever "
        "validate_every scores: a curve in the report, from which nothing learns; null: none",
    )
    choose: Literal["last", "best"] = Field(
        "last", description="weights that are kept: the last, or the best on the validation split"
    )
    schedule: Schedule = Field(default_factory=lambda: Schedule(epochs=80), description="length and batch")
    optimiser: SegmenterOptimiser = Field(default_factory=SegmenterOptimiser, description="optimiser")

    @field_validator("reliable_fraction", "reliable_threshold")
    @classmethod
    def _kept(cls, value: float | None, info: ValidationInfo) -> float | None:
        is_fraction = info.field_name == "reliable_fraction"
        if words := not_kept(value if is_fraction else None, None if is_fraction else value):
            raise ValueError(words)
        return value

    @model_validator(mode="after")
    def _best_needs_scores(self) -> Training:
        if self.choose == "best" and self.validate_every is None:
            raise ValueError("choose: best needs scores to choose by; set validate_every, such as 1")
        if self.watch_labels and self.validate_every is None:
            raise ValueError("watch_labels looks when scores are taken; set validate_every, such as 1")
        return self


class InferenceCrf(Crf):
    """CRF on the networks' softmax, with the values of BECO's test script as defaults."""

    gaussian_sxy: Positive = Field(1.0, description="width of the smoothness kernel, pixels")
    bilateral_sxy: Positive = Field(67.0, description="spatial width of the appearance kernel, pixels")
    bilateral_srgb: Positive = Field(3.0, description="colour width of the appearance kernel, 0-255 levels")
    bilateral_compat: Positive = Field(4.0, description="weight of the appearance kernel")
    image: Literal["rgb", "official-code"] = Field(
        "rgb",
        description="what the CRF sees; official-code: the picture less its mean, wrapped around into 8 bits",
    )
    minimum_mass: Fraction = Field(
        0.0, description="classes whose softmax nowhere exceeds this are left out of the CRF; 0: none are"
    )


class Prediction(Section):
    """Inference, and so the protocol printed beside every number."""

    scales: list[Positive] = Field([1.0], min_length=1, description="the picture is fed at each of these")
    flip: bool = Field(False, description="also the mirrored picture, at each scale")
    merge: Literal["logits", "softmax", "max"] = Field(
        "logits", description="mean of logits, mean of softmax, or largest logits over scales (official code)"
    )
    resize: Annotated[int, Field(ge=32)] | None = Field(
        None, description="long side fed to the network, pixels; null: the picture's own size"
    )
    squeeze: Annotated[int, Field(ge=32)] | None = Field(
        None,
        description="side of the square that every picture is squeezed into before it is fed, pixels; published: 512; "
        "null: no",
    )
    score_at: Literal["picture", "square"] = Field(
        "picture",
        description="where labels are decided and scored: at the picture's own size (published), or on the square of "
        "`squeeze` with the mask squeezed alike, as BECO validates in training",
    )
    networks: Literal["all", "first", "both"] = Field(
        "all",
        description="average the co-trained networks, or use one; both: the average, and beside it, in tables and "
        "report, the first network alone",
    )
    crf: InferenceCrf | None = Field(None, description="CRF after the networks; null: none")
    batch_size: Count = Field(8, description="pictures processed together")

    @model_validator(mode="after")
    def _one_size(self) -> Prediction:
        if self.resize and self.squeeze:
            raise ValueError("give resize or squeeze, not both")
        if self.score_at == "square" and not self.squeeze:
            raise ValueError("score_at: square needs a square; set squeeze, such as 512, or leave score_at out")
        return self

    @property
    def averaged(self) -> Prediction:
        """What is predicted and scored first of all: of `both` the average, and otherwise what is asked for."""
        return self.model_copy(update={"networks": "all"}) if self.networks == "both" else self

    @property
    def scored_side(self) -> int | None:
        """Side of the square on which labels are decided and scored; None: each picture's own size."""
        return self.squeeze if self.score_at == "square" else None
