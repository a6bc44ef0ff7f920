"""What localisers want besides pictures and their labels, made small for tests: a function for each input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from beco.artifacts import store
from beco.artifacts.pseudolabels import put
from beco.config import Classifier
from beco.datasets.manifest import Manifest
from beco.datasets.saliency import Saliency
from beco.networks.weights import write_safetensors
from beco.schema.slots import LOCALISERS
from beco.stage1 import texts, train
from beco.stage1.localisers.base import Inputs
from beco.stage1.texts import Texts
from beco.training.trainer import Compute

WIDTH = 8
"""Of the space that the small image tower shares with its texts."""


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


def text(pictures: Manifest, settings: Classifier, folder: Path) -> Texts:
    """Random features of the classes, of another order than the manifest's and one more, and of two backgrounds."""
    return texts.read(written(folder / "texts.safetensors", ["another", *reversed(pictures.classes)])).of(
        pictures.classes
    )


def written(path: Path, classes: list[str], width: int = WIDTH, scale: float = 10.0) -> Path:
    """A file of random texts."""
    drawn = torch.Generator().manual_seed(0)
    tensors = {
        "classes": torch.randn(len(classes), width, generator=drawn),
        "background": torch.randn(2, width, generator=drawn),
        "scale": torch.tensor(scale),
    }
    write_safetensors(path, tensors, {"texts": json.dumps({"classes": classes})})
    return path


def clip_tower(folder: Path, width: int = WIDTH, **more: Any) -> dict[str, Any]:
    """The encoder section of a small image tower of CLIP with random weights and its projection, in timm's names."""
    options = {"depth": 3, "embed_dim": 16, "num_heads": 2, "img_size": 64, **more}
    torch.manual_seed(0)
    body = timm.create_model("vit_base_patch16_clip_224", num_classes=width, **options)
    for name, parameter in body.named_parameters():  # timm's start lets tokens hardly differ
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.15 if "qkv" in name else 0.3)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tower.safetensors"
    write_safetensors(path, {name: value.contiguous() for name, value in body.state_dict().items()}, {})
    return {"name": "vit_base_patch16_clip_224", "weights": str(path), "options": options}


Maker = Callable[[Manifest, Classifier, Path], Any]
MAKERS: dict[str, Maker] = {"labels": labels, "start": start, "saliency": saliency, "text": text}
ENCODERS: dict[str, Callable[[Path], dict[str, Any]]] = {"clip_es": clip_tower}
"""The encoders of methods that a ResNet does not serve, whose files are written into a folder."""
CHEAP: dict[str, dict[str, Any]] = {
    "rib": {"steps": 2, "others": 2, "crop_size": 32, "least_side": 32, "most_side": 64, "lr": 1e-3}
}
"""Options of methods whose own ones take long."""


def made(name: str, pictures: Manifest, settings: Classifier, folder: Path, when: str = "INPUTS") -> Inputs:
    """What the localiser `name` wants in its training, or for its maps (`when`: MAP_INPUTS), of `pictures`."""
    folder.mkdir(parents=True, exist_ok=True)
    return Inputs(**{one: MAKERS[one](pictures, settings, folder) for one in LOCALISERS.fact(name, when)})
