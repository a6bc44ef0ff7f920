"""The one training loop of both stages: device, precision, processes, schedule, resume, progress, logs.

Every random draw is a function of (seed, step), see `beco.training.sampling`: a run resumed from a checkpoint ends
where the uninterrupted run would have ended, and processes that share a batch draw what one process would have drawn.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from beco.artifacts.files import whole
from beco.config import Optimiser, Schedule
from beco.errors import Stopped, UserError
from beco.training.checkpoint import Checkpoint, State
from beco.training.sampling import Draws, StepSampler, mixed_seed, part_slots
from beco.training.stopping import StopRequest, leave_signals_to_trainer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger("beco")

CHECK_EVERY = 50  # steps between looks at the loss; each look waits for the device
EXPLODED = 1e4  # losses here are a few times the logarithm of the number of classes
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

Validate = Callable[[State], dict[str, float]]


class Task(Protocol):
    """What the loop trains: a module whose forward turns a batch into losses."""

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        """Parameters, and whether they belong to the head."""

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Numbers of a whole batch that its parts need; their mean over parts is laid into every part's batch."""

    def forward(self, batch: dict[str, Tensor], step: int, steps: int, draws: Draws) -> dict[str, Tensor]:
        """Scalars to log; `loss` is the one that is minimised."""


@dataclass(frozen=True)
class Compute:
    """What to run on: `devices` GPUs (or CPU processes) on each of `nodes` machines share a batch."""

    device: str = "auto"
    threads: int = 1
    workers: int = 0
    devices: int = 1
    nodes: int = 1
    compile: bool = False


def poly_lr(step: int, steps: int, optimiser: Optimiser) -> float:
    """Learning rate of the encoder before `step` (0-based): lr · (1 − step/steps)^power, not below min_lr."""
    return max(optimiser.lr * (1 - step / steps) ** optimiser.poly_power, optimiser.min_lr)


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a torch device; UserError for another name, or without a GPU.

    On a GPU products of float32 matrices are rounded alike in every stage, so that a network is validated in training
    as it predicts later.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device: no device `{name}`; known: auto, cpu, cuda")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UserError("compute.device: cuda asked for, but torch sees no GPU; set it to auto or cpu")
        torch.set_float32_matmul_precision("high")
    return torch.device(name)


