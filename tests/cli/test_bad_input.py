"""What bad input gets at the command line: one line with file or key and the mend, status 1, nothing left behind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_refused, beco, run
from PIL import Image
from safetensors.torch import save_file

from beco.config import Shapes
from beco.datasets import shapes

CLASSES = ", ".join(shapes.CLASSES)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "data"
    shapes.draw(folder, Shapes.model_validate({"train": 6, "val": 4}))
    return folder


@pytest.fixture
def data(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "data"))


def make_manifest(data: Path, output: Path, settings: str = "{format: shapes}") -> subprocess.CompletedProcess[str]:
    return beco("manifest", "--root", data, "--output", output, "--settings", settings)


def remove_picture(data: Path) -> None:
    (data / "JPEGImages" / "train_00001.jpg").unlink()


def truncate_picture(data: Path) -> None:
    path = data / "JPEGImages" / "train_00001.jpg"
    path.write_bytes(path.read_bytes()[:900])


def shrink_mask(data: Path) -> None:
    path = data / "SegmentationClass" / "val_00001.png"
    Image.open(path).resize((32, 32), Image.Resampling.NEAREST).save(path)


def misname_object(data: Path) -> None:
    path = next(p for p in sorted((data / "Annotations").iterdir()) if "hound" in p.read_text())
    path.write_text(path.read_text().replace("hound", "hount"))


def empty_split(data: Path) -> None:
    (data / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")


def drop_objects(data: Path) -> None:
    (data / "Annotations" / "train_00002.xml").write_text("<annotation><filename>x</filename></annotation>")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (remove_picture, ["train_00001.jpg", "no such picture"]),
        (truncate_picture, ["train_00001.jpg", "truncated"]),
        (shrink_mask, ["val_00001.png", "32"]),
        (misname_object, [".xml", "hount", "hound"]),
        (empty_split, ["val.txt", "names no pictures"]),
        (drop_objects, ["train_00002.xml", "names no object"]),
    ],
)
def test_broken_datasets(data: Path, tmp_path: Path, harm, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    harm(data)
    output = tmp_path / "out" / "manifest.csv"
    output.parent.mkdir()
    assert_refused(make_manifest(data, output), *words, output=output)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{scale: [1.0]}", ["scale", "did you mean `scales`?"]),
        ("{scales: [-1.0]}", ["scales.0", "greater than 0"]),
        ("{scales: [1.0", ["not valid YAML"]),
        ("nowhere.yaml", ["nowhere.yaml", "cannot be read"]),
    ],
)
def test_wrong_settings(tmp_path: Path, settings: str, words: list[str]) -> None:
    output = tmp_path / "cams.h5"
    (tmp_path / "manifest.csv").write_text("image_id,split,image,mask,width,height,a\nx,train,x.jpg,,4,4,1\n")
    done = beco("cams", "--manifest", tmp_path / "manifest.csv", "--root", tmp_path, "--classifier", "none",
                "--settings", settings, "--output", output)  # fmt: skip
    assert_refused(done, *words, output=output)


def train(data: Path, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A short training on the masks."""
    network = "{encoder: {name: resnet10t, options: {channels: [8, 8, 8, 8]}}, decoder_channels: 8}"
    inputs = ["--manifest", folder / "manifest.csv", "--root", data]
    return beco("train", *inputs, "--recipe", "single", "--network", network, *arguments)


@pytest.fixture
def prepared(data: Path, tmp_path: Path) -> Path:
    assert make_manifest(data, tmp_path / "manifest.csv").returncode == 0
    return tmp_path


SHORT = "{crop: {size: 32}, schedule: {steps: 2, batch_size: 2}}"


def test_weights_that_do_not_fit(data: Path, prepared: Path) -> None:
    weights = prepared / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, weights)
    settings = f"{{encoder: {{name: resnet10t, weights: {weights}}}, schedule: {{steps: 1}}}}"
    done = beco("train-classifier", "--manifest", prepared / "manifest.csv", "--root", data, "--settings", settings,
                "--output", prepared / "classifier")  # fmt: skip
    assert_refused(done, "weights.safetensors", "lacks", "encoder.drop", output=prepared / "classifier")


def test_an_unreadable_store(data: Path, prepared: Path) -> None:
    labels = prepared / "labels.h5"
    labels.write_bytes(b"not HDF5" * 100)
    done = train(data, prepared, "--labels", labels, "--settings", SHORT, "--output", prepared / "run")
    assert_refused(done, "labels.h5", "not an HDF5 file", output=prepared / "run")


def test_a_run_folder_of_other_settings(data: Path, prepared: Path) -> None:
    first = train(data, prepared, "--settings", SHORT, "--output", prepared / "run")
    assert first.returncode == 0, first.stderr
    other = SHORT.replace("steps: 2", "steps: 3")
    again = train(data, prepared, "--settings", other, "--output", prepared / "run")
    assert_refused(again, "checkpoint.pt", "settings", "--replace")


def test_a_mask_value_beyond_the_classes(data: Path, tmp_path: Path) -> None:
    path = data / "SegmentationClass" / "train_00000.png"
    mask = np.array(Image.open(path))
    mask[0, 0] = 9
    image = Image.fromarray(mask, "P")
    image.putpalette([0] * 768)
    image.save(path)
    output = tmp_path / "manifest.csv"
    assert_refused(make_manifest(data, output), "train_00000.png", "9", output=output)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--labels", "a:b:c=x"], "--labels: expected name=folder or name:source=folder, found `a:b:c=x`"),
        (["--labels", ":b=x"], "--labels: expected name=folder or name:source=folder, found `:b=x`"),
        (["--labels", "a:=x"], "--labels: expected name=folder or name:source=folder, found `a:=x`"),
        (["--labels", "a=x", "--labels", "a:b=y"], "--labels: `a` comes twice"),
        (["--source", "a=x", "--source", "a=y"], "--source: `a` comes twice"),
        (["--runs", "one:0:crf=y"], "--runs: `one:0:crf` comes twice"),
    ],
)
def test_names_that_tables_cannot_tell_apart(tmp_path: Path, options: list[str], said: str) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder / "classifier").mkdir(parents=True)
        (tmp_path / folder / "classifier" / "classifier.safetensors").touch()
    placed = [word.replace("=", f"={tmp_path}/") for word in options]
    arguments = ["tables", "--runs", f"one:0:crf={tmp_path}/x", *placed, "-o", str(tmp_path / "out")]
    status, error = run(arguments)
    assert status == 1 and error.count("\n") == 1 and said.replace("=x`", f"={tmp_path}/x`") in error
    assert not (tmp_path / "out").exists()
