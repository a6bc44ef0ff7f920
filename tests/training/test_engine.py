"""The training loop: its order of pictures, its schedule, and that a broken run ends where a whole one does."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import BATCH, OPTIMISERS, STEPS, Squares, Tiny, assert_same_run, train
from torch import Tensor, nn

from beco.config import Optimiser, Schedule
from beco.errors import UserError
from beco.training import engine
from beco.training.engine import Output, Plan, fit, poly_lr, total_steps
from beco.training.sampling import Draws, StepSampler, mixed_seed
from beco.training.trainer import Compute, choose_device


def stop_at(step: int) -> Callable[[int], None]:
    def harm(now: int) -> None:
        if now == step:
            raise InterruptedError(f"at step {step}")

    return harm


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tiny, Path]]:
    """One uninterrupted run with each optimiser."""
    folders = {name: tmp_path_factory.mktemp(name) for name in OPTIMISERS}
    return {name: (train(folder, optimiser=name)[0], folder) for name, folder in folders.items()}


# --- order and seeds ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(1, 9), st.integers(1, 60), st.integers(0, 2**31), st.data())
def test_every_epoch_is_a_permutation_and_a_later_start_gives_the_tail(
    pictures: int, batch: int, steps: int, seed: int, data: st.DataObject
) -> None:
    batch = min(batch, pictures)
    found = list(StepSampler(pictures, batch, steps, seed))
    assert len(found) == len(StepSampler(pictures, batch, steps, seed)) == steps
    per_epoch = pictures // batch
    for start in range(0, steps, per_epoch):
        indices = [index for chosen in found[start : start + per_epoch] for index, _ in chosen]
        assert len(set(indices)) == len(indices) and set(indices) <= set(range(pictures))
    assert all(len(chosen) == batch for chosen in found)
    draws = [draw for chosen in found for _, draw in chosen]
    assert len(set(draws)) == len(draws)  # no two visits share their crop
    first = data.draw(st.integers(0, steps))
    rest = StepSampler(pictures, batch, steps, seed, first)
    assert list(rest) == found[first:] and len(rest) == steps - first


def test_epochs_and_seeds_differ_in_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [index for chosen in list(StepSampler(40, 40, 3, seed))[epoch : epoch + 1] for index, _ in chosen]

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(one) for one in orders}) == 9 and all(sorted(one) == list(range(40)) for one in orders)


def test_a_batch_larger_than_the_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"schedule\.batch_size: 11 exceeds the 10 training pictures"):
        train(tmp_path, schedule={"batch_size": 11})


def test_mixed_seed() -> None:
    # splitmix64 of the state 0 begins with this value; the top bit is dropped
    assert mixed_seed(1, 0, 0) == 0xE220A8397B1DCDAF >> 1
    grid = {mixed_seed(seed, number, purpose) for seed in range(12) for number in range(40) for purpose in range(7)}
    assert len(grid) == 12 * 40 * 7 and max(grid) < 2**63
    purposes = [mixed_seed(3, 5, purpose) for purpose in range(1, 6)]
    numbers = [np.random.default_rng(seed).random() for seed in purposes]
    assert len(set(numbers)) == 5


def test_poly_lr_by_hand() -> None:
    optimiser = Optimiser(lr=0.01, min_lr=1e-5)
    assert poly_lr(0, 100, optimiser) == 0.01
    assert poly_lr(50, 100, optimiser) == pytest.approx(0.01 * 0.5**0.9)
    assert poly_lr(99, 100, optimiser) == pytest.approx(0.01 * 0.01**0.9)  # 1.58e-4, above the floor
    assert poly_lr(99_999, 100_000, optimiser) == 1e-5
    assert poly_lr(75, 100, Optimiser(lr=2, poly_power=2)) == pytest.approx(2 / 16)


def test_total_steps() -> None:
    assert total_steps(Schedule(steps=7, batch_size=4), 100) == 7
    assert total_steps(Schedule(epochs=80, batch_size=16), 10582) == 52880  # published


class Constant(nn.Module):
    """Two numbers whose gradient is 1, so that their course can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(2.0))

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        return [([self.encoder], False), ([self.head], True)]

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def forward(self, batch: dict[str, Tensor], step: int, steps: int, draws: Draws) -> dict[str, Tensor]:
        return {"loss": self.encoder + self.head}


