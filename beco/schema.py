"""The one schema of `config.yaml`: every key, its range, its default and its meaning; see `config` for its reading."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- dataset ------------------------------------------------------------------------------------------------


class Shapes(Section):
    """The embedded dataset, drawn by `beco draw-shapes`."""

    seed: int = Field(0, ge=0, description="seed of every draw; the same seed gives the same files")
    train: Count = Field(800, description="training pictures")
    val: Count = Field(200, description="validation pictures")
    size: int = Field(64, ge=48, le=512, description="width and height in pixels")


class Dataset(Section):
    """Where the pictures and their image-level labels come from."""

    name: Name = Field("shapes", description="names the folder under `results`")
    format: Literal["shapes", "voc"] = Field("shapes", description="shapes: drawn here; voc: a VOC devkit on disk")
    root: str | None = Field(None, description="the folder that holds JPEGImages (voc); not used by shapes")
    train: str = Field("train", description="split list for training: ImageSets/Segmentation/<train>.txt")
    val: str = Field("val", description="split list for evaluation")
    classes: list[str] | None = Field(None, description="class names in label order 1…; null: the 20 of VOC")
    shapes: Shapes = Field(default_factory=Shapes, description="how the embedded set is drawn")

    def identity(self) -> dict[str, Any]:
        """What makes it this dataset and no other; results of two datasets must not share a folder."""
        if self.format == "shapes":
            return {"format": "shapes"}
        root = str(Path(str(self.root)).resolve())
        return {"format": self.format, "root": root, "train": self.train, "val": self.val, "classes": self.classes}


# --- networks -----------------------------------------------------------------------------------------------


class Encoder(Section):
    """A timm backbone and the weights it starts from."""

    name: str = Field("resnet50", description="timm model name")
    weights: str | None = Field(
        None,
        description="imagenet | a .safetensors/.pth/.pt file | classifier (stage two only) | null = random",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="passed to the timm constructor, such as pad_type: same"
    )
    drop: list[str] = Field(
        default_factory=list,
        description="blocks replaced by the identity, such as blocks.4.1, if weights lack them",
    )
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="subtracted from RGB in [0, 1]")
    std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="divides after the mean is subtracted")


class Network(Section):
    """A segmentation network of stage two."""

    architecture: Literal["deeplabv3plus"] = Field("deeplabv3plus", description="decoder")
    encoder: Encoder = Field(default_factory=Encoder, description="backbone")
    output_stride: Literal[8, 16] = Field(16, description="stride of the deepest features")
    decoder_channels: Count = Field(256, description="width of ASPP and decoder")
    atrous_rates: tuple[Count, Count, Count] = Field((6, 12, 18), description="dilations of the ASPP branches")
    dropout: Fraction = Field(0.1, description="dropout after ASPP")


# --- optimisation -------------------------------------------------------------------------------------------


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
    precision: Literal["32", "bf16"] = Field("32", description="autocast precision of the networks")
    checkpoint_minutes: Positive = Field(10.0, description="save at least this often, and after every epoch")

    @model_validator(mode="after")
    def _one_length(self) -> Schedule:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


class Crop(Section):
    """Weak augmentation: a random part of the picture, resized; then a horizontal flip."""

    size: Annotated[int, Field(ge=32)] = Field(512, description="side of the square crop fed to the network, pixels")
    area: tuple[Positive, Positive] = Field((0.5, 0.75), description="range of the crop's share of the picture")
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


# --- stage one ----------------------------------------------------------------------------------------------


class Classifier(Section):
    """The multi-label classifier whose activation maps become pseudo-labels."""

    encoder: Encoder = Field(default_factory=Encoder, description="backbone")
    output_stride: Literal[8, 16, 32] = Field(16, description="stride of the deepest features")
    crop: Crop = Field(default_factory=Crop, description="weak augmentation")
    colour: bool = Field(False, description="strong colour augmentation as in stage two")
    schedule: Schedule = Field(default_factory=lambda: Schedule(epochs=5), description="length and batch")
    optimiser: ClassifierOptimiser = Field(default_factory=ClassifierOptimiser, description="optimiser")
    resize: Annotated[int, Field(ge=32)] | None = Field(
        None, description="long side at validation, pixels; null: the picture's own size"
    )
    seed: int = Field(0, ge=0, description="seed of initialisation and augmentation")


class Cam(Section):
    """Class activation maps (Zhou et al. 2016), summed over scales and flips and divided by their maximum."""

    scales: list[Positive] = Field([1.0, 0.5, 1.5, 2.0], min_length=1, description="relative to the picture")
    flip: bool = Field(True, description="also the mirrored picture")
    resize: Annotated[int, Field(ge=32)] | None = Field(
        None, description="long side at scale 1, pixels; null: the picture's own size"
    )
    batch_size: Count = Field(8, description="pictures of one size processed together")


class Crf(Section):
    """Fully connected CRF (Krähenbühl & Koltun 2011), with IRN's values as defaults."""

    iterations: Count = Field(10, description="mean-field iterations")
    gt_prob: Annotated[float, Field(gt=0, lt=1)] = Field(0.7, description="belief in the label that comes in")
    gaussian_sxy: Positive = Field(3.0, description="width of the smoothness kernel, pixels")
    gaussian_compat: Positive = Field(3.0, description="weight of the smoothness kernel")
    bilateral_sxy: Positive = Field(50.0, description="spatial width of the appearance kernel, pixels")
    bilateral_srgb: Positive = Field(5.0, description="colour width of the appearance kernel, 0-255 levels")
    bilateral_compat: Positive = Field(10.0, description="weight of the appearance kernel")


