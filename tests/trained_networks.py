"""Networks of random weights as a run leaves them, pictures to label, and the command that does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image
from small_networks import network
from torch import nn

from beco.config import Prediction
from beco.networks.encoders import save_network
from beco.networks.segmenter import build

CLASSES = ["cat", "dog", "bird"]
OWN = {"flip": True, "merge": "softmax"}
SIZES = {"a": (40, 56), "b": (56, 40), "trip/Tag 1": (40, 56), "trip/deep/c.d": (33, 47), "e": (40, 56), "f": (56, 40)}


def trained(run: Path, protocol: dict[str, Any] | None, count: int = 2) -> Path:
    """A run's folder with networks of random weights, of whose classes each has its turn."""
    made = [build(network(), len(CLASSES)).eval() for _ in range(count)]
    images = torch.from_numpy(noise((64, 64), 0)).permute(2, 0, 1)[None] / 255
    for number, member in enumerate(made):
        torch.manual_seed(3 + number)
        for parameter in member.parameters():
            nn.init.normal_(parameter, 0.0, 0.25)
        last = [one for one in member.decoder.modules() if isinstance(one, nn.Conv2d)][-1]
        assert last.bias is not None and last.out_channels == len(CLASSES) + 1
        with torch.no_grad():
            logits = member(images)
            last.bias -= logits.mean((0, 2, 3))
    metadata = {"network": network().model_dump_json(), "classes": json.dumps(CLASSES), "count": str(count)}
    if protocol is not None:
        metadata["prediction"] = Prediction.model_validate(protocol).model_dump_json()
    save_network(nn.ModuleList(made), run / "networks.safetensors", metadata)
    return run


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"), OWN)


def noise(size: tuple[int, int], seed: int) -> np.ndarray:
    """Blocks of colours, (*size, 3) uint8."""
    rows, columns = (n // 8 + 1 for n in size)
    blocks = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for number, (name, size) in enumerate(SIZES.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(size, number)).save(folder / f"{name}.{'png' if number % 2 else 'jpg'}")
    return folder


def predict(*arguments: str | Path, status: int = 0) -> str:
    found, error = run(["predict", *map(str, arguments), "--device", "cpu", "--threads", "1"])
    assert found == status and "Traceback" not in error, error
    return error


def label_maps(output: Path) -> dict[str, bytes]:
    """The PNGs of a folder by their names, without those of confidence."""
    names = {path.relative_to(output).as_posix(): path for path in output.rglob("*.png")}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("confidence/")}
