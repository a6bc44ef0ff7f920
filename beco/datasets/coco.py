"""COCO layout (Lin et al. 2014) to `manifest.csv`, and its instances to index PNGs.

`annotations/instances_<list>.json` with the pictures in the folder `<list>`, as in `train2014` and `val2014`. A
picture's id is its file name without the suffix. COCO has instances, no label maps: `render` draws them by a named rule
(`dataset.coco`), and numbers on differently drawn masks cannot be compared.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO

from beco.config import Coco
from beco.datasets import manifest
from beco.datasets.manifest import IGNORE, MASK_RULE, Manifest, check_classes
from beco.datasets.palette import write_index_png
from beco.errors import UserError
from beco.files import file_hash, read_json, unreadable, write_json
from beco.ordered import in_order
from beco.sources import stage_hash

SLACK = 2.0
"""Pixels by which an outline may leave its picture; hand-drawn ones touch the edge and are rounded."""

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

    def stems(self) -> dict[int, str]:
        """Our image id of each of COCO's, in the order of the file."""
        return {number: Path(entry["file_name"]).stem for number, entry in self.api.imgs.items()}

    def size(self, number: int) -> tuple[int, int]:
        """(height, width) of a picture in pixels, as the file says."""
        entry = self.api.imgs[number]
        return entry["height"], entry["width"]

    def annotations(self, number: int) -> list[dict[str, Any]]:
        """The instances of a picture, in the order of the file."""
        return self.api.imgToAnns.get(number, [])

    def labels(self, crowd: bool) -> NDArray[np.int64]:
        """(N, K) of 0 and 1: which classes have an instance; a crowd counts as one if `crowd`."""
        rows = {number: row for row, number in enumerate(self.api.imgs)}
        found = np.zeros((len(rows), len(self.classes)), dtype=np.int64)
        for entry in self.api.dataset["annotations"]:
            if crowd or not entry.get("iscrowd"):
                found[rows[entry["image_id"]], self.values[entry["category_id"]] - 1] = 1
        return found


# --- manifest -----------------------------------------------------------------------------------------------


def build(
    root: Path | str, train: str, val: str, classes: list[str] | None, settings: Coco, masks: Path, output: Path | str
) -> Manifest:
    """Read a folder in COCO layout, check all of it, and write its manifest.

    Args:
        root: the folder that holds `annotations` and the folders of pictures.
        train: training list, `annotations/instances_<train>.json` with the pictures in `<train>`.
        val: validation list, likewise; no picture may be in both.
        classes: the names of all categories in label order 1…K; None: by ascending category id.
        settings: whether a crowd counts for the image-level labels.
        masks: the folder that `render` draws into, before or after; it is not looked into.
        output: `manifest.csv`; its splits are called `train` and `val` whatever the lists are called.

    Returns the manifest, pictures without any instance included. Raises `UserError` naming the file for anything
    missing, damaged or contradictory, and lists together what is wrong with annotations and with pictures.
    """
    root, tables, sizes = Path(root), [], []
    folder = os.path.relpath(Path(masks).resolve(), root.resolve())
    for split, name in (("train", train), ("val", val)):
        instances = read(root, name, classes)  # one at a time: train2014 takes gigabytes
        classes = instances.classes
        stems = list(instances.stems().values())
        found = {
            "image_id": stems,
            "split": split,
            "image": [f"{name}/{entry['file_name']}" for entry in instances.api.imgs.values()],
            "mask": "",
        }
        labels = pd.DataFrame(instances.labels(settings.crowd_labels), columns=classes)
        tables.append(pd.concat([pd.DataFrame(found), labels], axis=1))
        sizes += [instances.size(number) for number in instances.api.imgs]
    table = pd.concat(tables, ignore_index=True)
    if (shared := table["image_id"].duplicated()).any():
        raise UserError(
            f"{_json(root, val)}: lists {table.loc[shared, 'image_id'].iloc[0]}, which is in {train} too;"
            " validate on pictures that training does not see"
        )
    assert classes is not None
    measured = manifest.check_and_measure(table, root, classes)
    _refuse_other_sizes(measured, sizes, root)
    measured["mask"] = folder + "/" + measured["image_id"] + ".png"
    manifest.write(measured, output)
    return manifest.read(output, root)


def _refuse_other_sizes(table: pd.DataFrame, sizes: list[tuple[int, int]], root: Path) -> None:
    found = zip(table["image"], table["height"], table["width"], sizes, strict=True)
    manifest.refuse(
        (
            f"{root / image}: is {width}×{height}, its annotation {listed[1]}×{listed[0]} (width×height);"
            " copy the picture that belongs to the annotation"
            for image, height, width, listed in found
            if (height, width) != tuple(listed)
        ),
        f"{root}",
    )


# --- instances_*.json ---------------------------------------------------------------------------------------


