"""Pictures a second of the stages that go picture by picture, and what a second process adds."""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.benchmark import timer

from beco.artifacts import pseudolabels, store
from beco.artifacts.grids import upsampled
from beco.artifacts.pseudolabels import PseudoLabels
from beco.benchmark import pictures
from beco.benchmark.presets import SMALL
from beco.benchmark.process import IMPORTS, start_up
from beco.config import Cam, Crf, Crop, Encoder, Irn, Labels
from beco.crf import refine as crf
from beco.datasets.shapes_drawing import draw_picture
from beco.evaluation.scores.borders import near_border
from beco.evaluation.scores.metrics import count
from beco.stage1 import localisers
from beco.stage1.merging import multi_scale_maps
from beco.stage1.refine import labels as stage
from beco.stage1.refine.irn_walk import walk
from beco.stage1.refine.thresholds import with_background
from beco.training.augment import LabelledPictures

CLASSES = 20
PLANES = 2  # class maps of a picture
Task = Callable[[], object]


def measure(folder: Path, size: int, seconds: float) -> dict[str, Any]:
    """Pictures of `size`² pixels a second of one processor's time of each stage, and the gain from 1 to 2 processes.

    Every stage runs for about `seconds`, or for one picture if that takes longer.
    """
    torch.set_num_threads(1)
    path = folder / "labels.h5"
    _write(path, size, 8)
    tasks: dict[str, Task] = {
        "cam": _cam(size),
        **{f"crf_{backend}_{labels}": _crf(backend, labels, size) for backend in _backends() for labels in (3, 21)},
        "labels_from_cam": _labels("none", size),
        "labels_from_cam_crf": _labels("crf", size),
        "store_write": _writing(folder / "written.h5", size),
        "store_read": _reading(path),
        "evaluate": _evaluating(size),
        **_reading_pictures(folder, size),
        "draw": _drawing(size),
        "merge": merging(CLASSES + 1, size, size),
        "walk": walking(PLANES, size, size, Irn()),
    }
    rates = {name: _rate(task, seconds, time.process_time) for name, task in tasks.items()}
    return {
        "size": size,
        "pictures_per_core_s": rates,
        "start_s": {group: start_up(group)[0] for group in IMPORTS},
        "gain_of_second_process": _gains(
            {"crf": partial(_crf, "torch", 3, size), "store_read": partial(_reading, path)}, seconds
        ),
    }


def _backends() -> list[str]:
    """Ours, and the optional package where it is installed."""
    return ["torch", *(["pydensecrf"] if importlib.util.find_spec("pydensecrf") else [])]


def _rate(task: Task, seconds: float, clock: Callable[[], float] = timer) -> float:
    """Pictures a second of `clock`; each call of `task` is one picture, and the first call does not count.

    By `time.process_time` it is a second of one processor, whoever else is at work on the machine.
    """
    task()
    done, started, began = 0, timer(), clock()
    while timer() - started < seconds or not done:
        task()
        done += 1
    return done / (clock() - began)


def _gains(makers: dict[str, Callable[[], Task]], seconds: float) -> dict[str, float]:
    """How many times the rate of one process two have, spawned afresh and working at the same time.

    Measured one, two, one, two, so that a load that comes meanwhile weighs on both.
    """
    gains = {}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for name, make in makers.items():
            list(pool.map(_rate_in_process, [make] * 2, [0.0] * 2))  # both have started and imported
            found = [sum(pool.map(_rate_in_process, [make] * many, [seconds] * many)) for many in (1, 2, 1, 2)]
            gains[name] = sum(found[1::2]) / sum(found[::2])
    return gains


def _rate_in_process(make: Callable[[], Task], seconds: float) -> float:
    torch.set_num_threads(1)
    return _rate(make(), seconds)


def _write(path: Path, size: int, entries: int) -> None:
    rng = np.random.default_rng(0)
    with store.create(path, classes=["a"]) as writer:
        for number in range(entries):
            pseudolabels.put(writer, str(number), *pictures.pseudo_label(rng, CLASSES, size, size))


