"""COCO's `instances_<list>.json`: read, checked, its categories as label values and its pictures with our ids."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import posixpath
import reprlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from beco.artifacts.files import unreadable
from beco.datasets import manifest
from beco.datasets.classes import BACKGROUND, check_classes, clean, is_background
from beco.datasets.manifest import LONGEST_SIDE
from beco.datasets.outlines import SLACK, encloses, outline_problem, within_unit
from beco.datasets.paths import image_id, unusable
from beco.errors import UserError

logger = logging.getLogger("beco")


@dataclass(frozen=True)
class Instances:
    """One `instances_<name>.json`, checked."""

    name: str
    api: COCO
    classes: list[str]
    """Category names in label order 1…K."""
    values: dict[int, int]
    """Label value of each category id."""

    def paths(self) -> dict[int, str]:
        """The path of each picture relative to the dataset's root, in the order of the file."""
        return {number: _path(self.name, entry["file_name"]) for number, entry in self.api.imgs.items()}

    def ids(self, taken: Collection[str] = ()) -> dict[int, str]:
        """Our image id of each of COCO's, in the order of the file; `taken` are those of the other list.

        It is the name without the suffix where no other picture of the list has that, else it is made of the whole
        path; with the name of the list before it where the other list has it.
        """
        return _ids(self.name, {number: entry["file_name"] for number, entry in self.api.imgs.items()}, taken)

    def size(self, number: int) -> tuple[int, int]:
        """(height, width) of a picture in pixels, as the file says."""
        entry = self.api.imgs[number]
        return entry["height"], entry["width"]

    def annotations(self, number: int) -> list[dict[str, Any]]:
        """The instances of a picture, in the order of the file."""
        return self.api.imgToAnns.get(number, [])

    def groups(self) -> set[str]:
        """Categories that others name as the group they belong to (`supercategory`)."""
        entries = self.api.dataset["categories"]
        named = (entry.get("supercategory") for entry in entries if entry.get("supercategory") != entry["name"])
        return set(self.classes) & {clean(group) for group in named if isinstance(group, str)}

    def labels(self, crowd: bool) -> NDArray[np.int64]:
        """(N, K) of 0 and 1: which classes have an instance; a crowd counts as one if `crowd`."""
        rows = {number: row for row, number in enumerate(self.api.imgs)}
        found = np.zeros((len(rows), len(self.classes)), dtype=np.int64)
        for entry in self.api.dataset["annotations"]:
            if crowd or not entry.get("iscrowd"):
                found[rows[entry["image_id"]], self.values[entry["category_id"]] - 1] = 1
        return found


def read(root: Path | str, name: str, classes: list[str] | None = None) -> Instances:
    """Read and check `annotations/instances_<name>.json`; `classes` as in `build`.

    Raises `UserError` if the file is missing, damaged or incomplete, lists a picture twice, or has an annotation of an
    unlisted picture, of an unknown category, or with an outline that cannot be drawn or leaves its picture.
    """
    path = json_path(Path(root), name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem.removeprefix("instances_") for file in path.parent.glob("instances_*.json")))
        raise UserError(
            f"{path}: no such file; "
            + (f"the folder has {known}" if known else "set dataset.root to the folder that holds annotations")
        )
    content = _content(path)
    _relative_to_list(content["images"], Path(root), name)
    api = COCO()
    api.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress there
        api.createIndex()
    if len(api.cats) < len(content["categories"]):
        raise UserError(f"{path}: defines a category id twice; keep one of them")
    names = {entry["id"]: clean(entry["name"]) for entry in sorted(content["categories"], key=lambda c: c["id"])}
    used = {names[entry["category_id"]] for entry in content["annotations"] if entry["category_id"] in names}
    chosen = _chosen(path, list(names.values()), used, classes)
    values = {number: chosen.index(category) + 1 for number, category in names.items() if category in chosen}
    manifest.refuse(_problems(content, values, path, name), f"{path}")
    if not content["annotations"]:
        raise UserError(f"{path}: `annotations` is empty, so no picture shows anything; give the instances of COCO")
    _refuse_without_outlines(content, path)
    instances = Instances(name, api, chosen, values)
    if flat := sum(not encloses(entry["segmentation"]) for entry in content["annotations"]):
        logger.warning("%s: %d instances enclose no area; they count as labels, but are in no mask", path, flat)
    return instances


def _chosen(path: Path, names: list[str], used: set[str], classes: list[str] | None) -> list[str]:
    """The classes in label order: those asked for, which may leave out what has no annotation, or all of the file."""
    if classes is None:
        if named := [name for name in names if is_background(name)]:
            rest = ", ".join(name for name in names if name not in named)
            mend = f"leave it out with dataset.classes: [{rest}]"
            mend = "take it and its annotations out of the file" if named[0] in used else mend
            raise UserError(f"{path}: category `{named[0]}`: {BACKGROUND}; {mend}")
        return check_classes(names, f"{path}: categories")
    chosen = check_classes(classes)
    if len(set(names) & set(chosen)) < sum(name in chosen for name in names):
        raise UserError(f"{path}: two of its categories have the same name; merge them")
    if different := sorted((set(chosen) - set(names)) | (used - set(chosen))):
        raise UserError(
            f"{path}: its categories are not the classes asked for ({', '.join(different[:3])} in one alone);"
            " give dataset.classes and both lists the same"
        )
    return chosen


def json_path(root: Path, name: str) -> Path:
    """The file of a list."""
    return root / "annotations" / f"instances_{name}.json"


PARTS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "categories": {"id": int, "name": str},
    "annotations": {"image_id": int, "category_id": int, "segmentation": (list, dict)},
}


