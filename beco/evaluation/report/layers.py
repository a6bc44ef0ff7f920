"""Layers of the report's gallery: pictures, label maps, errors and heat maps, small enough to lie in the page.

Pictures are WebP; all that is laid over them is a palette PNG of a kilobyte or two whose palette has an entry for each
value that occurs. The page's script exchanges these entries to show the same map in other colours, or as the errors
that it holds, so a map is stored once.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from beco.datasets.palette import voc_palette
from beco.evaluation.scores.metrics import VOID

MAGNIFY = 3
MOST_ENTRIES = 256
HEAT_SIDE, HEAT_STEPS = 48, 32
CONFIDENCE_STEPS = 16
VOID_COLOUR = (224, 224, 192, 140)  # what VOC paints 255 with, half clear
# Kinds of error and their colours (Okabe & Ito's, and one of Tol's) with alpha; index 0 is a right pixel.
ERRORS = {
    "right": (232, 232, 232, 0),
    "object missed": (0, 114, 178, 255),
    "object where there is none": (213, 94, 0, 255),
    "wrong class": (170, 51, 119, 255),
    "not judged (void)": (176, 176, 176, 140),
}
# The colours of Okabe & Ito ("Color Universal Design", 2008) without black, for the classes of one picture.
SAFE = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"]


@dataclass(frozen=True)
class Detail:
    """How finely a gallery's pictures are stored."""

    side: int
    """Longest side in pixels."""
    quality: int
    """WebP's."""


# By weight: what keeps a page within 50 MB that shows 1,449 pictures of each split with the results of four experiments
# and four sources of labels. A label map takes a quarter of what its picture takes.
DETAILS = {1_500: Detail(256, 80), 9_000: Detail(256, 60), 22_000: Detail(160, 50)}
LEAST = Detail(112, 45)


def detail(pictures: int, layers: int) -> Detail:
    """The detail that a gallery of so many pictures with so many layers has room for."""
    weight = pictures * (4 + layers)
    return next((found for most, found in DETAILS.items() if weight <= most), LEAST)


@dataclass(frozen=True)
class Layer:
    """Something that is laid over a picture, or the picture itself."""

    key: str
    """Its name among the layers of all pictures, such as `prediction beco`."""
    caption: str
    uri: str
    alt: str
    classes: str = ""
    """Label value of each entry of the PNG's palette, divided by blanks; nothing for what has no classes."""
    errors: str = ""
    """Index into `ERRORS` of each entry; nothing where there is no truth to err from."""


# --- layers -------------------------------------------------------------------------------------------------


def picture_uri(picture: np.ndarray, quality: int) -> str:
    """An (H, W, 3) uint8 RGB picture as a data URI; lossless if it is so small that it is shown magnified."""
    options = {"lossless": True} if magnification(*picture.shape[:2]) > 1 else {"quality": quality}
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "WEBP", method=4, **options)
    return _uri(stream, "webp")


def label_layer(key: str, caption: str, alt: str, label: np.ndarray, truth: np.ndarray | None = None) -> Layer:
    """A layer of an (H, W) uint8 label map in VOC's colours, with the background clear.

    With a `truth` of its shape it holds its errors as well: an entry for each pair of a label and a kind of error.
    They are left out of the rare map that has more than 256 pairs.
    """
    kinds = np.zeros_like(label) if truth is None else error_index(label, truth)
    pairs, index = np.unique(kinds.astype(np.uint16) * 256 + label, return_inverse=True)
    if len(pairs) > MOST_ENTRIES:
        return label_layer(key, caption, alt, label)
    values = pairs % 256
    palette = np.insert(voc_palette(), 3, 255, axis=1)
    palette[0, 3], palette[VOID] = 0, VOID_COLOUR
    uri = index_uri(index.reshape(label.shape), palette[values])
    errors = "" if truth is None else " ".join(str(kind) for kind in pairs // 256)
    return Layer(key, caption, uri, alt, " ".join(map(str, values)), errors)


def heat_layer(key: str, caption: str, alt: str, activation: np.ndarray) -> Layer:
    """A layer of an (h, w) activation map, 0 … 1, as small as it is: the browser enlarges it bilinearly."""
    height, width = activation.shape
    factor = min(HEAT_SIDE / max(height, width), 1)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    small = Image.fromarray(np.clip(activation, 0, 1).astype(np.float32)).resize(size, Image.Resampling.BOX)
    return Layer(key, caption, map_uri(np.asarray(small), HEAT_STEPS, "inferno"), alt)


def confidence_layer(key: str, caption: str, alt: str, confidence: np.ndarray) -> Layer:
    """A layer of an (H, W) confidence map, 0 … 1, at half its size unless it is shown magnified."""
    height, width = confidence.shape
    small = confidence.astype(np.float32)
    if magnification(height, width) == 1:
        size = (max(width // 2, 1), max(height // 2, 1))
        small = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BOX))
    return Layer(key, caption, map_uri(small, CONFIDENCE_STEPS, "viridis"), alt)


def map_uri(values: np.ndarray, steps: int, colours: str) -> str:
    """An (H, W) map, 0 … 1, in so many steps of a Matplotlib colour map."""
    index = np.rint(np.clip(values, 0, 1) * (steps - 1)).astype(np.uint8)
    palette = np.insert(colour_map(colours), 3, 255, axis=1)
    return index_uri(index, palette[np.linspace(0, 255, steps).round().astype(int)])


def index_uri(index: np.ndarray, palette: np.ndarray) -> str:
    """An (H, W) map of indices into a palette ((n, 4) uint8: red, green, blue, alpha) as a palette PNG."""
    image = Image.fromarray(np.ascontiguousarray(index, dtype=np.uint8)).convert("P")
    image.putpalette(np.ascontiguousarray(palette[:, :3]).tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, transparency=palette[:, 3].tobytes())
    return _uri(stream, "png")


def _uri(stream: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


# --- sizes --------------------------------------------------------------------------------------------------


def magnification(height: int, width: int) -> int:
    """Displayed over stored size: as large as fits into 256 pixels, at most 3; 1 for all but tiny pictures."""
    return max(min(MAGNIFY, 256 // max(height, width)), 1)


def shrink(array: np.ndarray, side: int = 256) -> np.ndarray:
    """A picture ((H, W, 3) uint8) or map ((H, W)) with its long side brought down to `side` if it is larger.

    Maps keep their values (nearest neighbour); so all that is shown of one picture has the same size.
    """
    height, width = array.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return array
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    method = Image.Resampling.LANCZOS if array.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(array).resize(size, method, reducing_gap=2.0))


def unsqueezed(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An (H, W) label map, whatever its shape, in that of its shrunken picture (height, width)."""
    if label.shape == size:
        return label
    return np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))


# --- values -------------------------------------------------------------------------------------------------


def error_index(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(H, W) uint8 index into `ERRORS`; a prediction of 255 counts as background."""
    prediction = np.where(prediction == VOID, 0, prediction)
    kinds = np.full(truth.shape, 3, dtype=np.uint8)
    kinds[prediction == 0] = 1
    kinds[truth == 0] = 2
    kinds[prediction == truth] = 0
    kinds[truth == VOID] = 4
    return kinds


def colour_map(name: str) -> np.ndarray:
    """(256, 3) uint8 colours of a Matplotlib colour map."""
    from matplotlib import colormaps

    return (colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
