"""From the settings of a dataset to its manifest: one builder for each format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from beco.config import Dataset
from beco.datasets import coco, folder, shapes, voc
from beco.datasets.manifest import Manifest


def build(dataset: Dataset, output: Path, masks: Path | None = None) -> Manifest:
    """Read the dataset at `dataset.root`, check all of it, and write its manifest to `output`.

    `masks` is where masks are drawn that the dataset does not bring (coco); None: `masks` beside the output.

    Raises `UserError`, and `Problems` where several things are wrong, for anything missing, damaged or contradictory.
    """
    return BUILDERS[dataset.format](dataset, output, masks or output.with_name("masks"))


def _shapes(dataset: Dataset, output: Path, masks: Path) -> Manifest:
    return voc.build(str(dataset.root), dataset.train, dataset.val, dataset.classes or shapes.CLASSES, output)


def _voc(dataset: Dataset, output: Path, masks: Path) -> Manifest:
    return voc.build(str(dataset.root), dataset.train, dataset.val, dataset.classes, output)


def _coco(dataset: Dataset, output: Path, masks: Path) -> Manifest:
    lists = dataset.train, dataset.val, dataset.classes
    return coco.build(str(dataset.root), *lists, dataset.coco, masks, output)


def _folder(dataset: Dataset, output: Path, masks: Path) -> Manifest:
    return folder.build(str(dataset.root), dataset.labels, dataset.masks, dataset.val_share, dataset.classes, output)


BUILDERS: dict[str, Callable[[Dataset, Path, Path], Manifest]] = {
    "shapes": _shapes,
    "voc": _voc,
    "coco": _coco,
    "folder": _folder,
}
