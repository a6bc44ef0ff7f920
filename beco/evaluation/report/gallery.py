"""The report's galleries: which pictures they show, in which order, and the layers that lie over each picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from beco.artifacts.grids import covering
from beco.artifacts.pseudolabels import PseudoLabels
from beco.artifacts.store import Store
from beco.datasets.belonging import check_classes, check_kind
from beco.datasets.manifest import Manifest
from beco.datasets.palette import read_index_png
from beco.evaluation.report.layers import (
    Detail,
    Layer,
    confidence_layer,
    detail,
    heat_layer,
    label_layer,
    magnification,
    picture_uri,
    shrink,
    unsqueezed,
)
from beco.evaluation.scores.metrics import VOID
from beco.evaluation.tables.tables import LabelSource, MapSource, Run, percent, read_csv
from beco.stage1.maps import activations

MOST_CAMS = 4
MOST_CHANGES = 24


@dataclass(frozen=True)
class Stage:
    """One picture of the dataset with all that can be laid over it."""

    image_id: str
    width: int
    """Displayed size in CSS pixels."""
    height: int
    crisp: bool
    """Whether it is magnified, so that its pixels should show."""
    picture: str
    """Data URI of the picture itself."""
    present: list[int]
    """Label values of the classes in the picture."""
    seen: list[int]
    """Label values of further classes that a layer shows."""
    note: str
    scores: dict[str, float]
    """What pictures can be ordered by: `mean`, `s0`, `s1` … (mIoU by experiment or label source), `change`."""
    layers: list[Layer]


@dataclass(frozen=True)
class Gallery:
    """Pictures with layers, and what a reader can choose."""

    stages: list[Stage]
    """The worst first."""
    choices: dict[str, str]
    """Words for the layers by their keys."""
    orders: dict[str, str]
    """Words for the orders; a key is a score of the stages, or `name`, with `+` to ascend or `-` to descend."""
    left: str
    """Keys of the two layers to begin with."""
    right: str


# --- galleries ----------------------------------------------------------------------------------------------


def results_gallery(
    manifest: Manifest, runs: list[Run], limit: int, best: str | None = None, compared: tuple[Run, Run] | None = None
) -> Gallery | None:
    """The `limit` worst pictures of the evaluation split with the predictions of each experiment's first seed.

    Worst by the mean over the experiments of the picture's mIoU; without masks, the first pictures. The pictures that
    gain and lose most from the second to the first of the runs `compared` join them. The gallery begins with the
    truth beside the prediction of the experiment `best`. None if there is nothing to show.
    """
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.experiment, run)
    scores = {name: picture_scores(run.folder) for name, run in first.items()}
    change = pd.Series(dtype=float) if compared is None else changes(manifest.ids, *compared)
    fine = detail(min(limit, len(manifest)), 1 + len(first))
    stages = []
    for image_id in _chosen(worst_first(manifest, scores), limit, extremes(change, min(limit // 4, MOST_CHANGES))):
        picture, truth = _pair(manifest, image_id, fine)
        layers = _truth_layers(truth, image_id)
        for name, run in first.items():
            prediction = unsqueezed(read_index_png(run.folder / "predictions" / f"{image_id}.png"), picture.shape[:2])
            caption = _scored(name, scores[name], image_id)
            layers.append(label_layer(f"prediction {name}", caption, f"prediction of {name}", prediction, truth))
        stages.append(_stage(manifest, image_id, picture, fine, layers, scores, change, compared))
    choices = {f"prediction {name}": f"prediction of {name}" for name in first}
    orders = {} if compared is None else _change_orders(change, *compared)
    shown = best if best in first else next(iter(first), "")
    return _gallery(stages, choices, list(first), orders, f"prediction {shown}")


def labels_gallery(manifest: Manifest, maps: list[MapSource], sources: list[LabelSource], limit: int) -> Gallery | None:
    """The `limit` worst training pictures by their pseudo-labels, with the maps these were made from."""
    scores = {source.name: picture_scores(source.quality) for source in sources}
    labels = {source.name: PseudoLabels(source.folder / "labels.h5") for source in sources}
    fine = detail(min(limit, len(manifest)), 3 + 2 * len(sources))  # truth, one or two activation maps
    stages = []
    with ExitStack() as stack:
        for opened in labels.values():
            stack.enter_context(closing(opened.store))
            check_kind(opened.store, "labels")
            check_classes(opened.store, manifest)
        stores = {source.name: stack.enter_context(Store(source.maps)) for source in maps if source.maps.is_file()}
        for store in stores.values():
            check_kind(store, "cams", "scores")
            check_classes(store, manifest)
        for image_id in worst_first(manifest, scores)[:limit]:
            picture, truth = _pair(manifest, image_id, fine)
            layers = _truth_layers(truth, image_id)
            for name, store in stores.items():
                layers += _cam_layers(_of(name, stores), store, manifest, image_id)
            for name, source in labels.items():
                layers += _source_layers(name, source, image_id, _scored(name, scores[name], image_id), picture, truth)
            stages.append(_stage(manifest, image_id, picture, fine, layers, scores))
    choices: dict[str, str] = {}
    for name in stores:
        of = _of(name, stores)
        for rank in range(1, MOST_CAMS + 1):
            choices[f"cam{of} {rank}"] = f"score map{of}, class {rank} of the picture"
    for name in labels:
        choices |= {f"labels {name}": f"labels {name}", f"confidence {name}": f"confidence of {name}"}
    return _gallery(stages, choices, list(labels), {}, f"labels {next(iter(labels), '')}")


def _gallery(
    stages: list[Stage], choices: dict[str, str], names: list[str], orders: dict[str, str], right: str
) -> Gallery | None:
    """A gallery of these stages, its choices cut down to the layers that some picture has."""
    held = {layer.key: bool(layer.errors) for stage in stages for layer in stage.layers}
    known = {"picture": "picture", "truth": "truth"}
    for key, words in choices.items():
        known |= {key: words} | ({f"errors of {key}": f"errors of {words}"} if held.get(key) else {})
    kept = {key: words for key, words in known.items() if key == "picture" or key.removeprefix("errors of ") in held}
    common = {"mean+": "worst first", "mean-": "best first", "name+": "by name"}
    by_name = {f"s{index}+": f"worst for {name}" for index, name in enumerate(names)} if len(names) > 1 else {}
    left = "truth" if "truth" in kept else "picture"
    if not stages:
        return None
    return Gallery(stages, kept, common | by_name | orders, left, right if right in kept else left)


def _stage(
    manifest: Manifest,
    image_id: str,
    picture: np.ndarray,
    fine: Detail,
    layers: list[Layer],
    scores: Mapping[str, pd.Series],
    change: pd.Series | None = None,
    compared: tuple[Run, Run] | None = None,
) -> Stage:
    height, width = picture.shape[:2]
    factor = magnification(height, width)
    present = manifest.present(image_id)
    seen = {int(value) for layer in layers for value in layer.classes.split()} - {0, VOID, *present}
    known = {f"s{index}": float(series.get(image_id, np.nan)) for index, series in enumerate(scores.values())}
    values = [value for value in known.values() if not np.isnan(value)]
    notes = []
    if values:
        known["mean"] = sum(values) / len(values)
        notes.append(f"mean mIoU {percent(known['mean'])} %")
    if change is not None and compared is not None and image_id in change.index:
        known["change"] = float(change[image_id])
        notes.append(f"{compared[0].experiment} − {compared[1].experiment} {percent(known['change'], signed=True)}")
    return Stage(
        image_id, width * factor, height * factor, factor > 1, picture_uri(picture, fine.quality), present,
        sorted(seen), ", ".join(notes), {name: value for name, value in known.items() if not np.isnan(value)}, layers,
    )  # fmt: skip


# --- which pictures -----------------------------------------------------------------------------------------


def picture_scores(folder: Path) -> pd.Series:
    """mIoU of each picture, indexed by image id, from `per_image.csv`."""
    return read_csv(folder / "per_image.csv").set_index("image_id")["miou"].astype(float)


def worst_first(manifest: Manifest, scores: Mapping[str, pd.Series]) -> list[str]:
    """Image ids by ascending mean score; those without a score last, in the manifest's order."""
    if not scores:
        return manifest.ids
    mean = pd.concat([series.reindex(manifest.ids) for series in scores.values()], axis=1).mean(axis=1)
    return [str(name) for name in mean.sort_values(kind="stable", na_position="last").index]