def _cam(size: int) -> Task:
    """A small network over three scales and their mirror images."""
    torch.manual_seed(0)
    network = localisers.make("cam", Encoder.model_validate(SMALL), 8, CLASSES).eval()
    network = network.to(memory_format=torch.channels_last)
    images, settings = torch.rand(1, 3, size, size), Cam(scales=[1.0, 1.5, 2.0])
    return lambda: multi_scale_maps(network, images, torch.ones(1, CLASSES), settings)


def _crf(backend: str, labels: int, size: int) -> Task:
    rng = np.random.default_rng(0)
    image, label = pictures.picture(rng, size, size), pictures.smooth(rng, labels, size, size, 6).argmax(0)
    settings = Crf.model_validate({"backend": backend})
    return lambda: crf.refine(image, label, labels, settings)


def _labels(refine: str, size: int) -> Task:
    """What `beco labels` does with the CAMs of two classes, reading and writing apart."""
    rng, values = np.random.default_rng(0), np.array([3, 7])
    image, planes = pictures.picture(rng, size, size), pictures.smooth(rng, 2, -(-size // 4), -(-size // 4), 6)
    settings = Labels.model_validate({"refine": refine})

    def make() -> object:
        cam = upsampled(planes, size, size)
        if refine == "none":
            return stage.from_scores(with_background(cam, *settings.one_score()), values)
        return stage.from_crf(image, cam, values, settings)

    return make


def _writing(path: Path, size: int) -> Task:
    """A file of one picture a call: label and confidence."""
    label, doubt = pictures.pseudo_label(np.random.default_rng(0), CLASSES, size, size)

    def write() -> None:
        with store.create(path, classes=["a"]) as writer:
            pseudolabels.put(writer, "0", label, doubt)

    return write


def _reading(path: Path) -> Task:
    """Label and reliable pixels, as the loader reads them."""
    reader = PseudoLabels(path)
    ids = reader.ids()
    turn = iter(range(10**9))

    def read() -> object:
        image_id = ids[next(turn) % len(ids)]
        picture = reader.picture(image_id)
        return picture.label, picture.reliable(0.5)

    return read


def _evaluating(size: int) -> Task:
    rng = np.random.default_rng(0)
    truth, prediction = (pictures.pseudo_label(rng, CLASSES, size, size)[0] for _ in range(2))
    return lambda: (count(prediction, truth, CLASSES + 1), near_border(prediction, truth, CLASSES + 1))


def _reading_pictures(folder: Path, size: int) -> dict[str, Task]:
    """A JPEG of size² as inference reads it, and as training does with its labels: decoded, and weakly augmented."""
    manifest = pictures.on_disk(folder / "pictures", [pictures.picture(np.random.default_rng(0), size, size)], CLASSES)
    labels = pictures.labels_of(manifest, folder / "of_pictures.h5", CLASSES)
    dataset = LabelledPictures(manifest, labels, 0.5, Crop(size=max(size // 2, 32)))
    dataset._kept = None
    return {"read": lambda: manifest.image(manifest.ids[0]), "load": lambda: dataset[0, 0]}


def _drawing(size: int) -> Task:
    turn = iter(range(10**9))
    return lambda: draw_picture(np.random.default_rng(next(turn)), min(size, 512))


def merging(channels: int, height: int, width: int, device: str | torch.device = "cpu") -> Task:
    """Scores of a picture: added up, brought to another size, and decided on, as prediction does for each network."""
    scores = torch.rand(1, channels, height, width, device=device)

    @torch.inference_mode()
    def merge() -> object:
        total = torch.zeros((), device=device) + scores
        return F.interpolate(total, (height + 1, width + 1), mode="bilinear", align_corners=False).argmax(1)

    return merge


def walking(planes: int, height: int, width: int, settings: Irn, device: str | torch.device = "cpu") -> Task:
    """IRN's random walk over the class maps of a picture, the transition matrix included."""
    rng, rows, columns = np.random.default_rng(0), -(-height // 4), -(-width // 4)
    maps = torch.from_numpy(pictures.smooth(rng, planes, rows, columns, 6))[None].to(device)
    edges = torch.from_numpy(pictures.smooth(rng, 1, rows, columns, 6)).to(device)
    return lambda: walk(maps, edges, settings)
