"""PASCAL VOC layout (Everingham et al. 2010) to `manifest.csv`.

`JPEGImages/<id>.jpg`, `Annotations/<id>.xml`, `ImageSets/Segmentation/<list>.txt` and index PNGs in
`SegmentationClass` or, for the augmented training list (Hariharan et al. 2011), `SegmentationClassAug`.
"""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import pandas as pd
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from beco.artifacts.files import unreadable
from beco.artifacts.text import read_text
from beco.datasets import manifest
from beco.datasets.classes import BACKGROUND, check_classes, clean, is_background, tell, warn_of_unseen
from beco.datasets.manifest import Manifest
from beco.datasets.paths import SUFFIXES, alike, check_root, missing, unusable
from beco.errors import UserError

VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car",
    "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip

OFFICIAL = "SegmentationClass"
AUGMENTED = "SegmentationClassAug"

logger = logging.getLogger("beco")


def build(root: Path | str, train: str, val: str, classes: list[str] | None, output: Path | str) -> Manifest:
    """Read a folder in VOC layout, check all of it, and write its manifest.

    Args:
        root: the folder that holds `JPEGImages`.
        train: training list, `ImageSets/Segmentation/<train>.txt`.
        val: validation list, likewise; no picture may be in both.
        classes: class names in label order 1…K; None for the 20 of VOC.
        output: `manifest.csv`; its splits are called `train` and `val` whatever the lists are called.

    Returns the manifest. Image-level labels are the classes of all objects in a picture's XML, difficult ones
    included. Raises `UserError` naming the file for anything missing, damaged or contradictory; masks, annotations and
    pictures are told together.
    """
    root = Path(root)
    classes = check_classes(VOC_CLASSES if classes is None else classes)
    check_root(root, "JPEGImages", "set it to the VOC2012 folder")
    splits = {"train": read_list(root, train), "val": read_list(root, val)}
    if shared := set(splits["train"]) & set(splits["val"]):
        raise UserError(
            f"{_list(root, val)}: {len(shared)} of its ids are in {train}.txt too, such as {min(shared)};"
            " validate on pictures that training does not see"
        )
    problems: list[str] = []
    masks = _train_masks(root, train, splits["train"], problems) | _val_masks(root, splits["val"], problems)
    table, sizes = _table(root, splits, masks, classes, problems)
    table = manifest.check_and_measure(table, root, classes, problems)
    _warn_of_other_sizes(table, sizes)
    warn_of_unseen(table, classes, "add some, or take it off dataset.classes")
    tell(table, classes)
    return manifest.save(table, output, root)


def read_list(root: Path, name: str) -> list[str]:
    """The ids of a list, in order.

    A line holds an id, or (as the augmented lists in circulation do) the paths of picture and mask.
    """
    path = _list(root, name)
    known = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))) or "no list at all"
    none = "" if path.is_file() else missing(path, f"no such list; the folder has {known}", (".txt",))
    text = read_text(path, "save it as such, one id a line", none)
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: names no pictures; write one id a line")
    first: dict[str, str] = {}
    for words in lines:
        image_id, line = _id(path, words, root), " ".join(words)
        if image_id in first and first[image_id] == line:
            raise UserError(f"{path}: names {image_id} twice; keep one")
        if image_id in first:
            raise UserError(
                f"{path}: `{first[image_id]}` and `{line}` are both JPEGImages/{image_id}.jpg; give each its own name"
            )
        first[image_id] = line
    return list(first)


def _id(path: Path, words: list[str], root: Path) -> str:
    name = " ".join(words)
    if "/" in words[0]:
        name = Path(words[0]).stem
    elif len(words) > 1 and not (root / "JPEGImages" / f"{name}.jpg").is_file():
        raise UserError(f"{path}: more than an id in the line `{name}`; write one id a line")
    if name in (".", "..") or (Path(name).suffix.lower() in SUFFIXES and (root / "JPEGImages" / name).is_file()):
        raise UserError(f"{path}: `{name}` is no name of a picture; write the file's name without its suffix")
    if problem := unusable(f"{name}.jpg"):
        raise UserError(f"{path}: {problem}")
    return name


def _list(root: Path, name: str) -> Path:
    return root / "ImageSets" / "Segmentation" / f"{name}.txt"


# --- masks --------------------------------------------------------------------------------------------------


def _train_masks(root: Path, train: str, ids: list[str], problems: list[str]) -> dict[str, str]:
    """Mask path (or nothing) of each training picture; augmented masks first, as they are drawn alike."""
    found = {name: _find(root, name, [AUGMENTED, OFFICIAL]) for name in ids}
    missing = [name for name, path in found.items() if not path]
    augmented = "aug" in train.lower() or 2 * len(missing) > len(ids)
    if missing and augmented and not (root / AUGMENTED).is_dir():
        logger.warning(
            "%s: %d of the %d training pictures have no mask, because the folder %s is absent. "
            "Training does not need it: training masks serve only to measure the quality of pseudo-labels.",
            _list(root, train), len(missing), len(ids), AUGMENTED,
        )  # fmt: skip
        return found
    problems += _missing(root, missing, "training")
    return found


