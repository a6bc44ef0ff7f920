"""What localisers want besides pictures and their labels, made small for tests: a function for each input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from beco.artifacts import store
from beco.artifacts.pseudolabels import put
from beco.config import Classifier
from beco.datasets.manifest import Manifest
from beco.datasets.saliency import Saliency
from beco.schema.slots import LOCALISERS
from beco.stage1 import train
from beco.stage1.localisers.base import Inputs
from beco.training.trainer import Compute


def labels(pictures: Manifest, settings: Classifier, folder: Path) -> Path:
    """Pseudo-labels of bars: background, each class of the picture, and no opinion."""
    path = folder / "labels.h5"
    with store.create(path, classes=pictures.classes) as writer:
        for image_id in pictures.ids:
            height, width = pictures.size(image_id)
            values = np.array([0, *pictures.present(image_id), 255], np.uint8)
            label = np.tile(values[np.arange(width) * len(values) // width], (height, 1))
            put(writer, image_id, label, np.where(label == 255, 1.0, 0.25))
    return path


def start(pictures: Manifest, settings: Classifier, folder: Path) -> Path:
    """A classifier of the same encoder, after one step."""
    short = settings.model_copy(update={"schedule": settings.schedule.model_copy(update={"steps": 1})})
    train.train(pictures, pictures, train.Wanted(short), Compute("cpu"), folder / "start", False)
    return folder / "start" / "classifier.safetensors"


def saliency(pictures: Manifest, settings: Classifier, folder: Path) -> Saliency:
    """The true objects."""
    return Saliency(None)


Maker = Callable[[Manifest, Classifier, Path], Any]
MAKERS: dict[str, Maker] = {"labels": labels, "start": start, "saliency": saliency}
CHEAP: dict[str, dict[str, Any]] = {
    "rib": {"steps": 2, "others": 2, "crop_size": 32, "least_side": 32, "most_side": 64, "lr": 1e-3}
}
"""Options of methods whose own ones take long."""


def made(name: str, pictures: Manifest, settings: Classifier, folder: Path, when: str = "INPUTS") -> Inputs:
    """What the localiser `name` wants in its training, or for its maps (`when`: MAP_INPUTS), of `pictures`."""
    folder.mkdir(parents=True, exist_ok=True)
    return Inputs(**{one: MAKERS[one](pictures, settings, folder) for one in LOCALISERS.fact(name, when)})
