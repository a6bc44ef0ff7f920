"""Small pictures for the report: overlays, heat maps and error maps, embedded as data URIs.

The long side is at most 256 pixels. Smaller pictures keep their pixels and are shown magnified by a whole
factor, so that a reader sees what the network saw.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from beco.datasets.manifest import Manifest
from beco.datasets.palette import read_index_png, voc_palette
from beco.evaluation.metrics import VOID
from beco.evaluation.tables import LabelSource, Run, percent, read_csv
from beco.pseudolabels import PseudoLabels
from beco.store import Store

LONG_SIDE = 256
MAGNIFY = 3
MOST_CAMS = 4
VOID_COLOUR = (224, 224, 192)  # what VOC paints 255 with
# Kinds of error and their colours (Okabe & Ito); index 0 is a right pixel.
ERRORS = {
    "right": (232, 232, 232),
    "object missed": (0, 114, 178),
    "object where there is none": (213, 94, 0),
    "wrong class": (170, 51, 119),
    "not judged (void)": (176, 176, 176),
}


@dataclass(frozen=True)
class Tile:
    """One picture of the gallery."""

    caption: str
    uri: str
    width: int
    """Displayed size in CSS pixels."""
    height: int
    alt: str
    crisp: bool
    """Whether it is magnified, so that its pixels should show."""


@dataclass(frozen=True)
class Row:
    """One picture of the dataset with everything known about it."""

    image_id: str
    classes: list[int]
    """Label values of the classes in the picture."""
    note: str
    columns: list[list[Tile]]
    """Tiles side by side; those of one column stand above one another."""


# --- rows ---------------------------------------------------------------------------------------------------


def val_rows(manifest: Manifest, runs: list[Run], limit: int) -> list[Row]:
    """The `limit` worst pictures of the evaluation split, worst first, with the first seed of each
    experiment.

    Worst by the mean over the experiments of the picture's mIoU; without masks, the first pictures.
    """
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.experiment, run)
    scores = {name: picture_scores(run.folder) for name, run in first.items()}
    shown = [(image_id, _note(scores, image_id)) for image_id in worst_first(manifest, scores)[:limit]]
    return _run_rows(manifest, first, scores, shown)


def change_rows(manifest: Manifest, better: Run, base: Run, limit: int) -> tuple[list[Row], list[Row]]:
    """The pictures that gain most in mIoU from `base` to `better`, and those that lose most, `limit` of each."""
    runs = {run.experiment: run for run in (base, better)}
    scores = {name: picture_scores(run.folder).reindex(manifest.ids) for name, run in runs.items()}
    change = (scores[better.experiment] - scores[base.experiment]).dropna().sort_values(kind="stable")
    found = []
    for part in (change[change > 0][::-1], change[change < 0]):
        shown = [(str(name), f"{percent(value, signed=True)} points") for name, value in part[:limit].items()]
        found.append(_run_rows(manifest, runs, scores, shown))
    return found[0], found[1]


def _run_rows(
    manifest: Manifest, runs: Mapping[str, Run], scores: Mapping[str, pd.Series], shown: list[tuple[str, str]]
) -> list[Row]:
    """A row for each picture, with the note that stands beside its name."""
    rows = []
    for image_id, note in shown:
        picture = shrink(manifest.image(image_id))
        truth = _truth(manifest, image_id)
        columns = [_picture_column(picture, truth, image_id)]
        for name, run in runs.items():
            prediction = unsqueezed(read_index_png(run.folder / "predictions" / f"{image_id}.png"), picture.shape[:2])
            caption = _scored(name, scores[name], image_id)
            tiles = [picture_tile(overlay(picture, prediction), caption, f"prediction of {name}")]
            if truth is not None:
                errors = error_index(prediction, truth)
                tiles.append(index_tile(errors, error_palette(), "its errors", f"errors of {name}"))
            columns.append(tiles)
        rows.append(Row(image_id, manifest.present(image_id), note, columns))
    return rows


def train_rows(manifest: Manifest, cams: Path | None, sources: list[LabelSource], limit: int) -> list[Row]:
    """The `limit` worst training pictures by their pseudo-labels, with the maps these were made from."""
    scores = {source.name: picture_scores(source.quality) for source in sources}
    labels = {source.name: PseudoLabels(source.folder / "labels.h5") for source in sources}
    store = None if cams is None else Store(cams)
    rows = []
    for image_id in worst_first(manifest, scores)[:limit]:
        picture = shrink(manifest.image(image_id))
        columns = [_picture_column(picture, _truth(manifest, image_id), image_id)]
        if store is not None:
            columns += _cam_columns(store, manifest, image_id, picture)
        for name, source in labels.items():
            label = shrink(source.label(image_id))
            confidence = shrink(confidence_index(source.confidence(image_id)))
            caption = _scored(name, scores[name], image_id)
            columns.append(
                [
                    picture_tile(overlay(picture, label), caption, f"pseudo-label of {name}"),
                    index_tile(confidence, colour_map("viridis"), "its confidence", f"confidence of {name}"),
                ]
            )
        rows.append(Row(image_id, manifest.present(image_id), _note(scores, image_id), columns))
    for opened in [*(source.store for source in labels.values()), *([store] if store else [])]:
        opened.close()
    return rows


def picture_scores(folder: Path) -> pd.Series:
    """mIoU of each picture, indexed by image id, from `per_image.csv`."""
    return read_csv(folder / "per_image.csv").set_index("image_id")["miou"].astype(float)


def worst_first(manifest: Manifest, scores: Mapping[str, pd.Series]) -> list[str]:
    """Image ids by ascending mean score; those without a score last, in the manifest's order."""
    if not scores:
        return manifest.ids
    mean = pd.concat([series.reindex(manifest.ids) for series in scores.values()], axis=1).mean(axis=1)
    return [str(name) for name in mean.sort_values(kind="stable", na_position="last").index]


