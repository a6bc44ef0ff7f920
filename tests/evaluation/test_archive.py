"""The archive for the evaluation server, read back; what it refuses; and its rule."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Checkout
from PIL import Image
from typer.testing import CliRunner

from beco.cli import app
from beco.config import Shapes
from beco.datasets.manifest import COLUMNS, Manifest, read, write
from beco.datasets.palette import read_index_png, write_index_png
from beco.datasets.shapes import CLASSES, draw
from beco.datasets.voc import VOC_CLASSES
from beco.errors import UserError
from beco.evaluation.tables.archive import write_archive

NAMES = ["2007_000033", "2007_000042", "2008_000001"]


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    for index, name in enumerate(NAMES):
        write_index_png(tmp_path / "predictions" / f"{name}.png", np.full((3, 5), 10 * index, np.uint8))
    return tmp_path / "predictions"


def listed(names: list[str], width: int = 5) -> Manifest:
    rows = [[name, "val", f"{name}.jpg", "", width, 3, *[1] * len(VOC_CLASSES)] for name in names]
    table = pd.DataFrame(rows, columns=[*COLUMNS, *VOC_CLASSES]).set_index("image_id")
    return Manifest(Path(), table, VOC_CLASSES)


def test_the_archive_read_back(predictions: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "results.tar.gz"
    assert write_archive(predictions, output, "test", manifest=listed(NAMES)) == 3
    with tarfile.open(output) as archive:
        assert archive.getnames() == [f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in NAMES]
        archive.extractall(tmp_path / "back", filter="data")
    for index, path in enumerate(sorted((tmp_path / "back").rglob("*.png"))):
        with Image.open(path) as picture:
            assert picture.mode == "P"
        assert (read_index_png(path) == 10 * index).all()
    assert [path.name for path in output.parent.iterdir()] == ["results.tar.gz"]


def test_the_same_predictions_give_the_same_bytes(predictions: Path, tmp_path: Path) -> None:
    write_archive(predictions, tmp_path / "a.tar.gz", "val", "comp5")
    for name in reversed(NAMES):
        os.utime(predictions / f"{name}.png", (1, 1))
        (predictions / f"{name}.png").chmod(0o600)
    write_archive(predictions, tmp_path / "b.tar.gz", "val", "comp5")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        assert {entry.name.split("/")[3] for entry in archive} == {"comp5_val_cls"}
        assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in archive} == {
            (0, 0, 0, "", 0o644)
        }
    with gzip.open(tmp_path / "a.tar.gz") as stream:
        stream.read(1)
        assert stream.mtime == 0


@pytest.mark.parametrize(("value", "found"), [(255, "255"), (21, "21")])
def test_values_that_the_server_does_not_know(predictions: Path, tmp_path: Path, value: int, found: str) -> None:
    label = np.zeros((3, 5), np.uint8)
    label[1, 2] = value
    write_index_png(predictions / f"{NAMES[1]}.png", label)
    with pytest.raises(UserError, match=rf"{NAMES[1]}\.png: holds the value {found}, but the server knows 0–20") as one:
        write_archive(predictions, tmp_path / "results.tar.gz", "val")
    assert "\n" not in str(one.value)
    assert {path.name for path in tmp_path.iterdir()} == {"predictions"}


@pytest.mark.parametrize(("mode", "words"), [("L", "grey PNG"), ("RGB", "holds colours")])
def test_pngs_without_a_palette(predictions: Path, tmp_path: Path, mode: str, words: str) -> None:
    Image.new(mode, (5, 3)).save(predictions / f"{NAMES[0]}.png")
    with pytest.raises(UserError, match=rf"{NAMES[0]}\.png: .*{words}"):
        write_archive(predictions, tmp_path / "results.tar.gz", "val")


def test_what_the_manifest_rules_out(predictions: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.tar.gz"
    with pytest.raises(UserError, match="lacks 1 of 4 pictures of the split, such as 2011_000003"):
        write_archive(predictions, output, "val", manifest=listed([*NAMES, "2011_000003"]))
    with pytest.raises(UserError, match="holds 1 pictures that the split does not, such as 2007_000033"):
        write_archive(predictions, output, "val", manifest=listed(NAMES[1:]))
    with pytest.raises(UserError, match=r"is 5×3, its picture 6×3 .*predict with prediction\.score_at: picture"):
        write_archive(predictions, output, "val", manifest=listed(NAMES, width=6))
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with pytest.raises(UserError, match=f"{name}: holds no PNGs"):
            write_archive(tmp_path / name, output, "val")
    assert not output.exists()


def test_the_command(predictions: Path, tmp_path: Path) -> None:
    write(listed(NAMES).table.reset_index(), tmp_path / "manifest.csv")
    output, listing = str(tmp_path / "results.tar.gz"), str(tmp_path / "manifest.csv")
    words = ["archive", str(predictions), "--output", output, "--set", "val", "--manifest", listing]
    assert CliRunner().invoke(app, words).exit_code == 0
    with tarfile.open(output) as archive:
        assert len(archive.getnames()) == 3
    refused = CliRunner().invoke(app, ["archive", str(predictions), "--output", output, "--set", "train"])
    assert isinstance(refused.exception, UserError) and "--set: no set `train`" in str(refused.exception)


@pytest.mark.road
def test_a_set_in_voc_layout_from_pictures_to_the_archive(tmp_path: Path) -> None:
    """The road of VOC, with its 20 classes, from a folder like its own."""
    checkout, root = Checkout(tmp_path / "checkout"), tmp_path / "VOC 2012"
    draw(root, Shapes(train=16, val=6))
    for kind, other in zip(CLASSES, VOC_CLASSES, strict=False):  # six of VOC's names
        for path in (root / "Annotations").glob("*.xml"):
            path.write_text(path.read_text().replace(f">{kind}<", f">{other}<"))
    settings = yaml.safe_load((checkout.folder / "tests" / "tiny.yaml").read_text())
    settings["dataset"] = {"name": "voc", "format": "voc", "root": str(root)}
    del settings["labels"]["crf"]
    settings["experiments"] = {"beco": {"recipe": "beco", "labels": "cam"}}
    (checkout.folder / "tests" / "tiny.yaml").write_text(yaml.safe_dump(settings))
    done = checkout.snakemake("--", "archives", "tables", "report")
    assert done.returncode == 0, done.stdout + done.stderr
    base = checkout.folder / "results" / "voc"
    assert read(base / "manifest.csv", root).classes == VOC_CLASSES
    with tarfile.open(base / "cam" / "beco" / "seed0" / "archive.tar.gz") as archive:
        assert len(archive.getnames()) == 6 and "results/VOC2012/Segmentation/comp6_val_cls" in archive.getnames()[0]
    assert "beco" in (base / "tables" / "recipes.csv").read_text() and (base / "report.html").exists()


@pytest.mark.road
def test_the_rule_is_planned_when_it_is_named(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    assert checkout.planned("archives")["archive"] == 2
    assert "archive" not in checkout.planned()
