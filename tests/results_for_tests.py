"""Small results as the stages leave them: pictures, predictions, labels, CAMs and a classifier's scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from beco.artifacts.files import write_json
from beco.artifacts.pseudolabels import put
from beco.artifacts.store import create
from beco.config import Comparison
from beco.datasets.manifest import Manifest
from beco.datasets.palette import write_index_png
from beco.evaluation.scores.evaluate import evaluate_predictions
from beco.evaluation.scores.quality import evaluate_labels
from beco.evaluation.tables.tables import LabelSource, MapSource, Run

SIZE = 24
CLASSES = ["cat & dog", "b|rd$x$"]
ODD = "<b>odd&1"
COMPARED = {
    "<parts>": Comparison(title="Parts & whole", experiments=["single", "beco"], published=["irn/voc12/val"]),
    "by labels": Comparison(experiments=["full", "single"], vary=["labels.refine"]),
}
SUPERVISED = ["image labels", "saliency"]
PROTOCOL = {"scales": [1.0, 0.5], "flip": True, "resize": None, "networks": "all"}


def truth_of(index: int) -> np.ndarray:
    truth = np.zeros((SIZE, SIZE), dtype=np.uint8)
    truth[4:14, 4 : 12 + index] = 1 + index % 2
    truth[0] = 255
    return truth


def make_manifest(root: Path, masks: bool = True) -> Manifest:
    """Two training and two evaluation pictures, one of them with a name that HTML would take for a tag."""
    rows = []
    for index, image_id in enumerate(["t0", "NA", "v0", ODD]):
        picture = np.random.default_rng(index).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / f"{index}.png")
        write_index_png(root / f"{index}_mask.png", truth_of(index))
        rows.append(
            {
                "image_id": image_id,
                "split": "train" if index < 2 else "val",
                "image": f"{index}.png",
                "mask": f"{index}_mask.png" if masks else "",
                "width": SIZE,
                "height": SIZE,
                CLASSES[0]: int(index % 2 == 0),
                CLASSES[1]: int(index % 2 == 1),
            }
        )
    return Manifest(root, pd.DataFrame(rows).set_index("image_id"), CLASSES)


def make_run(root: Path, manifest: Manifest, experiment: str, seed: int, labels: str, shift: int) -> Run:
    """A run whose predictions are the true masks pushed to the right by `shift` pixels."""
    folder = root / experiment / f"seed{seed}"
    val = manifest.split("val")
    for index, image_id in enumerate(val.ids):
        moved = np.roll(np.where(truth_of(index + 2) == 255, 0, truth_of(index + 2)), shift, axis=1)
        write_index_png(folder / "predictions" / f"{image_id}.png", moved.astype(np.uint8))
    evaluate_predictions(val, folder / "predictions", folder, PROTOCOL)
    history = pd.DataFrame({"epoch": [0, 0, 1], "step": [1, 2, 3], "loss": [2.0, 1.0, 0.5], "share_on": 0.5})
    history.to_csv(folder / "history.csv", index=False)
    write_json(
        folder / "training.json",
        {"recipe": experiment, "seed": seed, "commit": "abc1234", "device": "cpu", "seconds": 7.0, "note": "<i>"},
    )
    return Run(experiment, seed, labels, folder)


def make_labels(root: Path, manifest: Manifest) -> LabelSource:
    """Labels that miss the first column of each object and have no opinion in one row."""
    folder = root / "labels"
    with create(
        folder / "labels.h5", labels={"refine": "crf"}, supervision=SUPERVISED, classes=manifest.classes
    ) as writer:
        for index, image_id in enumerate(manifest.split("train").ids):
            label = np.where(truth_of(index) == 255, 0, truth_of(index)).astype(np.uint8)
            label[:, 4] = 0
            label[20] = 255
            confidence = np.linspace(0.1, 1, SIZE * SIZE).reshape(SIZE, SIZE)
            confidence[:, 4] = 0  # knows its mistakes
            put(writer, image_id, label, 1 - confidence)
    evaluate_labels(manifest.split("train"), folder / "labels.h5", folder / "quality")
    return LabelSource("crf", folder, "cam")


def make_source(root: Path, manifest: Manifest) -> MapSource:
    """Score maps of one value, and a classifier's scores."""
    with create(root / "cams.h5", settings={"scales": [1.0]}, classes=manifest.classes) as writer:
        for image_id in manifest.split("train").ids:
            values = np.array(manifest.present(image_id))
            cam = np.full((len(values), 6, 6), 0.5, dtype=np.float16)
            writer.put("cam", image_id, cam, classes=values)
    folder = root / "classifier"
    write_json(folder / "classifier.json", {"map": 0.625, "ap": {CLASSES[0]: 0.5, CLASSES[1]: 0.75}})
    pd.DataFrame({"epoch": [0, 1], "loss": [1.0, 0.5]}).to_csv(folder / "history.csv", index=False)
    return MapSource("cam", root)


def write_metrics(folder: Path, miou: float, boundary: float) -> None:
    numbers = {"miou": miou, "boundary_iou": boundary, "pixel_accuracy": 0.9, "protocol": PROTOCOL}
    write_json(folder / "metrics.json", numbers)
    (folder / "per_class.csv").write_text(f"value,class,iou\n0,background,{miou}\n1,null,\n")
