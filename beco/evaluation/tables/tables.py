"""The tables: joined from the `metrics.json` and CSV files of runs and pseudo-labels, and from the published figures.

Frames and their CSV files hold shares from 0 to 1 and empty fields where no number exists; `table_files` prints them in
percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from beco.artifacts.files import read_json, unreadable
from beco.artifacts.supervision import MASKS, UNKNOWN, said_by
from beco.config import Comparison
from beco.errors import UserError
from beco.schema.published import figures
from beco.schema.slots import RECIPES

FIRST = "first"
"""The folder in a run's for what its first network says alone."""


@dataclass(frozen=True)
class Run:
    """One training of one experiment with one seed, evaluated."""

    experiment: str
    seed: int
    labels: str
    """The pseudo-labels it learnt from, or `truth`."""
    folder: Path
    """Holds what `evaluate_predictions` wrote, history.csv, training.json and predictions/."""
    first: bool = False
    """Whether the first network alone is to stand beside the average of all; `first/` in `folder` has its scores."""

    def metrics(self) -> dict[str, Any]:
        """What `evaluate_predictions` wrote."""
        return _metrics(self.folder / "metrics.json")

    def training(self) -> dict[str, Any]:
        """Settings, hashes of inputs, commit, device and seconds of the training; empty if not kept."""
        path = self.folder / "training.json"
        return read_json(path) if path.is_file() else {}

    def miou_first(self) -> float | None:
        """mIoU of the first network alone, in [0, 1]: of a run of one network its own. None without masks."""
        recipe, metrics = self.training().get("recipe"), self.metrics()
        alone = recipe is not None and RECIPES.fact(recipe, "NETWORKS") == 1
        if not alone and metrics.get("protocol", {}).get("networks") != "first":
            metrics = _metrics(self.folder / FIRST / "metrics.json")
        found: float | None = metrics["miou"]
        return found


@dataclass(frozen=True)
class LabelSource:
    """Pseudo-labels of one stage-one recipe, evaluated on the training split."""

    name: str
    folder: Path
    """Holds labels.h5 and quality/ with what `evaluate_labels` wrote."""
    source: str = ""
    """The name of the `MapSource` that they are made from; empty: of none, or unknown."""

    @property
    def quality(self) -> Path:
        """The folder that `evaluate_labels` wrote."""
        return self.folder / "quality"

    def metrics(self) -> dict[str, Any]:
        """What `evaluate_labels` wrote."""
        return _metrics(self.quality / "metrics.json")


@dataclass(frozen=True)
class MapSource:
    """A source of score maps: a localiser and what it says of the training pictures."""

    name: str
    folder: Path
    """Holds `cams.h5` and `classifier/`, each if it was made."""

    def checked(self) -> MapSource:
        """Itself; `UserError` if there is nothing of a source in its folder."""
        if not (self.maps.is_file() or (self.classifier / "classifier.json").is_file()):
            raise UserError(
                f"{self.folder}: holds neither cams.h5 nor classifier/classifier.json; give a source's folder"
            )
        return self

    @property
    def maps(self) -> Path:
        """Its score maps."""
        return self.folder / "cams.h5"

    @property
    def classifier(self) -> Path:
        """The folder of its training."""
        return self.folder / "classifier"


@dataclass(frozen=True)
class Results:
    """What tables and report are made from."""

    runs: list[Run] = field(default_factory=list)
    """Trainings with their metrics and predictions; experiments appear in this order."""
    labels: list[LabelSource] = field(default_factory=list)
    sources: list[MapSource] = field(default_factory=list)
    published: Mapping[str, str] = field(default_factory=dict)
    """Keys of `beco/schema/published.csv` by experiment."""
    compared: Mapping[str, Comparison] = field(default_factory=dict)
    """Comparisons by name."""


def _metrics(path: Path) -> dict[str, Any]:
    metrics = read_json(path)
    if not isinstance(metrics, dict) or "miou" not in metrics:
        raise UserError(f"{path}: holds no metrics; remove it and run `beco evaluate` again")
    return metrics


# --- joining ------------------------------------------------------------------------------------------------

RUN_NUMBERS = ["miou", "boundary_iou", "pixel_accuracy"]