@pytest.mark.parametrize("momentum", [0.9, 0.5, 1e-4, 0.0])
def test_the_schedule_reaches_encoder_and_head(tmp_path: Path, momentum: float) -> None:
    task = Constant()
    optimiser = Optimiser(lr=0.1, head_lr_factor=10, weight_decay=0.5, min_lr=0.04, momentum=momentum)
    plan = Plan(Schedule(steps=4, batch_size=BATCH), optimiser, 0)
    fit(task, Squares(), plan, Output(tmp_path, {}, "constant"), Compute("cpu"))
    for found, factor in ((task.encoder, 1), (task.head, 10)):
        value, motion = 2.0, 0.0
        for step in range(4):
            motion = momentum * motion + 1 + 0.5 * value
            value -= factor * max(0.1 * (1 - step / 4) ** 0.9, 0.04) * motion
        assert found.item() == pytest.approx(value, rel=1e-5)


# --- a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_loss_falls_and_the_history_tells(tmp_path: Path, precision: str) -> None:
    schedule = {"steps": None, "epochs": 12, "precision": precision}
    task, state = train(tmp_path, schedule=schedule)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["epoch"].tolist() == list(range(1, 13)) and history["step"].tolist() == list(range(3, 37, 3))
    assert state.step == 36 and len(task.losses) == 36
    means = np.array(task.losses).reshape(12, 3).mean(1)
    assert history["loss"].to_numpy() == pytest.approx(means, rel=1e-4)
    assert history["twice"].to_numpy() == pytest.approx(2 * means, rel=1e-4)
    assert history["lr"].tolist() == pytest.approx([poly_lr(n - 1, 36, OPTIMISERS["adamw"]) for n in range(3, 37, 3)])
    assert history["seconds"].is_monotonic_increasing
    assert means[-3:].mean() < 0.6 * means[:3].mean()
    assert all(value.dtype != torch.bfloat16 for value in task.state_dict().values())
    assert list((tmp_path / "tensorboard").glob("events*")) and not list(tmp_path.glob(".*"))


def test_the_last_short_epoch_is_averaged_over_its_own_steps(undisturbed: dict[str, tuple[Tiny, Path]]) -> None:
    task, folder = undisturbed["adamw"]
    history = pd.read_csv(folder / "history.csv")
    assert history["step"].tolist() == [3, 6, 9, 11]
    assert history["loss"].iloc[-1] == pytest.approx(np.mean(task.losses[9:]), rel=1e-5)


def test_loading_processes_do_not_change_the_result(tmp_path: Path, undisturbed: dict[str, tuple[Tiny, Path]]) -> None:
    assert_same_run(train(tmp_path, workers=1)[0], tmp_path, *undisturbed["adamw"])


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    task, state = train(tmp_path)
    again, found = train(tmp_path, stop_at(0))  # would raise at any forward from the start
    assert again.losses == [] and vars(found) == vars(state)
    assert_same_run(again, tmp_path, task, tmp_path)


# --- broken off ---------------------------------------------------------------------------------------------


SAVING = {"sgd": {"checkpoint_minutes": 1e-12}, "adamw": {}}  # after every step; after every epoch


def kill_at(step: int) -> Callable[[int], None]:
    return lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == step else None


def kill_in_save(number: int) -> None:
    """From now on, the given save of a checkpoint gets to half of the file."""
    original, count = torch.save, 0

    def save(content: Any, path: Path) -> None:
        nonlocal count
        original(content, path)
        count += 1
        if count == number:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save


