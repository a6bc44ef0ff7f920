"""A user's own pictures with names of classes and some masks, and the project that `beco init` makes of them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from beco.cli import dataset as cli
from beco.config import Encoder
from beco.datasets.palette import write_index_png
from beco.datasets.shapes import CLASSES
from beco.datasets.shapes_drawing import draw_picture
from beco.project.init import Facts
from beco.project.start import SMALL, Machine, Start

SCRATCH = Start(SMALL, 8)
LIGHT = Start(Encoder(name="tf_efficientnet_lite0", weights="imagenet"), 16)
TRAINED = Start(Encoder(name="resnet50", weights="imagenet"), 16)
CPU, GPU = Machine(4, None), Machine(16, 24.0)
PHOTOS = Facts(pictures=400, train=320, classes=5, median=500, largest=640, val_masks=0)
NAMES = ["park/Tag {:02d}.webp", "großer garten {:02d}.png", "{:02d}.jpg"]


def draw_pictures(folder: Path, count: int, size: int) -> None:
    """A user's data: pictures of three formats, every other one with a mask, and a CSV of class names.

    Without a header of classes their order is the alphabet's, so that of the masks is, too.
    """
    rows = []
    values = np.arange(256, dtype=np.uint8)
    values[1 : 1 + len(CLASSES)] = [1 + sorted(CLASSES).index(name) for name in CLASSES]
    for number in range(count):
        drawn = draw_picture(np.random.default_rng([5, number]), size)
        name = NAMES[number % 3].format(number)
        path = folder / "my pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.image).save(path)
        if number % 2 == 0:
            write_index_png(folder / "masks" / Path(name).with_suffix(".png"), values[drawn.label])
        rows.append([name, "|".join(sorted({CLASSES[value - 1] for value in drawn.objects}))])
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["image", "labels"], *rows])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    draw_pictures(folder, 24, 48)
    return folder


@pytest.fixture
def own(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "own"))


def init(own: Path, **options: object) -> Path:
    """A project beside the pictures, from scratch if nothing else is asked for; returns its configuration."""
    options = {"from_scratch": not options.keys() & {"weights", "encoder"}, **options}
    cli.init(own.parent / "my project", own / "my pictures", own / "labels.csv", **options)  # type: ignore[arg-type]
    return own.parent / "my project" / "config.yaml"


def checked(config: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and output of `beco check`."""
    capsys.readouterr()
    with pytest.raises(typer.Exit) as stopped:
        cli.check(configfile=[config])
    return stopped.value.exit_code, capsys.readouterr().out