class Labels(Section):
    """A stage-one recipe: from CAMs to pseudo-labels with confidence."""

    refine: Literal["none", "crf"] = Field("crf", description="none: threshold the CAMs; crf: IRN's two CRF runs")
    background: Fraction = Field(0.15, description="score of the background plane (refine: none)")
    foreground_threshold: Fraction = Field(
        0.30, description="background score in the run whose foreground is believed (refine: crf)"
    )
    background_threshold: Fraction = Field(
        0.05, description="background score in the run whose background is believed (refine: crf)"
    )
    crf: Crf = Field(default_factory=Crf, description="parameters of the CRF (refine: crf)")

    @model_validator(mode="after")
    def _thresholds_ordered(self) -> Labels:
        if self.refine == "crf" and self.foreground_threshold <= self.background_threshold:
            raise ValueError("foreground_threshold must exceed background_threshold")
        return self


# --- stage two ----------------------------------------------------------------------------------------------


class Mix(Section):
    """Artificial boundaries: objects of one picture of a pair pasted into the other (BECO)."""

    probability: Fraction = Field(0.5, description="chance that a picture receives its partner's objects")
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
        0.5, description="share of each class's pixels, per picture, that count as reliable (co-training)"
    )
    warmup: Fraction = Field(
        1 / 80,
        description="first share of the steps: offline labels, no boundary weight (published: 1 epoch of 80)",
    )
    peer_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the peer loss (co-training)")
    peer_start: Fraction = Field(0.0, description="share of the steps after which the peer loss is on; published: 0")
    mix: Mix = Field(default_factory=Mix, description="artificial boundaries (recipe: beco)")
    crop: Crop = Field(default_factory=Crop, description="weak augmentation")
    colour: bool = Field(True, description="strong colour augmentation of what the loss sees, alike in all recipes")
    schedule: Schedule = Field(default_factory=lambda: Schedule(epochs=80), description="length and batch")
    optimiser: SegmenterOptimiser = Field(default_factory=SegmenterOptimiser, description="optimiser")


class Prediction(Section):
    """Inference, and so the protocol printed beside every number."""

    scales: list[Positive] = Field([1.0], min_length=1, description="logits are averaged over these")
    flip: bool = Field(False, description="also the mirrored picture")
    resize: Annotated[int, Field(ge=32)] | None = Field(
        None, description="long side fed to the network, pixels; null: the picture's own size"
    )
    networks: Literal["all", "first"] = Field("all", description="average the co-trained networks, or use one")
    batch_size: Count = Field(8, description="pictures of one size processed together")


class Experiment(Section):
    """One line of the results table: labels × network × recipe × seeds."""

    labels: str = Field("crf", description="a name under `labels`, or `truth` for the training masks")
    network: str = Field("default", description="a name under `networks`")
    recipe: Literal["single", "cotraining", "beco"] = Field(description="how stage two learns")
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1, description="one training per seed")
    training: Training = Field(default_factory=Training, description="what differs from the common `training`")


class Shards(Section):
    """Into how many jobs the work over pictures is scattered."""

    cams: Count = Field(1, description="jobs for CAM inference")
    labels: Count = Field(2, description="jobs for CRF refinement")


class Compute(Section):
    """What to run on. Nothing here changes a result beyond rounding, so nothing here causes a rerun."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    threads: Count = Field(1, description="CPU threads of one training or inference job")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="data-loading processes of one training job")
    shards: Shards = Field(default_factory=Shards, description="scatter")


class Config(Section):
    """`config.yaml` as a whole."""

    results: str = Field("results", description="folder of every output")
    dataset: Dataset = Field(default_factory=Dataset)
    encoders: dict[Name, Encoder] = Field(
        default_factory=dict,
        description="backbones by name; any `encoder` may be such a name, or {like: name, …}",
    )
    classifier: Classifier = Field(default_factory=Classifier)
    cam: Cam = Field(default_factory=Cam)
    labels: dict[Name, Labels] = Field(min_length=1, description="stage-one recipes by name")
    networks: dict[Name, Network] = Field(min_length=1, description="networks by name")
    training: Training = Field(default_factory=Training, description="common to all experiments")
    prediction: Prediction = Field(default_factory=Prediction)
    experiments: dict[Name, Experiment] = Field(min_length=1, description="lines of the table by name")
    compute: Compute = Field(default_factory=Compute)
    gallery: Annotated[int, Field(ge=0)] = Field(24, description="pictures of each split in the report's gallery")

    @model_validator(mode="after")
    def _names_exist(self) -> Config:
        if self.dataset.format == "voc" and not self.dataset.root:
            raise ValueError("dataset.root: missing; set it to the VOC2012 folder that holds JPEGImages")
        if "truth" in self.labels:
            raise ValueError("labels.truth is reserved for the training masks; choose another name")
        for name, experiment in self.experiments.items():
            if experiment.labels not in [*self.labels, "truth"]:
                raise ValueError(
                    f"experiments.{name}.labels: no `{experiment.labels}` under labels"
                    f"{nearest(experiment.labels, self.labels)}"
                )
            if experiment.network not in self.networks:
                raise ValueError(
                    f"experiments.{name}.network: no `{experiment.network}` under networks"
                    f"{nearest(experiment.network, self.networks)}"
                )
        return self
