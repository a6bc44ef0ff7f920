"""PASCAL VOC layout (Everingham et al. 2010) to `manifest.csv`.

`JPEGImages/<id>.jpg`, `Annotations/<id>.xml`, `ImageSets/Segmentation/<list>.txt` and index PNGs in
`SegmentationClass` or, for the augmented training list (Hariharan et al. 2011), `SegmentationClassAug`.
"""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import ParseError

import pandas as pd
from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from beco.datasets import manifest
from beco.datasets.manifest import Manifest
from beco.errors import UserError
from beco.files import unreadable

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
    classes = manifest.check_classes(VOC_CLASSES if classes is None else classes)
    _check_root(root)
    splits = {"train": read_list(root, train), "val": read_list(root, val)}
    if shared := set(splits["train"]) & set(splits["val"]):
        raise UserError(
            f"{_list(root, val)}: {len(shared)} of its ids are in {train}.txt too, such as {min(shared)};"
            " validate on pictures that training does not see"
        )
    problems: list[str] = []
    masks = _train_masks(root, train, splits["train"], problems) | _val_masks(root, splits["val"], problems)
    table = _table(root, splits, masks, classes, problems)
    table = manifest.check_and_measure(table, root, classes, problems)
    manifest.warn_of_unseen(table, classes)
    manifest.write(table, output)
    return manifest.read(output, root)


def read_list(root: Path, name: str) -> list[str]:
    """The ids of a list, in order.

    A line holds an id, or (as the augmented lists in circulation do) the paths of picture and mask.
    """
    path = _list(root, name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))) or "no list at all"
        raise UserError(f"{path}: no such list; the folder has {known}")
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, f"cannot be read as text ({error}); copy it again") from error
    if not lines:
        raise UserError(f"{path}: names no pictures; write one id a line")
    ids = [_id(path, words, root) for words in lines]
    if repeated := [name for name, count in Counter(ids).items() if count > 1]:
        raise UserError(f"{path}: names {repeated[0]} twice; keep one")
    return ids


def _id(path: Path, words: list[str], root: Path) -> str:
    if "/" in words[0]:
        return Path(words[0]).stem
    name = " ".join(words)
    if name in (".", "..") or "\\" in name:
        raise UserError(f"{path}: `{name}` is no name of a picture; write the file's name without its suffix")
    if len(words) > 1 and (root / "JPEGImages" / f"{name}.jpg").is_file():
        return name
    if len(words) > 1:
        raise UserError(f"{path}: more than an id in the line `{' '.join(words)}`; write one id a line")
    return words[0]


def _list(root: Path, name: str) -> Path:
    return root / "ImageSets" / "Segmentation" / f"{name}.txt"


def _check_root(root: Path) -> None:
    if (root / "JPEGImages").is_dir():
        return
    if not root.is_dir():
        raise UserError(f"dataset.root: {root} is not a folder; set it to the one that holds JPEGImages")
    below = sorted([*root.glob("*/JPEGImages"), *root.glob("*/*/JPEGImages")])
    mend = f"did you mean {below[0].parent}?" if below else "set it to the VOC2012 folder"
    raise UserError(f"dataset.root: {root} holds no folder JPEGImages; {mend}")


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
    return [
        f"{root / OFFICIAL / name}.png: no mask for this {what} picture, here or in {AUGMENTED}; "
        "copy it there or take the id off the list"
        for name in names
    ]


# --- image-level labels -------------------------------------------------------------------------------------


def _table(
    root: Path, splits: dict[str, list[str]], masks: dict[str, str], classes: list[str], problems: list[str]
) -> pd.DataFrame:
    """One row per picture; annotations that cannot be read go to `problems`, and their pictures show nothing."""
    rows = []
    for split, names in splits.items():
        for name in names:
            present: set[str] = set()
            try:
                present = read_objects(root / "Annotations" / f"{name}.xml", classes)
            except UserError as error:
                problems.append(str(error))
            row = {"image_id": name, "split": split, "image": f"JPEGImages/{name}.jpg", "mask": masks[name]}
            rows.append(row | {known: int(known in present) for known in classes})
    return pd.DataFrame(rows)


def read_objects(path: Path, classes: list[str]) -> set[str]:
    """The classes of the objects in an annotation, difficult ones included.

    Raises `UserError` if the XML is missing, unsafe or malformed, has no object, or names an unknown class.
    """
    try:
        tree = SafeTree.parse(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such annotation; copy it there or take the id off the list") from error
    except DefusedXmlException as error:
        raise UserError(f"{path}: defines XML entities, which annotations never need; remove them") from error
    except (OSError, ParseError, ValueError) as error:
        raise unreadable(path, error, f"not readable as XML ({error}); copy it again") from error
    # Only direct children: the objects' own `part` elements (head, hand, foot) are named as well.
    names = [(item.findtext("name") or "").strip() for item in tree.getroot().findall("object")]
    if not names:
        raise UserError(f"{path}: names no object; take the picture off the list, or add its objects")
    for name in names:
        if name not in classes:
            close = difflib.get_close_matches(name, classes, n=1, cutoff=0)
            raise UserError(f"{path}: unknown class `{name}`; did you mean `{close[0]}`? See dataset.classes")
    return set(names)
