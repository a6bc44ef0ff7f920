"""Made-up pictures, labels and activation maps, smooth as real ones are, so that files of them have real sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import Dataset

from beco.artifacts import pseudolabels, store
from beco.artifacts.grids import upsampled
from beco.artifacts.pseudolabels import UNCERTAIN, PseudoLabels
from beco.config import Shapes, Training
from beco.datasets import manifest as manifests
from beco.datasets import shapes, voc
from beco.datasets.belonging import open_labels
from beco.datasets.manifest import Manifest
from beco.errors import UserError
from beco.training.augment import LabelledPictures

KEPT_UP_TO = 128  # pixels a side; data sets of larger pictures do not fit into the loader's memory


def smooth(rng: np.random.Generator, planes: int, height: int, width: int, coarse: int) -> np.ndarray:
    """(planes, height, width) float32 in [0, 1], varying over about 1/`coarse` of the picture."""
    return upsampled(rng.random((planes, coarse, coarse)), height, width)


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: large areas and some grain."""
    planes = smooth(rng, 3, height, width, 7) * 240 + rng.normal(0, 4, (3, height, width))
    return np.ascontiguousarray(planes.clip(0, 255).transpose(1, 2, 0).astype(np.uint8))


def pseudo_label(rng: np.random.Generator, classes: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Label (uint8, areas of a few classes, outlines without opinion) and doubt, as `pseudolabels.put` takes them."""
    scores = smooth(rng, 3, height, width, 6)
    values = np.array([0, *rng.integers(1, classes + 1, 2)], np.uint8)
    ranked = np.sort(scores, axis=0)
    margin = ranked[-1] - ranked[-2]
    label = values[scores.argmax(0)]
    label[margin < 0.02] = UNCERTAIN
    return label, np.where(label == UNCERTAIN, 1, 1 - margin)


def activation(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """CAM of one to three classes at stride 4: (K, ⌈height/4⌉, ⌈width/4⌉) float16 in [0, 1]."""
    planes = smooth(rng, int(rng.integers(1, 4)), -(-height // 4), -(-width // 4), 6)
    return ((planes - 0.4).clip(0) / 0.6).astype(np.float16)


def drawn(folder: Path, count: int, size: int) -> Manifest:
    """The training split of an embedded data set of `count` pictures of `size`² pixels, drawn into `folder`."""
    shapes.draw(folder / "set", Shapes(train=count, val=1, size=min(max(size, 48), 512)))
    return voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv").split("train")


def on_disk(folder: Path, images: list[np.ndarray], classes: int) -> Manifest:
    """Pictures (H, W, 3) uint8, written as JPEGs into a new `folder`, each with one of `classes` classes, no mask."""
    folder.mkdir()
    rows = []
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.jpg", quality=90)
        rows.append((str(number), "train", f"{number}.jpg", "", *image.shape[:2]))
    table = pd.DataFrame(rows, columns=["image_id", "split", "image", "mask", "height", "width"]).set_index("image_id")
    names = [f"class {number + 1}" for number in range(classes)]
    labels = pd.DataFrame(np.eye(1, classes, dtype=int).repeat(len(rows), 0), table.index, names)
    return Manifest(folder, pd.concat([table, labels], axis=1), names)


def labels_of(manifest: Manifest, path: Path, classes: int) -> PseudoLabels:
    """Made-up pseudo-labels of every picture, as `labels.h5`."""
    rng = np.random.default_rng(0)
    with store.create(path, classes=manifest.classes) as writer:
        for image_id in manifest.ids:
            pseudolabels.put(writer, image_id, *pseudo_label(rng, classes, *manifest.size(image_id)))
    return PseudoLabels(path)


def training_set(folder: Path, training: Training, classes: int) -> Dataset[Any]:
    """A drawn data set with made-up labels, read as training reads its own.

    Pictures of more than `KEPT_UP_TO` pixels a side are decoded at every visit, as those of a large data set are.
    """
    size = training.crop.size
    manifest = drawn(folder, max(training.schedule.batch_size, 24), size)
    reader = labels_of(manifest, folder / "labels.h5", classes)
    dataset = LabelledPictures(manifest, reader, training.reliable_fraction, training.crop, training.reliable_threshold)
    if size > KEPT_UP_TO:
        dataset._kept = None
    return dataset


def own_set(manifest: Path, root: Path, labels: Path, split: str, training: Training, classes: int) -> Dataset[Any]:
    """Pictures and pseudo-labels of the user's; UserError if the networks have fewer than their classes."""
    chosen = manifests.read(manifest, root).split(split)
    if len(chosen.classes) > classes:
        raise UserError(f"--classes: {manifest} has {len(chosen.classes)} classes; give that number")
    reader = open_labels(labels, chosen)
    rule = training.reliable_fraction, training.crop, training.reliable_threshold
    return LabelledPictures(chosen, reader, *rule)