def describe(device: torch.device) -> str:
    """What a device is called: the GPU's name, or the CPU and its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


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
    schedule: Schedule,
    optimiser: Optimiser,
    seed: int,
    folder: Path,
    identity: dict[str, Any],
    compute: Compute,
    name: str,
    replace: bool = False,
    validate: Validate | None = None,
) -> State:
    """Train `task` on `dataset` and leave `history.csv`, `tensorboard/` and `checkpoint.pt` in `folder`.

    `identity` is everything that determines the result. A checkpoint of the same identity is continued; one of
    another identity is an error, or is dropped if `replace` is set. `validate` is called by the writing process after
    every epoch and gives scores for the history. Returns the final state; with several processes each returns, and
    `is_writer` is set in one. SIGTERM and SIGUSR1 stop the training at the end of a step, with a checkpoint: the
    writing process raises `Stopped`, the others return.
    """
    fabric = launch(compute, schedule)
    folder.mkdir(parents=True, exist_ok=True)
    steps = total_steps(schedule, len(dataset))  # type: ignore[arg-type]
    parts = [
        part_slots(schedule.batch_size, fabric.world_size * schedule.accumulate, number)
        for number in range(fabric.global_rank * schedule.accumulate, (fabric.global_rank + 1) * schedule.accumulate)
    ]
    optim = make_optimiser(task, optimiser)
    bare, bare_optim = task, optim
    module, optim = fabric.setup(prepared(task, fabric), optim)
    checkpoint = Checkpoint(folder / "checkpoint.pt", identity)
    precision = fabric.strategy.precision
    state = checkpoint.load(bare, bare_optim, precision, fabric.device, replace)
    state.is_writer = fabric.is_global_zero
    fabric.barrier()  # nobody may overwrite the checkpoint that another still reads
    if state.step and state.is_writer:
        log.info("%s: going on from step %d of %d", name, state.step, steps)

    slots = [slot for part in parts for slot in part]
    sampler = StepSampler(len(dataset), schedule.batch_size, steps, seed, state.step, slots)  # type: ignore[arg-type]
    progress = _Progress(fabric, state, sampler.per_epoch, steps, folder, name)
    started = saved = time.monotonic()
    module.train()
    with closing(progress), StopRequest(fabric) as stop:
        for batch in batches_on_device(dataset, sampler, fabric.device, compute.workers, state):
            lr = poly_lr(state.step, steps, optimiser)
            for group in optim.param_groups:
                group["lr"] = lr * group["factor"]
            step_of_parts(fabric, module, bare, batch, parts, seed, state.step, steps, progress.add)
            optim.step()
            optim.zero_grad(set_to_none=True)
            state.step += 1
            epoch_ends = state.step % sampler.per_epoch == 0 or state.step == steps
            due = stop.look(state.step, time.monotonic() - saved > 60 * schedule.checkpoint_minutes)
            if epoch_ends or due or state.step % CHECK_EVERY == 0:
                progress.look()
                _check_loss(state, sampler.per_epoch, name, optimiser, checkpoint.path)
            if epoch_ends or due:
                _check_weights(bare, state, name, optimiser)
                now = time.monotonic()
                state.seconds, started, saved = state.seconds + now - started, now, now
            if epoch_ends:
                progress.close_epoch(lr, validate)
                module.train()
            if state.is_writer and (epoch_ends or due):
                checkpoint.save(bare, bare_optim, precision, state)
            if stop.agreed:
                break
    fabric.barrier()  # the others leave when the checkpoint is written
    if stop.agreed and state.is_writer:
        raise Stopped(f"{name}: stopped by {stop.name} at step {state.step} of {steps}; the same command goes on")
    return state


def launch(compute: Compute, schedule: Schedule) -> Fabric:
    """Fabric on the chosen device; starts the other processes, unless torchrun or Slurm has started them."""
    # Here, since it takes seconds: what predicts or infers wants a device alone of this module.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    torch.set_num_threads(compute.threads)
    torch.set_float32_matmul_precision("high")
    device = choose_device(compute.device)
    if schedule.precision == "fp16" and device.type == "cpu":
        raise UserError("schedule.precision: fp16 needs a GPU; set it to bf16 or 32")
    alone = compute.devices * compute.nodes == 1
    # A Snakemake job on Slurm is one task, whose environment looks as if Slurm had started all processes.
    one_task = os.environ.get("SLURM_NTASKS") == "1" and not torch.distributed.is_torchelastic_launched()
    if one_task and compute.nodes > 1:
        raise UserError(
            f"compute.nodes: {compute.nodes} machines asked for, but Slurm has started one task; "
            "set it to 1, or start `beco train` with srun, a task for every device"
        )
    fabric = Fabric(
        accelerator=device.type,
        devices=compute.devices,
        num_nodes=compute.nodes,
        strategy="auto" if alone else "ddp",
        precision=PRECISIONS[schedule.precision],
        plugins=[LightningEnvironment()] if alone or one_task else None,
    )
    if not alone:
        fabric.launch()
    return fabric


def prepared(task: nn.Module, fabric: Fabric) -> nn.Module:
    """`task` in the memory layout that convolutions like, its batch statistics spanning all processes."""
    if fabric.world_size > 1:
        from beco.training.distributed import synchronised

        task = synchronised(task, fabric.device)
    return task.to(memory_format=torch.channels_last)


def step_of_parts(
    fabric: Fabric,
    module: Any,
    bare: Any,
    batch: dict[str, Tensor],
    parts: list[list[int]],
    seed: int,
    step: int,
    steps: int,
    add: Callable[[dict[str, Tensor], int], None],
) -> None:
    """Forward and backward passes of one step, part by part; gradients are left in the parameters.

    `batch` is this process's share, part after part; `add` receives the scalars of each part and the number of parts.
    """
    totals = bare.totals(batch)
    if fabric.world_size > 1:
        totals = {key: fabric.all_reduce(value, reduce_op="mean") for key, value in totals.items()}
    all_parts = len(parts) * fabric.world_size
    size = len(parts[0])
    for number, slots in enumerate(parts):
        part = {key: value[number * size : (number + 1) * size] for key, value in batch.items()}
        part |= {key: value.float() / len(parts) for key, value in totals.items()}
        rank_part = fabric.global_rank * len(parts) + number
        _seed(mixed_seed(seed, step * all_parts + rank_part, 3), fabric.device)  # what modules draw, such as dropout
        draws = Draws(mixed_seed(seed, step, 6), size * all_parts, slots, fabric.device)
        with ExitStack() as stack:
            if fabric.world_size > 1 and number < len(parts) - 1:
                stack.enter_context(fabric.no_backward_sync(module))
            scalars = module(part, step, steps, draws)
            fabric.backward(scalars["loss"] / len(parts))
        add(scalars, len(parts))


def add_scalars(sums: dict[str, Tensor], scalars: dict[str, Tensor], parts: int) -> None:
    """Add the scalars of one of a step's parts to `sums`, in place, without waiting for the device."""
    for key, value in scalars.items():
        value = value.detach().float() / parts
        sums[key] = sums[key] + value if key in sums else value


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


def make_optimiser(task: Any, settings: Optimiser) -> torch.optim.Optimizer:
    """The optimiser of all parameters, in one pass over memory; a group's `factor` multiplies the schedule's rate."""
    groups: list[dict[str, Any]] = [
        {"params": parameters, "factor": settings.head_lr_factor if head else 1.0}
        for parameters, head in task.parameter_groups()
        if parameters
    ]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
    )


def _seed(value: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


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