def _truth(manifest: Manifest, image_id: str) -> np.ndarray | None:
    return shrink(manifest.mask(image_id)) if manifest.table.at[image_id, "mask"] else None


def _scored(name: str, scores: pd.Series, image_id: str) -> str:
    score = scores.get(image_id)
    return name if score is None or pd.isna(score) else f"{name} · {percent(score)}"


def _note(scores: Mapping[str, pd.Series], image_id: str) -> str:
    known = [series[image_id] for series in scores.values() if image_id in series.index]
    known = [value for value in known if not pd.isna(value)]
    return f"mean mIoU {percent(sum(known) / len(known))} %" if known else ""


def _picture_column(picture: np.ndarray, truth: np.ndarray | None, image_id: str) -> list[Tile]:
    tiles = [picture_tile(picture, "picture", f"picture {image_id}")]
    if truth is not None:
        tiles.append(picture_tile(overlay(picture, truth), "truth", f"true mask of {image_id}"))
    return tiles


def _cam_columns(store: Store, manifest: Manifest, image_id: str, picture: np.ndarray) -> list[list[Tile]]:
    """Heat maps of the first classes, two above one another."""
    cam = store.get("cam", image_id)
    values = [int(value) for value in np.atleast_1d(store.attribute("cam", image_id, "classes"))]
    tiles = []
    for value, plane in list(zip(values, cam, strict=True))[:MOST_CAMS]:
        name = manifest.classes[value - 1]
        tiles.append(picture_tile(heat(picture, plane), f"CAM {name}", f"activation map of {name}"))
    return [tiles[start : start + 2] for start in range(0, len(tiles), 2)]


# --- tiles --------------------------------------------------------------------------------------------------


def picture_tile(picture: np.ndarray, caption: str, alt: str) -> Tile:
    """A tile of an (H, W, 3) uint8 RGB picture, sides at most 256."""
    stream = io.BytesIO()
    if _magnification(*picture.shape[:2]) > 1:  # the pixels themselves
        Image.fromarray(picture).save(stream, "WEBP", lossless=True, method=4)
    else:
        Image.fromarray(picture).save(stream, "WEBP", quality=80, method=4)
    return _tile(stream, "webp", picture, caption, alt)


