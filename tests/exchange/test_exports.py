"""Exports: what other programs read must be the label maps that were written."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from beco.artifacts import store
from beco.datasets import manifest as manifests
from beco.datasets.palette import read_index_png, write_index_png
from beco.errors import UserError
from beco.exchange import exports

CLASSES = ["cat", "größe"]
LABEL = np.array([[0, 1, 1, 255], [2, 2, 1, 0], [2, 0, 0, 0]], np.uint8)
EMPTY = np.zeros((2, 5), np.uint8)
MAPS = {"b": LABEL, "trip__a": EMPTY}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.h5"
    with store.create(path, classes=CLASSES) as writer:
        for name, label in MAPS.items():
            writer.put("label", name, label)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> manifests.Manifest:
    rows = [("b", "b.webp", 4, 3), ("trip__a", "trip/a.jpg", 5, 2)]
    table = pd.DataFrame(
        [
            {
                "image_id": name,
                "split": "train",
                "image": image,
                "mask": "",
                "width": w,
                "height": h,
                "cat": 1,
                "größe": 0,
            }
            for name, image, w, h in rows
        ]
    )
    manifests.write(table, tmp_path / "manifest.csv")
    return manifests.read(tmp_path / "manifest.csv", tmp_path)


def decoded(segmentation: dict[str, list[int]]) -> np.ndarray:
    """A mask from its runs, written out one pixel at a time and column by column."""
    height, width = segmentation["size"]
    mask = np.zeros((height, width), bool)
    pixels = [k % 2 == 1 for k, count in enumerate(segmentation["counts"]) for _ in range(count)]
    assert len(pixels) == height * width
    for position, value in enumerate(pixels):
        mask[position % height, position // height] = value
    return mask


# --- COCO ---------------------------------------------------------------------------------------------------


def test_run_lengths_by_hand() -> None:
    mask = np.array([[1, 0, 1], [1, 0, 0]], bool)  # by columns: 1 1, 0 0, 1 0
    assert exports.run_lengths(mask) == [0, 2, 2, 1, 1]
    assert exports.run_lengths(~mask) == [2, 2, 1, 1]
    assert exports.run_lengths(np.zeros((2, 2), bool)) == [4]
    assert exports.run_lengths(np.ones((2, 2), bool)) == [0, 4]


@settings(max_examples=100, deadline=None)
@given(st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(lambda size: arrays(bool, size)))
def test_run_lengths_come_back(mask: np.ndarray) -> None:
    segmentation = {"size": list(mask.shape), "counts": exports.run_lengths(mask)}
    assert (decoded(segmentation) == mask).all()


def test_coco_json(labels: Path, pictures: manifests.Manifest, tmp_path: Path) -> None:
    exports.export(exports.open_source(labels, pictures), "coco-json", tmp_path / "labels.json")
    found = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))
    assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "größe"}]
    assert found["images"] == [
        {"id": 1, "file_name": "b.webp", "width": 4, "height": 3},
        {"id": 2, "file_name": "trip/a.jpg", "width": 5, "height": 2},
    ]
    cat, size = found["annotations"]  # and none of the empty picture
    assert (cat["id"], size["id"], cat["image_id"], size["image_id"]) == (1, 2, 1, 1)
    assert cat["bbox"] == [1, 0, 2, 2] and cat["area"] == 3 and cat["category_id"] == 1
    assert size["bbox"] == [0, 1, 2, 2] and size["area"] == 3 and size["category_id"] == 2
    assert (decoded(cat["segmentation"]) == (LABEL == 1)).all()
    assert (decoded(size["segmentation"]) == (LABEL == 2)).all()


def test_the_coco_api_reads_it(labels: Path, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    exports.export(exports.open_source(labels), "coco-json", tmp_path / "labels.json")
    found = coco.COCO(str(tmp_path / "labels.json"))
    for value in (1, 2):
        (annotation,) = found.loadAnns(found.getAnnIds(imgIds=1, catIds=value))
        assert (found.annToMask(annotation) == (value == LABEL)).all()


# --- CVAT ---------------------------------------------------------------------------------------------------


def test_cvat_archive(labels: Path, pictures: manifests.Manifest, tmp_path: Path) -> None:
    exports.export(exports.open_source(labels, pictures), "cvat", tmp_path / "labels.zip")
    with zipfile.ZipFile(tmp_path / "labels.zip") as archive:
        archive.extractall(tmp_path / "out")
    folder = tmp_path / "out"
    assert (folder / "ImageSets" / "Segmentation" / "default.txt").read_text() == "b\ntrip/a\n"
    lines = (folder / "labelmap.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#")
    colours = dict(line.split(":")[:2] for line in lines[1:])
    assert colours == {"background": "0,0,0", "cat": "128,0,0", "größe": "0,128,0"}
    with Image.open(folder / "SegmentationClass" / "b.png") as mask:
        assert mask.mode == "RGB"
        found = np.array(mask)
    wanted = {value: [int(part) for part in colours[name].split(",")] for value, name in enumerate(colours)}
    for value in (0, 1, 2):
        assert ((found == wanted[value]).all(-1) == (np.where(LABEL == 255, 0, LABEL) == value)).all()
    assert (folder / "SegmentationClass" / "trip" / "a.png").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.h5", "labels.zip", "manifest.csv", "out"]


def test_cvat_folder_by_ids(labels: Path, tmp_path: Path) -> None:
    exports.export(exports.open_source(labels), "cvat", tmp_path / "cvat")
    assert (tmp_path / "cvat" / "SegmentationClass" / "trip__a.png").is_file()


# --- sources and refusals -----------------------------------------------------------------------------------


def test_predictions_are_a_source(pictures: manifests.Manifest, tmp_path: Path) -> None:
    write_index_png(tmp_path / "predictions" / "b.png", LABEL)
    source = exports.open_source(tmp_path / "predictions", pictures)
    exports.export(source, "coco-json", tmp_path / "predictions.json")
    found = json.loads((tmp_path / "predictions.json").read_text())
    assert (decoded(found["annotations"][1]["segmentation"]) == (LABEL == 2)).all()
    exports.export(source, "palette-png", tmp_path / "again")
    assert (read_index_png(tmp_path / "again" / "b.png") == LABEL).all()


def test_refusals(labels: Path, pictures: manifests.Manifest, tmp_path: Path) -> None:
    write_index_png(tmp_path / "predictions" / "b.png", LABEL + 1)
    (tmp_path / "none").mkdir()
    cases = [
        (tmp_path / "none", pictures, "coco-json", "holds no PNG; give labels.h5"),
        (tmp_path / "predictions", None, "coco-json", "class names are not in these files; give --manifest"),
        (tmp_path / "predictions", pictures, "coco-json", "b: holds the value 3, but there are 2 classes"),
        (labels, None, "label-studio", "no format `label-studio`; known: palette-png, coco-json, cvat"),
        (tmp_path / "gone.h5", None, "cvat", "no such file"),
    ]
    for path, manifest, form, words in cases:
        with pytest.raises(UserError) as caught:
            exports.export(exports.open_source(path, manifest), form, tmp_path / "out.json")
        assert words in str(caught.value)
        assert not (tmp_path / "out.json").exists() and not list(tmp_path.glob(".*"))
