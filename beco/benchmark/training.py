"""Stage two: a step of the engine against the bare passes of its networks, and what the step spends the rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F
from torch.utils.benchmark import timer
from torch.utils.data import Dataset

from beco.benchmark import bare
from beco.benchmark.clock import Task, Times, by_turns
from beco.benchmark.presets import Setting
from beco.benchmark.process import peak
from beco.datasets.manifest import IGNORE
from beco.networks.segmenter import Segmenter, build
from beco.schema.slots import RECIPES
from beco.stage2 import recipes
from beco.stage2.boundaries import Opinion
from beco.stage2.recipes.base import Recipe
from beco.training import engine
from beco.training.augment import unit_range
from beco.training.checkpoint import State
from beco.training.sampling import Draws, StepSampler
from beco.training.trainer import Compute, Trainer, add_scalars, describe, launch

STEPS = 100_000  # of the training that the measured steps are the last of, so that warm-up is over
SEED = 0
LOADED = 12  # batches over which waiting for the loader is measured
SLOW = 3.0  # seconds of a step, beyond which the loader is measured alone
FIRST = 3  # batches before that, while processes start and fill their queues


@dataclass
class Bench:
    """A training that is ready to run: what the engine's `fit` makes before its loop, and one resident batch."""

    trainer: Trainer
    setting: Setting
    batch: dict[str, Tensor]
    sums: dict[str, Tensor] = field(default_factory=dict)
    taken: int = 0

    @property
    def task(self) -> Recipe:
        """What is trained."""
        task: Recipe = self.trainer.task
        return task

    @property
    def fabric(self) -> Fabric:
        """What it is trained on."""
        return self.trainer.fabric

    @property
    def parts(self) -> list[list[int]]:
        """The places of a batch, part by part."""
        return self.trainer.parts

    @property
    def online(self) -> bool:
        """Whether the recipe asks the networks for labels, so that bare passes include that."""
        return self.task.online_steps(self.setting.training, STEPS) > 0

    def passes(self) -> None:
        """Forward and backward passes of one step, by the engine's own function; gradients stay."""
        self.taken += 1
        self.trainer.passes(self.batch, STEPS - self.taken, STEPS, self._add)

    def step(self) -> None:
        """One step of the training."""
        self.passes()
        self.optimise()

    def optimise(self) -> None:
        """The optimiser's share of a step."""
        self.trainer.optimise()

    def drop(self) -> None:
        """Forget the gradients."""
        self.trainer.drop()

    def passes_alone(self) -> None:
        """As `passes`, and the gradients are forgotten."""
        self.passes()
        self.drop()

    def _add(self, scalars: dict[str, Tensor], parts: int) -> None:
        add_scalars(self.sums, scalars, parts)


def prepare(setting: Setting, compute: Compute, batch: dict[str, Tensor] | None = None) -> Bench:
    """Networks with random weights, their optimiser, and a batch on the device (made up if none is given)."""
    schedule = setting.training.schedule
    fabric = launch(compute, schedule)
    torch.manual_seed(SEED)
    networks: list[Segmenter] = []
    for _ in range(RECIPES.fact(setting.recipe, "NETWORKS")):
        networks.append(build(setting.network, setting.classes))
        if compute.compile:
            networks[-1].compile()
    task = recipes.make(setting.recipe, networks, setting.training, setting.classes)
    trainer = Trainer(task, setting.training.optimiser, fabric, schedule, SEED)
    trainer.module.train()
    batch = made_up_batch(setting) if batch is None else batch
    batch = {key: value.to(fabric.device) for key, value in batch.items()}
    return Bench(trainer, setting, batch)


def made_up_batch(setting: Setting) -> dict[str, Tensor]:
    """A batch as the loader gives it, of smooth pictures and labels in patches; a tenth has no label."""
    size, count = setting.training.crop.size, setting.training.schedule.batch_size
    generator = torch.Generator().manual_seed(SEED)
    rough = torch.rand(count, 3, 6, 6, generator=generator)
    images = F.interpolate(rough, size=(size, size), mode="bicubic").clamp(0, 1)
    patches = torch.randint(0, setting.classes + 1, (count, 1, 5, 5), generator=generator).float()
    patches[torch.rand(patches.shape, generator=generator) < 0.1] = IGNORE
    label = F.interpolate(patches, size=(size, size), mode="nearest-exact")[:, 0].byte()
    sure = F.interpolate(torch.rand(count, 1, 9, 9, generator=generator), size=(size, size), mode="bilinear")[:, 0]
    return {"image": (images * 255).byte(), "label": label, "reliable": (sure > 0.5) & (label != IGNORE)}


