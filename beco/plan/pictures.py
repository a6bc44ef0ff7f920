"""How many pictures there are, and a small set of them to try the road on: some of the dataset's, or drawn ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from beco.config import Dataset, Shapes
from beco.datasets.palette import opened
from beco.errors import UserError

T = TypeVar("T")
Chosen = tuple[list[Any], list[Any]]
Maker = Callable[[Path, list[Any], list[Any]], dict[str, Any]]

LOOKED_AT = 60  # pictures whose headers are read
SIZE = (500, 375)
DRAWN = (48, 512)
"""Sides of a picture that `shapes` draws, pixels."""


@dataclass(frozen=True)
class Pictures:
    """What there is of pictures, and how a small set of them comes about."""

    train: int
    val: int
    width: int
    """Mean long side, pixels."""
    height: int
    classes: int
    notes: tuple[str, ...] = ()
    """Where the figures are from, a line each."""
    chosen: tuple[Sequence[Any], Sequence[Any]] | None = None
    """The training and validation pictures to choose from; None: pictures are drawn."""
    make: Maker | None = None
    """Makes a dataset of chosen ones in a new folder; gives what is different in the section `dataset`."""

    def small(self, folder: Path, train: int, val: int, part: float) -> dict[str, Any]:
        """A dataset of so many pictures in `folder`, as what is to be laid over the section `dataset`.

        The sides of its pictures are `part` of those of the dataset; other than 1 only drawn ones can be.
        """
        if self.chosen is not None and self.make is not None and part == 1:
            folder.mkdir(parents=True)
            return self.make(folder, spread(self.chosen[0], train), spread(self.chosen[1], val))
        from beco.datasets import shapes

        names = [*shapes.CLASSES, *(f"class {number}" for number in range(len(shapes.CLASSES) + 1, self.classes + 1))]
        shapes.draw(folder, Shapes(train=train, val=val, size=max(round(self.side * part), DRAWN[0])))
        return {"format": "voc", "root": str(folder), "train": "train", "val": "val", "classes": names}

    @property
    def side(self) -> float:
        """Side of a square picture of as many pixels that can be drawn."""
        return float(np.clip((self.width * self.height) ** 0.5, *DRAWN))


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of `items`, evenly spread over them."""
    return [items[index] for index in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


def count(dataset: Dataset, given: str | None = None, size: str | None = None) -> Pictures:
    """The pictures of a dataset.

    `given` is `train=N,val=M`, with `classes=K` where they are known; None: from the dataset itself. `size` is
    WIDTHxHEIGHT of the mean picture, for those that are drawn. UserError, with the mend, where neither is at hand.
    """
    sides = _sides(size) if size is not None else None
    if given is not None:
        return _as_told(dataset, _told(given), sides)
    if size is not None and dataset.format != "shapes":
        raise UserError("--size: is of pictures that are made up; give --pictures train=N,val=M, too, or leave it out")
    return READERS[dataset.format](dataset)


def _told(given: str) -> dict[str, int]:
    """`train=N,val=M,…` as numbers."""
    known, result = ("train", "val", "classes"), dict[str, int]()
    for part in given.split(","):
        name, _, value = part.strip().partition("=")
        try:
            result[name] = int(value)
        except ValueError:
            raise UserError(f"--pictures: `{part}` is no number; give train=10582,val=1449") from None
        if name not in known or not 0 < result[name] < 1e9:
            raise UserError(f"--pictures: `{part}` is not understood; give train=N,val=M, and perhaps classes=K")
    if missing := [name for name in known[:2] if name not in result]:
        raise UserError(f"--pictures: {missing[0]} is missing; give train=N,val=M")
    return result


def _sides(size: str) -> tuple[int, int]:
    words = size.lower().replace("×", "x").split("x")
    if len(words) != 2 or not all(word.isdigit() and 0 < int(word) < 100_000 for word in words):
        raise UserError(f"--size: `{size}` is not understood; give WIDTHxHEIGHT in pixels, such as 500x375")
    return int(words[0]), int(words[1])


def _as_told(dataset: Dataset, told: dict[str, int], sides: tuple[int, int] | None) -> Pictures:
    from beco.datasets import shapes, voc

    own = {"voc": len(voc.VOC_CLASSES), "shapes": len(shapes.CLASSES)}.get(dataset.format, 0)
    classes = told.get("classes") or len(dataset.classes or []) or own
    if not classes:
        raise UserError(
            f"--pictures: how many classes `{dataset.format}` has is not known; add classes=K, or set dataset.classes"
        )
    width, height = sides or ((dataset.shapes.size,) * 2 if dataset.format == "shapes" else SIZE)
    known = "(--size)" if sides else "" if dataset.format == "shapes" else "assumed; --size WIDTHxHEIGHT says otherwise"
    note = f"{told['train']} + {told['val']} pictures (--pictures) of {width}×{height} px {known}"
    return Pictures(told["train"], told["val"], width, height, classes, (f"{note.rstrip()}; drawn ones are tried",))


# --- from the dataset ---------------------------------------------------------------------------------------


def _shapes(dataset: Dataset) -> Pictures:
    from beco.datasets import shapes

    drawn = dataset.shapes

    def make(folder: Path, train: list[int], val: list[int]) -> dict[str, Any]:
        return {"shapes": drawn.model_dump() | {"train": len(train), "val": len(val)}}

    note = f"{drawn.train} + {drawn.val} pictures of {drawn.size} px, as dataset.shapes says"
    every = (range(drawn.train), range(drawn.val))
    return Pictures(drawn.train, drawn.val, drawn.size, drawn.size, len(shapes.CLASSES), (note,), every, make)


def _voc(dataset: Dataset) -> Pictures:
    from beco.datasets import voc
    from beco.datasets.classes import check_classes

    root = _there(dataset, "JPEGImages")
    every = voc.read_list(root, dataset.train), voc.read_list(root, dataset.val)

    def make(folder: Path, *splits: list[str]) -> dict[str, Any]:
        _linked(root, folder, but="ImageSets")
        lists = folder / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        for name, ids in zip((dataset.train, dataset.val), splits, strict=True):
            (lists / f"{name}.txt").write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")
        return {"root": str(folder)}

    paths = [root / "JPEGImages" / f"{name}.jpg" for name in spread(every[0], LOOKED_AT)]
    return _measured(every, len(check_classes(dataset.classes or voc.VOC_CLASSES)), paths, root, make)


def _coco(dataset: Dataset) -> Pictures:
    from beco.datasets import instances

    root = _there(dataset, "annotations")
    lists = (dataset.train, dataset.val)
    contents = [json.loads(instances.json_path(root, name).read_bytes()) for name in lists]
    classes = len(instances.read(root, dataset.train, dataset.classes).classes)

    def make(folder: Path, *splits: list[dict[str, Any]]) -> dict[str, Any]:
        _linked(root, folder, but="annotations")
        (folder / "annotations").mkdir()
        for name, content, images in zip(lists, contents, splits, strict=True):
            ids = {image["id"] for image in images}
            kept = [entry for entry in content["annotations"] if entry["image_id"] in ids]
            text = json.dumps({**content, "images": images, "annotations": kept})
            instances.json_path(folder, name).write_text(text, encoding="utf-8")
        return {"root": str(folder)}

    every = contents[0]["images"], contents[1]["images"]
    sizes = [(image["width"], image["height"]) for image in spread(every[0], LOOKED_AT)]
    return _of_sizes(every, classes, sizes, root, make)


def _folder(dataset: Dataset) -> Pictures:
    from beco.datasets import folder as folders
    from beco.datasets.paths import image_id
    from beco.datasets.sheet import Row, read_sheet

    root = _there(dataset)
    sheet = read_sheet(Path(str(dataset.labels)), dataset.classes)
    folders.complete(sheet, folders.listing_of(root))
    if not sheet.rows or not sheet.classes:
        raise UserError(f"{sheet.path}: names no picture with a class; run `beco check` on this configuration")
    shown = {image_id(row.image): row.present for row in sheet.rows}
    chosen = set() if sheet.has_split else folders.split_by_hash(shown, dataset.val_share)
    every: tuple[list[Row], list[Row]] = [], []
    for row in sheet.rows:
        every[row.split == "val" or image_id(row.image) in chosen].append(row)

    def make(folder: Path, train: list[Row], val: list[Row]) -> dict[str, Any]:
        with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "split", "mask", "labels"])
            for split, rows in (("train", train), ("val", val)):
                writer.writerows([row.image, split, row.mask, ";".join(sorted(row.present))] for row in rows)
        seen = set().union(*(row.present for row in train))
        classes = [name for name in sheet.classes if name in seen]  # those that no training picture shows are refused
        return {"labels": str(folder / "labels.csv"), "root": str(root.absolute()), "classes": classes}

    return _measured(every, len(sheet.classes), [root / row.image for row in spread(every[0], LOOKED_AT)], root, make)