def changes(image_ids: list[str], better: Run, base: Run) -> pd.Series:
    """What each picture gains in mIoU from `base` to `better`, ascending; pictures without a score are left out."""
    after, before = (picture_scores(run.folder).reindex(image_ids) for run in (better, base))
    return (after - before).dropna().sort_values(kind="stable")


def extremes(change: pd.Series, limit: int) -> set[str]:
    """The pictures that gain most and those that lose most, at most `limit` of each; `change` is that of `changes`."""
    gains, losses = change[change > 0][::-1], change[change < 0]
    return {str(name) for part in (gains, losses) for name in part.index[:limit]}


def _chosen(ordered: list[str], limit: int, others: Iterable[str]) -> list[str]:
    wanted = {*ordered[:limit], *others}
    return [name for name in ordered if name in wanted]


def _change_orders(change: pd.Series, better: Run, base: Run) -> dict[str, str]:
    found = {}
    if (change > 0).any():
        found["change-"] = f"largest gains of {better.experiment} over {base.experiment}"
    if (change < 0).any():
        found["change+"] = f"largest losses of {better.experiment} against {base.experiment}"
    return found


# --- layers of one picture ----------------------------------------------------------------------------------


def _pair(manifest: Manifest, image_id: str, fine: Detail) -> tuple[np.ndarray, np.ndarray | None]:
    """A picture and its true mask, if it has one, in the gallery's size."""
    picture = shrink(manifest.image(image_id), fine.side)
    if not manifest.table.at[image_id, "mask"]:
        return picture, None
    return picture, unsqueezed(manifest.mask(image_id), picture.shape[:2])


