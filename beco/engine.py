"""The one training loop of both stages: device, precision, schedule, checkpoint and resume, progress, logs.

Every random draw is a function of (seed, step): the sampler's order, each picture's crop, and the generators that
dropout, mixing and colour use are seeded anew from them. A run resumed from a checkpoint therefore needs no stored
generator state and ends where the uninterrupted run would have ended.
"""

from __future__ import annotations

import logging
import math
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from beco.config import Optimiser, Schedule
from beco.errors import UserError
from beco.files import text_hash, whole

log = logging.getLogger("beco")

CHECK_EVERY = 50  # steps between looks at the loss; each look waits for the device
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}


class Task(Protocol):
    """What the loop trains: a module whose forward turns a batch into losses."""

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        """Parameters, and whether they belong to the head."""

    def forward(self, batch: dict[str, Tensor], step: int, steps: int) -> dict[str, Tensor]:
        """Scalars to log; `loss` is the one that is minimised."""


@dataclass(frozen=True)
class Compute:
    """What to run on."""

    device: str = "auto"
    threads: int = 1
    workers: int = 0


@dataclass
class State:
    """Where a training stands; everything that a checkpoint holds beside tensors."""

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (picture index, draw seed) from `first` step to the last; the same for every way of getting there.

    Each epoch is a permutation drawn from (seed, epoch); the epoch's remainder that fills no batch is dropped. The
    draw seed belongs to the position in the whole run, so that no two visits of a picture share their crop.
    """

    def __init__(self, pictures: int, batch_size: int, steps: int, seed: int, first: int = 0) -> None:
        self.pictures, self.batch_size, self.steps, self.seed, self.first = (
            pictures,
            batch_size,
            steps,
            seed,
            first,
        )
        self.per_epoch = pictures // batch_size
        if self.per_epoch == 0:
            raise UserError(
                f"schedule.batch_size: {batch_size} exceeds the {pictures} training pictures; make it smaller"
            )

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        for step in range(self.first, self.steps):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch, 1))
                order = torch.randperm(self.pictures, generator=generator).tolist()
            start = (step % self.per_epoch) * self.batch_size
            yield [
                (index, mixed_seed(self.seed, step * self.batch_size + slot, 2))
                for slot, index in enumerate(order[start : start + self.batch_size])
            ]


def mixed_seed(seed: int, number: int, purpose: int) -> int:
    """A 63-bit seed from the run's seed, a counter and a purpose (splitmix64, Steele et al. 2014)."""
    state = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + purpose * 0x94D049BB133111EB) % 2**64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return (state ^ (state >> 31)) >> 1


def poly_lr(step: int, steps: int, optimiser: Optimiser) -> float:
    """Learning rate of the encoder before `step` (0-based): lr · (1 − step/steps)^power, not below min_lr."""
    return max(optimiser.lr * (1 - step / steps) ** optimiser.poly_power, optimiser.min_lr)


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a torch device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device: cuda asked for, but torch sees no GPU; set it to auto or cpu")
    return torch.device(name)


def describe(device: torch.device) -> str:
    """What a device is called: the GPU's name, or the CPU and its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def total_steps(schedule: Schedule, pictures: int) -> int:
    """Optimiser steps of the whole run; epochs drop the remainder that fills no batch."""
    return schedule.steps or (schedule.epochs or 0) * max(pictures // schedule.batch_size, 1)


def fit(
    task: nn.Module,
    dataset: Dataset[Any],
    schedule: Schedule,
    optimiser: Optimiser,
    seed: int,
    folder: Path,
    identity: dict[str, Any],
    compute: Compute,
    name: str,
    replace: bool = False,
) -> State:
    """Train `task` on `dataset` and leave `history.csv`, `tensorboard/` and `checkpoint.pt` in `folder`.

    `identity` is everything that determines the result. A checkpoint of the same identity is continued; one of
    another identity is an error, or is dropped if `replace` is set. Returns the final state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(compute.threads)
    torch.set_float32_matmul_precision("high")
    device = choose_device(compute.device)
    fabric = Fabric(accelerator=device.type, devices=1, precision=PRECISIONS[schedule.precision])
    steps = total_steps(schedule, len(dataset))  # type: ignore[arg-type]
    optim = _optimiser(task, optimiser)
    module, optim = fabric.setup(task.to(memory_format=torch.channels_last), optim)
    checkpoint = _Checkpoint(folder / "checkpoint.pt", text_hash(identity), identity)
    state = checkpoint.load(task, optim, device, replace)
    if state.step:
        log.info("%s: going on from step %d of %d", name, state.step, steps)

    sampler = StepSampler(len(dataset), schedule.batch_size, steps, seed, state.step)  # type: ignore[arg-type]
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=compute.workers,
        pin_memory=device.type == "cuda",
        persistent_workers=False,
        prefetch_factor=4 if compute.workers else None,
    )
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=state.step)
    bar = tqdm(total=steps, initial=state.step, desc=name, unit="step", disable=not sys.stderr.isatty(), leave=False)
    started = saved = time.monotonic()
    totals: dict[str, Tensor] = {key: torch.tensor(value, device=device) for key, value in state.sums.items()}
    module.train()
    for batch in loader:
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        _seed(mixed_seed(seed, state.step, 3), device)
        lr = poly_lr(state.step, steps, optimiser)
        for group in optim.param_groups:
            group["lr"] = lr * group["factor"]
        scalars = module(batch, state.step, steps)
        fabric.backward(scalars["loss"])
        optim.step()
        optim.zero_grad(set_to_none=True)
        for key, value in scalars.items():
            totals[key] = totals.get(key, torch.zeros((), device=device)) + value.detach().float()
        state.step += 1
        bar.update()
        epoch_ends = state.step % sampler.per_epoch == 0 or state.step == steps
        due = time.monotonic() - saved > 60 * schedule.checkpoint_minutes
        if epoch_ends or due or state.step % CHECK_EVERY == 0:
            state.sums = {key: float(value) for key, value in totals.items()}
            _check_finite(state, name, optimiser, checkpoint.path)
        if epoch_ends:
            now = time.monotonic()
            state.seconds, started = state.seconds + now - started, now
            _close_epoch(state, sampler.per_epoch, steps, lr, writer, name)
            totals = {}
            with whole(folder / "history.csv") as temporary:
                pd.DataFrame(state.history).to_csv(temporary, index=False)
        if epoch_ends or due:
            _check_weights(task, state, name, optimiser)
            now = time.monotonic()
            state.seconds, started, saved = state.seconds + now - started, now, now
            checkpoint.save(task, optim, state)
    bar.close()
    writer.close()
    return state