READERS: dict[str, Callable[[Dataset], Pictures]] = {"shapes": _shapes, "voc": _voc, "coco": _coco, "folder": _folder}


def _there(dataset: Dataset, inside: str = "") -> Path:
    """The dataset's folder, or what to do without it."""
    root = Path(str(dataset.root))
    if not (root / inside).is_dir():
        raise UserError(
            f"dataset.root: {root / inside} is not there; name the folder (--config dataset='{{root: FOLDER}}'), or "
            "say how many pictures there are: --pictures train=N,val=M"
        )
    return root.absolute()


def _linked(root: Path, folder: Path, but: str) -> None:
    """All that is in `root` as links in `folder`, but for one entry."""
    for path in root.iterdir():
        if path.name != but:
            (folder / path.name).symlink_to(path)


def _measured(every: Chosen, classes: int, paths: list[Path], root: Path, make: Maker) -> Pictures:
    """With the mean sides of the pictures at `paths`, read from their headers."""
    sizes = []
    for path in paths:
        with opened(path) as picture:
            sizes.append(picture.size)
    return _of_sizes(every, classes, sizes, root, make)


def _of_sizes(every: Chosen, classes: int, sizes: list[tuple[int, int]], root: Path, make: Maker) -> Pictures:
    height, width = np.mean([sorted(size) for size in sizes], axis=0).round().astype(int).tolist()
    train, val = map(len, every)
    note = f"{train} + {val} pictures of about {width}×{height} px, {classes} classes ({root})"
    return Pictures(train, val, width, height, classes, (note,), every, make)
