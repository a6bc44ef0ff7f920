"""One step of a training: the device, the processes that share a batch, and what a task and its optimiser do in a step.

The loop in `engine` and the benchmark both take their steps here.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from beco.config import Optimiser, Schedule
from beco.errors import UserError
from beco.training.sampling import Draws, mixed_seed, part_slots

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

Add = Callable[[dict[str, Tensor], int], None]
"""Receives the scalars of one of a step's parts, and the number of parts."""


class Task(Protocol):
    """What the loop trains: a module whose forward turns a batch into losses."""

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        """Parameters, and whether they belong to the head."""

    def depths(self) -> dict[int, int]:
        """How many layers lie behind each parameter of an encoder, by its id; asked for with `layer_decay` alone."""

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

    @property
    def chosen(self) -> torch.device:
        """`device` as a torch device, see `choose_device`; it was given on a command line."""
        return choose_device(self.device, "--device")


def choose_device(name: str, given: str = "compute.device") -> torch.device:
    """`auto`, `cpu` or `cuda` as a torch device; UserError, which begins with what was `given`, for another or no GPU.

    On a GPU products of float32 matrices are rounded alike in every stage, so that a network is validated in training
    as it predicts later.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"{given}: no device `{name}`; known: auto, cpu, cuda")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"{given}: cuda asked for, but torch sees no GPU; set it to auto or cpu")
        torch.set_float32_matmul_precision("high")
    return torch.device(name)


def describe(device: torch.device) -> str:
    """What a device is called: the GPU's name, or the CPU and its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def launch(compute: Compute, schedule: Schedule) -> Fabric:
    """Fabric on the chosen device; starts the other processes, unless torchrun or Slurm has started them."""
    # Here, since it takes seconds: what predicts or infers wants a device alone of this module.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    torch.set_num_threads(compute.threads)
    torch.set_float32_matmul_precision("high")
    device = compute.chosen
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


class Trainer:
    """A task on its device, with its optimiser and the part of each batch that is this process's."""

    def __init__(self, task: Any, optimiser: Optimiser, fabric: Fabric, schedule: Schedule, seed: int) -> None:
        self.fabric, self.seed = fabric, seed
        self.task, self.bare_optimiser = task, make_optimiser(task, optimiser)
        self.module, self.optimiser = fabric.setup(prepared(task, fabric), self.bare_optimiser)
        own = range(fabric.global_rank * schedule.accumulate, (fabric.global_rank + 1) * schedule.accumulate)
        parts = fabric.world_size * schedule.accumulate
        self.parts = [part_slots(schedule.batch_size, parts, number) for number in own]
        """The places within a batch of each of this process's parts of it."""

    def passes(self, batch: dict[str, Tensor], step: int, steps: int, add: Add) -> None:
        """Forward and backward passes of one step, part by part; gradients are left in the parameters.

        `batch` is this process's share, part after part.
        """
        fabric, count = self.fabric, len(self.parts)
        totals = self.task.totals(batch)
        if fabric.world_size > 1:
            totals = {key: fabric.all_reduce(value, reduce_op="mean") for key, value in totals.items()}
        all_parts, size = count * fabric.world_size, len(self.parts[0])
        for number, slots in enumerate(self.parts):
            part = {key: value[number * size : (number + 1) * size] for key, value in batch.items()}
            part |= {key: value.float() / count for key, value in totals.items()}
            rank_part = fabric.global_rank * count + number
            # what modules draw, such as dropout
            _seed(mixed_seed(self.seed, step * all_parts + rank_part, 3), fabric.device)
            draws = Draws(mixed_seed(self.seed, step, 6), size * all_parts, slots, fabric.device)
            with ExitStack() as stack:
                if fabric.world_size > 1 and number < count - 1:
                    stack.enter_context(fabric.no_backward_sync(self.module))
                scalars = self.module(part, step, steps, draws)
                fabric.backward(scalars["loss"] / count)
            add(scalars, count)

    def optimise(self) -> None:
        """The optimiser's share of a step."""
        self.optimiser.step()
        self.drop()

    def drop(self) -> None:
        """Forget the gradients."""
        self.optimiser.zero_grad(set_to_none=True)


def add_scalars(sums: dict[str, Tensor], scalars: dict[str, Tensor], parts: int) -> None:
    """Add the scalars of one of a step's parts to `sums`, in place, without waiting for the device."""
    for key, value in scalars.items():
        value = value.detach().float() / parts
        sums[key] = sums[key] + value if key in sums else value


def make_optimiser(task: Any, settings: Optimiser) -> torch.optim.Optimizer:
    """The optimiser of all parameters, in one pass over memory; a group's `factor` multiplies the schedule's rate.

    With `layer_decay` below 1 the encoder's parameters are parted by how many layers lie behind them, which `task` has
    to say (`depths`).
    """
    groups: list[dict[str, Any]] = []
    depths: dict[int, int] = task.depths() if settings.layer_decay < 1 else {}
    for parameters, head in task.parameter_groups():
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            depth = 0 if head else depths.get(id(parameter), 0)
            factor = settings.head_lr_factor if head else settings.layer_decay**depth
            parts.setdefault(factor, []).append(parameter)
        groups += [{"params": part, "factor": factor} for factor, part in sorted(parts.items(), reverse=True)]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
    )


def _seed(value: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
