"""What the files of other stage-one programs mean: scores by class, or labels in a PNG.

Described after the files that the methods' own code writes. Classes are counted from 0 in some of them and from 1 in
others, and a plane for the background may be there, may follow from the other planes, or may be missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax

from beco.artifacts.grids import STRIDES, grid, upsampled
from beco.artifacts.pseudolabels import UNCERTAIN
from beco.datasets.manifest import Manifest
from beco.datasets.palette import DAMAGED, PICTURE_FORMATS, turn_upright, voc_palette
from beco.errors import UserError
from beco.exchange.foreign import Dictionary, Kind, Unfit, read_dictionary, unfit_to_read
from beco.stage1.refine.labels import from_scores, share_of_maximum
from beco.stage1.refine.thresholds import complement, with_background

PLANES = ("high_res", "attn_highres", "cam")  # the largest first
SAMPLE = 16
SLACK = 0.05
"""How far scores may lie beyond 0 to 1: enlarging by cubics overshoots."""
COLOUR_MODES = ("RGB", "RGBA")

Labelled = tuple[NDArray[np.uint8], NDArray[np.floating]]
"""Label (H, W) uint8 in {0…K, 255}, and doubt (H, W) float in [0, 1], see `pseudolabels.doubt_of`; where the label is
255, no opinion, it is 1."""


@dataclass(frozen=True)
class Scores:
    """The score maps of one picture."""

    planes: NDArray[np.float32]
    """(P, h, w), not yet at the picture's size."""
    values: list[int]
    """Label values of the planes of classes, from 1."""
    background: Literal["constant", "plane", "complement", "logits"]
    """Missing; plane 0; 1 − the best class; plane 0 of all, which are logits."""


@dataclass(frozen=True)
class Format:
    """One way of laying out a picture's results."""

    methods: str
    """Who writes it."""
    suffixes: tuple[str, ...]
    matches: Callable[[Dictionary], bool] = lambda content: False
    """Whether a dictionary looks like it."""
    scores: Callable[[Dictionary], Scores] | None = None
    """What a dictionary says; None for PNGs. Raises `Unfit` if it is not of this format."""


# --- dictionaries -------------------------------------------------------------------------------------------


def from_named_planes(content: Dictionary) -> Scores:
    """IRN's {"keys": classes from 0, "cam" or "high_res": planes}; AMN has one plane more, the background's, first."""
    keys = _numbers(content, "keys")
    name = next((name for name in PLANES if name in content), None)
    if name is None:
        raise Unfit(Kind.FORMAT, f"has none of {', '.join(PLANES)}")
    extra = len(content[name]) - len(keys) if content[name].ndim == 3 else None
    if not keys and extra != 1:  # a picture without classes; what its planes look like is anybody's guess
        return Scores(np.zeros((0, 1, 1), np.float32), [], "constant")
    if extra not in (0, 1):
        raise Unfit(Kind.FORMAT, f"{name} has the shape {content[name].shape} for {len(keys)} keys")
    return Scores(_floats(content[name]), [key + 1 for key in keys], "plane" if extra else "constant")


def from_clip_es(content: Dictionary) -> Scores:
    """CLIP-ES: as IRN, but the background's score is what the best class leaves of 1."""
    found = from_named_planes(content)
    return found if found.background == "plane" else Scores(found.planes, found.values, "complement")


def from_class_numbers(content: Dictionary) -> Scores:
    """SEAM's and EPS's maps {class from 0: plane}."""
    numbers = _class_numbers(content)
    planes = [_floats(content[number]) for number in numbers]
    return Scores(_stacked(planes), [number + 1 for number in numbers], "constant")


def from_label_numbers(content: Dictionary) -> Scores:
    """SEAM's and EPS's results of a CRF, {0: background, class from 1: plane}."""
    numbers = _class_numbers(content)
    if numbers[:1] != [0]:
        raise Unfit(Kind.FORMAT, "has no plane 0 for the background")
    return Scores(_stacked([_floats(content[number]) for number in numbers]), numbers[1:], "plane")


