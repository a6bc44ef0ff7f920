"""Measure one split: predictions or pseudo-labels against the masks, into `metrics.json` and three CSV files.

`metrics.json` holds `Scorer.result` with classes by name, the protocol, the split and the hash of the manifest's rows;
`per_class.csv` and `per_image.csv` hold the same by class and by picture, and `per_image_class.csv` the pixel counts of
each class in each picture, from which the metrics of any set of pictures follow. Shares run from 0 to 1; a number that
does not exist is `null` in JSON and an empty field in CSV. Pictures without a mask are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from beco.datasets.manifest import Manifest
from beco.datasets.palette import read_index_png
from beco.errors import UserError
from beco.evaluation.metrics import BORDER_BINS, PICTURE_COUNTS, VOID, Counts, Scorer, border_table, count, count_border
from beco.files import text_hash, whole, write_json
from beco.ordered import in_order
from beco.pseudolabels import UNCERTAIN, PseudoLabels, reliable_pixels

PER_CLASS = ["iou", "boundary_iou_per_class", "precision", "recall", "truth_pixels", "predicted_pixels"]
CONVENTION = "255 in a prediction counts as background, 255 in the truth is left out"
T = TypeVar("T")


def evaluate_predictions(
    manifest: Manifest, predictions: Path, output: Path, protocol: dict[str, Any], threads: int = 2
) -> dict[str, Any]:
    """Measure `predictions`/<image_id>.png (index PNGs) on the pictures of `manifest`, one split of it.

    Writes `metrics.json` and the three CSV files into `output`, and returns what
    `metrics.json` holds: `Scorer.result`, `border_error` (see `metrics.border_table`), and `protocol`,
    which says how the predictions were made, and the masks if a program made them, and is printed beside every
    number. If it has `squeeze`, the
    predictions are squares of that side, and the truth is squeezed to them (`squeezed`). Without masks the
    numbers are null and `reason` says why. Raises `UserError` for a prediction that is missing, damaged, of another
    size, or with an unknown label value.
    """
    measured, side = manifest.with_masks(), protocol.get("squeeze")

    def one(image_id: str) -> tuple[Counts, np.ndarray]:
        path = predictions / f"{image_id}.png"
        if not path.is_file():
            raise UserError(f"{path}: no such prediction; run `beco predict` on this split first")
        prediction, truth = read_index_png(path), manifest.mask(image_id)
        if side:
            truth = squeezed(truth, side)
        counts = count(prediction, truth, len(manifest.classes) + 1, image_id)
        return counts, count_border(prediction, truth)

    scorer, border = Scorer(len(manifest.classes) + 1), _no_border()
    for image_id, (counts, near) in zip(measured.ids, in_order(one, measured.ids, threads, "evaluate"), strict=True):
        scorer.merge(image_id, counts)
        border += near
    return _write(manifest, scorer, border, protocol, {}, output)


def squeezed(label: np.ndarray, side: int) -> np.ndarray:
    """(H, W) uint8 label map to (side, side): the pixel under the centre of each new one, whatever the aspect.

    BECO validates during training on such squares, with truth and picture squeezed alike.
    """
    return np.asarray(Image.fromarray(label).resize((side, side), Image.Resampling.NEAREST))


def evaluate_labels(
    manifest: Manifest, labels: Path, output: Path, fraction: float = 0.5, threads: int = 2
) -> dict[str, Any]:
    """Measure the pseudo-labels in `labels` (`labels.h5`) on the pictures of `manifest`, usually the
    training split.

    Writes and returns what `evaluate_predictions` does, and in addition, over every picture whether it has
    a mask or not: `uncertain`, the share of pixels without an opinion (255), and `reliable` with the
    `fraction` asked for, the `share` of all pixels that the reliable mask keeps, and `accuracy_inside` and
    `accuracy_outside` it. Outside, only pixels with an opinion count: an uncertain pixel claims nothing
    that could be wrong.
    """
    source = PseudoLabels(labels)
    stored = set(source.ids())
    if lacking := [image_id for image_id in manifest.ids if image_id not in stored]:
        raise UserError(
            f"{labels}: no label for {lacking[0]} and {len(lacking) - 1} more; it was made from another "
            "manifest: run its stage again"
        )
    masks = set(manifest.with_masks().ids)

    def one(image_id: str) -> tuple[np.ndarray, tuple[Counts, np.ndarray] | None]:
        label = source.label(image_id)
        reliable = reliable_pixels(label, source.confidence(image_id), fraction)
        truth = manifest.mask(image_id) if image_id in masks else None
        if truth is None:
            return _trust(label, reliable, None), None
        counts = count(label, truth, len(manifest.classes) + 1, image_id)  # first: it refuses another size
        return _trust(label, reliable, truth), (counts, count_border(label, truth))

    scorer, border, trust = Scorer(len(manifest.classes) + 1), _no_border(), np.zeros(7, dtype=np.int64)
    found = in_order(one, manifest.ids, threads, "evaluate labels")
    for image_id, (numbers, measured) in zip(manifest.ids, found, strict=True):
        trust += numbers
        if measured:
            scorer.merge(image_id, measured[0])
            border += measured[1]
    source.store.close()
    return _write(manifest, scorer, border, {"reliable_fraction": fraction}, _trust_shares(trust, fraction), output)


def _trust(label: np.ndarray, reliable: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """(7,) pixels: all, uncertain, reliable; valid and right inside, valid and right outside."""
    totals = [label.size, np.count_nonzero(label == UNCERTAIN), np.count_nonzero(reliable)]
    if truth is None:
        return np.array([*totals, 0, 0, 0, 0])
    valid, right = (truth != VOID) & (label != UNCERTAIN), label == truth
    sides = [valid & reliable, valid & ~reliable]
    return np.array(totals + [np.count_nonzero(mask) for side in sides for mask in (side, side & right)])


def _trust_shares(trust: np.ndarray, fraction: float) -> dict[str, Any]:
    pixels, uncertain, reliable, inside, right_inside, outside, right_outside = (int(n) for n in trust)
    return {
        "uncertain": _share(uncertain, pixels),
        "reliable": {
            "fraction": fraction,
            "share": _share(reliable, pixels),
            "accuracy_inside": _share(right_inside, inside),
            "accuracy_outside": _share(right_outside, outside),
        },
    }


def _share(part: int, total: int) -> float | None:
    return part / total if total else None


def _no_border() -> np.ndarray:
    return np.zeros((len(BORDER_BINS), 3), dtype=np.int64)


def _write(
    manifest: Manifest,
    scorer: Scorer,
    border: np.ndarray,
    protocol: dict[str, Any],
    extra: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """Write the files; `metrics.json` comes last, so that its presence means all are there."""
    names = ["background", *manifest.classes]
    result = scorer.result()
    split = ", ".join(dict.fromkeys(manifest.table["split"]))
    measured = bool(scorer.rows)
    frame = pd.DataFrame({key.removesuffix("_per_class"): result[key] for key in PER_CLASS})
    frame.insert(0, "class", names)
    frame.insert(0, "value", range(len(names)))
    _write_csv(frame if measured else frame.iloc[:0], output / "per_class.csv")
    images = pd.DataFrame(scorer.rows, columns=["image_id", "pixel_accuracy", "miou"])
    _write_csv(images, output / "per_image.csv")
    _write_csv(_by_image_and_class(scorer), output / "per_image_class.csv")
    named = {key: dict(zip(names, result[key], strict=True)) for key in PER_CLASS}
    metrics = {
        **({} if measured else {"reason": f"split `{split}` has no masks, so there is nothing to measure against"}),
        **result,
        **named,
        "border_error": border_table(border),
        **extra,
        "without_mask": len(manifest) - len(scorer.rows),
        "protocol": {**protocol, **({"masks": rule} if (rule := manifest.mask_rule()) else {})},
        "convention": CONVENTION,
        "split": split,
        "manifest": text_hash([manifest.classes, manifest.table.to_csv(lineterminator="\n")]),
    }
    write_json(output / "metrics.json", metrics)
    return metrics


def _by_image_and_class(scorer: Scorer) -> pd.DataFrame:
    """`PICTURE_COUNTS` of the classes in each picture, a few rows a picture."""
    table = np.vstack([np.zeros((0, 1 + len(PICTURE_COUNTS)), dtype=np.int64), *scorer.class_rows])
    frame = pd.DataFrame(table, columns=["value", *PICTURE_COUNTS])
    ids = [row["image_id"] for row in scorer.rows]
    frame.insert(0, "image_id", np.repeat(np.array(ids, dtype=object), [len(rows) for rows in scorer.class_rows]))
    return frame


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    with whole(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")
