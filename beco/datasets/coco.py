"""COCO layout (Lin et al. 2014) to `manifest.csv`, and its instances to index PNGs.

`annotations/instances_<list>.json` with the pictures in the folder `<list>`, as in `train2014` and `val2014`. A
picture's id is its file name without the suffix, or, where that would come twice, its path: `x/0001.jpg` and
`y/0001.jpg` become `x__0001` and `y__0001`. COCO has instances, no label maps: `render` draws them by a named rule
(`dataset.coco`), and numbers on differently drawn masks cannot be compared.
"""

from __future__ import annotations

import filecmp
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from beco.artifacts.files import file_hash, read_json, write_json
from beco.artifacts.ordered import in_order
from beco.artifacts.sources import stage_hash
from beco.config import Coco
from beco.datasets import manifest
from beco.datasets.classes import tell, warn_of_unseen
from beco.datasets.instances import Instances, json_path, read
from beco.datasets.manifest import IGNORE, MASK_RULE, Manifest
from beco.datasets.outlines import drawn, encloses
from beco.datasets.palette import write_index_png
from beco.datasets.paths import SUFFIXES, check_root
from beco.errors import UserError

MEND = "add some, or leave the category out (dataset.classes without it is enough where it has no annotation)"

logger = logging.getLogger("beco")


# --- manifest -----------------------------------------------------------------------------------------------


def build(
    root: Path | str, train: str, val: str, classes: list[str] | None, settings: Coco, masks: Path, output: Path | str
) -> Manifest:
    """Read a folder in COCO layout, check all of it, and write its manifest.

    Args:
        root: the folder that holds `annotations` and the folders of pictures.
        train: training list, `annotations/instances_<train>.json` with the pictures in `<train>`.
        val: validation list, likewise; no picture may be in both.
        classes: the names of the categories in label order 1…K, of which only those without annotations may be left
            out; None: all, by ascending category id.
        settings: whether a crowd counts for the image-level labels.
        masks: the folder that `render` draws into, before or after; it is not looked into.
        output: `manifest.csv`; its splits are called `train` and `val` whatever the lists are called.

    Returns the manifest, pictures without any instance included. Raises `UserError` naming the file for anything
    missing, damaged or contradictory, and lists together what is wrong with annotations and with pictures. A category
    that no training picture shows is told.
    """
    root, tables, sizes = Path(root), [], []
    check_root(root, "annotations", "set it to the folder that holds annotations and the folders of pictures")
    folder = os.path.relpath(Path(masks).resolve(), root.resolve())
    taken: dict[str, str] = {}  # path of each id
    asked = classes
    for split, name in (("train", train), ("val", val)):
        instances = read(root, name, classes)  # one at a time: train2014 takes gigabytes
        classes = instances.classes
        ids, paths = instances.ids(taken), instances.paths()
        _check_folder(root, name, paths.values())
        if split == "val":
            _refuse_shared(root, (train, val), taken.values(), paths.values())
        taken |= {ids[number]: path for number, path in paths.items()}
        found = {"image_id": list(ids.values()), "split": split, "image": list(paths.values()), "mask": ""}
        labels = pd.DataFrame(instances.labels(settings.crowd_labels), columns=classes)
        tables.append(pd.concat([pd.DataFrame(found), labels], axis=1))
        sizes += [instances.size(number) for number in instances.api.imgs]
        groups = instances.groups()
    table = pd.concat(tables, ignore_index=True)
    assert classes is not None
    _check_shown(table, classes, groups if asked is None else set(), json_path(root, train))
    measured = manifest.check_and_measure(table, root, classes, listed=sizes)
    warn_of_unseen(measured, classes, MEND)
    measured["mask"] = folder + "/" + measured["image_id"] + ".png"
    tell(measured, classes)
    _tell_unlisted(root, (train, val), set(table["image"]))
    return manifest.save(measured, output, root)


def _check_folder(root: Path, name: str, paths: Iterable[str]) -> None:
    if not (root / name).is_dir() and any(path.startswith(f"{name}/") for path in paths):
        raise UserError(f"{root / name}: no such folder; put the pictures of {json_path(root, name)} there, or a link")


def _refuse_shared(root: Path, lists: tuple[str, str], first: Iterable[str], second: Iterable[str]) -> None:
    """Raise a `UserError` for a picture that both lists have: the same file, or one of the same name and content.

    Pictures of two folders that only share a name, as numbered frames do, are two pictures. Where none is there to be
    looked at, those of the same name are taken to be the same.
    """
    by_name: dict[str, list[str]] = {}
    for path in first:
        by_name.setdefault(Path(path).stem, []).append(path)
    shared = [(path, other) for path in second for other in by_name.get(Path(path).stem, [])]
    there = any((root / path).is_file() for path, _ in shared)
    for path, other in shared:
        if path == other or not there or _same_content(root / path, root / other):
            raise UserError(
                f"{json_path(root, lists[1])}: lists {Path(path).stem}, which is in {lists[0]} too;"
                " validate on pictures that training does not see"
            )


def _same_content(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:  # that one is missing is told with all that are
        return False


def _check_shown(table: pd.DataFrame, classes: list[str], groups: set[str], path: Path) -> None:
    """Raise a `UserError` where no training picture shows anything, or for categories that only name a group."""
    counts = table[classes].sum()
    if not table.loc[table["split"] == "train", classes].to_numpy().any():
        raise UserError(f"{path}: no training picture shows any class (crowds aside); give annotated instances")
    if empty := [name for name in classes if name in groups and not counts[name]]:
        rest = ", ".join(name for name in classes if name not in empty)
        raise UserError(
            f"{path}: the category {empty[0]} is the group of others and has no annotation, but would be label "
            f"{classes.index(empty[0]) + 1}; leave it out with dataset.classes: [{rest}]"
        )


def _tell_unlisted(root: Path, lists: tuple[str, str], listed: set[str]) -> None:
    for name in lists:
        files = (file for file in (root / name).glob("*") if file.suffix.lower() in SUFFIXES)
        if count := sum(f"{name}/{file.name}" not in listed for file in files):
            where = json_path(root, name).name
            logger.info("%s: %d pictures are not in %s and left out", root / name, count, where)


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
        if not encloses(entry["segmentation"]):
            continue
        if not entry.get("iscrowd"):
            objects.append((instances.values[entry["category_id"]], drawn(entry["segmentation"], *size)))
        elif settings.crowd == "ignore":
            label[drawn(entry["segmentation"], *size)] = IGNORE
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
        "annotations": {name: file_hash(json_path(root, name)) for name in (train, val)},
        "code": stage_hash("beco.datasets.coco"),
    }
    for name in (train, val):  # both, before any older mask is removed and the first is drawn
        classes = read(root, name, classes).classes
    _start(output, rule)
    done = {path.stem for path in output.glob("*.png")}
    taken: set[str] = set()
    for name in (train, val):
        instances = read(root, name, classes)
        ids = instances.ids(taken)
        taken |= set(ids.values())
        left = [number for number, own in ids.items() if own not in done]

        def draw(number: int, instances: Instances = instances, ids: dict[int, str] = ids) -> None:
            write_index_png(output / f"{ids[number]}.png", label_map(instances, number, settings))

        for _ in in_order(draw, left, threads, f"masks of {name}"):
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
