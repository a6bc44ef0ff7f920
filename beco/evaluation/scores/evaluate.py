"""Measure one split: predictions against the masks, into `metrics.json` and three CSV files.

`metrics.json` holds `Scorer.result` with classes by name, the protocol, the split and the hash of the manifest's rows;
`per_class.csv` and `per_image.csv` hold the same by class and by picture, and `per_image_class.csv` the pixel counts of
each class in each picture, from which the metrics of any set of pictures follow. Shares run from 0 to 1; a number that
does not exist is `null` in JSON and an empty field in CSV. Pictures without a mask are left out.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from beco.artifacts.files import text_hash, write_csv, write_json
from beco.artifacts.ordered import in_order
from beco.datasets.manifest import Manifest, refuse_other_meaning
from beco.datasets.meaning import Seen
from beco.datasets.palette import read_index_png
from beco.errors import UserError
from beco.evaluation.scores.borders import NearBorder, near_border
from beco.evaluation.scores.metrics import MEAN_RULE, PICTURE_COUNTS, VOID, Counts, Scorer, count

PER_CLASS = ["iou", "boundary_iou_per_class", "precision", "recall", "truth_pixels", "predicted_pixels"]
CONVENTION = (
    "255 in a prediction counts as background, 255 in the truth is left out; mean IoU over classes and background: "
    + MEAN_RULE
)
log = logging.getLogger("beco")


def evaluate_predictions(
    manifest: Manifest, predictions: Path, output: Path, protocol: dict[str, Any], threads: int = 2
) -> dict[str, Any]:
    """Measure `predictions`/<image_id>.png (index PNGs) on the pictures of `manifest`, one split of it.

    Writes `metrics.json` and the three CSV files into `output`, and returns what `metrics.json` holds: `Scorer.result`,
    `NearBorder.result`, and `protocol`, which says how the predictions were made, and the masks if a program made them,
    and is printed beside every number. With `score_at: square` in it the predictions are squares of the side `squeeze`,
    and the truth is squeezed to them (`squeezed`); otherwise they have their pictures' own sizes. Without masks the
    numbers are null and `reason` says why. Raises `UserError` for a prediction that is missing, damaged, of another
    size, or with an unknown label value.
    """
    measured, side = manifest.with_masks(), _scored_side(protocol)
    classes = len(manifest.classes) + 1

    def one(image_id: str) -> tuple[Counts, NearBorder]:
        path = predictions / f"{image_id}.png"
        if not path.is_file():
            raise UserError(f"{path}: no such prediction; run `beco predict-split` on this split first")
        prediction, truth = read_index_png(path), manifest.mask(image_id)
        if side:
            truth = squeezed(truth, side)
        counts = count(prediction, truth, classes, image_id)  # first: it refuses what does not fit
        return counts, near_border(prediction, truth, classes)

    scorer, border = Scorer(classes), NearBorder.nothing(classes)
    for image_id, (counts, near) in zip(measured.ids, in_order(one, measured.ids, threads, "evaluate"), strict=True):
        scorer.merge(image_id, counts)
        border.add(near)
    return write_result(manifest, scorer, border, protocol, {}, output)


def _scored_side(protocol: dict[str, Any]) -> int | None:
    """Side of the squares that a protocol scores on; None: the pictures' own sizes.

    Without `score_at` it is older than that key, when pictures that were squeezed were scored as squares.
    """
    return protocol.get("squeeze") if protocol.get("score_at", "square") == "square" else None


def squeezed(label: np.ndarray, side: int) -> np.ndarray:
    """(H, W) uint8 label map to (side, side): the pixel under the centre of each new one, whatever the aspect.

    BECO validates during training on such squares, with truth and picture squeezed alike.
    """
    return np.asarray(Image.fromarray(label).resize((side, side), Image.Resampling.NEAREST))


def write_result(
    manifest: Manifest,
    scorer: Scorer,
    border: NearBorder,
    protocol: dict[str, Any],
    extra: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """Write the files and return what `metrics.json` holds, with `extra` in it.

    That file comes last, so that its presence means all are there.
    """
    refuse_contradictions(manifest, scorer)
    names = ["background", *manifest.classes]
    result = scorer.result()
    split = ", ".join(dict.fromkeys(manifest.table["split"]))
    measured = bool(scorer.rows)
    if not measured:
        log.info("split %s has no masks: nothing is measured, and tables and report have no such numbers", split)
    frame = pd.DataFrame({key.removesuffix("_per_class"): result[key] for key in PER_CLASS})
    frame.insert(0, "class", names)
    frame.insert(0, "value", range(len(names)))
    write_csv(frame if measured else frame.iloc[:0], output / "per_class.csv")
    images = pd.DataFrame(scorer.rows, columns=["image_id", "pixel_accuracy", "miou"])
    write_csv(images, output / "per_image.csv")
    write_csv(_by_image_and_class(scorer), output / "per_image_class.csv")
    named = {key: dict(zip(names, result[key], strict=True)) for key in PER_CLASS}
    metrics = {
        **({} if measured else {"reason": f"split `{split}` has no masks, so there is nothing to measure against"}),
        **result,
        **named,
        **border.result(),
        **extra,
        "without_mask": len(manifest) - len(scorer.rows),
        "protocol": {**protocol, **({"masks": rule} if (rule := manifest.mask_rule()) else {})},
        "convention": CONVENTION,
        "split": split,
        "manifest": text_hash([manifest.classes, manifest.table.to_csv(lineterminator="\n")]),
    }
    write_json(output / "metrics.json", metrics)
    return metrics


def refuse_contradictions(manifest: Manifest, scorer: Scorer) -> None:
    """UserError if most of the masks that were measured contradict the labels, as where the manifest was built."""
    truths = [frozenset(rows[rows[:, 1] > 0, 0].tolist()) for rows in scorer.class_rows]
    masks = [Seen(values or frozenset({VOID}), {}) for values in truths]
    table = manifest.table.loc[[row["image_id"] for row in scorer.rows]]
    refuse_other_meaning(table, manifest.classes, masks, f"{manifest.root}")


def _by_image_and_class(scorer: Scorer) -> pd.DataFrame:
    """`PICTURE_COUNTS` of the classes in each picture, a few rows a picture."""
    table = np.vstack([np.zeros((0, 1 + len(PICTURE_COUNTS)), dtype=np.int64), *scorer.class_rows])
    frame = pd.DataFrame(table, columns=["value", *PICTURE_COUNTS])
    ids = [row["image_id"] for row in scorer.rows]
    frame.insert(0, "image_id", np.repeat(np.array(ids, dtype=object), [len(rows) for rows in scorer.class_rows]))
    return frame
