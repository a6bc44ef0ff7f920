"""One's own pictures in a folder, with a CSV of image-level labels (see `sheet`), to `manifest.csv`.

Pictures are of any format that Pillow reads, in any depth of folders; the CSV may leave their suffixes out. A
picture's id, which names its predictions, is its path without the suffix, with `__` for each `/`: `trip/Tag 1.webp`
becomes `trip__Tag 1`; two pictures that would share an id are refused. Names are compared and kept in Unicode's
composed form (NFC), because macOS decomposes them.

Masks are optional, for some pictures or all: `<masks>/<path without suffix>.png` or `<masks>/<id>.png`, index PNGs with
0 for background, 1…K for the classes in their order and 255 for no opinion. They serve to measure, never to train,
unless an experiment asks for `labels: truth`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pandas as pd
from PIL import Image

from beco.datasets import manifest
from beco.datasets.classes import check_classes, tell
from beco.datasets.manifest import Manifest
from beco.datasets.paths import SUFFIXES, alike, composed, image_id, missing, unusable
from beco.datasets.sheet import Row, Sheet, read_sheet
from beco.errors import UserError

logger = logging.getLogger("beco")


@dataclass
class Entry:
    """A picture of the CSV that has an id."""

    row: Row
    image_id: str
    image: str
    """Path relative to the root, as the file system spells it."""
    mask: str = ""
    """Path relative to the root, or nothing."""


def build(
    root: Path | str,
    labels: Path | str | None,
    masks: Path | str | None,
    val_share: float,
    classes: list[str] | None,
    output: Path | str,
) -> Manifest:
    """Read a folder of pictures and the CSV of their labels, check all of it, and write its manifest.

    Args:
        root: the folder that the paths in the CSV are relative to.
        labels: the CSV, see `sheet`.
        masks: the folder of masks, if there are any.
        val_share: share of the pictures for validation, where the CSV has no column `split`; see `split_by_hash`.
        classes: class names in label order 1…K; None for those of the CSV.
        output: `manifest.csv`, its rows ordered by id.

    Returns the manifest. Raises `UserError` for folders or a CSV that cannot be read at all, and `Problems` with
    everything else that is wrong: rows, names, labels, pictures and masks together.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"dataset.root: {root} is not a folder; set it to the folder of your pictures")
    if labels is None:
        raise UserError("dataset.labels: missing; set it to the CSV of your labels")
    if masks is not None and not Path(masks).is_dir():
        raise UserError(f"dataset.masks: {masks} is not a folder; set it to the folder of your masks, or leave it out")
    sheet = read_sheet(Path(labels), classes)
    try:
        if sheet.classes:  # none at all is told by the sheet
            check_classes(sheet.classes, "dataset.classes" if classes else f"{sheet.path}")
    except UserError as error:
        sheet.problems.append(str(error))
    listing = listing_of(root)
    complete(sheet, listing)
    entries = _entries(sheet, listing)
    _find_masks(sheet, entries, root, None if masks is None else Path(masks))
    splits = _splits(sheet, entries, val_share)
    _check_training(sheet, entries, splits)
    table = pd.DataFrame(
        [_cells(entry, split, sheet.classes) for entry, split in zip(entries, splits, strict=True)],
        columns=[
            *dict.fromkeys(["image_id", "split", "image", "mask", *sheet.classes])
        ],  # each once, if refused as well
    )
    table = manifest.check_and_measure(table, root, sheet.classes, sheet.problems)
    tell(table, sheet.classes)
    _tell(table, _unlisted(listing, entries, root, masks), root)
    return manifest.save(table, output, root)


def _cells(entry: Entry, split: str, classes: list[str]) -> dict[str, str | int]:
    shown: dict[str, str | int] = {name: int(name in entry.row.present) for name in classes}
    return shown | {"image_id": entry.image_id, "split": split, "image": entry.image, "mask": entry.mask}


# --- pictures -----------------------------------------------------------------------------------------------


def _files(root: Path) -> Iterator[str]:
    """Every file below `root`, as a path relative to it."""
    for folder, _, names in os.walk(root):
        below = Path(folder).relative_to(root)
        yield from ((below / name).as_posix() for name in names)


def listing_of(root: Path) -> dict[str, str]:
    """Every file below `root` as the file system spells its path, by that path in composed form."""
    return {composed(path): path for path in _files(root)}


def complete(sheet: Sheet, listing: dict[str, str]) -> None:
    """Give the names of the CSV that lack their suffix the one of the picture that is called so, in place.

    Lists of VOC and many others name pictures without it. Where several pictures are called so, that is noted, and the
    row left out: which of them is meant cannot be known.
    """
    called: dict[str, list[str]] = defaultdict(list)
    for path in sorted(listing):
        if PurePosixPath(path).suffix.lower() in SUFFIXES:
            called[PurePosixPath(path).with_suffix("").as_posix()].append(path)
    rows = []
    for row in sheet.rows:
        path = composed(posixpath.normpath(row.image))
        found = [] if path in listing else called.get(path, [])
        if len(found) > 1:
            names = " and ".join(found)
            sheet.wrong(row.line, f"{row.image} may be {names}; write the one that is meant, with its suffix")
        else:
            rows.append(replace(row, image=found[0]) if found else row)
    sheet.rows[:] = rows


