"""What a plan is made of: how many pictures there are, the small sets of them, files; and what is wrong is one line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import coco_sets
import pytest
import voc_sets
from PIL import Image
from plans import FEW, TINY, config, job, lasting, write

from beco.cli import dataset as command
from beco.config import Config, Dataset, read_config_files
from beco.datasets import formats
from beco.datasets.manifest import Manifest
from beco.errors import UserError
from beco.plan import pictures, report, trial


def small(of: Config, folder: Path, train: int, val: int, part: float = 1) -> Manifest:
    """The manifest of a small set, read as the workflow reads the whole."""
    told = pictures.count(of.dataset).small(folder / "few", train, val, part)
    section = Dataset.model_validate(of.dataset.model_dump() | told)
    return formats.build(section, folder / "manifest.csv")


def test_pictures_of_the_drawn_set(tmp_path: Path) -> None:
    found = pictures.count(config().dataset)
    assert (found.train, found.val, found.height, found.width, found.classes) == (24, 10, 64, 64, 6)
    section = found.small(tmp_path / "few", 8, 3, 1)["shapes"]
    assert (section["train"], section["val"], section["size"]) == (8, 3, 64)


def voc(root: Path, sizes: list[tuple[int, int]]) -> Config:
    """A dataset in VOC's layout, the last two pictures for validation."""
    for number, size in enumerate(sizes):
        voc_sets.add_picture(root, str(number), ["cat", "dog"][: 1 + number % 2])
        Image.new("RGB", size).save(root / "JPEGImages" / f"{number}.jpg")
        Image.new("L", size, 1).save(root / "SegmentationClass" / f"{number}.png")
    ids = [str(number) for number in range(len(sizes))]
    voc_sets.set_list(root, "train", ids[:-2])
    voc_sets.set_list(root, "val", ids[-2:])
    return config(dataset={"name": "own", "format": "voc", "root": str(root), "classes": voc_sets.CLASSES})


def test_pictures_of_a_voc_folder(tmp_path: Path) -> None:
    of = voc(tmp_path / "voc", [(50, 40), (40, 50), (70, 40), (40, 60), (10, 10), (10, 10)])
    found = pictures.count(of.dataset)
    assert (found.train, found.val, found.classes) == (4, 2, 3)
    assert (found.width, found.height) == (round((50 + 50 + 70 + 60) / 4), 40)  # long and short sides
    assert pictures.count(of.dataset, "train=7,val=3", "30x20").width == 30
    few = small(of, tmp_path, 2, 1)
    assert few.split("train").ids == ["0", "3"] and len(few.split("val").ids) == 1  # evenly spread
    assert few.split("train").size("3") == (60, 40)


def test_pictures_of_coco(tmp_path: Path) -> None:
    annotations = [coco_sets.instance(3, coco_sets.LEFT, image) for image in (1, 2, 3)]
    for name, images in zip(coco_sets.LISTS, ((1, 2, 3), (4, 5)), strict=True):
        shown = annotations if name == coco_sets.LISTS[0] else [coco_sets.instance(9, coco_sets.TOP, 4)]
        coco_sets.write_set(tmp_path / "coco", name, shown, images)
    train, val = coco_sets.LISTS
    of = config(dataset={"name": "own", "format": "coco", "root": str(tmp_path / "coco"), "train": train, "val": val})
    found = pictures.count(of.dataset)
    assert (found.train, found.val, found.classes, found.width, found.height) == (3, 2, 3, 6, 4)
    few = small(of, tmp_path, 2, 1)
    assert [len(few.split(name).ids) for name in ("train", "val")] == [2, 1]


@pytest.mark.parametrize("suffix", [".png", ""])
def test_pictures_of_a_folder(tmp_path: Path, suffix: str) -> None:
    for number in range(6):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{number}.png")
    rows = [f"{number}{suffix},{'val' if number > 3 else 'train'},{'a;b' if number else 'c'}" for number in range(6)]
    (tmp_path / "labels.csv").write_text("image,split,labels\n" + "\n".join(rows) + "\n")
    section = {"format": "folder", "root": str(tmp_path), "labels": str(tmp_path / "labels.csv"), "name": "own"}
    of = config(dataset=section)
    found = pictures.count(of.dataset)
    assert (found.train, found.val, found.classes, found.width) == (4, 2, 3, 30)
    few = small(of, tmp_path, 2, 1)
    assert [len(few.split(name).ids) for name in ("train", "val")] == [2, 1]


