"""`config.yaml` as a whole."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from beco.schema.base import Count, Fraction, Name, Place, Section, braced, nearest
from beco.schema.dataset import Dataset
from beco.schema.networks import Encoder, Network
from beco.schema.slots import RECIPES
from beco.schema.stage1 import Cam, Classifier, Labels, Source, inputs_of
from beco.schema.stage2 import Prediction, Training

OF_ALL = "benchmarks comparisons dataset logs manifest.csv manifest.json masks report.html shards tables watched.json"
"""What lies in the folder of a dataset's results besides the folders of sources and labels."""
OF_LABELS = "cams.h5 classifier irn labels.h5 pairs.h5 quality scores.h5"
"""What lies in the folder of labels, and of a source of that name, besides the folders of experiments."""


class Started(Network):
    """A segmentation network, and whose classifier it starts from."""

    start: Name | None = Field(
        None,
        description="a name under `sources`, from whose classifier it starts (weights: classifier), whatever it learns "
        "from: only so does a comparison of labels compare labels; null: that of the experiment's labels",
    )

    @model_validator(mode="after")
    def _starts_from_a_classifier(self) -> Started:
        if self.start and self.encoder.weights != "classifier":
            raise ValueError("start: only with encoder.weights: classifier; set that, or leave start out")
        return self

    @property
    def alone(self) -> Network:
        """What a training is told of it, beside the classifier's file, by whose content the result is known."""
        return Network.model_validate(self.model_dump(exclude={"start"}))


class Experiment(Section):
    """One line of the results table: labels × network × recipe × seeds."""

    labels: str = Field("crf", description="a name under `labels`, or `truth` for the training masks")
    network: str = Field("default", description="a name under `networks`")
    recipe: Annotated[str, AfterValidator(RECIPES.check)] = Field(
        description="how stage two learns", json_schema_extra={"enum": list(RECIPES.files())}
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1, description="one training per seed")
    training: Training = Field(default_factory=Training, description="what differs from the common `training`")
    published: str | None = Field(
        None, description="the figure to stand beside ours, a key of beco/schema/published.csv; null: none"
    )


