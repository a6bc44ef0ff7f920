"""Networks of stage two whose logits are known by hand, and pictures of noise for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from beco.config import Prediction
from beco.datasets.manifest import Manifest
from beco.datasets.palette import read_index_png, write_index_png
from beco.networks.segmenter import Segmenter
from beco.stage2 import predict as prediction
from beco.stage2.train import Trained
from beco.training.trainer import Compute

CLASSES = ["one", "two"]
# (height, width): two sizes several times, one alone
SIZES = [(12, 16)] * 5 + [(16, 12)] * 3 + [(9, 21)]


class Brightness(nn.Module):
    """Logits by hand: a weight per class times the red channel, and the scale that the picture comes at."""

    def __init__(self, weights: list[float], own_width: int | None = None) -> None:
        super().__init__()
        self.weights, self.own_width = torch.tensor(weights).view(1, -1, 1, 1), own_width
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        factor = images.shape[-1] / self.own_width if self.own_width else 1
        return images[:, :1] * self.weights * factor


class Column(nn.Module):
    """Logits by hand that depend on the place alone, so that a mirrored picture gives others."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(rows)  # (C, W)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[None, :, None, :].expand(len(images), -1, images.shape[-2], -1)


class Blocks(Segmenter):
    """Coarse logits by hand: means of 4×4 px, weighted by class, with slopes so that the place matters."""

    def __init__(self, weights: list[list[float]], output_stride: int = 8) -> None:
        nn.Module.__init__(self)
        self.weights, self.multiple = torch.tensor(weights), output_stride  # (C, 3)

    def coarse(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        blocks = torch.einsum("ck,bkhw->bchw", self.weights, F.avg_pool2d(padded, 4))
        return blocks * torch.linspace(0.5, 1.5, blocks.shape[-1]) * torch.linspace(1, 2, blocks.shape[-2])[:, None]


def noisy(folder: Path) -> Manifest:
    """Nine pictures of noise, of three sizes, shuffled."""
    rows = []
    for index in np.random.default_rng(7).permutation(len(SIZES)):
        height, width = SIZES[index]
        noise = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
        write_index_png(folder / f"m{index}.png", (noise[..., 0] // 86).astype(np.uint8))
        rows.append([f"p{index}", "val", f"{index}.png", f"m{index}.png", width, height, 1, 1])
    names = ["image_id", "split", "image", "mask", "width", "height", *CLASSES]
    return Manifest(folder, pd.DataFrame(rows, columns=names).set_index("image_id"), CLASSES)


def predicted(
    pictures: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    members: list[nn.Module],
    output: Path,
    threads: int = 1,
    **settings: object,
) -> dict[str, np.ndarray]:
    monkeypatch.setattr(prediction, "load", lambda _: Trained(members, pictures.classes, None))
    chosen = Prediction.model_validate(settings)
    prediction.predict(pictures, output / "none", chosen, Compute("cpu", threads), output)
    return {path.stem: read_index_png(path) for path in sorted(output.glob("*.png"))}