def measure(setting: Setting, compute: Compute, rounds: int, loader: Dataset[Any] | None = None) -> dict[str, Any]:
    """All figures of the training; `loader` is a dataset that is read as training does (None: not measured)."""
    bench = prepare(setting, compute)
    if bench.fabric.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result = _describe(bench) | _ratios(bench, rounds)
    result["peak_memory_bytes"] = peak_memory(bench.fabric.device)
    result["breakdown_ms"] = breakdown(bench, rounds)
    result |= _rates(bench, rounds, result["bare_s"])
    if loader is not None:
        result["loader"] = waiting(bench, loader, compute.workers, result["step_s"])
    return result


def _describe(bench: Bench) -> dict[str, Any]:
    setting, training = bench.setting, bench.setting.training
    return {
        "device": describe(bench.fabric.device),
        "recipe": setting.recipe,
        "network": f"{setting.network.architecture} on {setting.network.encoder.name}",
        "networks": len(bench.task.networks),
        "parameters": sum(parameter.numel() for parameter in bench.task.parameters()),
        "size": training.crop.size,
        "batch_size": training.schedule.batch_size,
        "accumulate": training.schedule.accumulate,
        "precision": training.schedule.precision,
        "optimiser": training.optimiser.name,
    }


def on_one_thread(bench: Bench) -> bool:
    """Whether ratios are of processor time."""
    return bench.fabric.device.type == "cpu" and torch.get_num_threads() == 1


def _ratios(bench: Bench, rounds: int) -> dict[str, Any]:
    """A step, its passes alone and the bare passes, by turns."""
    times = _step_times(bench, rounds)
    step, pictures = times["step"].seconds, bench.setting.training.schedule.batch_size
    return {
        "rounds": rounds,
        "ratios_of": "processor time" if on_one_thread(bench) else "time",
        "step_s": step,
        "passes_s": times["passes"].seconds,
        "bare_s": times["bare"].seconds,
        "bare_own_s": float(np.median(times["bare"].own)),
        "pictures_per_s": pictures / step,
        "overhead_ratio": times["step"].over(times["bare"]),
        "overhead_ratio_without_optimiser": times["passes"].over(times["bare"]),
        "optimiser_share_of_step": max(1 - times["passes"].over(times["step"]), 0.0),
    }


def _step_times(bench: Bench, rounds: int) -> dict[str, Times]:
    warm = min(rounds - 1, 2)
    parts = _resident(bench)
    plain = bare.passes(bench.fabric, bench.task.networks, parts, bench.online)
    if not warm:
        bare.passes(bench.fabric, bench.task.networks, parts[:1], bench.online)()  # the first pass of all is slower
    if bench.fabric.device.type == "cpu":  # nothing runs ahead there, so that a step is the sum of its halves
        halves: dict[str, Task] = {"passes": bench.passes, "optimiser": bench.optimise, "bare": plain}
        times = by_turns(halves, rounds, on_one_thread(bench), warm=warm)
        return times | {"step": times["passes"] + times["optimiser"]}
    tasks: dict[str, Task] = {"step": bench.step, "bare": plain, "passes": bench.passes_alone}
    return by_turns(tasks, rounds, False, calls=5, warm=warm)  # several, because training never drains the queue


def _resident(bench: Bench) -> list[tuple[Tensor, Tensor]]:
    """Pictures and labels of each part as the networks and the loss take them."""
    size = len(bench.parts[0])
    images = unit_range(bench.batch["image"]).split(size)
    return list(zip(images, bench.batch["label"].long().split(size), strict=True))


def breakdown(bench: Bench, rounds: int) -> dict[str, float]:
    """Milliseconds a step of what it does beside the bare passes; `loss_added` is what it costs beyond cross-entropy.

    Each is measured on one part, alone, and multiplied by the number of parts; the optimiser is measured as it is.
    """
    times = by_turns(_pieces(bench), max(rounds, 3), on_one_thread(bench), warm=2)

    def milliseconds(name: str, parts: int = len(bench.parts)) -> float:
        return 1e3 * float(np.median(times[name].own)) * parts

    found = {name: milliseconds(name) for name in times if name not in ("optimiser", "passes")}
    if "loss" in found:
        found["loss_added"] = max(found["loss"] - found["cross_entropy"], 0.0)
    return found | {"optimiser": milliseconds("optimiser", 1)}