@pytest.mark.parametrize("part", [1, 0.5])
def test_pictures_that_are_not_there_are_drawn(part: float, tmp_path: Path) -> None:
    of = config(dataset={"name": "own", "format": "voc", "root": str(tmp_path / "gone")})
    found = pictures.count(of.dataset, "train=700,val=100", "160x90")
    told = found.small(tmp_path / "few", 6, 2, part)
    made = formats.build(Dataset.model_validate(of.dataset.model_dump() | told), tmp_path / "manifest.csv")
    assert len(made.split("train").ids) == 6 and len(made.classes) == 20
    assert made.size(made.ids[0])[0] == pytest.approx((160 * 90) ** 0.5 * part, abs=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("train=3", "val is missing"),
        ("train=3,val=x", "`val=x` is no number"),
        ("train=0,val=2", "`train=0` is not understood"),
        ("train=3,val=2,trian=4", "`trian=4` is not understood"),
        ("", "is no number"),
    ],
)
def test_numbers_that_are_none(given: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        pictures.count(config().dataset, given)


def test_without_the_dataset(tmp_path: Path) -> None:
    of = config(dataset={"name": "own", "format": "voc", "root": str(tmp_path / "gone")}).dataset
    with pytest.raises(UserError, match=r"gone/JPEGImages is not there; name the folder.*--pictures train=N,val=M"):
        pictures.count(of)
    with pytest.raises(UserError, match="--size: `30` is not understood; give WIDTHxHEIGHT"):
        pictures.count(of, "train=3,val=2", "30")
    with pytest.raises(UserError, match="--size: is of pictures that are made up"):
        pictures.count(of, size="30x20")
    coco = config(dataset={"name": "own", "format": "coco", "root": "x"}).dataset
    with pytest.raises(UserError, match="how many classes `coco` has is not known; add classes=K"):
        pictures.count(coco, "train=3,val=2")


# --- files and the command --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense", "not readable as JSON"),
        ("[1, 2]", "no trial of `beco plan`"),
        (json.dumps({"device": "CPU"}), "no trial of `beco plan`"),
        (json.dumps(asdict(lasting(a=1)) | {"took": {"a": [{"amount": 1}]}}), "no trial of `beco plan`"),
        (json.dumps(asdict(lasting(a=-1))), "a negative or endless figure"),
        (json.dumps(asdict(lasting(a=1)) | {"took": {"a": []}}), "no trial of `beco plan`"),
    ],
)
def test_trials_that_are_none(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=said) as error:
        trial.read(tmp_path / "t.json")
    assert "\n" not in str(error.value) and "--save" in str(error.value)


def test_a_trial_of_another_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command with the trial of a file: what is said, saved, written, and compared."""
    known, listed = lasting(a=4, b=2), [job("a"), job("b", "a")]
    file, benchmarks = write(tmp_path / "t.json", asdict(known)), tmp_path / "benchmarks"
    benchmarks.mkdir()
    (benchmarks / "a.tsv").write_text("s\tcpu_time\n8\t8\n")
    monkeypatch.setattr(trial, "full", lambda *_: listed)
    output, saved = tmp_path / "plan.json", tmp_path / "again.json"
    command.plan([TINY], rates=file, save=saved, parallel=2, against=benchmarks, output=output)
    said, values = capsys.readouterr().out, json.loads(output.read_text())
    assert "24 + 10 pictures" in said and "in all: 2 jobs" in said and "0.50" in said
    expected: dict[str, Any] = report.as_json(report.Plan(config(), FEW, listed, known), 2)
    assert values["total"] == expected["total"] and values["against"][0]["factor"] == 0.5
    assert trial.read(saved) == known


def test_a_wrong_folder_of_measurements_is_told_before_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "full", lambda *_: [job("a")])
    monkeypatch.setattr(trial, "here", lambda *_: pytest.fail("tried before"))
    with pytest.raises(UserError, match="has no benchmark of a planned job"):
        command.plan([TINY], parallel=1, against=tmp_path)


def test_several_files_and_entries_over_them(tmp_path: Path) -> None:
    (tmp_path / "over.yaml").write_text("training: {schedule: {epochs: 5}}\ngallery: 7\n")
    of = read_config_files([TINY, tmp_path / "over.yaml"], ["dataset={shapes: {train: 99}}", "gallery=3"])
    assert of.gallery == 3 and of.dataset.shapes.train == 99 and of.dataset.shapes.val == 10
    assert of.experiments["beco"].training.schedule.epochs == 5
    with pytest.raises(UserError, match="--config: expected key=VALUE, found `gallery`"):
        read_config_files([TINY], ["gallery"])
    with pytest.raises(UserError, match="galery: unknown key; did you mean `gallery`"):
        read_config_files([TINY], ["galery=3"])
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(UserError, match=r"list\.yaml: expected keys and values"):
        read_config_files([TINY, tmp_path / "list.yaml"], [])


def test_wrong_configurations_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("datset: {}\n")
    with pytest.raises(UserError, match="datset: unknown key; did you mean `dataset`"):
        command.plan([tmp_path / "wrong.yaml"])
