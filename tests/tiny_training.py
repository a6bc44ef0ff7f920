"""A training of 300 numbers, which has all that a recipe has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from beco.config import Optimiser, Schedule
from beco.training.checkpoint import State
from beco.training.engine import Output, Plan, fit
from beco.training.sampling import Draws
from beco.training.trainer import Compute

PICTURES, BATCH, STEPS = 10, 3, 11  # three steps an epoch, one picture left over; the last epoch is cut short


OPTIMISERS = {name: Optimiser(name=name, lr=0.02, head_lr_factor=3, min_lr=1e-3) for name in ("sgd", "adamw")}


class Squares(Dataset[dict[str, Tensor]]):
    """Noise with a bright half; the label is where it is bright. Draws as the package's datasets do."""

    def __len__(self) -> int:
        return PICTURES

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        index, draw = key
        torch.default_generator.manual_seed(draw)
        image = torch.rand(3, 8, 8)
        label = torch.zeros(8, 8, dtype=torch.long)
        label[:, : 2 + index % 5] = 1
        return {"image": image + label, "label": label}


class Tiny(nn.Module):
    """Encoder, dropout, batch statistics, a decoder, and a draw of its own: all that a recipe has, in 300 numbers."""

    def __init__(self, harm: Callable[[int], None] | None = None) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Conv2d(6, 2, 1))
        self.harm, self.losses = harm, []

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        return [(list(self.encoder.parameters()), False), (list(self.head.parameters()), True)]

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def forward(self, batch: dict[str, Tensor], step: int, steps: int, draws: Draws) -> dict[str, Tensor]:
        assert steps > step
        if self.harm:
            self.harm(step)
        images = batch["image"] * (0.5 + draws.uniform(1, 1, 1))
        loss = F.cross_entropy(self.head(self.encoder(images)).float(), batch["label"])
        self.losses.append(loss.item())
        return {"loss": loss, "twice": 2 * loss.detach()}


def train(
    folder: Path,
    harm: Callable[[int], None] | None = None,
    *,
    optimiser: str = "adamw",
    schedule: dict[str, Any] | None = None,
    identity: dict[str, Any] | None = None,
    workers: int = 0,
    replace: bool = False,
) -> tuple[Tiny, State]:
    chosen = Schedule.model_validate({"steps": STEPS, "batch_size": BATCH, **(schedule or {})})
    task, compute = Tiny(harm), Compute("cpu", 1, workers)
    what = identity or {"seed": 1, "settings": "a"}
    return task, fit(
        task, Squares(), Plan(chosen, OPTIMISERS[optimiser], 1), Output(folder, what, "tiny", replace), compute
    )


def assert_same_run(task: Tiny, folder: Path, whole: Tiny, whole_folder: Path) -> None:
    """Every tensor to the bit, and the history but for the clock."""
    for key, value in whole.state_dict().items():
        assert torch.equal(task.state_dict()[key], value), key
    tables = [pd.read_csv(path / "history.csv").drop(columns=["seconds", "waited"]) for path in (folder, whole_folder)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
