"""Exports of what `beco predict` writes: every picture, at any depth, with its classes and name, without a manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import run
from PIL import Image
from trained_networks import CLASSES, SIZES, label_maps, predict

from beco.datasets import manifest as manifests
from beco.datasets.palette import read_index_png
from beco.errors import UserError
from beco.exchange import exports


@pytest.fixture
def predictions(net: Path, pictures: Path, tmp_path: Path) -> Path:
    predict(net, pictures, "-o", tmp_path / "out", "--confidence", "--overlay")
    return tmp_path / "out"


def exported(predictions: Path, output: Path, *more: str) -> None:
    status, error = run(["export-labels", str(predictions), "--output", str(output), *more])
    assert status == 0, error


def listing(root: Path, classes: list[str]) -> manifests.Manifest:
    """A manifest of the pictures in a folder, under ids as a project has them."""
    found = sorted(path for path in root.rglob("*.*") if path.is_file())
    names = [path.relative_to(root) for path in found]
    rows = {
        "image_id": ["__".join(name.with_suffix("").parts) for name in names],
        "split": "train",
        "image": [name.as_posix() for name in names],
        "mask": "",
        "width": [Image.open(path).width for path in found],
        "height": [Image.open(path).height for path in found],
        **dict.fromkeys(classes, 1),
    }
    return manifests.save(pd.DataFrame(rows), root.parent / "manifest.csv", root)


def test_every_picture_comes_with_its_folder(predictions: Path, tmp_path: Path) -> None:
    exported(predictions, tmp_path / "png")
    found = {name: read_index_png(tmp_path / "png" / name) for name in label_maps(tmp_path / "png")}
    assert set(found) == {f"{name}.png" for name in SIZES}  # and not how sure they are
    assert all((label == read_index_png(predictions / name)).all() for name, label in found.items())


def test_coco_and_cvat_without_a_manifest(predictions: Path, pictures: Path, tmp_path: Path) -> None:
    exported(predictions, tmp_path / "labels.json", "--format", "coco-json")
    found = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in found["categories"]] == CLASSES
    sizes = {one["file_name"]: (one["height"], one["width"]) for one in found["images"]}
    names = {path.relative_to(pictures).as_posix(): path for path in pictures.rglob("*.*") if path.is_file()}
    assert sizes == {name: Image.open(path).size[::-1] for name, path in names.items()}
    area = sum(one["area"] for one in found["annotations"])
    assert area == sum(np.count_nonzero(read_index_png(predictions / f"{name}.png")) for name in SIZES)
    exported(predictions, tmp_path / "cvat", "--format", "cvat")
    listed = (tmp_path / "cvat" / "ImageSets" / "Segmentation" / "default.txt").read_text(encoding="utf-8")
    assert sorted(listed.splitlines()) == sorted(SIZES)
    assert all((tmp_path / "cvat" / "SegmentationClass" / f"{name}.png").is_file() for name in SIZES)


def test_with_the_projects_manifest_ids_are_its_own(predictions: Path, pictures: Path, tmp_path: Path) -> None:
    exports.export(exports.open_source(predictions, listing(pictures, CLASSES)), "palette-png", tmp_path / "png")
    assert sorted(path.stem for path in (tmp_path / "png").iterdir() if path.suffix == ".png") == sorted(
        name.replace("/", "__") for name in SIZES
    )
    with pytest.raises(UserError, match="made for other classes than the manifest's"):
        exports.open_source(predictions, listing(pictures, CLASSES[::-1]))
    (pictures / "a.jpg").rename(pictures / "new.jpg")
    with pytest.raises(UserError, match=r"1 pictures that the manifest does not list, such as a; .* with, or none$"):
        exports.open_source(predictions, listing(pictures, CLASSES))


def test_folders_without_a_journal_and_maps_beside_it(predictions: Path, tmp_path: Path) -> None:
    """What a user has put there, or sorted into folders, is exported as well."""
    (predictions / "own").mkdir()
    shutil.copy(predictions / "a.png", predictions / "own" / "a.png")
    exported(predictions, tmp_path / "png")
    assert set(label_maps(tmp_path / "png")) == {*(f"{name}.png" for name in SIZES), "own/a.png"}
    for name in ("confidence", "overlay"):
        shutil.rmtree(predictions / name)
    (predictions / "predictions.jsonl").write_text("{}\nnothing of ours")
    exported(predictions, tmp_path / "again")
    assert label_maps(tmp_path / "again") == label_maps(tmp_path / "png")
    shutil.copy(predictions / "trip" / "Tag 1.png", predictions / "trip__Tag 1.png")
    with pytest.raises(UserError, match=r"trip/Tag 1\.png and trip__Tag 1\.png are both of picture trip__Tag 1"):
        exports.open_source(predictions, listing(tmp_path / "pictures", CLASSES))