def _content(path: Path) -> dict[str, Any]:
    """The JSON of a file, with all the parts and keys that are needed, each of its type."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        damage = f"not readable as JSON ({' '.join(str(error).split())}); copy it again"
        raise unreadable(path, error, damage, "a JSON text", ("a JSON text", "a text", "empty")) from error
    except MemoryError as error:
        raise UserError(f"{path}: needs more memory than this machine has; split the list, or use another") from error
    for part, keys in PARTS.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not (entries or part == "annotations"):
            raise UserError(f"{path}: has no list `{part}`; give the instances of COCO, complete")
        for number, entry in enumerate(entries):
            for key, kind in keys.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                    raise UserError(f"{path}: {part}[{number}] lacks a valid `{key}`{_instead(entry, key)}")
            if part == "annotations" and not isinstance(entry.setdefault("id", number), int | str):
                raise UserError(f"{path}: annotations[{number}] lacks a valid `id`; copy the file again")
    return content


def _instead(entry: Any, key: str) -> str:
    """What stands in the place of a valid value, and the mend."""
    if isinstance(entry, dict) and isinstance(entry.get(key), str | float):
        return f" (found {reprlib.repr(entry[key])}); write a whole number, as COCO does"
    return "; copy the file again"


def _problems(content: dict[str, Any], values: dict[int, int], path: Path, name: str) -> Iterator[str]:
    """What is wrong with the pictures and annotations of a file, one line each."""
    sizes: dict[int, tuple[int, int]] = {}
    yield from _wrong_names(content["images"], path, name)
    for entry in content["images"]:
        if not 1 <= min(entry["height"], entry["width"]) <= max(entry["height"], entry["width"]) <= LONGEST_SIDE:
            yield f"{path}: picture {entry['id']} has no area or no size; correct its width and height"
            sizes[entry["id"]] = 0, 0
        else:
            sizes[entry["id"]] = entry["height"], entry["width"]
    for index, entry in enumerate(content["annotations"]):
        which = f"{path}: annotation {entry.get('id', index)}"
        size = sizes.get(entry["image_id"])
        if entry["category_id"] not in values:
            yield f"{which} is of category {entry['category_id']}, which the file does not define; correct it"
        if size is None:
            yield f"{which} belongs to picture {entry['image_id']}, which the file does not list; remove one or add it"
        elif min(size) > 0 and (problem := outline_problem(entry["segmentation"], *size)):
            yield f"{which} of picture {entry['image_id']}: {problem}"


def _refuse_without_outlines(content: dict[str, Any], path: Path) -> None:
    """Raise a `UserError` where all masks would be background: for boxes alone, and for outlines in fractions."""
    outlines = [entry["segmentation"] for entry in content["annotations"] if encloses(entry["segmentation"])]
    if not outlines:
        raise UserError(
            f"{path}: none of its {len(content['annotations'])} annotations has an outline, so each mask would be "
            "background and each score wrong; export it with polygons or masks (`segmentation`), or, to learn from "
            "the labels without scores, write them as a CSV (dataset.format: folder, without dataset.masks)"
        )
    longest = max(max(entry["height"], entry["width"]) for entry in content["images"])
    if longest > SLACK and all(map(within_unit, outlines)):
        numbers = [number for outline in outlines for polygon in outline for number in polygon]
        span = f"from {min(numbers):g} to {max(numbers):g} in pictures of up to {longest} pixels"
        raise UserError(
            f"{path}: its outlines run {span}, so they are fractions; multiply by "
            "the picture's width (x) and height (y)"
        )


# --- names of pictures --------------------------------------------------------------------------------------


def _relative_to_list(images: list[dict[str, Any]], root: Path, name: str) -> None:
    """Change file names that are relative to the root, as CVAT writes them, to be relative to the list's folder.

    The first picture decides for all, as each program has one way.
    """
    first = images[0]["file_name"]
    if unusable(first) or (root / _path(name, first)).is_file() or not (root / first).is_file():
        return
    logger.info("%s: file names are taken to be relative to %s", json_path(root, name), root)
    for entry in images:
        if not unusable(entry["file_name"]):
            entry["file_name"] = posixpath.relpath(posixpath.normpath(entry["file_name"]), posixpath.normpath(name))


def _path(name: str, file: str) -> str:
    """The path of a picture of the list `name` relative to the dataset's root."""
    return posixpath.normpath(posixpath.join(name, file))


def _ids(name: str, files: dict[int, str], taken: Collection[str]) -> dict[int, str]:
    stems = {number: Path(file).stem for number, file in files.items()}
    counts = Counter(stems.values())
    found = {}
    for number, stem in stems.items():
        own = stem if counts[stem] == 1 else _whole(name, files[number])
        found[number] = own if own not in taken else image_id(f"{name}/{_whole(name, files[number])}")
    return found


def _whole(name: str, file: str) -> str:
    """An id of the whole path below the list's folder, or below the root where it leads out of that."""
    path = _path(name, file)
    return image_id(path.removeprefix(f"{posixpath.normpath(name)}/"))


def _wrong_names(images: list[dict[str, Any]], path: Path, name: str) -> Iterator[str]:
    """Pictures whose name cannot be used, that come twice, or that would share an id."""
    files: dict[int, str] = {}
    paths: dict[str, int] = {}
    for entry in images:
        number, file = entry["id"], entry["file_name"]
        if problem := unusable(file, name):
            yield f"{path}: picture {number}: {problem}"
        elif number in files or _path(name, file) in paths:
            yield f"{path}: lists picture {number} ({file}) twice; keep one of them"
        else:
            files[number] = file
            paths[_path(name, file)] = number
    owners: dict[str, str] = {}
    for number, own in _ids(name, files, ()).items():
        if own in owners:
            yield f"{path}: {owners[own]} and {files[number]} have the same id `{own}`; rename one of them"
        owners.setdefault(own, files[number])
