"""Small sets of pictures in COCO layout, and the manifest made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from beco.config import Coco
from beco.datasets import coco, manifest

LISTS = ("train2014", "val2014")
SIZE = (4, 6)  # height, width
LEFT = [[0, 0, 3, 0, 3, 4, 0, 4]]  # columns 0-2
TOP = [[0, 0, 6, 0, 6, 2, 0, 2]]  # rows 0-1
CORNER = {"size": [4, 6], "counts": [0, 1, 23]}  # the pixel at the top left


def instance(category: int, segmentation: Any, image: int = 1, crowd: int = 0) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}


def write_set(root: Path, name: str, annotations: list[dict[str, Any]], images: tuple[int, ...] = (1, 2)) -> Path:
    """A list of pictures of `SIZE`, with ids of categories that have gaps and come in no order."""
    entries = []
    for number in images:
        file = f"COCO_{name}_{number:012d}.jpg"
        entries.append({"id": number, "file_name": file, "height": SIZE[0], "width": SIZE[1]})
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(SIZE, number, np.uint8)).save(root / name / file)  # grey, as some of COCO's are
    categories = [{"id": 17, "name": "cat"}, {"id": 3, "name": "traffic light"}, {"id": 9, "name": "dog"}]
    numbered = [{"id": 100 + k, **entry} for k, entry in enumerate(annotations)]
    path = root / "annotations" / f"instances_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": entries, "annotations": numbered, "categories": categories}))
    return path


def build(root: Path, settings: Coco | None = None, classes: list[str] | None = None) -> manifest.Manifest:
    output = root.parent / "manifest.csv"
    return coco.build(root, *LISTS, classes, settings or Coco(), root.parent / "masks", output)