def read(root: Path | str, name: str, classes: list[str] | None = None) -> Instances:
    """Read and check `annotations/instances_<name>.json`; `classes` as in `build`.

    Raises `UserError` if the file is missing, damaged or incomplete, lists a picture twice, or has an annotation of an
    unlisted picture, of an unknown category, or with an outline that cannot be drawn or leaves its picture.
    """
    path = _json(Path(root), name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem.removeprefix("instances_") for file in path.parent.glob("instances_*.json")))
        raise UserError(
            f"{path}: no such file; "
            + (f"the folder has {known}" if known else "set dataset.root to the folder that holds annotations")
        )
    content = _content(path)
    api = COCO()
    api.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress there
        api.createIndex()
    if len(api.cats) < len(content["categories"]):
        raise UserError(f"{path}: defines a category id twice; keep one of them")
    names = {entry["id"]: entry["name"] for entry in sorted(content["categories"], key=lambda entry: entry["id"])}
    chosen = check_classes(list(names.values()) if classes is None else classes)
    if different := sorted(set(chosen) ^ set(names.values())):
        raise UserError(
            f"{path}: its categories are not the classes asked for ({', '.join(different[:3])} in one alone);"
            " give dataset.classes and both lists the same"
        )
    values = {number: chosen.index(category) + 1 for number, category in names.items()}
    manifest.refuse(_problems(content, values, path), f"{path}")
    instances = Instances(name, api, chosen, values)
    if flat := sum(not _outline(entry["segmentation"]) for entry in content["annotations"]):
        logger.warning("%s: %d instances enclose no area; they count as labels, but are in no mask", path, flat)
    return instances


def _json(root: Path, name: str) -> Path:
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
    except (OSError, ValueError) as error:
        raise unreadable(path, error, f"not readable as JSON ({error}); copy it again") from error
    for part, keys in PARTS.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not (entries or part == "annotations"):
            raise UserError(f"{path}: has no list `{part}`; give the instances of COCO, complete")
        for number, entry in enumerate(entries):
            for key, kind in keys.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                    raise UserError(f"{path}: {part}[{number}] lacks a valid `{key}`; copy the file again")
            if part == "annotations" and not isinstance(entry.setdefault("id", number), int | str):
                raise UserError(f"{path}: annotations[{number}] lacks a valid `id`; copy the file again")
    return content


def _problems(content: dict[str, Any], values: dict[int, int], path: Path) -> Iterator[str]:
    """What is wrong with the pictures and annotations of a file, one line each."""
    sizes: dict[int, tuple[int, int]] = {}
    stems: set[str] = set()
    for entry in content["images"]:
        number, stem = entry["id"], Path(entry["file_name"]).stem
        if number in sizes or stem in stems:
            yield f"{path}: lists picture {number} ({entry['file_name']}) twice; keep one of them"
        if min(entry["height"], entry["width"]) < 1:
            yield f"{path}: picture {number} has no area; correct its width and height"
        sizes[number] = entry["height"], entry["width"]
        stems.add(stem)
    for index, entry in enumerate(content["annotations"]):
        which = f"{path}: annotation {entry.get('id', index)}"
        size = sizes.get(entry["image_id"])
        if entry["category_id"] not in values:
            yield f"{which} is of category {entry['category_id']}, which the file does not define; correct it"
        if size is None:
            yield f"{which} belongs to picture {entry['image_id']}, which the file does not list; remove one or add it"
        elif min(size) > 0 and (problem := outline_problem(entry["segmentation"], *size)):
            yield f"{which} of picture {entry['image_id']}: {problem}"


# --- outlines -----------------------------------------------------------------------------------------------