def from_beco(content: Dictionary) -> Scores:
    """BECO's IRN, {"keys": 0 and label values, "score": planes}; as published, classes over their common maximum.

    The background counts with a constant score, whatever plane 0 holds.
    """
    keys, planes = _numbers(content, "keys"), _floats(content.get("score", np.zeros(0)))
    if keys[:1] != [0] or planes.ndim != 3 or len(planes) != len(keys):
        raise Unfit(Kind.FORMAT, f"score has the shape {planes.shape} for the keys {keys}, which should begin with 0")
    return Scores(share_of_maximum(planes[1:]), keys[1:], "constant")


def from_logits(content: Dictionary) -> Scores:
    """ToCo's {"msc_seg": logits of the background and all classes}."""
    planes = _floats(content.get("msc_seg", np.zeros(0)))
    planes = planes[0] if planes.ndim == 4 and len(planes) == 1 else planes
    if planes.ndim != 3 or len(planes) == 0:
        raise Unfit(Kind.FORMAT, f"msc_seg has the shape {planes.shape}, not (classes and background, height, width)")
    return Scores(planes, list(range(1, len(planes))), "logits")


def _numbers(content: Dictionary, name: str) -> list[int]:
    found = content.get(name, np.zeros((0, 0)))
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise Unfit(Kind.FORMAT, f"has no list of whole numbers under `{name}`")
    return [int(number) for number in found]


def _class_numbers(content: Dictionary) -> list[int]:
    numbers = [key for key in content if isinstance(key, int)]
    if len(numbers) < len(content):
        raise Unfit(Kind.FORMAT, "its keys are names, not class numbers")
    return sorted(numbers)