def die(plan: list[list[Any]]) -> None:
    """Run each (folder, optimiser, step or 0) in a process of its own that kills itself there; 0: while saving."""
    for folder, optimiser, step in plan:
        child = os.fork()  # spares each of them the import of torch
        if child == 0:
            if step == 0:
                kill_in_save(2)
            train(Path(folder), kill_at(step) if step else None, optimiser=optimiser, schedule=SAVING[optimiser])
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, undisturbed: dict[str, tuple[Tiny, Path]]) -> None:
    plan = [(f"{name} {step}", name, step) for name in OPTIMISERS for step in (random.randrange(3, STEPS), 0)]
    text = json.dumps([[str(tmp_path / folder), *rest] for folder, *rest in plan])
    code = "import json, sys; sys.path[:0] = json.loads(sys.argv[1]); import test_engine as t"
    code += "; t.die(json.loads(sys.argv[2]))"
    command = [sys.executable, "-c", code, json.dumps(sys.path), text]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    for folder, name, step in plan:
        kept = torch.load(tmp_path / folder / "checkpoint.pt", weights_only=True)["state"]["step"]
        assert kept == {"sgd": step or 1, "adamw": step // 3 * 3 or 3}[name], folder
        task, _ = train(tmp_path / folder, optimiser=name)
        assert len(task.losses) == STEPS - kept, folder
        assert_same_run(task, tmp_path / folder, *undisturbed[name])


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_run_goes_on_within_an_epoch(
    tmp_path: Path, undisturbed: dict[str, tuple[Tiny, Path]], optimiser: str
) -> None:
    often = SAVING["sgd"]
    for step in (1, 5, 10):  # none of them an epoch's first step
        with pytest.raises(InterruptedError):
            train(tmp_path, stop_at(step), optimiser=optimiser, schedule=often)
        kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
        assert kept["step"] == step and kept["sums"]
    task, _ = train(tmp_path, optimiser=optimiser, schedule=often)
    assert len(task.losses) == 1
    assert_same_run(task, tmp_path, *undisturbed[optimiser])


def test_a_checkpoint_of_other_settings(
    tmp_path: Path, undisturbed: dict[str, tuple[Tiny, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    other = {"seed": 1, "settings": "b"}
    with pytest.raises(InterruptedError):
        train(tmp_path, stop_at(5), identity=other)
    with pytest.raises(UserError, match=r"checkpoint\.pt: belongs to a training with other settings; .*--replace"):
        train(tmp_path)
    with pytest.raises(UserError, match="other seed, settings;"):
        train(tmp_path, identity={"seed": 2, "settings": "a"})
    with caplog.at_level(logging.WARNING, "beco"):
        task, _ = train(tmp_path, replace=True)
    assert "checkpoint of other settings dropped" in caplog.text
    assert_same_run(task, tmp_path, *undisturbed["adamw"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", "half", {"weights": torch.ones(2)}, [1, 2]])
def test_a_damaged_checkpoint(tmp_path: Path, undisturbed: dict[str, tuple[Tiny, Path]], content: Any) -> None:
    path = tmp_path / "checkpoint.pt"
    if isinstance(content, bytes | str):
        whole = (undisturbed["adamw"][1] / "checkpoint.pt").read_bytes()
        path.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"checkpoint\.pt: damaged checkpoint; remove it"):
        train(tmp_path)
    task, _ = train(tmp_path, replace=True)
    assert_same_run(task, tmp_path, *undisturbed["adamw"])


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    train(tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({**content, "more": Bomb(tmp_path / "trap")}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="damaged checkpoint"):
        train(tmp_path)
    assert not (tmp_path / "trap").exists()


class Poisoned(Tiny):
    def __init__(self, step: int, factor: float) -> None:
        super().__init__()
        self.step, self.factor = step, factor

    def forward(self, batch: dict[str, Tensor], step: int, steps: int, draws: Draws) -> dict[str, Tensor]:
        scalars = super().forward(batch, step, steps, draws)
        return scalars | {"loss": scalars["loss"] * (self.factor if step >= self.step else 1)}


def diverge(folder: Path, step: int, factor: float = math.nan) -> str:
    schedule, optimiser = Schedule(steps=STEPS, batch_size=BATCH), OPTIMISERS["sgd"]
    with pytest.raises(UserError) as caught:
        fit(Poisoned(step, factor), Squares(), Plan(schedule, optimiser, 1), Output(folder, {}, "tiny"), Compute("cpu"))
    assert "_AsyncWriterThread" not in [type(thread).__name__ for thread in threading.enumerate()]  # TensorBoard's
    return str(caught.value)


def test_a_loss_that_is_not_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = diverge(tmp_path, 7)
    assert "tiny: the loss is not finite by step 9; lower optimiser.lr (now 0.02)" in message and "\n" not in message
    assert str(tmp_path / "checkpoint.pt") in message
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["state"]["step"] == 6
    assert all(value.isfinite().all() for value in kept["module"].values())
    monkeypatch.setattr(engine, "CHECK_EVERY", 2)
    assert "by step 8" in diverge(tmp_path, 7)  # also within an epoch, and from the checkpoint on


def test_a_loss_that_explodes(tmp_path: Path) -> None:
    message = diverge(tmp_path, 7, 1e9)
    assert "the loss exploded (mean " in message and "by step 9; lower optimiser.lr" in message
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["step"] == 6


def test_divergence_before_the_first_checkpoint_promises_none(tmp_path: Path) -> None:
    message = diverge(tmp_path, 0)
    assert "not finite by step 3" in message and not (tmp_path / "checkpoint.pt").exists()
    assert "checkpoint.pt" not in message


@pytest.mark.parametrize("name", ["gpu", "cuda:0", "mps", ""])
def test_a_device_of_another_name(name: str) -> None:
    with pytest.raises(UserError, match=f"--device: no device `{name}`; known: auto, cpu, cuda"):
        choose_device(name, "--device")


def test_every_stage_multiplies_alike_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        torch.set_float32_matmul_precision("highest")
        assert choose_device("cpu").type == "cpu" and torch.get_float32_matmul_precision() == "highest"
        assert choose_device("auto").type == "cuda" and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
