"""`config.yaml` as a whole."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from beco.schema.base import Count, Fraction, Name, Section, nearest
from beco.schema.dataset import Dataset
from beco.schema.networks import Encoder, Network
from beco.schema.stage1 import Cam, Classifier, Labels
from beco.schema.stage2 import Prediction, Training


class Experiment(Section):
    """One line of the results table: labels × network × recipe × seeds."""

    labels: str = Field("crf", description="a name under `labels`, or `truth` for the training masks")
    network: str = Field("default", description="a name under `networks`")
    recipe: Literal["single", "cotraining", "beco"] = Field(description="how stage two learns")
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1, description="one training per seed")
    training: Training = Field(default_factory=Training, description="what differs from the common `training`")
    published: str | None = Field(
        None, description="the figure to stand beside ours in the tables, a key of beco/published.csv; null: none"
    )


class Shards(Section):
    """Into how many jobs the work over pictures is scattered."""

    cams: Count = Field(1, description="jobs for CAM inference")
    labels: Count = Field(2, description="jobs for CRF refinement")


class Quality(Section):
    """How the quality of the pseudo-labels is looked at; no label depends on it."""

    backgrounds: list[Fraction] = Field(
        [], description="background scores whose labels are scored, too (not kept): the sweep in the report"
    )
    apart: list[str] = Field(
        [], description="further split lists (voc): mIoU on their pictures apart, such as train within train_aug"
    )


class Compute(Section):
    """What to run on. Nothing here changes a result beyond rounding, so nothing here causes a rerun."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    devices: Count = Field(1, description="GPUs (or CPU processes) of one training; they share its batch")
    nodes: Count = Field(1, description="machines of one training, each with `devices`")
    compile: bool = Field(False, description="torch.compile the networks")
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
    quality: Quality = Field(default_factory=Quality)
    compute: Compute = Field(default_factory=Compute)
    gallery: Annotated[int, Field(ge=0)] = Field(24, description="pictures of each split in the report's gallery")

    def needed(self) -> dict[str, str]:
        """Files and folders that stages after the manifest start from, by the key that names them."""
        found = {"classifier.encoder.weights": self.classifier.encoder.weights}
        for name in sorted({experiment.network for experiment in self.experiments.values()}):
            found[f"networks.{name}.encoder.weights"] = self.networks[name].encoder.weights
        found |= {
            f"labels.{name}.source.path": recipe.source.path for name, recipe in self.labels.items() if recipe.source
        }
        return {key: path for key, path in found.items() if path not in (None, "imagenet", "classifier")}

    @model_validator(mode="after")
    def _names_exist(self) -> Config:
        if self.dataset.format == "voc" and not self.dataset.root:
            raise ValueError("dataset.root: missing; set it to the VOC2012 folder that holds JPEGImages")
        if self.quality.apart and self.dataset.format != "voc":
            raise ValueError("quality.apart names split lists, which only voc has; leave it out")
        if self.dataset.format == "folder":
            for key, what in {"root": "the folder of your pictures", "labels": "the CSV of their labels"}.items():
                if not getattr(self.dataset, key):
                    raise ValueError(f"dataset.{key}: missing; set it to {what}")
        if self.dataset.format == "coco" and not self.dataset.root:
            raise ValueError("dataset.root: missing; set it to the folder that holds annotations and the pictures")
        from beco.published import figures  # here: no stage but the tables depends on them

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
            if experiment.published is not None and experiment.published not in figures():
                raise ValueError(
                    f"experiments.{name}.published: no `{experiment.published}` in beco/published.csv"
                    f"{nearest(experiment.published, figures())}"
                )
        return self
