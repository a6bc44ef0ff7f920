"""The one training loop of both stages: device, precision, processes, schedule, resume, progress, logs.

Every random draw is a function of (seed, step), see `beco.training.sampling`: a run resumed from a checkpoint ends
where the uninterrupted run would have ended, and processes that share a batch draw what one process would have drawn.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from beco.artifacts.files import whole
from beco.config import Optimiser, Schedule
from beco.errors import Stopped, UserError
from beco.training.checkpoint import Checkpoint, State
from beco.training.sampling import StepSampler
from beco.training.stopping import StopRequest, leave_signals_to_trainer
from beco.training.trainer import Compute, Trainer, add_scalars, launch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger("beco")

CHECK_EVERY = 50  # steps between looks at the loss; each look waits for the device
EXPLODED = 1e4  # losses here are a few times the logarithm of the number of classes

Validate = Callable[[State], dict[str, float]]


@dataclass(frozen=True)
class Plan:
    """How long a training is, how its weights follow the gradients, and what it draws."""

    schedule: Schedule
    optimiser: Optimiser
    seed: int


@dataclass(frozen=True)
class Output:
    """Where a training leaves what it makes, and what it is known by."""

    folder: Path
    identity: dict[str, Any]
    """Everything that determines the result."""
    name: str
    """What the log and the bar call it."""
    replace: bool = False
    """Whether a checkpoint of another identity may be dropped."""


def poly_lr(step: int, steps: int, optimiser: Optimiser) -> float:
    """Learning rate of the encoder before `step` (0-based): lr · (1 − step/steps)^power, not below min_lr."""
    return max(optimiser.lr * (1 - step / steps) ** optimiser.poly_power, optimiser.min_lr)


def total_steps(schedule: Schedule, pictures: int) -> int:
    """Optimiser steps of the whole run; epochs drop the remainder that fills no batch."""
    return schedule.steps or (schedule.epochs or 0) * max(pictures // schedule.batch_size, 1)


@contextmanager
def _loader_troubles() -> Iterator[None]:
    """Say in one line what befell a data-loading process; torch raises its death anywhere, out of a signal."""
    try:
        yield
    except UserError as error:
        if "in DataLoader worker process" not in str(error):
            raise
        # torch has put that process's traceback before the line
        raise UserError(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].strip()) from error
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise UserError(
            "compute.workers: a data-loading process was killed, for lack of memory perhaps; run this again (it goes "
            "on from its checkpoint), if need be with fewer workers"
        ) from error


@_loader_troubles()
def fit(
    task: nn.Module,
    dataset: Dataset[Any],
    plan: Plan,
    output: Output,
    compute: Compute,
    validate: Validate | None = None,
) -> State:
    """Train `task` on `dataset` and leave `history.csv`, `tensorboard/` and `checkpoint.pt` in the output's folder.

    A checkpoint of the same identity is continued; one of another identity is an error, or is dropped if the output
    may be replaced. `validate` is called by the writing process after
    every epoch and gives scores for the history. Returns the final state; with several processes each returns, and
    `is_writer` is set in one. SIGTERM and SIGUSR1 stop the training at the end of a step, with a checkpoint: the
    writing process raises `Stopped`, the others return.
    """
    schedule, optimiser, folder, name = plan.schedule, plan.optimiser, output.folder, output.name
    fabric = launch(compute, schedule)
    folder.mkdir(parents=True, exist_ok=True)
    steps = total_steps(schedule, len(dataset))  # type: ignore[arg-type]
    trainer = Trainer(task, optimiser, fabric, schedule, plan.seed)
    optim = trainer.bare_optimiser
    checkpoint = Checkpoint(folder / "checkpoint.pt", output.identity)
    precision = fabric.strategy.precision
    state = checkpoint.load(task, optim, precision, fabric.device, output.replace)
    state.is_writer = fabric.is_global_zero
    fabric.barrier()  # nobody may overwrite the checkpoint that another still reads
    if state.step and state.is_writer:
        log.info("%s: going on from step %d of %d", name, state.step, steps)

    slots = [slot for part in trainer.parts for slot in part]
    count: int = len(dataset)  # type: ignore[arg-type]
    sampler = StepSampler(count, schedule.batch_size, steps, plan.seed, state.step, slots)
    progress = _Progress(fabric, state, sampler.per_epoch, steps, folder, name)
    started = saved = time.monotonic()
    trainer.module.train()
    with closing(progress), StopRequest(fabric) as stop:
        for batch in batches_on_device(dataset, sampler, fabric.device, compute.workers, state):
            lr = poly_lr(state.step, steps, optimiser)
            for group in trainer.optimiser.param_groups:
                group["lr"] = lr * group["factor"]
            trainer.passes(batch, state.step, steps, progress.add)
            trainer.optimise()
            state.step += 1
            epoch_ends = state.step % sampler.per_epoch == 0 or state.step == steps
            due = stop.look(state.step, time.monotonic() - saved > 60 * schedule.checkpoint_minutes)
            if epoch_ends or due or state.step % CHECK_EVERY == 0:
                progress.look()
                _check_loss(state, sampler.per_epoch, name, optimiser, checkpoint.path)
            if epoch_ends or due:
                _check_weights(task, state, name, optimiser)
                now = time.monotonic()
                state.seconds, started, saved = state.seconds + now - started, now, now
            if epoch_ends:
                progress.close_epoch(lr, validate)
                trainer.module.train()
            if state.is_writer and (epoch_ends or due):
                checkpoint.save(task, optim, precision, state)
            if stop.agreed:
                break
    fabric.barrier()  # the others leave when the checkpoint is written
    if stop.agreed and state.is_writer:
        raise Stopped(f"{name}: stopped by {stop.name} at step {state.step} of {steps}; the same command goes on")
    return state


def batches_on_device(
    dataset: Dataset[Any], sampler: StepSampler, device: torch.device, workers: int, state: State
) -> Iterator[dict[str, Tensor]]:
    """The sampler's batches on their device; the time that the loop waits for them goes to `state.waited`."""
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=leave_signals_to_trainer,
    )
    asked = time.monotonic()
    for batch in loader:
        state.waited += time.monotonic() - asked
        yield {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        asked = time.monotonic()


def _check_loss(state: State, per_epoch: int, name: str, optimiser: Optimiser, checkpoint: Path) -> None:
    mean = state.sums.get("loss", 0.0) / ((state.step - 1) % per_epoch + 1)
    if not math.isfinite(mean) or mean > EXPLODED:
        what = f"exploded (mean {mean:.3g})" if math.isfinite(mean) else "is not finite"
        kept = f"; {checkpoint} holds the last good state" if checkpoint.exists() else ""
        raise UserError(f"{name}: the loss {what} by step {state.step}; lower optimiser.lr (now {optimiser.lr}){kept}")


def _check_weights(task: nn.Module, state: State, name: str, optimiser: Optimiser) -> None:
    """A finite loss can still have had a gradient that is not; such weights are never saved."""
    if not all(bool(parameter.isfinite().all()) for parameter in task.parameters()):
        raise UserError(
            f"{name}: the weights are not finite after step {state.step}; lower optimiser.lr (now {optimiser.lr})"
        )


class _Progress:
    """Sums of the scalars over an epoch, and where they are shown: history.csv, TensorBoard, the log, a bar."""

    def __init__(self, fabric: Fabric, state: State, per_epoch: int, steps: int, folder: Path, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.fabric, self.state, self.per_epoch, self.steps = fabric, state, per_epoch, steps
        self.folder, self.name = folder, name
        self.sums = {key: torch.tensor(value, device=fabric.device) for key, value in state.sums.items()}
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=state.step) if state.is_writer else None
        hidden = not (sys.stderr.isatty() and state.is_writer)
        self.bar = tqdm(total=steps, initial=state.step, desc=name, unit="step", disable=hidden, leave=False)
        if state.history and state.is_writer:
            self.write_history()  # Snakemake removes a job's outputs before it runs it again, and no epoch may be left

    def write_history(self) -> None:
        """The rows so far as history.csv."""
        with whole(self.folder / "history.csv") as temporary:
            pd.DataFrame(self.state.history).to_csv(temporary, index=False)

    def add(self, scalars: dict[str, Tensor], parts: int) -> None:
        """Add the scalars of one of a step's parts."""
        add_scalars(self.sums, scalars, parts)
        self.bar.update(1 / parts)

    def look(self) -> None:
        """Bring the sums to the host, averaged over the processes."""
        sums = self.sums
        if self.fabric.world_size > 1:
            sums = {key: self.fabric.all_reduce(value, reduce_op="mean") for key, value in sums.items()}
        self.state.sums = {key: float(value) for key, value in sums.items()}

    def close_epoch(self, lr: float, validate: Validate | None) -> None:
        """Means over the epoch's steps and the validation's scores go to where they are shown."""
        state = self.state
        count, epoch = (state.step - 1) % self.per_epoch + 1, (state.step - 1) // self.per_epoch + 1
        means = {key: value / count for key, value in state.sums.items()}
        row = {"epoch": epoch, "step": state.step, "seconds": round(state.seconds, 2), "lr": lr, **means}
        row["waited"] = round(state.waited, 2)
        state.history.append(row)
        scores = validate(state) if validate and state.is_writer else {}
        row.update(scores)
        state.sums, self.sums, state.waited = {}, {}, 0.0
        if self.writer is None:
            return
        for key, value in {"lr": lr, **means, **scores}.items():
            self.writer.add_scalar(f"train/{key}", value, state.step)
        self.write_history()
        shown = "  ".join(f"{key} {value:.4f}" for key, value in {**means, **scores}.items())
        place = f"epoch {epoch}/{math.ceil(self.steps / self.per_epoch)}  step {state.step}/{self.steps}"
        log.info("%s: %s  %s  %.0f s", self.name, place, shown, state.seconds)

    def close(self) -> None:
        """Close the bar and TensorBoard's file."""
        self.bar.close()
        try:
            if self.writer:
                self.writer.close()
        except OSError as error:  # a full disk; nothing but these curves depends on it
            log.warning("%s: %s; its curves end early", self.folder / "tensorboard", error.strerror)