def _entries(sheet: Sheet, listing: dict[str, str]) -> list[Entry]:
    """The pictures of the CSV ordered by id; names that leave the folder or meet in one id are noted and left out."""
    lines: dict[str, list[int]] = defaultdict(list)
    found: dict[str, list[Entry]] = defaultdict(list)
    for row in sheet.rows:
        if problem := unusable(composed(row.image)):
            sheet.wrong(row.line, problem)
            continue
        path = composed(posixpath.normpath(row.image))
        if not lines[path]:
            entry = Entry(row, image_id(path), listing.get(path, path))
            found[entry.image_id].append(entry)
        lines[path].append(row.line)
    for path, several in lines.items():
        if len(several) > 1:
            where = ", ".join(str(line) for line in several)
            sheet.problems.append(f"{sheet.path}: lines {where}: {path} comes {len(several)} times; keep one")
    for name, entries in found.items():
        if len(entries) > 1:
            paths = ", ".join(f"{entry.row.image} (line {entry.row.line})" for entry in entries)
            sheet.problems.append(f"{sheet.path}: {paths}: the same id `{name}`; rename all but one")
    return [found[name][0] for name in sorted(found)]


# --- masks --------------------------------------------------------------------------------------------------


def _find_masks(sheet: Sheet, entries: list[Entry], root: Path, masks: Path | None) -> None:
    """Set the mask of every entry that has one: what the CSV names, or what lies in the folder of masks."""
    base = root if masks is None else masks
    expected = {masks / PurePosixPath(entry.image).with_suffix(".png") for entry in entries} if masks else set()
    for entry in entries:
        if entry.row.mask:
            path = posixpath.normpath(entry.row.mask)
            if path.startswith(("/", "../")):
                sheet.wrong(entry.row.line, f"mask {path} leaves its folder; write a path inside {base}")
                continue
            entry.mask = _relative(base / path, root)
        elif masks is not None:
            names = (PurePosixPath(entry.image).with_suffix(".png"), f"{entry.image_id}.png")
            entry.mask = next((_relative(masks / name, root) for name in names if (masks / name).is_file()), "")
            if not entry.mask:
                _note_misnamed(sheet, masks / names[0], expected)
    if masks is not None and entries and not any(entry.mask for entry in entries):
        example = PurePosixPath(entries[0].image).with_suffix(".png")
        sheet.problems.append(
            f"dataset.masks: {masks}: no file there has the name of a picture, such as {example}; "
            "rename the masks, or leave dataset.masks out"
        )


def _note_misnamed(sheet: Sheet, path: Path, expected: set[Path]) -> None:
    """Note the file that is the missing mask but for its case, unless it is another picture's."""
    found = alike(path, (".png",))
    if found and path.with_name(found) not in expected:
        sheet.problems.append(f"{path}: {missing(path, 'no such mask', ('.png',))}")


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


# --- splits -------------------------------------------------------------------------------------------------


def _splits(sheet: Sheet, entries: list[Entry], share: float) -> list[str]:
    """The split of every entry, in order."""
    if not sheet.has_split:
        val = split_by_hash({entry.image_id: entry.row.present for entry in entries}, share)
        if entries and not val:
            sheet.problems.append(
                f"{sheet.path}: no picture can be spared for validation, since each is the only one of a class; "
                "label more pictures"
            )
        return ["val" if entry.image_id in val else "train" for entry in entries]
    splits = [entry.row.split for entry in entries]
    for name in ("train", "val"):
        if name not in splits:
            sheet.problems.append(
                f"{sheet.path}: column `split` has no {name} picture; write {name} for some, or remove the column"
            )
    return splits


def split_by_hash(shown: dict[str, set[str]], share: float) -> set[str]:
    """Ids of the pictures for validation: `share` of all, at least one, and the same whatever the order.

    Pictures are taken in the order of the SHA-256 of their ids. One that is the last with some class is passed over, so
    that training sees every class; where that leaves too few, there are fewer.
    """
    left = Counter(name for names in shown.values() for name in names)
    wanted, chosen = max(round(share * len(shown)), 1), set[str]()
    for name in sorted(shown, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(chosen) == min(wanted, len(shown) - 1):
            break
        if all(left[label] > 1 for label in shown[name]):
            chosen.add(name)
            left.subtract(shown[name])
    return chosen


def _check_training(sheet: Sheet, entries: list[Entry], splits: list[str]) -> None:
    """Note the classes that no training picture shows."""
    training = [entry for entry, split in zip(entries, splits, strict=True) if split == "train"]
    seen = set().union(*(entry.row.present for entry in training))
    for name in sheet.classes:
        if training and name not in seen:
            sheet.problems.append(
                f"{sheet.path}: no training picture shows `{name}`; label some, or take the class out"
            )


# --- what to know -------------------------------------------------------------------------------------------


def _unlisted(listing: dict[str, str], entries: list[Entry], root: Path, masks: Path | str | None) -> int:
    """How many files of the folder look like pictures that the CSV does not name."""
    suffixes = Image.registered_extensions()
    own = {entry.image for entry in entries} | {entry.mask for entry in entries}
    aside = None if masks is None else _relative(Path(masks), root) + "/"
    return sum(
        Path(path).suffix.lower() in suffixes and path not in own and not (aside and path.startswith(aside))
        for path in listing.values()
    )


def _tell(table: pd.DataFrame, unlisted: int, root: Path) -> None:
    if unlisted:
        logger.info("%s: %d pictures are not in the CSV and left out", root, unlisted)
    if not (table["mask"] != "").any():
        logger.info("no masks: predictions will be made, but nothing can be measured against the truth")
