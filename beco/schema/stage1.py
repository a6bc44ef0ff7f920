"""Stage one: the classifier, its activation maps, and what is made of them."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError, create_model, model_validator

from beco.schema.base import Count, Fraction, Name, Place, Positive, Section, nearest
from beco.schema.facts import Option
from beco.schema.networks import Encoder
from beco.schema.optimisation import ClassifierOptimiser, Crop, Schedule
from beco.schema.slots import LOCALISERS

IMPORTED, NAMED, SCORE, RULE = KINDS = ("@import", "@name", "@score", "@rule")
"""What pydantic's errors say of the kind of a value that may be of two; no key begins like that."""


class Classifier(Section):
    """The multi-label classifier whose activation maps become pseudo-labels."""

    encoder: Encoder = Field(default_factory=Encoder, description="backbone")
    output_stride: Literal[8, 14, 16, 32] = Field(
        16, description="stride of the deepest features; of a plain transformer its patch"
    )
    dilate: bool = Field(
        True,
        description="how that stride is reached: strided stages dilated instead, or (false, IRN) their strides removed",
    )
    frozen_stages: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="0: the stem, up to features at stride 2, learns nothing; n: nor do the first n stages, of which "
        "the first ends at stride 4 (IRN: 2); null: all learns",
    )
    batch_norm: Literal["batch", "fixed"] = Field(
        "batch",
        description="statistics that the backbone trains with: the batch's, or (IRN) those of its starting weights; "
        "scale and shift learn either way",
    )
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


