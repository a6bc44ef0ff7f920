"""A quick measurement of a configuration's own work on this machine: one step, picture or run of each kind."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import timer

from beco.artifacts import pseudolabels, store
from beco.artifacts.grids import upsampled
from beco.benchmark import pictures as made_up
from beco.benchmark import stages
from beco.benchmark.presets import Setting
from beco.benchmark.process import IMPORTS, start_up
from beco.benchmark.training import prepare
from beco.config import Classifier, Config, Irn, Labels, Shapes
from beco.crf import refine as crf
from beco.datasets import palette, shapes
from beco.evaluation.scores.borders import near_border
from beco.evaluation.scores.metrics import count
from beco.plan import networks
from beco.plan.jobs import Applied, Job, Trained, Work
from beco.plan.pictures import Pictures
from beco.plan.rates import Point, Rates, key
from beco.stage1.refine import labels as labelling
from beco.stage1.refine.irn_train import IrnTask
from beco.stage1.refine.thresholds import with_background
from beco.stage1.train import LocaliserTask
from beco.training.augment import KEEP_BYTES, ClassifierPictures, LabelledPictures
from beco.training.trainer import Compute, Trainer, choose_device, describe, launch

Task = Callable[[], object]
SECONDS = 1.0  # of each measurement, or one call
LONG = 3.0  # seconds of a first call that is not repeated
FLOPS = {"cpu": 4e11, "cuda": 2e13}  # of a call; what is larger is cut, and scaled


@dataclass
class Bench:
    """Where and on what is measured."""

    config: Config
    pictures: Pictures
    device: torch.device
    folder: Path
    images: list[np.ndarray]
    """Pictures of the dataset, or made-up ones of its size."""

    @property
    def most(self) -> float:
        """FLOPs of a call."""
        return FLOPS[self.device.type]

    @property
    def compute(self) -> Compute:
        """One thread of the device."""
        return Compute(self.device.type)

    @property
    def share(self) -> float:
        """Pixels of the mean picture for each of those that are measured on."""
        return self.pictures.pixels / float(np.mean([image.shape[0] * image.shape[1] for image in self.images]))


def here(config: Config, pictures: Pictures, jobs: Iterable[Job]) -> Rates:
    """Measure each kind of work of `jobs` once on this machine: seconds of one processor, or by the clock of a GPU.

    Steps and pictures of more than `FLOPS` are cut to fewer or smaller pictures, or taken from a training of one
    network, and scaled by FLOPs. Networks have random weights.
    """
    device = choose_device(config.compute.device)
    torch.set_num_threads(1)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    rates = Rates(describe(device), device.type == "cuda", "measured here", points={"train": [], "infer": []})
    for group in IMPORTS:
        rates.start[group] = start_up(group)
    works = {key(work): work for job in jobs for work in job.works if work.kind != "start" and work.count}
    images = list(pictures.samples) or [made_up.picture(np.random.default_rng(0), pictures.height, pictures.width)]
    with tempfile.TemporaryDirectory(prefix="beco-plan-") as folder:
        bench = Bench(config, pictures, device, Path(folder), images)
        for name, work in works.items():
            seconds = PROBES[work.kind](bench, work, rates)
            if seconds is not None:
                rates.exact[name] = seconds
    return rates


def clock(bench: Bench, task: Task) -> float:
    """Seconds of a call: of the processor, or on a GPU by the clock, which waits for it."""
    now = timer if bench.device.type == "cuda" else time.process_time
    begun = now()
    task()
    first = now() - begun
    if first > LONG:
        return first
    calls, begun = 0, now()
    while not calls or (now() - begun < SECONDS and calls < 1000):
        task()
        calls += 1
    return (now() - begun) / calls


# --- networks -----------------------------------------------------------------------------------------------


def _train(bench: Bench, work: Work, rates: Rates) -> float | None:
    """Seconds of a step; None if it is too large, and then a step of one of its networks is a point to scale from."""
    what = work.what
    assert isinstance(what, Trained)
    settings = what.setting.training if isinstance(what.setting, Setting) else what.setting
    batch = settings.schedule.batch_size
    part = batch // settings.schedule.accumulate
    if 2 * work.each / batch > bench.most and isinstance(what.setting, Setting):
        single = replace(what.setting, recipe="single")
        each = 2.0 * networks.step(what.spec, settings.crop.size)
        if not any(point.forward == what.forward for point in rates.points["train"]):
            seconds = clock(bench, _stepper(bench, replace(what, setting=single), 2))
            rates.points["train"].append(Point(what.forward, each / seconds, what.spec.kind))
        return None
    while part > 2 and part * work.each / batch > bench.most:
        part = max(part // 2 // 2 * 2, 2)
    seconds = clock(bench, _stepper(bench, what, part))
    rates.points["train"].append(Point(what.forward, work.each * part / batch / seconds, what.spec.kind))
    return seconds * batch / part


def _stepper(bench: Bench, what: Trained, part: int) -> Task:
    """A step on `part` pictures, the optimiser's share included."""
    if isinstance(what.setting, Setting):
        training = what.setting.training
        schedule = training.schedule.model_copy(update={"batch_size": part, "accumulate": 1})
        given = what.setting.network
        bare = given.encoder.model_copy(update={"weights": None})
        chosen = replace(
            what.setting,
            network=given.model_copy(update={"encoder": bare}),
            training=training.model_copy(update={"schedule": schedule}),
        )
        return prepare(chosen, bench.compute).step
    settings = what.setting
    assert isinstance(settings, Classifier | Irn)
    network, size = what.spec.build(), settings.crop.size
    task: nn.Module = (
        LocaliserTask(network, settings.colour)  # type: ignore[arg-type]
        if isinstance(settings, Classifier)
        else IrnTask(network, settings.radius)  # type: ignore[arg-type]
    )
    fabric = launch(bench.compute, settings.schedule)
    alone = settings.schedule.model_copy(update={"batch_size": part, "accumulate": 1})
    trainer = Trainer(task, settings.optimiser, fabric, alone, 0)
    batch = {
        "image": torch.randint(0, 256, (part, 3, size, size), dtype=torch.uint8),
        "target": torch.eye(1, bench.pictures.classes).repeat(part, 1),
        "label": (torch.arange(size) * 3 // size).to(torch.uint8).repeat(part, size, 1),  # three stripes
    }
    batch = {name: value.to(fabric.device) for name, value in batch.items()}

    def step() -> None:
        trainer.passes(batch, 0, 1, lambda *_: None)
        trainer.optimise()

    return step


def _infer(bench: Bench, work: Work, rates: Rates) -> float:
    """Seconds of a picture over all of its views."""
    what = work.what
    assert isinstance(what, Applied)
    factor = min(1.0, (bench.most / work.each) ** 0.5)  # of the sides
    views = [(max(round(h * factor), 32), max(round(w * factor), 32)) for h, w in what.views]
    flops = sum(networks.forward(what.spec, *view) for view in views)
    together = max(min(what.batch, int(bench.most // max(flops, 1)), 64), 1)
    network = what.spec.build().eval().to(bench.device).to(memory_format=torch.channels_last)
    images = [torch.rand(together, 3, *view, device=bench.device) for view in views]

    @torch.inference_mode()
    def run() -> None:
        for image in images:
            network(image.contiguous(memory_format=torch.channels_last))

    seconds = clock(bench, run) / together
    rates.points["infer"].append(Point(what.forward, flops / seconds, what.spec.kind))
    return seconds * work.each / flops


def _walk(bench: Bench, work: Work, _: Rates) -> float:
    settings, (height, width) = work.what
    planes = max(round(bench.pictures.shown), 1)
    return clock(bench, stages.walking(planes, height, width, settings, bench.device))


# --- pictures -----------------------------------------------------------------------------------------------


def _on_disk(bench: Bench, name: str) -> Any:
    folder = bench.folder / name
    return made_up.on_disk(folder, bench.images, bench.pictures.classes)


def _load(bench: Bench, work: Work, _: Rates) -> float:
    """Seconds of a picture as the loader gives it, read again unless a loader of all of them would keep it."""
    which, crop = work.what
    name = f"loaded{len(list(bench.folder.iterdir()))}"
    manifest = _on_disk(bench, name)
    if which == "classifier":
        dataset: Any = ClassifierPictures(manifest, crop)
    else:
        labels = made_up.labels_of(manifest, bench.folder / f"{name}.h5", bench.pictures.classes)
        dataset = LabelledPictures(manifest, labels, 0.5, crop)
        if 5 * bench.pictures.pixels * bench.pictures.train > KEEP_BYTES:
            dataset._kept = None

    def load() -> None:
        for number in range(len(bench.images)):
            dataset[number, 0]

    return clock(bench, load) / len(bench.images) * bench.share


def _read(bench: Bench, work: Work, _: Rates) -> float:
    manifest = _on_disk(bench, "read")

    def read() -> None:
        for name in manifest.ids:
            torch.from_numpy(manifest.image(name)).permute(2, 0, 1).to(torch.float32)

    return clock(bench, read) / len(bench.images) * bench.share


def _write(bench: Bench, work: Work, _: Rates) -> float:
    """Label and confidence into a store; other maps are taken to be written alike, pixel by pixel."""
    side = max(round(work.each**0.5), 1)
    label, doubt = made_up.pseudo_label(np.random.default_rng(0), bench.pictures.classes, side, side)
    turn = iter(range(10**9))
    with store.create(bench.folder / f"written{side}.h5", classes=["a"]) as writer:

        def write() -> None:
            name = str(next(turn))
            pseudolabels.put(writer, name, label, doubt)

        return clock(bench, write)


def _draw(bench: Bench, work: Work, _: Rates) -> float:
    side, turn = round(work.each**0.5), iter(range(10**9))
    settings = Shapes(train=3, val=1, size=side)
    return clock(bench, lambda: shapes.draw(bench.folder / f"drawn{next(turn)}", settings)) / 4


# --- labels and scores --------------------------------------------------------------------------------------


def _cam(bench: Bench, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Made-up class maps of a picture at stride 4, and their label values."""
    planes = max(round(bench.pictures.shown), 1)
    rows, columns = -(-image.shape[0] // 4), -(-image.shape[1] // 4)
    return made_up.smooth(np.random.default_rng(0), planes, rows, columns, 6), np.arange(1, planes + 1)


def _scores(bench: Bench, work: Work, _: Rates) -> float:
    image = bench.images[0]
    cam, values = _cam(bench, image)

    def make() -> None:
        scores = upsampled(cam, *image.shape[:2])
        labelling.from_scores(with_background(scores, Labels().background), values)

    return clock(bench, make) * bench.pictures.pixels / (image.shape[0] * image.shape[1])


def _crf(bench: Bench, work: Work, _: Rates) -> float:
    """Seconds of a run on the first pictures, of two scores of a smooth field for each label."""
    settings, labels = work.what
    images = bench.images[:2]
    fields = [made_up.smooth(np.random.default_rng(0), labels, image.shape[0], image.shape[1], 6) for image in images]

    def run() -> None:
        for image, field in zip(images, fields, strict=True):
            crf.refine(image, field.argmax(0), labels, settings)

    pixels = sum(image.shape[0] * image.shape[1] for image in images)
    return clock(bench, run) * work.each / settings.iterations / pixels


def _merge(bench: Bench, work: Work, _: Rates) -> float:
    channels, height, width = bench.pictures.classes + 1, bench.pictures.height, bench.pictures.width
    return clock(bench, stages.merging(channels, height, width, bench.device)) * work.each / (channels * height * width)


def _evaluate(bench: Bench, work: Work, _: Rates) -> float:
    """Two index PNGs read, compared, and compared along their borders."""
    side, classes = max(round(work.each**0.5), 1), bench.pictures.classes + 1
    rng, paths = np.random.default_rng(0), [bench.folder / f"{side}.{number}.png" for number in range(2)]
    for path in paths:
        palette.write_index_png(path, made_up.pseudo_label(rng, classes - 1, side, side)[0])

    def evaluate() -> None:
        prediction, truth = (palette.read_index_png(path) for path in paths)
        prediction = np.where(prediction < classes, prediction, 0).astype(np.uint8)
        count(prediction, truth, classes, "measured")
        near_border(prediction, truth, classes)

    return clock(bench, evaluate)


PROBES: dict[str, Callable[[Bench, Work, Rates], float | None]] = {
    "train": _train,
    "infer": _infer,
    "load": _load,
    "read": _read,
    "write": _write,
    "scores": _scores,
    "crf": _crf,
    "walk": _walk,
    "evaluate": _evaluate,
    "draw": _draw,
    "merge": _merge,
}