def _pieces(bench: Bench) -> dict[str, Task]:
    """The step's own work on one part, piece by piece."""
    size, task = len(bench.parts[0]), bench.task
    images, label = _resident(bench)[0]
    part = {key: value[:size] for key, value in bench.batch.items()}
    with bench.fabric.autocast():
        logits = [one.float() for one in bare.evaluated(task.networks, images)]
    leaves = [one.clone().requires_grad_() for one in logits]
    plain = Recipe.target(task, images, Opinion(label, part["reliable"]), 0, 1, _draws(bench))
    pieces: dict[str, Task] = {"conversion": lambda: (unit_range(part["image"]), part["label"].long())}
    pieces |= task.pieces(part, plain, logits, lambda: _draws(bench))
    if task.colour is not None:
        colour = task.colour
        pieces["colour"] = lambda: colour(images, _draws(bench)).contiguous(memory_format=torch.channels_last)
    pieces["cross_entropy"] = lambda: torch.autograd.grad(
        torch.stack([F.cross_entropy(leaf, label, ignore_index=IGNORE) for leaf in leaves]).sum(), leaves
    )
    pieces["optimiser"] = _optimiser_alone(bench)
    return pieces


def _draws(bench: Bench) -> Draws:
    batch = bench.setting.training.schedule.batch_size
    return Draws(SEED, batch, bench.parts[0], bench.fabric.device)


def _optimiser_alone(bench: Bench) -> Callable[[], None]:
    """The optimiser's step on gradients that stay; they are zero, so that the weights keep their size."""
    for parameter in bench.task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return lambda: bench.trainer.optimiser.step()


def _rates(bench: Bench, rounds: int, bare_s: float) -> dict[str, Any]:
    """FLOPs of the bare passes, the rate they reach, and that of a plain convolution."""
    bench.drop()
    setting = bench.setting
    side = setting.training.crop.size
    forward = bare.forward_flops(lambda: Segmenter(setting.network, setting.classes), side, side)
    passes = 3 + bench.online  # backward counts as two
    total = forward * passes * len(bench.task.networks) * setting.training.schedule.batch_size
    rate = bare.convolution_rate(bench.fabric, max(rounds, 3))
    return {
        "forward_gflop_per_picture": forward / 1e9,
        "bare_tflop_per_s": total / bare_s / 1e12,
        "convolution_tflop_per_s": rate,
        "bare_share_of_convolution_rate": total / bare_s / 1e12 / rate,
    }


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or that this process took so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak()


def waiting(bench: Bench, dataset: Dataset[Any], workers: int, step_s: float) -> dict[str, Any]:
    """Share of the time in which a training fed by its loader waits for the loader.

    Measured over some batches; where a step takes longer than `SLOW` seconds, inferred from the loader alone.
    """
    state = State()
    if step_s > SLOW:
        for _ in _feed(bench, dataset, workers, state):
            pass
        load_s = state.waited / (FIRST + LOADED)
        share = max(1 - step_s / load_s, 0.0) if workers else load_s / (load_s + step_s)
        return {"workers": workers, "batch_s": load_s, "waiting_share": share, "inferred": True}
    started = waited = 0.0
    for number, batch in enumerate(_feed(bench, dataset, workers, state)):
        if number == FIRST:
            started, waited = timer(), state.waited
        bench.batch = batch
        bench.step()
    share = (state.waited - waited) / (timer() - started)
    return {"workers": workers, "batch_s": state.waited / (FIRST + LOADED), "waiting_share": share, "inferred": False}


def _feed(bench: Bench, dataset: Dataset[Any], workers: int, state: State) -> Iterator[dict[str, Tensor]]:
    """The engine's batches; `state.waited` grows by the seconds that they are waited for."""
    slots = [slot for part in bench.parts for slot in part]
    size = bench.setting.training.schedule.batch_size
    sampler = StepSampler(len(dataset), size, FIRST + LOADED, SEED, slots=slots)  # type: ignore[arg-type]
    return engine.batches_on_device(dataset, sampler, bench.fabric.device, workers, state)
