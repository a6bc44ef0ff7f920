"""A batch that is spread over processes, or cut into parts, gives what it gives in one piece."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from beco.config import Optimiser, Schedule, Shapes
from beco.datasets import shapes, voc
from beco.errors import UserError
from beco.networks.encoders import load_network
from beco.training import distributed
from beco.training.engine import Output, Plan, fit
from beco.training.sampling import Draws, StepSampler, part_slots
from beco.training.trainer import Compute, launch

BECO = str(Path(sys.executable).parent / "beco")
NETWORK = {
    "encoder": {"name": "resnet10t", "options": {"channels": [8, 16, 24, 32]}},
    **{"decoder_channels": 8, "atrous_rates": [1, 2, 3], "dropout": 0.0},  # dropout is drawn by each process
}
TRAINING = {
    "crop": {"size": 32},
    "warmup_steps": 1,
    "mix": {"online_threshold": 0.2},  # so that untrained networks paste something
    "schedule": {"steps": 4, "batch_size": 8},
    "optimiser": {"name": "sgd", "lr": 0.02},
}


@given(st.sampled_from([1, 2, 4]), st.integers(1, 4))
def test_parts_are_a_partition_that_keeps_pairs(parts: int, pairs: int) -> None:
    size = 2 * parts * pairs
    slots = [part_slots(size, parts, part) for part in range(parts)]
    assert sorted(slot for part in slots for slot in part) == list(range(size))
    for part in slots:
        half = len(part) // 2
        assert all(other - one == size // 2 for one, other in zip(part[:half], part[half:], strict=True))


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(UserError, match="choose a multiple of 8"):
        part_slots(12, 4, 0)


def test_parts_draw_what_the_whole_draws() -> None:
    device = torch.device("cpu")
    whole = Draws(3, 8, list(range(8)), device)
    expected = [whole.uniform(), whole.uniform(5, 1)]
    for part in range(2):
        slots = part_slots(8, 2, part)
        draws = Draws(3, 8, slots, device)
        assert all(torch.equal(draws.uniform(*numbers.shape[1:]), numbers[slots]) for numbers in expected)
        sampler = StepSampler(20, 8, 5, 7, slots=slots)
        for mine, all_of_them in zip(sampler, StepSampler(20, 8, 5, 7), strict=True):
            assert mine == [all_of_them[slot] for slot in slots]


class Numbers(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return {"value": torch.tensor(float(key[0])), "count": torch.tensor(key[0] % 3)}


class Fitted(nn.Module):
    """A line, its error weighed over the whole batch and shaken by a draw for each number."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        return [([self.slope], False)]

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"weight": batch["count"].sum()}

    def forward(self, batch: dict[str, Tensor], step: int, steps: int, draws: Draws) -> dict[str, Tensor]:
        error = (self.slope * batch["value"] - 1 - draws.uniform()).abs() * batch["count"]
        return {"loss": error.sum() / batch["weight"]}


def test_accumulated_parts_make_the_same_step(tmp_path: Path) -> None:
    slopes = []
    for accumulate in (1, 2, 4):
        task, folder = Fitted(), tmp_path / str(accumulate)
        schedule = Schedule(steps=6, batch_size=8, accumulate=accumulate)
        fit(task, Numbers(), Plan(schedule, Optimiser(lr=0.1), 0), Output(folder, {}, "line"), Compute("cpu"))
        slopes.append((task.slope.item(), *pd.read_csv(folder / "history.csv")["loss"]))
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-5) and slopes[2] == pytest.approx(slopes[0], rel=1e-5)
    assert slopes[0][0] != 0.5


# --- processes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=16, val=4))
    voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv")
    return folder


# What a step of a Snakemake job on Slurm sees: one task, however many devices it has.
ONE_TASK = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "7"}


def train(dataset: Path, output: Path, recipe: str, *more: str, before: tuple[str, ...] = (), **settings: Any) -> None:
    command = [
        *before,
        BECO,
        *("train", "--manifest", str(dataset / "manifest.csv"), "--root", str(dataset / "set")),
        *("--recipe", recipe, "--network", yaml.safe_dump(NETWORK), "--settings", yaml.safe_dump(TRAINING | settings)),
        *("--device", "cpu", "--output", str(output), *more),
    ]
    environment = {**os.environ, **ONE_TASK, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr


def assert_same(one: Path, other: Path, tolerance: float) -> None:
    first, second = (pd.read_csv(folder / "history.csv").drop(columns=["seconds", "waited"]) for folder in (one, other))
    pd.testing.assert_frame_equal(first, second, rtol=tolerance)
    first, second = (load_network(folder / "networks.safetensors")[0] for folder in (one, other))
    for key, value in first.items():
        torch.testing.assert_close(value.float(), second[key].float(), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def by_two(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by two processes, the second of which the first one starts."""
    folder = tmp_path_factory.mktemp("two")
    train(dataset, folder, "beco", "--devices", "2")
    return folder


def test_two_processes_train_as_one(dataset: Path, tmp_path: Path, by_two: Path) -> None:
    """Losses and final weights, batch statistics included, but for the order in which floats are added."""
    train(dataset, tmp_path, "beco")
    assert_same(tmp_path, by_two, 2e-3)
    history = pd.read_csv(tmp_path / "history.csv")
    assert len(history) == 2 and history["share_pasted"].iloc[-1] > 0


def test_machines_that_nobody_started_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with pytest.raises(UserError, match=r"compute\.nodes: 2 machines asked for, but Slurm has started one task; set"):
        launch(Compute("cpu", nodes=2), Schedule(steps=1))


def test_torchrun_starts_the_same_training(dataset: Path, tmp_path: Path, by_two: Path) -> None:
    """Processes started from outside, as torchrun and Slurm do."""
    before = (str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2")
    train(dataset, tmp_path, "beco", "--devices", "2", before=before)
    assert_same(tmp_path, by_two, 1e-6)


def test_synchronised_statistics_of_equal_values_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 the mean of squares can fall below the square of the mean."""
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(distributed, "all_reduce", lambda moments: moments)
    layer = torch.nn.BatchNorm2d(64, eps=1e-12).train()
    images = torch.linspace(1_000, 9_000, 64).view(1, 64, 1, 1).expand(7, 64, 9, 9)
    square = images.square().mean((0, 2, 3)) - images.mean((0, 2, 3)).square()
    assert square.min() < 0  # or the case tells nothing
    assert distributed._normalised(layer, images).isfinite().all() and layer.running_var.min() >= 0