def _floats(planes: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.asarray(planes, np.float32)


def _stacked(planes: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    if len({plane.shape for plane in planes}) > 1:
        raise Unfit(Kind.FORMAT, "its planes differ in size")
    return np.stack(planes) if planes else np.zeros((0, 1, 1), np.float32)


def _has(*names: str) -> Callable[[Dictionary], bool]:
    return lambda content: all(name in content for name in names)


def _is_irn(content: Dictionary) -> bool:
    return "keys" in content and "attn_highres" not in content and ("cam" in content or "high_res" in content)


def _is_numbered(content: Dictionary) -> bool:
    return bool(content) and all(isinstance(key, int) for key in content)


DICTIONARIES = (".npy", ".pt", ".pth")
FORMATS: Mapping[str, Format] = {
    "index-png": Format("IRN, RIB, AMN, EPS, EDAM, CLIP-ES, ToCo, beco export-labels", (".png",)),
    "colour-png": Format("*_rgb folders, in VOC colours", (".png",)),
    "irn": Format("IRN, ReCAM, PPC, RIB, AdvCAM, AMN, ToCo", DICTIONARIES, _is_irn, from_named_planes),
    "clip-es": Format("CLIP-ES", DICTIONARIES, _has("keys", "attn_highres"), from_clip_es),
    "seam": Format("SEAM, EPS, PPC", DICTIONARIES, _is_numbered, from_class_numbers),
    "seam-crf": Format("out_crf of SEAM and EPS", DICTIONARIES, _is_numbered, from_label_numbers),
    "beco-score": Format("BECO's IRN", DICTIONARIES, _has("keys", "score"), from_beco),
    "toco-logits": Format("ToCo's networks", DICTIONARIES, _has("msc_seg"), from_logits),
}
"""By the name that `--format` takes."""


# --- one picture --------------------------------------------------------------------------------------------


def read_labelled(path: Path, form: str, size: tuple[int, int], classes: int, background: float) -> Labelled:
    """Label and doubt of one picture of `size` (height, width), from a file of the format named `form`.

    Scores give the label of the best plane and what is missing to a margin of 1 over the second best; `background` is
    the background's score where the file has none. PNGs have no doubt wherever they have an opinion. Raises `Unfit`.
    """
    scores_of = FORMATS[form].scores
    if scores_of is None:
        label = read_png(path, form, size, classes)
        return label, (label == UNCERTAIN).astype(np.float32)
    return settled(scores_of(read_dictionary(path)), size, classes, background)


def settled(scores: Scores, size: tuple[int, int], classes: int, background: float) -> Labelled:
    """Label and doubt from score maps, at the picture's size; maps at stride 4, 8 or 16 are enlarged.

    Where the files have no score for the background, the maps are set against `background`, or against what the best
    class leaves of 1; so they have to lie within 0 and 1 (and `SLACK`), else `Unfit` says in which range they are.
    Maps with a background of their own may have any unit: the label is that of the largest.
    """
    if wrong := [value for value in scores.values if not 1 <= value <= classes]:
        raise Unfit(Kind.VALUES, f"label value {wrong[0]} of {classes}")
    planes = scores.planes
    if planes.ndim != 3:
        raise Unfit(Kind.FORMAT, f"score maps of shape {planes.shape}")
    if not np.isfinite(planes).all():
        raise Unfit(Kind.UNREADABLE, "scores that are not numbers (NaN or infinite)")
    if scores.background in ("constant", "complement") and planes.size:
        low, high = float(planes.min()), float(planes.max())
        if low < -SLACK or high > 1 + SLACK:
            raise Unfit(Kind.RANGE, f"from {low:.3g} to {high:.3g}")
    if len(planes) == 0:
        planes = np.zeros((0, *size), np.float32)
    elif planes.shape[1:] != size:
        if planes.shape[1:] not in [grid(*size, stride) for stride in STRIDES]:
            raise _other_size(planes.shape[1:], size)
        planes = upsampled(planes, *size)
    if scores.background == "constant":
        planes = with_background(planes, background)
    elif scores.background == "complement":
        planes = np.concatenate([complement(planes), planes])
    elif scores.background == "logits":
        planes = softmax(planes.astype(np.float64), axis=0)  # float32 ends at differences of 100
    sums_to_one = bool((np.abs(planes.sum(0) - 1) < 1e-4).all())  # a softmax or a CRF's posterior
    return from_scores(planes, np.array(scores.values, np.uint8), probabilities=sums_to_one)


def read_png(path: Path, form: str, size: tuple[int, int], classes: int) -> NDArray[np.uint8]:
    """The labels (H, W) uint8 in {0…K, 255} of an index PNG (palette or grey), or one of VOC's colours."""
    wanted = COLOUR_MODES if form == "colour-png" else ("P", "L")
    mode, pixels = _pixels(path, size)
    if mode not in wanted:
        raise Unfit(Kind.FORMAT, f"is of mode {mode}, {form} of {' or '.join(wanted)}")
    label = _from_colours(pixels) if form == "colour-png" else pixels
    values = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
    if wrong := [int(value) for value in values if classes < value != UNCERTAIN]:
        raise Unfit(Kind.VALUES, f"up to {wrong[-1]} of {classes}")
    return label


def read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.float32]:
    """A mask of trusted pixels, (H, W) float32 of 0 and 1; 0/255 as BECO writes them (grey or RGB), or 0/1."""
    mode, pixels = _pixels(path, size)
    if pixels.ndim == 3 and mode in COLOUR_MODES:
        if (pixels[..., :3] != pixels[..., :1]).any():
            raise Unfit(Kind.MASK, "in colours")
        pixels = pixels[..., 0]
    values = {int(value) for value in np.unique(pixels)}
    if not (values <= {0, 1} or values <= {0, 255}) or pixels.ndim != 2 or mode.startswith("I"):
        raise Unfit(Kind.MASK, f"holds {', '.join(map(str, sorted(values)[:4]))}")
    return (pixels > 0).astype(np.float32)


def _pixels(path: Path, size: tuple[int, int]) -> tuple[str, NDArray[np.uint8]]:
    """(mode, what a viewer shows) of a PNG; its size is looked at before anything is decoded."""
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            if sorted(picture.size) == sorted(size):
                turn_upright(picture)
            if picture.size[::-1] != size:
                raise _other_size(picture.size[::-1], size)
            return picture.mode, np.asarray(picture).astype(np.uint8)
    except DAMAGED as error:
        raise unfit_to_read(path, error, "a mask") from error


def _from_colours(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3 or 4) RGB(A) to the label values that have these colours."""
    palette = _packed(voc_palette())
    order = np.argsort(palette)
    packed = _packed(pixels)
    found = order[np.searchsorted(palette, packed, sorter=order).clip(max=255)]
    unknown = np.unique(packed[palette[found] != packed])
    if unknown.size:
        shown = " ".join(f"#{colour:06x}" for colour in unknown[:3])
        raise Unfit(Kind.COLOURS, f"{unknown.size}: {shown}")
    return found.astype(np.uint8)


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(…, 3 or more) bytes to one number for each colour, red highest."""
    return colours[..., :3].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)