def outline_problem(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong with an annotation's `segmentation` in a picture of this size, or None.

    COCO has polygons (lists of x, y, x, y, … in pixels) or an RLE with `size` and `counts`, which are run lengths down
    the columns or their compressed text. What cannot be right must not reach pycocotools: it reads past the end of
    runs that are too short.
    """
    if isinstance(segmentation, dict):
        return _runs_problem(segmentation, height, width)
    for polygon in segmentation:
        try:
            if not all(map(isfinite, polygon)) or len(polygon) % 2:
                return "a polygon that is not pairs of numbers; correct it"
        except TypeError:
            return "a polygon that is not pairs of numbers; correct it"
        xs, ys = polygon[::2], polygon[1::2]
        if polygon and (min(polygon) < -SLACK or max(xs) > width + SLACK or max(ys) > height + SLACK):
            return (
                f"its outline runs from ({min(xs):g}, {min(ys):g}) to ({max(xs):g}, {max(ys):g}), outside of the "
                f"{width}×{height} picture; correct the outline or the picture's size"
            )
    return None


def _runs_problem(rle: dict[str, Any], height: int, width: int) -> str | None:
    if rle.get("size") != [height, width]:
        return f"an RLE of size {rle.get('size')} in a picture of [{height}, {width}] (height, width); correct it"
    counts = rle.get("counts")
    try:
        runs = run_lengths(counts) if isinstance(counts, str) else counts
        if isinstance(runs, list) and min(runs, default=0) >= 0 and sum(runs) == height * width:
            return None
    except (TypeError, IndexError):
        pass
    return f"an RLE whose runs do not fill the {height * width} pixels of its picture; correct it"


def run_lengths(text: str) -> list[int]:
    """The run lengths of a compressed RLE (pycocotools' `rleFrString`).

    Numbers come in groups of five bits, the lowest first, each as a character from `0` on with 32 for "more follows"
    and 16 in the last one for a negative number. From the fourth on, a number is the difference to the second last.
    """
    runs: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = ord(text[position]) - 48
            if not 0 <= bits < 64:
                raise IndexError(f"{text[position]!r} does not belong in a compressed RLE")
            value |= (bits & 31) << shift
            more, shift, position = bool(bits & 32), shift + 5, position + 1
        value -= (bits & 16) * 2 << (shift - 5)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _outline(segmentation: Any) -> bool:
    """Whether there is anything to draw: an RLE, or a polygon of three points or more."""
    return isinstance(segmentation, dict) or any(len(polygon) >= 6 for polygon in segmentation)


def _drawn(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels of an instance, the union of its polygons. `_outline` holds for it."""
    if isinstance(segmentation, dict):
        rle = segmentation
        if isinstance(rle["counts"], list):
            rle = rle_masks.frPyObjects(rle, height, width)
    else:  # of fewer than three points it would make a box, or nothing
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        rle = rle_masks.merge(rle_masks.frPyObjects(polygons, height, width))
    return rle_masks.decode(rle).astype(bool)


# --- masks --------------------------------------------------------------------------------------------------


def label_map(instances: Instances, number: int, settings: Coco) -> NDArray[np.uint8]:
    """The (H, W) uint8 label map of a picture: 0, 1…K, and 255 where only an ignored crowd is.

    Crowds lie below all instances, whatever their place in the file, because an outlined instance says more. Of
    overlapping instances the later one of the file is on top, or by `settings.overlap: area` the one of fewer pixels
    (of equally many, the later one).
    """
    size = instances.size(number)
    label = np.zeros(size, dtype=np.uint8)
    objects = []
    for entry in instances.annotations(number):
        if not _outline(entry["segmentation"]):
            continue
        if not entry.get("iscrowd"):
            objects.append((instances.values[entry["category_id"]], _drawn(entry["segmentation"], *size)))
        elif settings.crowd == "ignore":
            label[_drawn(entry["segmentation"], *size)] = IGNORE
    if settings.overlap == "area":
        objects.sort(key=lambda item: -np.count_nonzero(item[1]))
    for value, pixels in objects:
        label[pixels] = value
    return label


def render(
    root: Path | str,
    train: str,
    val: str,
    classes: list[str] | None,
    settings: Coco,
    output: Path | str,
    threads: int = 1,
) -> None:
    """Draw the masks of both lists as palette PNGs, `<image_id>.png`, into the folder `output`.

    Each file appears whole. After a kill the same call goes on with those that are missing. `rule.json` in the folder
    says what they were made of and how; masks of another rule, of other annotations or by other code are replaced. The
    arguments are those of `build`. Raises `UserError` as `read` does, and for a folder with PNGs but no `rule.json`.
    """
    root, output = Path(root), Path(output)
    rule = {
        "rule": {key: getattr(settings, key) for key in ("overlap", "crowd")},
        "classes": classes,
        "annotations": {name: file_hash(_json(root, name)) for name in (train, val)},
        "code": stage_hash("beco.datasets.coco"),
    }
    _start(output, rule)
    done = {path.stem for path in output.glob("*.png")}
    for name in (train, val):
        instances = read(root, name, classes)
        stems = {number: stem for number, stem in instances.stems().items() if stem not in done}

        def draw(number: int, instances: Instances = instances, stems: dict[int, str] = stems) -> None:
            write_index_png(output / f"{stems[number]}.png", label_map(instances, number, settings))

        for _ in in_order(draw, list(stems), threads, f"masks of {name}"):
            pass


def _start(output: Path, rule: dict[str, Any]) -> None:
    """Make the folder one for masks of this rule alone; those of another one go, and what a kill left half-written."""
    made_by = output / MASK_RULE
    masks = list(output.glob("*.png"))
    if masks and not made_by.is_file():
        raise UserError(f"{output}: holds PNGs that were not drawn here; name another folder for the masks")
    for path in output.glob(".*.tmp.png"):
        path.unlink()
    if made_by.is_file() and read_json(made_by) == rule:
        return
    for path in masks:  # before the new rule is written, so that a kill in between leaves none under a wrong rule
        path.unlink()
    write_json(made_by, rule)
