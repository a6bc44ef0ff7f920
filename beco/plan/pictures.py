"""How many pictures there are, and how large: from the dataset's lists, or as the user says; no mask is looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from beco.config import Config, Dataset
from beco.datasets.manifest import read_picture
from beco.errors import UserError
from beco.files import unreadable

T = TypeVar("T")

LOOKED_AT = 60  # pictures whose headers are read
KEPT = 4  # pictures that are measured on
SIZE = (500, 375)
SHOWN = 1.5


@dataclass(frozen=True)
class Pictures:
    """What the cost depends on."""

    train: int
    val: int
    height: int
    """Mean short side, pixels: all pictures are taken to be landscape."""
    width: int
    """Mean long side."""
    classes: int
    shown: float
    """Mean number of classes in a training picture."""
    notes: tuple[str, ...] = ()
    """Where the figures are from, a line each."""
    samples: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    """A few pictures, (H, W, 3) uint8, to measure on; possibly none."""

    @property
    def pixels(self) -> int:
        """Pixels of a picture."""
        return self.height * self.width

    def predicted(self, dataset: Dataset) -> int:
        """How many pictures `predict` labels: the validation split, or all of one's own folder."""
        return self.train + self.val if dataset.format == "folder" else self.val


def count(config: Config, given: str | None = None, size: str | None = None) -> Pictures:
    """The pictures of a configuration's dataset.

    `given` is `train=N,val=M`, with `classes=K` and `shown=X` (classes a picture) where they are known; None: from the
    dataset itself. `size` is WIDTHxHEIGHT of the mean picture; it overrules. UserError, with the mend, where neither
    is at hand.
    """
    told = _told(given) if given is not None else None
    sides = _sides(size) if size is not None else None
    found = READERS[config.dataset.format](config.dataset) if told is None else _as_told(config.dataset, told, sides)
    if sides is not None:
        said = f"pictures of {max(sides)}×{min(sides)} px (--size)"
        notes = (*[note for note in found.notes if "px" not in note], said)
        found = Pictures(found.train, found.val, min(sides), max(sides), found.classes, found.shown, notes)
    return found


def _told(given: str) -> dict[str, float]:
    """`train=N,val=M,…` as numbers."""
    known, result = ("train", "val", "classes", "shown"), dict[str, float]()
    for part in given.split(","):
        name, _, value = part.strip().partition("=")
        try:
            result[name] = float(value) if name == "shown" else int(value)
        except ValueError:
            raise UserError(f"--pictures: `{part}` is no number; give train=10582,val=1449") from None
        if name not in known or not 0 < result[name] < 1e9:
            raise UserError(f"--pictures: `{part}` is not understood; give train=N,val=M, and classes=K or shown=X")
    if missing := [name for name in known[:2] if name not in result]:
        raise UserError(f"--pictures: {missing[0]} is missing; give train=N,val=M")
    return result


def _sides(size: str) -> tuple[int, int]:
    words = size.lower().replace("×", "x").split("x")
    if len(words) != 2 or not all(word.isdigit() and 0 < int(word) < 100_000 for word in words):
        raise UserError(f"--size: `{size}` is not understood; give WIDTHxHEIGHT in pixels, such as 500x375")
    return int(words[0]), int(words[1])


def _as_told(dataset: Dataset, told: dict[str, float], sides: tuple[int, int] | None) -> Pictures:
    train, val = int(told["train"]), int(told["val"])
    notes = [f"{train} + {val} pictures (--pictures)"]
    classes = told.get("classes") or len(dataset.classes or []) or _own_classes(dataset)
    if not classes:
        raise UserError(
            f"--pictures: how many classes `{dataset.format}` has is not known; add classes=K, or set dataset.classes"
        )
    shown = told.get("shown", min(SHOWN, classes))
    if "shown" not in told:
        notes.append(f"{shown:g} classes a picture assumed; --pictures …,shown=X says otherwise")
    width, height = sides or ((dataset.shapes.size,) * 2 if dataset.format == "shapes" else SIZE)
    if sides is None and dataset.format != "shapes":
        notes.append(f"pictures of {width}×{height} px assumed; --size WIDTHxHEIGHT says otherwise")
    return Pictures(train, val, min(width, height), max(width, height), int(classes), float(shown), tuple(notes))


def _own_classes(dataset: Dataset) -> int:
    from beco.datasets import shapes, voc

    return {"voc": len(voc.VOC_CLASSES), "shapes": len(shapes.CLASSES)}.get(dataset.format, 0)


# --- from the dataset ---------------------------------------------------------------------------------------