class Comparison(Section):
    """A table of its own: some of the experiments, as a paper would set them side by side."""

    title: str = Field("", description="what it is about, in a line")
    experiments: list[str] = Field(
        min_length=1,
        description="names under `experiments`, in this order; each is compared with the first of the same labels and "
        "networks",
    )
    vary: list[Annotated[str, Field(pattern=r"^(training|network|labels)(\.\w+)+$")]] = Field(
        [], description="settings with a column of their own, such as training.mix.probability or labels.background"
    )
    published: list[str] = Field(
        [], description="further published figures to stand beneath, keys of beco/schema/published.csv"
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

    results: Annotated[Place, AfterValidator(os.path.normpath)] = Field("results", description="folder of every output")
    dataset: Dataset = Field(default_factory=Dataset)
    encoders: dict[Name, Encoder] = Field(
        default_factory=dict,
        description="backbones by name; any `encoder` may be such a name, or {like: name, …}",
    )
    classifier: Classifier = Field(default_factory=Classifier, description="common to all sources")
    cam: Cam = Field(default_factory=Cam, description="common to all sources")
    sources: dict[Name, Source] = Field(
        default_factory=lambda: {"cam": Source()},
        min_length=1,
        description="where score maps come from, by name; without any: `cam`, made with `classifier` and `cam`",
    )
    labels: dict[Name, Labels] = Field(min_length=1, description="stage-one recipes by name")
    networks: dict[Name, Started] = Field(min_length=1, description="networks by name")
    training: Training = Field(default_factory=Training, description="common to all experiments")
    prediction: Prediction = Field(default_factory=Prediction)
    experiments: dict[Name, Experiment] = Field(min_length=1, description="lines of the table by name")
    comparisons: dict[Name, Comparison] = Field(
        default_factory=dict, description="tables of their own by name, made in <dataset>/comparisons"
    )
    quality: Quality = Field(default_factory=Quality)
    compute: Compute = Field(default_factory=Compute)
    gallery: Annotated[int, Field(ge=0)] = Field(
        24, description="pictures of each split in the report's gallery; 1449 of both make a page of 50 MB"
    )

    def needed(self) -> dict[str, str]:
        """Files and folders that stages after the manifest start from, by the key that names them."""
        found = {f"{key}.encoder.weights": self.sources[name].classifier.encoder.weights for name, key in self._keys()}
        for name in sorted({experiment.network for experiment in self.experiments.values()}):
            found[f"networks.{name}.encoder.weights"] = self.networks[name].encoder.weights
        found |= {
            f"labels.{name}.source.path": recipe.imported.path
            for name, recipe in self.labels.items()
            if recipe.imported
        }
        found |= {f"sources.{name}.text": self.sources[name].text for name in self.used_sources()}
        if any(self.saliency_of(name) for name in self.used_sources()):
            found["dataset.saliency"] = self.dataset.saliency
        return {key: path for key, path in found.items() if path not in (None, "imagenet", "classifier")}

    def saliency_of(self, source: str) -> str | None:
        """The saliency maps of a source whose method wants them: a folder, or `shapes` for its true objects."""
        if "saliency" not in inputs_of(self.sources[source].method, self.sources[source].options):
            return None
        return self.dataset.saliency or ("shapes" if self.dataset.format == "shapes" else None)

    def classifiers(self) -> dict[str, Classifier]:
        """The classifier of each source that something is made of, by the key that sets it."""
        return {key: self.sources[name].classifier for name, key in self._keys()}

    def _keys(self) -> list[tuple[str, str]]:
        """The names of the sources that something is made of, and where the classifier of each is set: where it is the
        common one, there.
        """
        own = {name: self.sources[name].classifier != self.classifier for name in self.used_sources()}
        return [(name, f"sources.{name}.classifier" if differs else "classifier") for name, differs in own.items()]

    def used_sources(self) -> list[str]:
        """The sources whose score maps or networks something is made of, in their order; at least the first."""
        used = {next(iter(self.sources)), *(self.source_of(name) for name in self.labels)}
        used |= {self.start_of(name) for name in self.experiments}
        for name in reversed(self.in_order()):
            used |= set(self._origins(name)) if name in used else set()
        return [name for name in self.sources if name in used]

    def source_of(self, labels: str) -> str:
        """The source of a stage-one recipe: of imported labels and of the training masks, the first."""
        named = self.labels[labels].source if labels in self.labels else None
        return named if isinstance(named, str) else next(iter(self.sources))

    def start_of(self, experiment: str) -> str:
        """The source whose classifier the networks of an experiment start from, if they start from one."""
        found = self.experiments[experiment]
        return self.networks[found.network].start or self.source_of(found.labels)

    def _origins(self, source: str) -> list[str]:
        """The sources that a source is made of."""
        found = self.sources[source]
        return [*([found.start] if found.start else []), *([self.source_of(found.labels)] if found.labels else [])]

    def in_order(self) -> list[str]:
        """The sources, each after those that it is made of; ValueError if one is made of itself."""
        made: list[str] = []
        while len(made) < len(self.sources):
            ready = [name for name in self.sources if name not in made and set(self._origins(name)) <= set(made)]
            if not ready:
                name = next(name for name in self.sources if name not in made)
                raise ValueError(f"sources.{name}: made of itself, by way of start or labels; name others")
            made += ready
        return made

    def pairs_of(self, name: str) -> str | None:
        """The CRF recipe whose labels the IRN of a recipe learns from, where one has the same settings; else None."""
        wanted = self.labels[name].for_pairs()
        settings = wanted.model_dump(include=wanted.label_keys())
        for other, recipe in self.labels.items():
            alike = recipe.refine == "crf" and recipe.model_dump(include=recipe.label_keys()) == settings
            if alike and self.source_of(other) == self.source_of(name):
                return other
        return None

    def scores_of(self, name: str) -> str | None:
        """The recipe after whose IRN's walk a recipe makes its labels, shared by those of one IRN; None: the CAMs."""
        recipe = self.labels[name]
        if recipe.refine != "irn":
            return None

        def walk(other: str) -> tuple[str, dict[str, Any]]:
            entry = self.labels[other]
            keys = {"refine", "irn"} | entry.for_pairs().label_keys()
            return self.source_of(other), entry.model_dump(include=keys)

        return next(other for other in self.labels if walk(other) == walk(name))

    def has_first(self, experiment: str) -> bool:
        """Whether the first network of an experiment is predicted and scored alone, beside the average of all."""
        several = RECIPES.fact(self.experiments[experiment].recipe, "NETWORKS") > 1
        return several and self.prediction.networks == "both"

    def swept_settings(self, name: str) -> str:
        """What a sweep depends on, as JSON: of a CRF recipe the CRF; its thresholds are what is swept."""
        recipe = self.labels[name]
        return recipe.model_dump_json(include={"refine", "crf", "unary"} & recipe.label_keys())

    def swept(self) -> list[str]:
        """The recipes that are swept, if any: not imports, and of those that are swept alike the first."""
        first: dict[tuple[str, str | None, str], str] = {}
        for name, recipe in self.labels.items():
            if recipe.refine != "import":
                first.setdefault((self.swept_settings(name), self.scores_of(name), self.source_of(name)), name)
        return list(first.values()) if self.quality.backgrounds else []

    @model_validator(mode="after")
    def _no_braces(self) -> Config:
        """Paths, lists and settings are parameters of Snakemake's rules, where braces hold its wildcards."""
        for path, text in braced(self.model_dump(mode="json")):
            raise ValueError(f"{path}: `{text}`: braces mean something to Snakemake; choose a name without them")
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> Config:
        """Every name is a folder of its own, and part of the names of logs, where dots stand between the parts."""
        if "truth" in self.labels:
            raise ValueError("labels.truth is reserved for the training masks; choose another name")
        taken = {"sources": OF_ALL, "labels": OF_ALL, "experiments": OF_LABELS}
        for section, names in taken.items():
            if found := set(names.split()).intersection(getattr(self, section)):
                raise ValueError(f"{section}.{min(found)}: results of another kind are called so; choose another name")
        first: dict[str, str] = {}
        for name, experiment in self.experiments.items():
            other = first.setdefault(f"{experiment.labels}.{name}", name)
            if other != name:
                raise ValueError(f"experiments.{name}: its logs are called as those of {other}; choose another name")
        return self

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
        from beco.schema.published import misfit, unknown

        for name, recipe in self.labels.items():
            self._named(f"labels.{name}.source", recipe.source, self.sources, "sources")
        for name, source in self.sources.items():
            self._named(f"sources.{name}.start", source.start, self.sources, "sources")
            self._named(f"sources.{name}.labels", source.labels, self.labels, "labels")
            if "saliency" in inputs_of(source.method, source.options) and not self.saliency_of(name):
                raise ValueError(
                    f"dataset.saliency: missing, but `{source.method}` (sources.{name}) needs it; set it to a folder "
                    "of saliency maps"
                )
        for name, network in self.networks.items():
            self._named(f"networks.{name}.start", network.start, self.sources, "sources")
        self.in_order()
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
            if experiment.published is not None:
                where = f"experiments.{name}.published", experiment.published
                if wrong := unknown(*where) or misfit(*where, self._protocol(experiment)):
                    raise ValueError(wrong)
        return self

    @staticmethod
    def _named(where: str, name: object, known: dict[str, Any], section: str) -> None:
        if isinstance(name, str) and name not in known:
            raise ValueError(f"{where}: no `{name}` under {section}{nearest(name, known)}")

    def _protocol(self, experiment: Experiment) -> dict[str, bool]:
        """What holds of how an experiment is measured, in the words of `beco/schema/published.csv`."""
        alone = RECIPES.fact(experiment.recipe, "NETWORKS") == 1
        one = alone or self.prediction.networks == "first"
        return {
            "two networks": not one,
            "one of the two networks": one and not alone,
            "no CRF": self.prediction.crf is None,
            "squeezed to 512×512": self.prediction.squeeze == 512,
            "scored at own size": self.prediction.scored_side is None,
        }

    @model_validator(mode="after")
    def _classifiers_start_from_something(self) -> Config:
        for where, settings in self.classifiers().items():
            if settings.encoder.weights == "classifier":
                raise ValueError(
                    f"{where}.encoder.weights: the classifier cannot start from itself; name a file, imagenet, or null"
                )
            fixed = "batch_norm" if settings.batch_norm == "fixed" else ""
            key = "frozen_stages" if settings.frozen_stages is not None else fixed
            if key and settings.encoder.weights is None:
                raise ValueError(
                    f"{where}.{key}: keeps what the weights know, but {where}.encoder.weights is null; name weights, "
                    f"or leave {key} out"
                )
        return self

    @model_validator(mode="after")
    def _irn_has_weights(self) -> Config:
        for name, recipe in self.labels.items():
            if recipe.refine != "irn" or recipe.irn.start != "encoder":
                continue
            source = self.source_of(name)
            if self.sources[source].classifier.encoder.weights is None:
                where = dict(self._keys())[source]
                raise ValueError(
                    f"labels.{name}.irn.start: encoder, but {where}.encoder.weights is null, and IRN's backbone "
                    "never learns; set start to classifier, or name weights"
                )
        return self

    @model_validator(mode="after")
    def _comparisons_exist(self) -> Config:
        from beco.schema.published import unknown

        for name, comparison in self.comparisons.items():
            for key in comparison.published:
                if wrong := unknown(f"comparisons.{name}.published", key):
                    raise ValueError(wrong)
            twice = {item for item in comparison.experiments if comparison.experiments.count(item) > 1}
            if twice:
                raise ValueError(f"comparisons.{name}.experiments: `{min(twice)}` comes twice; list it once")
            for item in comparison.experiments:
                if item not in self.experiments:
                    near = nearest(item, self.experiments)
                    raise ValueError(f"comparisons.{name}.experiments: no `{item}` under experiments{near}")
                for path in comparison.vary:
                    self._setting(f"comparisons.{name}.vary", self.experiments[item], path)
        return self

    def _setting(self, where: str, experiment: Experiment, path: str) -> None:
        """Refuse a path of `vary` that names no setting of an experiment."""
        part, *keys = path.split(".")
        sections: dict[str, Section | None] = {
            "training": experiment.training,
            "network": self.networks[experiment.network].alone,
            "labels": self.labels.get(experiment.labels),
        }
        found: object = sections[part]
        for key in keys:
            if isinstance(found, Section) and key not in type(found).model_fields:
                raise ValueError(f"{where}: no setting `{path}`{nearest(key, list(type(found).model_fields))}")
            found = getattr(found, key, None)
