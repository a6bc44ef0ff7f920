"""Our dense CRF against pydensecrf: whether their labels agree, and who is faster in two processes each."""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.benchmark import timer

from beco.benchmark import pictures
from beco.benchmark.stores import SIZE
from beco.config import Crf, InferenceCrf
from beco.crf import refine as crf
from beco.datasets.manifest import Manifest

BACKENDS = ("torch", "pydensecrf")
CLASSES = 21


def measure(source: Manifest | int) -> dict[str, Any]:
    """Both backends on the pictures of a manifest, or on so many made-up ones of VOC's size.

    Inputs are smooth random fields. `irn`: one to three classes and background with IRN's parameters, from labels;
    `test_time`: 21 classes from probabilities. Two processes of one thread work at a time; every picture goes through
    both backends one after the other in one process, in turns. `ratio` is pydensecrf's time by ours (by the clock),
    `ratio_of_processor_time` the same of processor time; `same_labels_worst` is the smallest share of equal labels in a
    picture, `mean_difference_worst` the largest mean |ΔQ|. Without pydensecrf only our own times.
    """
    backends = BACKENDS if importlib.util.find_spec("pydensecrf") else BACKENDS[:1]
    numbers = range(source if isinstance(source, int) else len(source))
    result: dict[str, Any] = {"pictures": len(numbers), "processes": 2}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for name in ("irn", "test_time"):
            work = partial(_one, source, name, backends)
            list(pool.map(work, [0, 0]))  # both have started, and imported what they need
            result[name] = _summary(pd.DataFrame(pool.map(work, numbers)), backends)
    return result


def _one(source: Manifest | int, name: str, backends: Sequence[str], number: int) -> dict[str, float]:
    """Seconds of each backend on one picture, and how far their posteriors agree."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(number)
    image = pictures.picture(rng, *SIZE) if isinstance(source, int) else source.image(source.ids[number])
    posterior = _posterior(rng, name, image)
    row: dict[str, float] = {}
    found = {}
    for backend in backends if number % 2 else reversed(backends):
        clock, processor = timer(), time.process_time()
        found[backend] = posterior(backend)
        row[f"{backend}_s"], row[f"{backend}_cpu_s"] = timer() - clock, time.process_time() - processor
    if len(found) == 2:
        ours, theirs = (found[backend] for backend in BACKENDS)
        row["same"] = float((ours.argmax(0) == theirs.argmax(0)).mean())
        row["difference"] = float(np.abs(ours - theirs).mean())
    return row


def _posterior(rng: np.random.Generator, name: str, image: np.ndarray) -> Callable[[str], np.ndarray]:
    labels = int(rng.integers(2, 5)) if name == "irn" else CLASSES
    fields = pictures.smooth(rng, labels, image.shape[0], image.shape[1], 12)
    if name == "irn":
        label = fields.argmax(0)
        return lambda backend: crf.refine(image, label, labels, Crf.model_validate({"backend": backend}))
    scores = np.exp(8 * fields)
    probabilities = scores / scores.sum(0)
    return lambda backend: crf.posterior(image, probabilities, InferenceCrf.model_validate({"backend": backend}))


def _summary(rows: pd.DataFrame, backends: Sequence[str]) -> dict[str, float]:
    result = {f"{backend}_s_per_picture": float(rows[f"{backend}_s"].mean()) for backend in backends}
    if len(backends) == 2:
        ours, theirs = BACKENDS
        result["ratio"] = float(rows[f"{theirs}_s"].sum() / rows[f"{ours}_s"].sum())
        result["ratio_of_processor_time"] = float(rows[f"{theirs}_cpu_s"].sum() / rows[f"{ours}_cpu_s"].sum())
        result["same_labels_worst"] = float(rows["same"].min())
        result["same_labels"] = float(rows["same"].mean())
        result["mean_difference_worst"] = float(rows["difference"].max())
    return result