def _val_masks(root: Path, ids: list[str], problems: list[str]) -> dict[str, str]:
    """Mask path of each validation picture; official masks first, because published numbers are on them."""
    found = {name: _find(root, name, [OFFICIAL, AUGMENTED]) for name in ids}
    problems += _missing(root, [name for name, path in found.items() if not path], "validation")
    return found


def _find(root: Path, name: str, folders: list[str]) -> str:
    paths = (f"{folder}/{name}.png" for folder in folders)
    return next((path for path in paths if (root / path).is_file()), "")


def _missing(root: Path, names: list[str], what: str) -> list[str]:
    words = f"no mask for this {what} picture, here or in {AUGMENTED}; copy it there or take the id off the list"
    found = []
    for name in names:
        paths = [root / folder / f"{name}.png" for folder in (OFFICIAL, AUGMENTED)]
        path = next((path for path in paths if alike(path, (".png",))), paths[0])
        found.append(f"{path}: {missing(path, words, ('.png',))}")
    return found


# --- image-level labels -------------------------------------------------------------------------------------


def _table(
    root: Path, splits: dict[str, list[str]], masks: dict[str, str], classes: list[str], problems: list[str]
) -> tuple[pd.DataFrame, list[tuple[int, int]]]:
    """One row per picture, and the (height, width) that its annotation gives, see `_size`.

    Annotations that cannot be read go to `problems`, and their pictures show nothing.
    """
    rows, sizes = [], []
    for split, names in splits.items():
        for name in names:
            path, present, size = root / "Annotations" / f"{name}.xml", set[str](), (0, 0)
            try:
                annotation = _annotation(path)
                present, size = _objects(path, annotation, classes), _size(annotation)
            except UserError as error:
                problems.append(str(error))
            row = {"image_id": name, "split": split, "image": f"JPEGImages/{name}.jpg", "mask": masks[name]}
            rows.append(row | {known: int(known in present) for known in classes})
            sizes.append(size)
    return pd.DataFrame(rows), sizes


def _warn_of_other_sizes(table: pd.DataFrame, sizes: list[tuple[int, int]]) -> None:
    """Tell of annotations that give another size than their picture has, lying or upright; they may be another's."""
    found = zip(table["image_id"], table["height"], table["width"], sizes, strict=True)
    other = [(name, w, h, size) for name, h, w, size in found if all(size) and sorted(size) != sorted((h, w))]
    if other:
        name, width, height, size = other[0]
        logger.warning(
            "%d annotations give another size than their picture has, such as %s.xml: %d×%d, the picture is %d×%d "
            "(width×height); see that they belong together",
            len(other), name, size[1], size[0], width, height,
        )  # fmt: skip


def _size(annotation: Element) -> tuple[int, int]:
    """(height, width) as an annotation gives them; (0, 0) where it does not."""
    texts = [(annotation.findtext(f"size/{key}") or "").strip() for key in ("height", "width")]
    height, width = (int(text) if text.isdecimal() and len(text) < 10 else 0 for text in texts)
    return height, width


def read_objects(path: Path, classes: list[str]) -> set[str]:
    """The classes of the objects in an annotation, difficult ones included.

    Raises `UserError` if the XML is missing, unsafe or malformed, has no object, or names an unknown class.
    """
    return _objects(path, _annotation(path), classes)


def _annotation(path: Path) -> Element:
    try:
        root: Element = SafeTree.parse(path).getroot()
    except FileNotFoundError as error:
        words = "no such annotation; copy it there or take the id off the list"
        raise UserError(f"{path}: {missing(path, words, ('.xml',))}") from error
    except DefusedXmlException as error:
        raise UserError(f"{path}: defines XML entities, which annotations never need; remove them") from error
    except (OSError, ParseError, ValueError, LookupError, RecursionError, MemoryError) as error:
        raise unreadable(path, error, f"not readable as XML ({error}); copy it again") from error
    return root


def _objects(path: Path, annotation: Element, classes: list[str]) -> set[str]:
    # Only direct children: the objects' own `part` elements (head, hand, foot) are named as well.
    names = [clean(item.findtext("name") or "") for item in annotation.findall("object")]
    if not names:
        raise UserError(f"{path}: names no object; take the picture off the list, or add its objects")
    for name in names:
        if is_background(name):
            raise UserError(f"{path}: an object is called `{name}`, but {BACKGROUND}; leave it out")
        if name not in classes:
            close = difflib.get_close_matches(name, classes, n=1, cutoff=0)
            raise UserError(f"{path}: unknown class `{name}`; did you mean `{close[0]}`? See dataset.classes")
    return set(names)