class Source(Section):
    """A source of score maps: a localiser, how it learns, and how its maps are inferred."""

    method: Annotated[str, AfterValidator(LOCALISERS.check)] = Field(
        "cam", description="the localiser", json_schema_extra={"enum": list(LOCALISERS.files())}
    )
    classifier: Classifier = Field(default_factory=Classifier, description="what differs from the common `classifier`")
    cam: Cam = Field(default_factory=Cam, description="what differs from the common `cam`")
    options: dict[str, Any] = Field(default_factory=dict, description="settings of the method alone")
    labels: Name | None = Field(None, description="a name under `labels` to learn from, where the method wants labels")
    start: Name | None = Field(
        None, description="a name under `sources` whose network it goes on from, where the method wants one"
    )
    text: Place | None = Field(
        None, description="a file of `beco text-features`: what the classes are called, where the method wants it"
    )

    @staticmethod
    def inputs() -> dict[str, str]:
        """What a localiser may want besides pictures and their labels, and what to write to give it."""
        return {
            "labels": "labels: a name under labels",
            "start": "start: a name under sources, whose network it goes on from",
            "text": "text: a file of `beco text-features`",
        }

    def tried(self) -> dict[str, Any]:
        """The options that `beco plan` tries with other values, and these: those by which the work follows from what a
        network has learnt, of which a trial's knows next to nothing.
        """
        return {name: one.tried for name, one in _options(self.method).items() if one.tried is not None}

    def parted_options(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options of its training, and those that only its maps follow from."""
        late = options_of(self.method, of_maps=True).model_fields
        own = {name: value for name, value in self.options.items() if name not in late}
        return own, {name: self.options[name] for name in late}

    @model_validator(mode="after")
    def _as_its_method_wants(self) -> Source:
        object.__setattr__(self, "options", read_options(self.method, self.options))
        wanted = inputs_of(self.method, self.options)
        for key, words in self.inputs().items():
            given = getattr(self, key) is not None
            if given and key not in wanted:
                raise ValueError(f"{key}: `{self.method}` does not use it; leave it out")
            if key in wanted and not given:
                raise ValueError(f"{key}: `{self.method}` needs it; write {words}")
        return self


def read_options(method: str, values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a localiser's own, complete; ValueError naming the first that is wrong."""
    model = options_of(method)
    try:
        return model.model_validate(values).model_dump()
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        if wrong["type"] == "extra_forbidden":
            known = nearest(key, model.model_fields) or f"; `{method}` has no options, so remove it"
            raise ValueError(f"options.{key}: unknown key{known}") from None
        raise ValueError(f"options.{key}: {wrong['msg'][0].lower()}{wrong['msg'][1:]}") from None


@cache
def options_of(method: str, of_maps: bool = False) -> type[Section]:
    """The settings of a localiser's own as a section, from the OPTIONS of its file; `of_maps`: those that no training
    looks at alone.

    Each is `name: {default, description}` and, where there are any, `of_maps: True`, its bounds `gt`, `ge`, `lt`, `le`,
    `multiple_of` or its `choices`, with what some of them `want`, see `inputs_of`. Its type is the default's. Those of
    the localiser that the file EXTENDS, and of what that one does, come first, unless it has its own.
    """
    options = {name: option for name, option in _options(method).items() if option.of_maps or not of_maps}
    fields: dict[str, Any] = {name: option.field() for name, option in options.items()}
    said = f"What is set of `{method}` alone; what it computes is told by its file."
    return create_model(f"Options of {method}", __base__=Section, __doc__=said, **fields)


def inputs_of(method: str, options: dict[str, Any], when: str = "INPUTS") -> tuple[str, ...]:
    """What a localiser with these options, complete, wants besides pictures and their labels in its training (INPUTS)
    or for its maps (MAP_INPUTS): what its file says, and in both what its options are chosen to want.
    """
    chosen = [option.want.get(options[name], ()) for name, option in _options(method).items()]
    return (*LOCALISERS.fact(method, when), *(one for inputs in chosen for one in inputs))


def _options(method: str) -> dict[str, Option]:
    """OPTIONS of a localiser, after those of all that it extends."""
    options: dict[str, Option] = {}
    for one in reversed(LOCALISERS.lineage(method)):
        options |= LOCALISERS.fact(one, "OPTIONS")
    return options


class Crf(Section):
    """Fully connected CRF (Krähenbühl & Koltun 2011), with IRN's values as defaults."""

    backend: Literal["torch", "pydensecrf"] = Field(
        "torch", description="ours, or the C++ package, which is an optional extra; the same labels"
    )
    iterations: Count = Field(10, description="mean-field iterations")
    gt_prob: Annotated[float, Field(gt=0, lt=1)] = Field(0.7, description="belief in the label that comes in")
    gaussian_sxy: Positive = Field(3.0, description="width of the smoothness kernel, pixels")
    gaussian_compat: Positive = Field(3.0, description="weight of the smoothness kernel")
    bilateral_sxy: Positive = Field(50.0, description="spatial width of the appearance kernel, pixels")
    bilateral_srgb: Positive = Field(5.0, description="colour width of the appearance kernel, 0-255 levels")
    bilateral_compat: Positive = Field(10.0, description="weight of the appearance kernel")


class Irn(Section):
    """Inter-pixel relation network and its semantic random walk (Ahn et al. 2019), with their code's values.

    But for `start` and `crop`, where it has start: encoder and crop: {rescale: [0.5, 1.5]}.
    """

    start: Literal["classifier", "encoder"] = Field(
        "classifier",
        description="weights of its frozen backbone: the trained classifier's, or (published) those that the "
        "classifier's encoder starts from",
    )
    crop: Crop = Field(default_factory=lambda: Crop(scales=[0.5, 1.0, 1.5]), description="weak augmentation")
    schedule: Schedule = Field(
        default_factory=lambda: Schedule(epochs=3, batch_size=32), description="length and batch"
    )
    optimiser: ClassifierOptimiser = Field(default_factory=ClassifierOptimiser, description="optimiser")
    radius: Annotated[int, Field(ge=2)] = Field(
        10, description="training compares pixels that are less than this apart, at stride 4"
    )
    walk_radius: Annotated[int, Field(ge=2)] = Field(
        5, description="steps of the random walk are shorter than this, at stride 4"
    )
    beta: Positive = Field(10.0, description="power to which affinities are raised before the walk")
    squarings: Annotated[int, Field(ge=0, le=16)] = Field(
        8, description="the walk takes 2^squarings steps (code: exp_times)"
    )
    cam_power: Positive = Field(
        1.0, description="power to which class maps are raised before the walk (RIB's and AMN's code: 1.3)"
    )
    resize: Annotated[int, Field(ge=32)] | None = Field(
        None, description="long side of the picture for the walk, pixels; null: the picture's own size"
    )
    seed: int = Field(0, ge=0, description="seed of initialisation and augmentation")

    def walk_keys(self) -> set[str]:
        """The settings of the random walk alone: a change of them trains nothing again."""
        return {"walk_radius", "beta", "squarings", "resize", *({"cam_power"} if self.cam_power != 1 else ())}

    def training_keys(self) -> set[str]:
        """The settings of the training."""
        return set(type(self).model_fields) - self.walk_keys() - {"cam_power"}


class Import(Section):
    """Pseudo-labels that another program made, see `beco import-labels`."""

    path: Place = Field(
        description="the folder of its files; score maps without one for the background have to lie within 0 and 1"
    )
    format: str = Field("auto", description="auto, or one of those that `beco import-labels --help` lists")


def _is_number(text: str) -> bool:
    """Whether a text is a number, as entries of Snakemake's `--config` may be."""
    try:
        float(text)
    except ValueError:
        return False
    return True


Rule = Literal["otsu", "otsu_pooled", "li", "power"]
Background = Annotated[
    Annotated[Fraction, Tag(SCORE)] | Annotated[Rule, Tag(RULE)],
    Discriminator(lambda given: RULE if isinstance(given, str) and not _is_number(given) else SCORE),
]
"""A score that background has, or how a picture's own maps give it, see `beco.stage1.refine.thresholds`."""


class Labels(Section):
    """A stage-one recipe: from CAMs to pseudo-labels with confidence."""

    refine: Literal["none", "crf", "irn", "import"] = Field(
        "crf", description="none: threshold the CAMs; crf: IRN's two CRF runs; irn: its random walk; import: see source"
    )
    background: Background = Field(
        0.15,
        description="score of the background (refine: none; irn, where 0.25 is published), or a rule that needs no "
        "masks and serves crf, too: otsu, for each class of each picture; otsu_pooled, one for a picture; li; or "
        "power: at each pixel a power of what its best class leaves of 1",
    )
    foreground_threshold: Fraction = Field(
        0.30, description="background score in the run whose foreground is believed (refine: crf, without a rule)"
    )
    background_threshold: Fraction = Field(
        0.05, description="background score in the run whose background is believed (refine: crf, without a rule)"
    )
    foreground_margin: Fraction = Field(
        0.1,
        description="with a rule, how much higher the score is in the run whose foreground is believed (refine: crf)",
    )
    background_margin: Fraction = Field(
        0.1,
        description="with a rule, how much lower the score is in the run whose background is believed (refine: crf)",
    )
    power: Positive = Field(6.0, description="that power (background: power with refine: none or irn)")
    foreground_power: Positive = Field(
        4.0, description="the lower power, of the run whose foreground is believed (background: power, refine: crf)"
    )
    background_power: Positive = Field(
        24.0, description="the higher power, of the run whose background is believed (background: power, refine: crf)"
    )
    unary: Literal["labels", "scores"] = Field(
        "labels",
        description="what the CRF starts from (refine: crf): the label of the best score, believed with gt_prob (IRN), "
        "or the scores themselves (PSA)",
    )
    crf: Crf = Field(
        default_factory=Crf,
        description="parameters of the CRF (refine: crf); with unary: scores PSA's, bilateral_sxy 80 and "
        "bilateral_srgb 13, are the defaults",
    )
    irn: Irn = Field(default_factory=Irn, description="training and random walk (refine: irn)")
    source: (
        Annotated[
            Annotated[Name, Tag(NAMED)] | Annotated[Import, Tag(IMPORTED)],
            Discriminator(lambda given: NAMED if isinstance(given, str) else IMPORTED),
        ]
        | None
    ) = Field(
        None, description="a name under `sources`, null: the first; or what to import: {path, format} (refine: import)"
    )

    @property
    def imported(self) -> Import | None:
        """What is imported, if it is."""
        return self.source if isinstance(self.source, Import) else None

    def label_keys(self) -> set[str]:
        """The settings that the labels follow from, given the CAMs or, with refine: irn, the scores of the walk."""
        rule = self.background if isinstance(self.background, str) else None
        if self.refine in ("none", "irn"):
            return {"refine", "background", *(["power"] if rule == "power" else [])}
        if self.refine != "crf":
            return {"refine"}
        kind = "threshold" if rule is None else "power" if rule == "power" else "margin"
        scores = {f"foreground_{kind}", f"background_{kind}", *(["background"] if rule else [])}
        return {"refine", "crf", *scores, *(["unary"] if self.unary != "labels" else [])}

    def one_score(self) -> tuple[Background, float]:
        """Background score, and its power where it is one (refine: none, irn): as `with_background` takes them."""
        return self.background, self.power if self.background == "power" else 0.0

    def two_scores(self) -> tuple[tuple[Background, float], tuple[Background, float]]:
        """Background scores of the runs whose foreground and whose background is believed, each with what is added to
        it, or its power (refine: crf).
        """
        if self.background == "power":
            return ("power", self.foreground_power), ("power", self.background_power)
        if isinstance(self.background, str):
            return (self.background, self.foreground_margin), (self.background, -self.background_margin)
        return (self.foreground_threshold, 0.0), (self.background_threshold, 0.0)

    def for_pairs(self) -> Labels:
        """The recipe of the confident labels that IRN learns from (refine: irn): its own, by CRF."""
        return self.model_copy(update={"refine": "crf"})

    @model_validator(mode="before")
    @classmethod
    def _kernels_for_scores(cls, given: Any) -> Any:
        """The CRF's own defaults where it starts from scores."""
        if isinstance(given, dict) and given.get("unary") == "scores" and isinstance(given.get("crf", {}), dict):
            return {**given, "crf": {"bilateral_sxy": 80.0, "bilateral_srgb": 13.0, **given.get("crf", {})}}
        return given

    @model_validator(mode="after")
    def _means_something(self) -> Labels:
        """Refuse what would be without effect; what is as by default may stand anywhere."""
        two, power = self.refine in ("crf", "irn"), self.background == "power"
        number = not isinstance(self.background, str)
        idle = {
            # thresholds and margins may stand beside a rule of the other kind, which a later layer has put there
            "background": (not number or self.refine != "crf", "refine: none, irn or import, or as a rule (otsu, …)"),
            "power": (power and self.refine in ("none", "irn"), "background: power with refine: none or irn"),
            "foreground_power": (power and two, "background: power with refine: crf or irn"),
            "background_power": (power and two, "background: power with refine: crf or irn"),
            "unary": (two, "refine: crf or irn"),
        }
        for key, (used, by) in idle.items():
            default = type(self).model_fields[key].default
            if not used and getattr(self, key) != default:
                raise ValueError(f"{key}: without effect but for {by}; set that, or leave {key} out (as {default})")
        if self.irn.cam_power != 1 and self.refine != "irn":
            raise ValueError("irn.cam_power: without effect but for refine: irn; set that, or leave it out")
        if self.unary == "scores" and self.background in ("otsu", "otsu_pooled", "li"):
            raise ValueError(
                f"unary: scores needs the background's score beside the classes', and {self.background} takes it off "
                "theirs; write background: power, leave it out (two scores), or write unary: labels"
            )
        if self.unary == "scores" and self.crf.gt_prob != Crf.model_fields["gt_prob"].default:
            raise ValueError("crf.gt_prob: without effect with unary: scores, which believes no label; leave it out")
        if two and power and self.foreground_power > self.background_power:
            raise ValueError("background_power must not be below foreground_power: the higher, the less is background")
        return self

    @model_validator(mode="after")
    def _thresholds_ordered(self) -> Labels:
        if self.refine == "import" and self.imported is None:
            raise ValueError("refine: import needs a source, such as source: {path: pseudo_masks}")
        if self.refine == "import" and isinstance(self.background, str):
            raise ValueError(f"background: {self.background} is for our own score maps; write a score")
        if self.refine != "import" and self.imported is not None:
            raise ValueError("source: a folder is imported with refine: import; set that, or name one of `sources`")
        fixed = not isinstance(self.background, str) and self.refine in ("crf", "irn")
        if fixed and self.foreground_threshold <= self.background_threshold:
            raise ValueError("foreground_threshold must exceed background_threshold")
        return self
