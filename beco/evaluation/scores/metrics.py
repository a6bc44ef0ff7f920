"""Segmentation metrics, counted in whole pixels so that neither order nor batching can change a number.

Three conventions hold everywhere: a truth of 255 (void) is left out; a prediction of 255 (no opinion) counts
as background, because that is how pseudo-labels after a CRF are measured in the literature ("CAM+CRF with
255 → 0"); and `MEAN_RULE` says which classes a mean IoU is over, that of a picture, of a split, of a resample of
it, and of the validation in training alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from beco.errors import UserError

VOID = 255
MEAN_RULE = "a class that is predicted and never true has IoU 0 and counts, one that is neither is left out"
"""The classes of a mean IoU, as in IRN's and BECO's evaluation: those with a union (the mean leaves 0/0 out)."""
BAND_OF_DIAGONAL = 0.02
PICTURE_COUNTS = ("truth", "predicted", "both", "band_truth", "band_predicted", "band_both")
"""Pixels of one class in one picture, from which every metric of a set of pictures follows."""


@dataclass(frozen=True)
class Counts:
    """What one picture adds to the totals."""

    confusion: np.ndarray
    """(C, C) int64 pixels; row = truth, column = prediction."""
    band_truth: np.ndarray
    """(C,) int64 pixels of each class near its contour in the truth."""
    band_prediction: np.ndarray
    """(C,) int64, the same in the prediction."""
    band_both: np.ndarray
    """(C,) int64 pixels in both bands of one class."""


def count(prediction: np.ndarray, truth: np.ndarray, num_classes: int, image_id: str = "picture") -> Counts:
    """Count one picture: `prediction` and `truth` are (H, W) uint8 label values, 0 … num_classes − 1 or 255.

    Raises `UserError` when the shapes differ or a value is out of range; `image_id` names the picture there.
    """
    prediction, truth = _checked(prediction, truth, num_classes, image_id)
    valid = truth != VOID
    pairs = truth[valid].astype(np.int64) * num_classes + prediction[valid]
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    width = band_width(*truth.shape)
    near_truth = contour_band(truth, width)
    near_prediction = contour_band(np.where(valid, prediction, VOID), width)
    both = near_truth & near_prediction & (truth == prediction)
    return Counts(
        confusion=confusion.astype(np.int64),
        band_truth=np.bincount(truth[near_truth], minlength=num_classes),
        band_prediction=np.bincount(prediction[near_prediction], minlength=num_classes),
        band_both=np.bincount(truth[both], minlength=num_classes),
    )


def _checked(
    prediction: np.ndarray, truth: np.ndarray, num_classes: int, image_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """The two maps with 255 → 0 in the prediction, or a `UserError`."""
    if prediction.shape != truth.shape:
        raise UserError(
            f"{image_id}: prediction is {_size(prediction)} and mask {_size(truth)} pixels; "
            "run the stage that made the prediction again on this manifest"
        )
    prediction = np.where(prediction == VOID, 0, prediction)
    for name, values in (("prediction", prediction), ("mask", truth[truth != VOID])):
        if values.size and values.max() >= num_classes:
            raise UserError(
                f"{image_id}: {name} holds the value {values.max()}, the manifest knows 0–{num_classes - 1} "
                "and 255; give both the same class list"
            )
    return prediction, truth


def _size(array: np.ndarray) -> str:
    return "×".join(map(str, reversed(array.shape)))


def band_width(height: int, width: int) -> int:
    """Distance d of boundary IoU in pixels: 2 % of the picture's diagonal, rounded, at least 1."""
    return max(1, round(BAND_OF_DIAGONAL * math.hypot(height, width)))


def contour_band(labels: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool: pixels of `labels` (uint8) within `width` px of their own region's contour.

    A mask minus its erosion by a square of radius `width`, as in Cheng et al. 2021, for every label value at
    once: a pixel survives the erosion exactly if its window holds one value only. Beyond the picture's edge
    lies void, so the edge counts as contour; void pixels (255) belong to no band.
    """
    size = 2 * width + 1
    lowest = ndimage.minimum_filter(labels, size=size, mode="constant", cval=VOID)
    highest = ndimage.maximum_filter(labels, size=size, mode="constant", cval=VOID)
    return (lowest != highest) & (labels != VOID)


class Scorer:
    """Accumulates pictures and turns the totals into metrics.

    `num_classes` is the number of label values, background included. Sources: IoU as in the PASCAL VOC
    devkit (over the whole set, not per picture); boundary IoU after Cheng, Girshick, Dollár, Berg,
    Kirillov, "Boundary IoU", CVPR 2021, with the pixels of the intersection and of the union summed per
    class over the set.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.rows: list[dict[str, Any]] = []
        """One row per picture: image_id, pixel_accuracy, miou (0 … 1, None if every pixel is void)."""
        self.class_rows: list[np.ndarray] = []
        """For each picture (n, 7) int64: value and `PICTURE_COUNTS` of the classes that it or its prediction has."""
        self.confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._bands = np.zeros((3, num_classes), dtype=np.int64)

    def add(self, image_id: str, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Add one picture: two (H, W) uint8 label maps; see `count` for what is refused."""
        self.merge(image_id, count(prediction, truth, self.num_classes, image_id))

    def merge(self, image_id: str, counts: Counts) -> None:
        """Add one picture that was counted elsewhere, such as in a pool."""
        self.confusion += counts.confusion
        bands = np.stack([counts.band_truth, counts.band_prediction, counts.band_both])
        self._bands += bands
        confusion = counts.confusion
        pixels = np.vstack([confusion.sum(1), confusion.sum(0), np.diag(confusion), bands])
        seen = np.flatnonzero(pixels.any(0))
        self.class_rows.append(np.vstack([seen, pixels[:, seen]]).T)
        self.rows.append(
            {
                "image_id": image_id,
                "pixel_accuracy": _accuracy(counts.confusion),
                "miou": _mean(_iou(counts.confusion)),
            }
        )

    def result(self) -> dict[str, Any]:
        """All metrics in 0 … 1, lists by label value; None where a class gives no number.

        Means are over the classes that have a true or a predicted pixel (`MEAN_RULE`); in the picture, for a row's
        `miou`. Precision exists for the classes that are predicted, recall for those that are true.
        """
        true, predicted = self.confusion.sum(1), self.confusion.sum(0)
        right = np.diag(self.confusion)
        band_truth, band_prediction, band_both = self._bands
        iou = _iou(self.confusion)
        boundary = _ratio(band_both, band_truth + band_prediction - band_both)
        return {
            "pictures": len(self.rows),
            "miou": _mean(iou),
            "boundary_iou": _mean(boundary),
            "pixel_accuracy": _accuracy(self.confusion),
            "iou": _listed(iou),
            "boundary_iou_per_class": _listed(boundary),
            "precision": _listed(_ratio(right, predicted)),
            "recall": _listed(_ratio(right, true)),
            "truth_pixels": true.tolist(),
            "predicted_pixels": predicted.tolist(),
        }


# --- ratios -------------------------------------------------------------------------------------------------


def _iou(confusion: np.ndarray) -> np.ndarray:
    right = np.diag(confusion)
    return _ratio(right, confusion.sum(0) + confusion.sum(1) - right)


def _accuracy(confusion: np.ndarray) -> float | None:
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else None


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotients, NaN where the denominator is 0."""
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def foreground_mean(values: Sequence[float | None]) -> float | None:
    """Mean over the classes that have a value; the first of them is background and left out."""
    known = [value for value in values[1:] if value is not None]
    return sum(known) / len(known) if known else None


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
