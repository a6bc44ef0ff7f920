"""What a plan is made of: presets, pictures, files of the benchmark; and what is wrong is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from PIL import Image
from plans import TINY, benchmark, config, write

from beco.cli import dataset as command
from beco.config import Config, read_config_files
from beco.errors import UserError
from beco.plan import pictures, rates

PRESETS = sorted((ROOT / "workflow" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", [ROOT / "config.yaml", *PRESETS], ids=lambda path: path.stem)
def test_every_preset_can_be_planned(preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "b.json", benchmark())
    output = tmp_path / "plan.json"
    told = "train=105,val=20,classes=80" if preset.stem == "coco14" else "train=105,val=20"
    command.plan([preset], benchmark=[file], pictures=told, parallel=2, output=output)
    said, values = capsys.readouterr().out, json.loads(output.read_text())
    assert "105 + 20 pictures (--pictures)" in said and "in all:" in said
    assert values["total"]["jobs"] == sum(row["jobs"] for row in values["rows"])
    assert values["total"]["wall_hours"] <= values["total"]["core_hours"]
    assert all(row["hours"] > 0 for row in values["rows"])


def test_pictures_of_the_drawn_set() -> None:
    found = pictures.count(config())
    assert (found.train, found.val, found.height, found.width, found.classes) == (24, 10, 64, 64, 6)
    assert 1 <= found.shown <= 3 and found.samples[0].shape == (64, 64, 3)


def voc(root: Path, sizes: list[tuple[int, int]]) -> Config:
    """A dataset in VOC's layout, the last picture for validation; its pictures show a cat, and every second a dog."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(root / "JPEGImages" / f"{number}.jpg")
        names = ["cat", "dog"][: 1 + number % 2]
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        (root / "Annotations" / f"{number}.xml").write_text(f"<annotation>{objects}</annotation>")
    ids = [str(number) for number in range(len(sizes))]
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids[:-1]))
    (root / "ImageSets/Segmentation/val.txt").write_text(ids[-1])
    return config(dataset={"name": "own", "format": "voc", "root": str(root)})


def test_pictures_of_a_voc_folder(tmp_path: Path) -> None:
    of = voc(tmp_path / "voc", [(50, 40), (40, 50), (70, 40), (40, 60), (10, 10)])
    found = pictures.count(of)
    assert (found.train, found.val, found.classes, found.shown) == (4, 1, 20, 1.5)
    assert (found.width, found.height) == (round((50 + 50 + 70 + 60) / 4), 40)  # long and short sides
    assert pictures.count(of, size="30x20").width == 30
    assert pictures.count(of, "train=7,val=3,shown=2.5").train == 7


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{'val' if number == 3 else 'train'},a;b" for number in range(4)]
    (tmp_path / "labels.csv").write_text("image,split,labels\n" + "\n".join(rows) + "\n")
    section = {"format": "folder", "root": str(tmp_path), "labels": str(tmp_path / "labels.csv"), "name": "own"}
    of = config(dataset=section)
    found = pictures.count(of)
    assert (found.train, found.val, found.classes, found.shown, found.width) == (3, 1, 2, 2.0, 30)
    assert found.predicted(of.dataset) == 4  # all of one's own are labelled


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
        pictures.count(config(), given)


def test_without_the_dataset(tmp_path: Path) -> None:
    of = config(dataset={"name": "own", "format": "voc", "root": str(tmp_path / "gone")})
    with pytest.raises(UserError, match=r"gone/JPEGImages is not there; name the folder.*--pictures train=N,val=M"):
        pictures.count(of)
    with pytest.raises(UserError, match="--size: `30` is not understood; give WIDTHxHEIGHT"):
        pictures.count(of, "train=3,val=2", "30")
    with pytest.raises(UserError, match="how many classes `coco` has is not known; add classes=K"):
        pictures.count(config(dataset={"name": "own", "format": "coco", "root": "x"}), "train=3,val=2")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense", "not readable as JSON"),
        ("[1, 2]", "not a benchmark's file"),
        (json.dumps({"device": "CPU"}), "has no part `stages`; make it with `beco benchmark --what all"),
        (json.dumps({k: v for k, v in benchmark().items() if k != "training"}), "has no part `training`"),
        (json.dumps(benchmark(training={"bare_s": 1})), "lacks a valid figure"),
        (json.dumps(benchmark(training=benchmark()["training"] | {"bare_tflop_per_s": -1})), "a positive number"),
        (json.dumps(benchmark(stages=[])), "lacks a valid figure"),
    ],
)
def test_benchmarks_that_are_none(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(UserError, match=said) as error:
        rates.from_files([tmp_path / "b.json"])
    assert "\n" not in str(error.value)


def test_benchmarks_of_two_machines(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.json", benchmark(device=name)) for name in ("CPU 1", "CPU 2")]
    with pytest.raises(UserError, match=r"files of different devices \(CPU 1, CPU 2\); give those of one"):
        rates.from_files(files)
    with pytest.raises(UserError, match=r"gone\.json: no such file; make it"):
        rates.from_files([tmp_path / "gone.json"])


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


def test_wrong_configurations_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("datset: {}\n")
    with pytest.raises(UserError, match="datset: unknown key; did you mean `dataset`"):
        command.plan([tmp_path / "wrong.yaml"])
    network = {"encoder": {"name": "no_such_net"}}
    of = yaml.safe_load(TINY.read_text()) | {"networks": {"default": network}}
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(of))
    with pytest.raises(UserError, match="timm has no model `no_such_net`"):
        command.plan([tmp_path / "net.yaml"], benchmark=[write(tmp_path / "b.json", benchmark())])