def _other_size(found: tuple[int, ...], size: tuple[int, int]) -> Unfit:
    return Unfit(Kind.SIZE, f"is {found[1]}×{found[0]}, its picture {size[1]}×{size[0]}")


# --- recognition --------------------------------------------------------------------------------------------


def recognise(files: Mapping[str, Path], manifest: Manifest) -> str:
    """The name of the format of files, by image id, of which a few are opened. Raises `UserError` if in doubt."""
    ids = list(files)
    sample = {ids[n]: files[ids[n]] for n in np.linspace(0, len(ids) - 1, min(SAMPLE, len(ids))).astype(int)}
    folder = files[ids[0]].parent
    if files[ids[0]].suffix.lower() == ".png":
        modes = [mode for mode in map(_mode, sample.values()) if mode]
        return "colour-png" if sum(mode in COLOUR_MODES for mode in modes) > len(modes) / 2 else "index-png"
    contents, troubles = {}, []
    for image_id, path in sample.items():
        try:
            contents[image_id] = read_dictionary(path)
        except Unfit as trouble:
            troubles.append(f"{path.name} {trouble.kind.what} ({trouble.detail})")
    votes = Counter(name for content in contents.values() for name in FORMATS if FORMATS[name].matches(content))
    if not votes:
        keys = next((sorted(map(str, content)) for content in contents.values() if content), [])
        seen = f"their keys are {', '.join(keys[:6])}" if keys else "; ".join(troubles[:1]) or "they are empty"
        raise UserError(f"{folder}: no known format ({seen}); name it with --format, or write index PNGs")
    best = votes.most_common(1)[0][0]
    return _numbering(contents, manifest, folder) if best in ("seam", "seam-crf") else best


def _mode(path: Path) -> str:
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            return picture.mode
    except DAMAGED:
        return ""


def _numbering(contents: Mapping[str, Dictionary], manifest: Manifest, folder: Path) -> str:
    """Whether numbers are classes from 0, or label values after a background 0: by the pictures' own labels."""
    votes = {"seam": 0, "seam-crf": 0}
    for image_id, content in contents.items():
        numbers, present = set(content), set(manifest.present(image_id))
        votes["seam"] += numbers == {value - 1 for value in present}
        votes["seam-crf"] += numbers == {0, *present}
    if votes["seam"] != votes["seam-crf"]:
        return max(votes, key=lambda name: votes[name])
    if any(content and 0 not in content for content in contents.values()):
        return "seam"  # a result with background has a plane 0 in every picture
    raise UserError(
        f"{folder}: the numbers in these files may count classes from 0 or labels from 1; "
        "give --format seam or --format seam-crf"
    )
