"""The embedded dataset: a small made-up world in VOC layout, drawn on the spot.

It is a model of what makes weak supervision hard, so that the whole road can be walked in minutes:

* A class is a large *body*, whose shape and texture it shares with another class, and a small *part* (a fifth of
  the object, at its head end) with an emblem of its own. Half of the objects are seen from the other side, without
  the emblem; then only the body's hue speaks for one of the two classes, and in a tenth of all objects it misleads.
  A classifier can mostly do with the part, so its activation maps cover objects only in places.
* Two of the six classes are mostly (about 80 %) seen on one kind of background, as boats are on water. The
  background then predicts the class, so activation maps leak.
* Objects overlap, are cut by the frame, vary in size, pose, texture and colour, and share colours with each
  other and with the backgrounds, so neither a colour threshold nor a single template solves the task.
* Outlines are soft, and 255 in the masks, as in VOC.

How it was chosen: shapes, colours and frequencies by looking at contact sheets and at the statistics that
`test_shapes.py` holds. Then one thing was fitted: with an emblem on every object and bodies of any hue, the
CAMs of a plain classifier scored 0.29 mIoU, far below the 0.48 known from VOC 2012, because they covered the emblem
alone. `TURNED_AWAY` and `OWN_HUE` were raised in two steps until they scored 0.44. No second-stage training had been
run on the pictures by then, and nothing was changed after the first. (A fault was in these scores: class maps of the
embedded classifier lay four of 64 pixels beside the picture. Where they belong its CAMs score 0.57, so the set is
easier than it was meant to be; it was not changed for that.) The set says how methods compare in this world; it says
nothing about photographs.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from tqdm import tqdm

from beco.artifacts.folders import whole_folder
from beco.config import Shapes
from beco.datasets.palette import write_index_png
from beco.datasets.shapes_drawing import KINDS, Picture, draw_picture

CLASSES = [kind.name for kind in KINDS]
"""Class names in label order 1…6."""

SPLITS = ("train", "val")
FOLDERS = ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation")


def draw(root: Path | str, settings: Shapes) -> None:
    """Draw the dataset into the folder `root`: whole, or not at all.

    Each picture has its own generator, seeded by (seed, split, number). So the same libraries draw the same
    bytes again, and the first pictures stay the same when more are asked for. Besides the folders of VOC
    there is `classes.txt`, one name a line in label order.

    Raises `UserError` if `root` holds files that this function did not write, for it replaces the folder.
    """
    root = Path(root)
    with whole_folder(root) as folder:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)
        for number, split in enumerate(SPLITS):
            count = getattr(settings, split)
            ids = [f"{split}_{index:05d}" for index in range(count)]
            for index, image_id in enumerate(tqdm(ids, f"drawing {split}", unit="picture", disable=None)):
                rng = np.random.default_rng([settings.seed, number, index])
                _write(folder, image_id, draw_picture(rng, settings.size))
            _write_lines(folder / "ImageSets" / "Segmentation" / f"{split}.txt", ids)
        _write_lines(folder / "classes.txt", CLASSES)


def _write(folder: Path, image_id: str, picture: Picture) -> None:
    jpeg = folder / "JPEGImages" / f"{image_id}.jpg"
    Image.fromarray(picture.image).save(jpeg, quality=95, subsampling=0)
    write_index_png(folder / "SegmentationClass" / f"{image_id}.png", picture.label)
    tree = ElementTree.ElementTree(_annotation(image_id, picture))
    ElementTree.indent(tree, "\t")
    tree.write(folder / "Annotations" / f"{image_id}.xml")


def _annotation(image_id: str, picture: Picture) -> ElementTree.Element:
    """The picture's objects as VOC's XML; boxes hold what is seen of them, corners counted from 1."""
    height, width = picture.label.shape
    root = ElementTree.Element("annotation")
    _add(root, folder="shapes", filename=f"{image_id}.jpg")
    _add(ElementTree.SubElement(root, "source"), database="shapes", annotation="drawn", image="drawn")
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    _add(root, segmented=1)
    for number, label in enumerate(picture.objects):
        rows, columns = np.nonzero(picture.owner == number)
        left, right, top, bottom = columns.min() + 1, columns.max() + 1, rows.min() + 1, rows.max() + 1
        cut = left == 1 or top == 1 or right == width or bottom == height
        item = ElementTree.SubElement(root, "object")
        _add(item, name=CLASSES[label - 1], pose="Unspecified", truncated=int(cut), difficult=0)
        _add(ElementTree.SubElement(item, "bndbox"), xmin=left, ymin=top, xmax=right, ymax=bottom)
    return root


def _add(parent: ElementTree.Element, **texts: object) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