def _shapes(dataset: Dataset) -> Pictures:
    """Counted by the settings; a few are drawn to see how many classes they show."""
    from beco.datasets import shapes
    from beco.datasets.shapes_drawing import draw_picture

    drawn, settings = [], dataset.shapes
    for number in range(min(4 * KEPT, settings.train)):
        drawn.append(draw_picture(np.random.default_rng([settings.seed, 0, number]), settings.size))
    shown = float(np.mean([len(set(picture.objects)) for picture in drawn]))
    note = f"{settings.train} + {settings.val} pictures of {settings.size} px, as dataset.shapes says"
    samples = tuple(picture.image for picture in drawn[:KEPT])
    side = settings.size
    return Pictures(settings.train, settings.val, side, side, len(shapes.CLASSES), shown, (note,), samples)


def _voc(dataset: Dataset) -> Pictures:
    from beco.datasets import voc

    root = _there(dataset, "JPEGImages")
    train, val = voc.read_list(root, dataset.train), voc.read_list(root, dataset.val)
    classes = dataset.classes or voc.VOC_CLASSES
    chosen = _spread(train, LOOKED_AT)
    shown = [len(voc.read_objects(root / "Annotations" / f"{name}.xml", classes)) for name in chosen]
    paths = [root / "JPEGImages" / f"{name}.jpg" for name in chosen]
    return _measured(len(train), len(val), len(classes), float(np.mean(shown)), paths, str(root))


def _coco(dataset: Dataset) -> Pictures:
    from beco.datasets import coco

    root = _there(dataset, "annotations")
    train = coco.read(root, dataset.train, dataset.classes)
    shown = float(train.labels(dataset.coco.crowd_labels).sum(axis=1).mean())
    names = [entry["file_name"] for entry in train.api.imgs.values()]
    count, classes = len(names), train.classes
    paths = [root / dataset.train / name for name in _spread(names, LOOKED_AT)]
    del train  # train2014 takes gigabytes
    val = len(coco.read(root, dataset.val, dataset.classes).api.imgs)
    return _measured(count, val, len(classes), shown, paths, str(root))


def _folder(dataset: Dataset) -> Pictures:
    from beco.datasets import folder
    from beco.datasets.sheet import read_sheet

    root = _there(dataset)
    sheet = read_sheet(Path(str(dataset.labels)), dataset.classes)
    if not sheet.rows or not sheet.classes:
        raise UserError(f"{sheet.path}: names no picture with a class; run `beco check` on this configuration")
    shown = {folder.image_id(row.image): row.present for row in sheet.rows}
    if sheet.has_split:
        val = sum(row.split == "val" for row in sheet.rows)
    else:
        val = len(folder.split_by_hash(shown, dataset.val_share))
    paths = [root / row.image for row in _spread(sheet.rows, LOOKED_AT)]
    mean = float(np.mean([len(names) for names in shown.values()]))
    return _measured(len(sheet.rows) - val, val, len(sheet.classes), mean, paths, str(sheet.path))


READERS: dict[str, Callable[[Dataset], Pictures]] = {
    "shapes": _shapes,
    "voc": _voc,
    "coco": _coco,
    "folder": _folder,
}


def _there(dataset: Dataset, inside: str = "") -> Path:
    """The dataset's folder, or what to do without it."""
    root = Path(str(dataset.root))
    if not (root / inside).is_dir():
        raise UserError(
            f"dataset.root: {root / inside} is not there; name the folder (--config dataset='{{root: FOLDER}}'), or "
            "say how many pictures there are: --pictures train=N,val=M"
        )
    return root


def _spread(items: list[T], count: int) -> list[T]:
    """At most `count` of `items`, evenly spread over them."""
    return [items[index] for index in np.unique(np.linspace(0, len(items) - 1, count).round().astype(int))]


def _measured(train: int, val: int, classes: int, shown: float, paths: Sequence[Path], where: str) -> Pictures:
    """With the mean sides of the pictures at `paths`, read from their headers."""
    sizes = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                sizes.append(sorted(picture.size))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise unreadable(path, error, f"cannot be read as a picture ({error}); run `beco check`") from error
    height, width = np.mean(sizes, axis=0).round().astype(int).tolist()
    notes = (
        f"{train} + {val} pictures, {classes} classes ({where})",
        f"{width}×{height} px and {shown:.2g} classes a picture, the mean of {len(sizes)}",
    )
    samples = tuple(read_picture(path) for path in _spread(list(paths), KEPT))
    return Pictures(train, val, height, width, classes, shown, notes, samples)
