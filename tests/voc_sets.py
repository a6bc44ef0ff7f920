"""Small sets of pictures in VOC layout, and the manifest made of them or its refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beco.datasets import manifest, voc
from beco.datasets.palette import write_index_png
from beco.errors import UserError

CLASSES = ["cat", "dog", "boat"]
SIZE = (12, 20)  # height, width: unequal, so that a swap shows


def add_picture(root: Path, name: str, objects: list[str], masks: str | None = "SegmentationClass") -> None:
    """One picture with its XML and (unless None) a mask that shows the first object's class and 255."""
    rng = np.random.default_rng(len(name))
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg")
    items = "".join(
        f"<object><name>{item}</name><difficult>1</difficult><part><name>head</name></part></object>"
        for item in objects
    )
    (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{items}</annotation>")
    if masks:
        mask = np.zeros(SIZE, np.uint8)
        mask[2:6, 3:9] = CLASSES.index(objects[0]) + 1
        mask[6, 3:9] = 255
        write_index_png(root / masks / f"{name}.png", mask)


def set_list(root: Path, name: str, lines: list[str]) -> None:
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]))


def small_set(tmp_path: Path) -> Path:
    """Two pictures for training, one for validation."""
    folder = tmp_path / "VOC2012"
    add_picture(folder, "000001", ["cat", "boat", "cat"])
    add_picture(folder, "000002", ["dog"])
    add_picture(folder, "000003", ["boat"])
    set_list(folder, "train", ["000001", "000002"])
    set_list(folder, "val", ["000003"])
    return folder


def build(root: Path, train: str = "train", val: str = "val") -> manifest.Manifest:
    return voc.build(root, train, val, CLASSES, root.parent / "manifest.csv")


def refusal(root: Path, **lists: str) -> str:
    """The one line that `build` refuses with; no manifest may be left behind."""
    with pytest.raises(UserError) as caught:
        build(root, **lists)
    assert not (root.parent / "manifest.csv").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message