def _optimiser(task: Any, settings: Optimiser) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": parameters, "factor": settings.head_lr_factor if head else 1.0}
        for parameters, head in task.parameter_groups()
        if parameters
    ]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay)


def _seed(value: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def _check_finite(state: State, name: str, optimiser: Optimiser, checkpoint: Path) -> None:
    if not math.isfinite(state.sums.get("loss", 0.0)):
        kept = f"; {checkpoint} holds the last good state" if checkpoint.exists() else ""
        raise UserError(
            f"{name}: the loss is not finite by step {state.step}; lower optimiser.lr (now {optimiser.lr}){kept}"
        )


def _check_weights(task: nn.Module, state: State, name: str, optimiser: Optimiser) -> None:
    """A finite loss can still have had a gradient that is not; such weights are never saved."""
    if not all(bool(parameter.isfinite().all()) for parameter in task.parameters()):
        raise UserError(
            f"{name}: the weights are not finite after step {state.step}; lower optimiser.lr (now {optimiser.lr})"
        )


def _close_epoch(state: State, per_epoch: int, steps: int, lr: float, writer: SummaryWriter, name: str) -> None:
    """Means over the epoch's steps go to the history, TensorBoard and the log."""
    count = (state.step - 1) % per_epoch + 1
    means = {key: value / count for key, value in state.sums.items()}
    epoch = (state.step - 1) // per_epoch + 1
    row = {"epoch": epoch, "step": state.step, "seconds": round(state.seconds, 2), "lr": lr, **means}
    state.history.append(row)
    state.sums = {}
    for key, value in {"lr": lr, **means}.items():
        writer.add_scalar(f"train/{key}", value, state.step)
    shown = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
    epochs = math.ceil(steps / per_epoch)
    log.info(
        "%s: epoch %d/%d  step %d/%d  %s  %.0f s",
        name,
        epoch,
        epochs,
        state.step,
        steps,
        shown,
        state.seconds,
    )


KEYS = {"fingerprint", "identity", "module", "optimiser", "state"}


class _Checkpoint:
    """`checkpoint.pt`: tensors, optimiser and `State`, readable with weights_only."""

    def __init__(self, path: Path, fingerprint: str, identity: dict[str, Any]) -> None:
        self.path, self.fingerprint, self.identity = path, fingerprint, identity

    def save(self, task: nn.Module, optim: torch.optim.Optimizer, state: State) -> None:
        content = {
            "fingerprint": self.fingerprint,
            "identity": {key: str(value) for key, value in self.identity.items()},
            "module": task.state_dict(),
            "optimiser": optim.state_dict(),
            "state": vars(state),
        }
        with whole(self.path) as temporary:
            torch.save(content, temporary)

    def load(self, task: nn.Module, optim: torch.optim.Optimizer, device: torch.device, replace: bool) -> State:
        if not self.path.exists():
            return State()
        try:
            content = torch.load(self.path, map_location=device, weights_only=True)
            if not isinstance(content, dict) or not content.keys() >= KEYS:
                raise ValueError("not a checkpoint of this program")
            state = State(**content["state"])
        except Exception as error:
            if not replace:
                raise UserError(f"{self.path}: damaged checkpoint; remove it to start this training anew") from error
            log.warning("%s: damaged checkpoint, starting anew", self.path)
            return State()
        if content["fingerprint"] != self.fingerprint:
            changed = [key for key, value in self.identity.items() if content["identity"].get(key) != str(value)]
            if not replace:
                raise UserError(
                    f"{self.path}: belongs to a training with other {', '.join(changed) or 'settings'}; "
                    "choose another --output or give --replace to start anew"
                )
            log.warning("%s: checkpoint of other %s dropped, starting anew", self.path, ", ".join(changed))
            return State()
        task.load_state_dict(content["module"])
        optim.load_state_dict(content["optimiser"])
        return state