def run_table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run: experiment, seed, labels, three metrics, protocol, pictures, what it ran on.

    Where a run has `first`, there is also `miou_first`, see `Run.miou_first`.
    """
    runs, rows = list(runs), []
    first = ["miou_first"] * any(run.first for run in runs)
    for run in runs:
        metrics, training = run.metrics(), run.training()
        rows.append(
            {
                "experiment": run.experiment,
                "seed": run.seed,
                "labels": run.labels,
                **{key: metrics.get(key) for key in RUN_NUMBERS},
                **({"miou_first": run.miou_first()} if run.first else {}),
                "protocol": run_protocol(run),
                "split": metrics.get("split"),
                "pictures": metrics.get("pictures"),
                **{key: training.get(key) for key in ("seconds", "device", "commit")},
                "folder": str(run.folder),
            }
        )
    columns = ["experiment", "seed", "labels", *RUN_NUMBERS, *first, "protocol", "split", "pictures"]
    frame = pd.DataFrame(rows, columns=[*columns, "seconds", "device", "commit", "folder"])
    return frame.astype(dict.fromkeys([*RUN_NUMBERS, *first], float))


def recipe_table(
    runs: Iterable[Run], label_sources: Iterable[LabelSource], published: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """One row per experiment, in the order given: what its labels were made from (`supervision`), means over seeds, and
    how far the labels lie below.

    `miou_std` is the sample standard deviation (ddof = 1), empty for one seed; with `miou_first` in `run_table` there
    are its mean and `miou_first_std`, too. `difference` is `miou` (on the evaluation split) minus `labels_miou` (of the
    pseudo-labels, on the training split): the pictures differ.
    `published` names a row of `beco/schema/published.csv` for some of the experiments; `published` (a share),
    `published_protocol` and `published_source` come from there, and `minus_published` is `miou` less it.
    """
    quality = {source.name: source.metrics() for source in label_sources}
    supervised = {"truth": MASKS} | {name: supervision_text(metrics) for name, metrics in quality.items()}
    rows, table = [], run_table(runs)
    first = ["miou_first", "miou_first_std"] * ("miou_first" in table)
    for name, group in table.groupby("experiment", sort=False):
        labels = group["labels"].iloc[0]
        rows.append(
            {
                "experiment": name,
                "labels": labels,
                "supervision": supervised.get(labels, UNKNOWN),
                "miou": group["miou"].mean(),
                "miou_std": group["miou"].std(ddof=1),
                **({"miou_first": group["miou_first"].mean()} if first else {}),
                **({"miou_first_std": group["miou_first"].std(ddof=1)} if first else {}),
                "seeds": len(group),
                "boundary_iou": group["boundary_iou"].mean(),
                "pixel_accuracy": group["pixel_accuracy"].mean(),
                "protocol": " / ".join(dict.fromkeys(group["protocol"])),
                "labels_miou": quality.get(labels, {}).get("miou"),
            }
        )
    columns = [
        "experiment",
        "labels",
        "supervision",
        "miou",
        "miou_std",
        *first,
        "seeds",
        "boundary_iou",
        "pixel_accuracy",
        "protocol",
    ]
    frame = pd.DataFrame(rows, columns=[*columns, "labels_miou"]).astype({"labels_miou": float, "miou": float})
    frame["difference"] = frame["miou"] - frame["labels_miou"]
    named = [figures().get((published or {}).get(str(name), "")) for name in frame["experiment"]]
    frame["published"] = pd.Series([figure.miou if figure else None for figure in named], dtype=float)
    frame["minus_published"] = frame["miou"] - frame["published"]
    frame["published_protocol"] = [figure.protocol if figure else "" for figure in named]
    frame["published_source"] = [figure.source if figure else "" for figure in named]
    return frame


def class_table(runs: Iterable[Run], label_sources: Iterable[LabelSource]) -> pd.DataFrame:
    """IoU by class: one row per class, one column per pseudo-label source (`labels <name>`) and experiment.

    An experiment's is the mean over the seeds in which the class has an IoU: in another it may be neither true nor
    predicted.
    """
    columns: dict[str, pd.Series] = {}
    for source in label_sources:
        columns[f"labels {source.name}"] = _iou_by_class(source.quality)
    seeds: dict[str, list[pd.Series]] = {}
    for run in runs:
        seeds.setdefault(run.experiment, []).append(_iou_by_class(run.folder))
    for name, series in seeds.items():
        columns[name] = pd.concat(series, axis=1).mean(axis=1)
    frame = pd.concat(columns, axis=1, sort=False) if columns else pd.DataFrame()
    return frame.rename_axis("class").reset_index()


def _iou_by_class(folder: Path) -> pd.Series:
    return read_csv(folder / "per_class.csv").set_index("class")["iou"].astype(float)


def classifier_table(sources: list[MapSource]) -> pd.DataFrame:
    """Average precision by class of every source that has a `classifier.json`, the mean as its last row."""
    rows = []
    for source in sources:
        path = source.classifier / "classifier.json"
        if not path.is_file():
            continue
        values = read_json(path)
        if not isinstance(values, dict) or not isinstance(values.get("ap"), dict):
            raise UserError(f"{path}: holds no precision by class; run beco train-classifier again")
        rows += [(source.name, name, ap) for name, ap in [*values["ap"].items(), ("mean", values.get("map"))]]
    return pd.DataFrame(rows, columns=["source", "class", "ap"]).astype({"ap": float})


def read_csv(path: Path) -> pd.DataFrame:
    """Read one of our CSV files; ids and class names stay text, even `007`, `NA` and `null`."""
    try:
        text = {"image_id": str, "class": str}
        return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run the stage that makes it first") from error
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "not readable as CSV; remove it and run its stage again") from error


# --- words --------------------------------------------------------------------------------------------------


def supervision_text(metrics: Mapping[str, Any]) -> str:
    """What labels were made from, as their `metrics.json` says it: `image labels + saliency`."""
    return " + ".join(said_by(metrics))


def run_protocol(run: Run) -> str:
    """How the numbers of a run came about: its inference, and which of its epochs was measured."""
    protocol, training = run.metrics().get("protocol", {}), run.training()
    if "recipe" in training and protocol.get("networks") == "all":
        protocol = {**protocol, "networks": RECIPES.fact(training["recipe"], "NETWORKS")}
    return protocol_text(protocol, training.get("settings", {}).get("choose"))


def protocol_text(protocol: dict[str, Any], choose: str | None = None) -> str:
    """A protocol in few words: `scale 1, no flip, own size, all networks, no CRF, last epoch`.

    `protocol` is what `metrics.json` keeps of the settings of the prediction, which may be fewer in older files; keys
    that are not known come as `key value`. `choose` is `training.choose`; None says nothing about the epoch.
    """
    parts = [_protocol_part(key, value, protocol) for key, value in protocol.items()]
    if choose is not None:
        parts.append({"last": "last epoch", "best": "best epoch on val"}.get(choose, f"epoch: {choose}"))
    return ", ".join(part for part in parts if part)


def _protocol_part(key: str, value: Any, protocol: dict[str, Any]) -> str:
    """What one key says; empty if it says nothing beside the others."""
    if key == "scales" and isinstance(value, list):
        return f"scale{'s' if len(value) > 1 else ''} " + "+".join(f"{scale:g}" for scale in value)
    if key == "flip":
        return "flip" if value else "no flip"
    if key == "merge":
        return _merge_part(value, protocol)
    if key == "resize":
        return f"long side {value} px" if value else "" if protocol.get("squeeze") else "own size"
    if key == "squeeze":
        return f"squeezed to {value}×{value}, {_where_scored(protocol)}" if value else ""
    if key == "networks":
        return f"{value} network{'s' if value in ('all', 2) else ''}"
    if key == "crf":
        return _crf_part(value)
    if key == "masks":
        return _masks_part(value) if value else ""
    if key in UNNAMED:
        return ""
    if isinstance(value, bool):
        return key if value else f"no {key}"
    return f"{key} {value}"


UNNAMED = ("batch_size", "score_at")  # changes no number; is said with `squeeze`


def _where_scored(protocol: dict[str, Any]) -> str:
    """Where squeezed pictures are scored; a protocol without `score_at` is older than that key."""
    return "scored at own size" if protocol.get("score_at") == "picture" else "scored on the square"


def _merge_part(merge: str, protocol: dict[str, Any]) -> str:
    """How several views became one; nothing where there is a single one."""
    scales = len(protocol.get("scales", []))
    if scales < 2 and not protocol.get("flip") and protocol.get("networks") in ("first", 1):
        return ""
    if merge == "max" and scales > 1:
        return "max over scales"
    return "softmax averaged" if merge == "softmax" else "logits averaged"


def _crf_part(crf: dict[str, Any] | None) -> str:
    if not crf:
        return "no CRF"
    details = ["picture as in the official code"] if crf.get("image") == "official-code" else []
    if crf.get("minimum_mass"):
        details.append(f"classes up to {crf['minimum_mass']:g} left out")
    return f"CRF ({', '.join(details)})" if details else "CRF"


def _masks_part(rule: dict[str, str]) -> str:
    """How masks were drawn from instances, see `dataset.coco`."""
    top = {"file": "the later instance", "area": "the smaller instance"}.get(rule.get("overlap", ""), "")
    crowd = {"ignore": "crowds left out", "background": "crowds as background"}.get(rule.get("crowd", ""), "")
    return f"masks with {top} on top and {crowd}"


def percent(value: float | None, signed: bool = False) -> str:
    """A share as a percentage with one decimal, `–` if there is none."""
    if value is None or pd.isna(value):
        return "–"
    return f"{100 * value:+.1f}".replace("-", "−") if signed else f"{100 * value:.1f}"


def mean_std(mean: float, std: float) -> str:
    """`52.0 ± 1.1`, in percent; without a spread the mean alone."""
    return percent(mean) if pd.isna(std) else f"{percent(mean)} ± {percent(std)}"


def spread(row: Mapping[Any, Any], name: str) -> str:
    """A number of `difference_table` in percentage points: `+1.2 (−0.3 to +2.7)`, the interval in brackets if any."""
    mean, low, high = (percent(row[key], signed=True) for key in (name, f"{name}_low", f"{name}_high"))
    return mean if pd.isna(row[f"{name}_low"]) else f"{mean} ({low} to {high})"