def index_tile(index: np.ndarray, palette: np.ndarray, caption: str, alt: str) -> Tile:
    """A tile of an (H, W) uint8 map, sides at most 256, shown through `palette` ((256, 3) uint8)."""
    image = Image.fromarray(np.ascontiguousarray(index)).convert("P")
    image.putpalette(palette.tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return _tile(stream, "png", index, caption, alt)


def _tile(stream: io.BytesIO, kind: str, array: np.ndarray, caption: str, alt: str) -> Tile:
    height, width = array.shape[:2]
    factor = _magnification(height, width)
    uri = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Tile(caption, uri, width * factor, height * factor, alt, factor > 1)


def _magnification(height: int, width: int) -> int:
    """Displayed over stored size: as large as fits into 256 pixels, at most 3."""
    return max(min(MAGNIFY, LONG_SIDE // max(height, width)), 1)


def shrink(array: np.ndarray) -> np.ndarray:
    """A picture ((H, W, 3) uint8) or map ((H, W)) with its long side brought down to 256 if it is larger.

    Maps keep their values (nearest neighbour); so all that is shown of one picture has the same size.
    """
    height, width = array.shape[:2]
    factor = LONG_SIDE / max(height, width)
    if factor >= 1:
        return array
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    method = Image.Resampling.LANCZOS if array.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(array).resize(size, method, reducing_gap=2.0))


def unsqueezed(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`shrink` of an (H, W) label map, or, of one in another shape than its picture (height, width), to that one."""
    small = shrink(label)
    if small.shape == size:
        return small
    return np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))


# --- painting -----------------------------------------------------------------------------------------------


def overlay(picture: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: objects tinted in VOC colours with a line around them, the rest of the picture
    paler.
    """
    palette = voc_palette().astype(np.float32)
    palette[VOID] = VOID_COLOUR
    base = picture.astype(np.float32)
    grey = base.mean(axis=2, keepdims=True)
    painted = 0.55 * grey + 0.45 * 235.0
    inside = label != 0
    painted = np.where(inside[..., None], 0.35 * base + 0.65 * palette[label], painted)
    edge = np.zeros(label.shape, dtype=bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    if max(label.shape) > 128:  # on small pictures the line would hide the object
        painted[edge] = 255.0
    return np.clip(np.broadcast_to(painted, picture.shape), 0, 255).astype(np.uint8)


def error_index(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(H, W) uint8 index into `ERRORS`; a prediction of 255 counts as background."""
    prediction = np.where(prediction == VOID, 0, prediction)
    kinds = np.full(truth.shape, 3, dtype=np.uint8)
    kinds[prediction == 0] = 1
    kinds[truth == 0] = 2
    kinds[prediction == truth] = 0
    kinds[truth == VOID] = 4
    return kinds


def error_palette() -> np.ndarray:
    """(256, 3) uint8 colours of `ERRORS`."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(ERRORS)] = list(ERRORS.values())
    return palette


def heat(picture: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: an activation map ((h, w), 0 … 1) enlarged bilinearly and laid over the grey
    picture.
    """
    height, width = picture.shape[:2]
    small = Image.fromarray(np.clip(activation, 0, 1).astype(np.float32))
    full = np.clip(np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)), 0, 1)
    colours = colour_map("inferno")[(full * 255).astype(np.uint8)].astype(np.float32)
    grey = picture.astype(np.float32).mean(axis=2, keepdims=True)
    return (0.4 * grey + 0.6 * colours).astype(np.uint8)


def confidence_index(confidence: np.ndarray) -> np.ndarray:
    """(H, W) uint8: a confidence map (0 … 1) in 256 steps, for `colour_map("viridis")`."""
    return (np.clip(confidence.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def colour_map(name: str) -> np.ndarray:
    """(256, 3) uint8 colours of a Matplotlib colour map."""
    from matplotlib import colormaps

    return (colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
