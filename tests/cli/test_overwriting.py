"""No command writes over what it reads, however the path is spelt; what is read stays as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import run
from corpus_inputs import CLASSES, SETTINGS, SIZE, put, reads, sound
from small_networks import network

from beco.cli import overwriting
from beco.datasets.palette import write_index_png
from beco.networks.segmenter import build
from beco.stage2 import predict
from beco.stage2.train import Trained

FOLDER = "{format: folder, root: pictures, labels: %s, val_share: 0.5}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound folder, which is the working directory too."""
    sound(tmp_path)
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat\nb.jpg,dog\n")
    (tmp_path / "s.yaml").write_text(SETTINGS)
    for name in ("a", "b"):
        write_index_png(tmp_path / "foreign" / f"{name}.png", np.zeros(SIZE, np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(at: Path, arguments: list[str]) -> str:
    before = contents(at)
    status, error = run(arguments)
    lines = [line for line in error.splitlines() if line.startswith("beco: ")]
    assert status == 1 and len(lines) == 1 and "Traceback" not in error, error
    assert contents(at) == before
    return lines[0]


def symbolic(path: Path) -> str:
    (path.parent / "link").symlink_to(path)
    return str(path.parent / "link")


def through_a_folder(path: Path) -> str:
    (path.parent / "folder").symlink_to(path.parent, target_is_directory=True)
    return str(path.parent / "folder" / path.name)


def hard(path: Path) -> str:
    os.link(path, path.parent / "hard")
    return str(path.parent / "hard")


SPELLINGS: dict[str, Callable[[Path], str]] = {
    "as it is": str,
    "relative": os.path.relpath,
    "with dots": lambda path: f"{path.parent}/./data/../{path.name}",
    "symbolic link": symbolic,
    "link to the folder": through_a_folder,
    "hard link": hard,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_however_the_path_is_spelt(at: Path, spelling: str) -> None:
    output = SPELLINGS[spelling](at / "labels.csv")
    line = refused(at, ["manifest", "--root", "data/JPEGImages", "--settings", FOLDER % "labels.csv", "-o", output])
    assert str(Path(output)) in line and "input" in line and "name another output" in line


CASES: dict[str, list[str]] = {
    "manifest": ["manifest", "--root", "data", "--settings", "s.yaml", "-o", "s.yaml"],
    "manifest, a list of the dataset": ["manifest", "--root", "data", "--settings", "s.yaml", "-o",
                                        "data/ImageSets/Segmentation/train.txt"],
    "manifest, beside it": ["manifest", "--root", "data", "--settings", "s.json", "-o", "s.csv"],
    "render-masks": ["render-masks", "--root", "data", "-o", "data"],
    "train-classifier": ["train-classifier", *reads(Path()), "-o", "first", "--settings",
                         "{encoder: {name: resnet10t, weights: first/classifier.safetensors}}"],
    "text-features": ["text-features", "cat", "--tower", "t", "--weights", "labels.h5", "-o", "labels.h5"],
    "cams": ["cams", *reads(Path()), "--classifier", "first/classifier.safetensors", "-o",
             "first/classifier.safetensors"],
    "train-irn": ["train-irn", *reads(Path()), "--labels", "labels.h5", "--classifier", "first/irn.safetensors", "-o",
                  "first"],
    "refine": ["refine", *reads(Path()), "--cams", "labels.h5", "--irn", "first/irn.safetensors", "-o", "labels.h5"],
    "labels": ["labels", *reads(Path()), "--cams", "labels.h5", "-o", "labels.h5"],
    "gather": ["gather", "labels.h5", "-o", "labels.h5"],
    "import-labels": ["import-labels", "foreign", *reads(Path()), "-o", "foreign/a.png"],
    "import-labels, folder": ["import-labels", "foreign", *reads(Path()), "-o", "foreign"],
    "export-labels": ["export-labels", "labels.h5", "-o", "labels.h5"],
    "export-labels, the folder": ["export-labels", "predictions", "-o", "predictions"],
    "export-labels, above": ["export-labels", "predictions", "-o", "."],
    "train": ["train", *reads(Path()), "--labels", "labels.h5", "--recipe", "single", "-o", "labels.h5"],
    "train, classifier": ["train", *reads(Path()), "--recipe", "single", "--classifier",
                          "first/networks.safetensors", "-o", "first"],
    "predict-split": ["predict-split", *reads(Path()), "--networks", "first/networks.safetensors", "-o", "first"],
    "predict-split, pictures": ["predict-split", *reads(Path()), "--networks", "first/networks.safetensors", "-o",
                                "data/JPEGImages"],
    "predict-split, root": ["predict-split", *reads(Path()), "--networks", "first/networks.safetensors", "-o", "data"],
    "predict": ["predict", "first", "data/JPEGImages", "-o", "first"],
    "predict, networks within": ["predict", "first/networks.safetensors", "data/JPEGImages", "-o", "first"],
    "predict, pictures": ["predict", "first", "data/JPEGImages", "-o", "data/JPEGImages"],
    "predict, pictures within": ["predict", "first", "data/JPEGImages", "-o", "data"],
    "evaluate": ["evaluate", *reads(Path()), "--predictions", "predictions", "-o", "predictions"],
    "evaluate, metrics": ["evaluate", "--manifest", "first/per_class.csv", "--root", "data", "--predictions",
                          "predictions", "-o", "first"],
    "evaluate-labels": ["evaluate-labels", *reads(Path()), "--labels", "labels.h5", "-o", "labels.h5"],
    "sweep-labels": ["sweep-labels", *reads(Path()), "--cams", "labels.h5", "--background", "0.3", "-o", "labels.h5"],
    "archive": ["archive", "predictions", "-o", "predictions/v.png"],
    "tables": ["tables", "--runs", "one:0:crf=predictions", "-o", "predictions"],
    "comparison": ["comparison", "--settings", "s.yaml", "--runs", "one:0:crf=predictions", "-o", "s.yaml"],
    "report": ["report", *reads(Path()), "--runs", "one:0:crf=predictions", "--source", "cam=first", "-o",
               "first/cams.h5"],
    "plan": ["plan", "--configfile", "s.yaml", "-o", "s.yaml"],
    "plan, trial": ["plan", "--configfile", "s.yaml", "--save", "s.yaml"],
    "benchmark": ["benchmark", "--settings", "s.yaml", "-o", "s.yaml"],
    "init": ["init", "data/JPEGImages", "--images", "data/JPEGImages", "--labels", "labels.csv"],
    "a picture of the dataset": ["labels", *reads(Path()), "--cams", "labels.h5", "-o", "data/JPEGImages/b.jpg"],
    "log": ["--log", "m.csv", "evaluate", *reads(Path()), "--predictions", "predictions", "-o", "new"],
    "log, by its option": ["--log", "labels.h5", "export-labels", "./labels.h5", "--output=new"],
}  # fmt: skip


HIDDEN = {
    "in settings": [
        "--log",
        "labels.csv",
        "manifest",
        "--root",
        "data/JPEGImages",
        "--settings",
        FOLDER % "labels.csv",
    ],
    "under the root": ["--log=data/JPEGImages/a.jpg", "manifest", "--root", "data", "--settings", SETTINGS],
    "a folder's": ["--log", "predictions/v.png", "export-labels", "predictions", "--manifest", "m.csv"],
}


@pytest.mark.parametrize("name", HIDDEN)
def test_the_log_is_no_input(at: Path, name: str) -> None:
    assert "holds no messages" in refused(at, [*HIDDEN[name], "-o", "new.csv"])


def test_a_log_is_written_anew(at: Path) -> None:
    (at / "m.log").touch()  # as some make it beforehand
    for _ in range(2):
        for arguments, ends in ((["manifest", "--root", "none"], 1), (["gather", "labels.h5"], 0)):
            assert run(["--log", "m.log", *arguments, "-o", "new.csv"])[0] == ends


@pytest.mark.parametrize("name", CASES)
def test_an_output_that_is_an_input(at: Path, name: str) -> None:
    for file in ("classifier.safetensors", "irn.safetensors", "networks.safetensors", "per_class.csv", "cams.h5"):
        (at / "first").mkdir(exist_ok=True)
        (at / "first" / file).write_text("something")
    (at / "s.json").write_text(SETTINGS)
    line = refused(at, CASES[name])
    assert "name another" in line and ("input" in line or "dataset" in line or "--log" in line), line


def test_every_command_that_writes_is_tried() -> None:
    from beco.cli import app

    names = {str(info.callback.__name__) for info in app.registered_commands if info.callback}
    tried = {word.replace("-", "_") for arguments in CASES.values() for word in arguments}
    assert names - {"check", "draw_shapes", "weights"} <= tried  # these read nothing that they could write over
    assert {*overwriting.INSIDE, *overwriting.BESIDE, *overwriting.REPLACED, *overwriting.LISTED} <= names


FOLDERS = {
    "export-labels": ["export-labels", "labels.h5"],
    "export-labels, cvat": ["export-labels", "labels.h5", "--format", "cvat"],
    "predict-split": ["predict-split", *reads(Path()), "--networks", "networks.safetensors", "--device", "cpu"],
    "draw-shapes": ["draw-shapes", "--settings", "{train: 1, val: 1, size: 48}"],
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_replaced_if_it_is_empty_or_ours(at: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained([build(network(), len(CLASSES)).eval()], CLASSES, None)
    monkeypatch.setattr(predict, "load", lambda _: trained)
    (at / "mine" / "deep").mkdir(parents=True)
    (at / "mine" / "deep" / "a").write_text("precious")
    assert "mine: holds other files (deep/a)" in refused(at, [*FOLDERS[name], "-o", "mine"])
    assert "thesis.txt: is a file" in refused_over(at, "thesis.txt", FOLDERS[name])
    (at / "empty" / "below").mkdir(parents=True)  # as a workflow makes it beforehand
    (at / "empty" / ".snakemake_timestamp").touch()
    for _ in range(2):
        status, error = run([*FOLDERS[name], "-o", "empty"])
        assert status == 0 and not (at / "empty" / "below").exists(), error
    (at / "empty" / "notes.txt").write_text("precious")  # put to ours later
    assert "notes.txt" in refused(at, [*FOLDERS[name], "-o", "empty"])


def refused_over(at: Path, name: str, arguments: list[str]) -> str:
    (at / name).write_text("precious")
    return refused(at, [*arguments, "-o", name])


def test_a_file_is_not_put_in_the_place_of_a_folder(at: Path) -> None:
    (at / "mine").mkdir()
    for form in (["export-labels", "labels.h5", "--format", "coco-json"], ["gather", "labels.h5"]):
        assert "mine: is a folder" in refused(at, [*form, "-o", "mine"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["manifest", "--root", "data", "--settings", SETTINGS, "-o", "data/m.csv"],  # within the dataset, and again
        ["evaluate", *reads(Path()), *put(Path(), "predictions", "run/predictions"), "-o", "run"],
        ["export-labels", "labels.h5", "-o", "exported"],
    ],
)
def test_what_was_written_before_is_written_again(at: Path, arguments: list[str]) -> None:
    write_index_png(at / "run" / "predictions" / "v.png", np.zeros(SIZE, np.uint8))
    for _ in range(2):
        status, error = run(arguments)
        assert status == 0, error