def _truth_layers(truth: np.ndarray | None, image_id: str) -> list[Layer]:
    return [] if truth is None else [label_layer("truth", "truth", f"true mask of {image_id}", truth)]


def _of(name: str, stores: Mapping[str, Store]) -> str:
    """What tells the maps of a source from those of the others, where there are any."""
    return f" {name}" if len(stores) > 1 else ""


def _cam_layers(of: str, store: Store, manifest: Manifest, image_id: str) -> list[Layer]:
    """Heat maps of the first classes; `of` is that of `_of`."""
    maps, values = activations(store, image_id)
    made_with = store.attributes.get("cam", {})
    maps = covering(maps[:MOST_CAMS], manifest.size(image_id), made_with.get("resize"))
    planes = list(zip(values, maps, strict=False))
    names = [manifest.classes[value - 1] for value, _ in planes]
    return [
        heat_layer(f"cam{of} {rank}", f"map{of} {name}", f"score map{of} of {name}", plane)
        for rank, (name, (_, plane)) in enumerate(zip(names, planes, strict=True), start=1)
    ]


def _source_layers(
    name: str, source: PseudoLabels, image_id: str, caption: str, picture: np.ndarray, truth: np.ndarray | None
) -> list[Layer]:
    """Labels of one source and their confidence."""
    size = picture.shape[:2]
    pseudo = source.picture(image_id)
    label, confidence = unsqueezed(pseudo.label, size), unsqueezed(pseudo.confidence(), size)
    return [
        label_layer(f"labels {name}", caption, f"pseudo-label of {name}", label, truth),
        confidence_layer(f"confidence {name}", f"confidence of {name}", f"confidence of {name}", confidence),
    ]


def _scored(name: str, scores: pd.Series, image_id: str) -> str:
    score = scores.get(image_id)
    return name if score is None or pd.isna(score) else f"{name} · {percent(score)}"
