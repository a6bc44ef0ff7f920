"""What happens near the true borders: error rates by distance, and IoU of the pixels within a few pixels of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from beco.evaluation.scores.metrics import VOID

BORDER_BINS = ((0, 1), (2, 3), (4, 7), (8, 15), (16, None))
"""Ranges of the distance to the true border in pixels, both ends included; None = no upper end."""
TRIMAP = 20
"""Widest band around a border whose IoU is measured, pixels on either side."""


@dataclass
class NearBorder:
    """Pixels by their distance to the true border, of one picture or a sum of pictures."""

    by_bin: np.ndarray
    """(bins of `BORDER_BINS`, 3) int64: valid pixels, wrong ones, 255s."""
    by_class: np.ndarray
    """(`TRIMAP`, classes, 3) int64: pixels at distance 0, 1, … of a class in the truth, in the prediction, in both."""

    @classmethod
    def nothing(cls, num_classes: int) -> NearBorder:
        """The sum of no pictures."""
        return cls(np.zeros((len(BORDER_BINS), 3), np.int64), np.zeros((TRIMAP, num_classes, 3), np.int64))

    def add(self, other: NearBorder) -> None:
        """Add another picture's numbers."""
        self.by_bin += other.by_bin
        self.by_class += other.by_class

    def result(self) -> dict[str, Any]:
        """`border_error` (see `border_table`) and `trimap_iou` (see `trimap_iou`), as `metrics.json` has them."""
        return {"border_error": border_table(self.by_bin), "trimap_iou": trimap_iou(self.by_class)}


def border_distance(truth: np.ndarray) -> np.ndarray:
    """(H, W) int32 chessboard distance in pixels to the nearest border in `truth` ((H, W) uint8).

    0 where one of the eight neighbours has another value; void counts as a value (in VOC it is the border),
    the picture's edge does not count. Where the picture has no border at all, the distance exceeds any
    picture's.
    """
    border = ndimage.minimum_filter(truth, size=3, mode="nearest") != ndimage.maximum_filter(
        truth, size=3, mode="nearest"
    )
    if not border.any():
        return np.full(truth.shape, np.iinfo(np.int32).max, dtype=np.int32)
    return ndimage.distance_transform_cdt(~border, metric="chessboard").astype(np.int32)


def near_border(
    prediction: np.ndarray, truth: np.ndarray, num_classes: int, distance: np.ndarray | None = None
) -> NearBorder:
    """Count one picture: (H, W) uint8 label values, as `metrics.count` takes and has checked them.

    `distance` is `border_distance` of the truth, if it is at hand.
    """
    distance = border_distance(truth) if distance is None else distance
    valid = (truth != VOID) & (distance < TRIMAP)
    depth, true = distance[valid].astype(np.int64), truth[valid]
    found = np.where(prediction[valid] == VOID, 0, prediction[valid])
    right, size = true == found, TRIMAP * num_classes
    sides = [(depth, true), (depth, found), (depth[right], true[right])]
    by_class = [np.bincount(place * num_classes + value, minlength=size) for place, value in sides]
    return NearBorder(count_border(prediction, truth, distance), np.stack(by_class, 1).reshape(TRIMAP, num_classes, 3))


def count_border(prediction: np.ndarray, truth: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """(bins, 3) int64 for one picture and `BORDER_BINS`: valid pixels, wrong ones, 255s.

    A pixel without an opinion counts as background, and so as wrong where the truth is an object.
    """
    valid = truth != VOID
    bins = np.digitize(distance[valid], [low for low, _ in BORDER_BINS[1:]])
    silent = prediction[valid] == VOID
    wrong = np.where(silent, 0, prediction[valid]) != truth[valid]
    size = len(BORDER_BINS)
    return np.stack(
        [
            np.bincount(bins, minlength=size),
            np.bincount(bins[wrong], minlength=size),
            np.bincount(bins[silent], minlength=size),
        ],
        axis=1,
    ).astype(np.int64)


def border_table(totals: np.ndarray) -> list[dict[str, Any]]:
    """The sum of `count_border` over a split as rows: from, to (px), pixels, error, uncertain (shares)."""
    return [
        {
            "from": low,
            "to": high,
            "pixels": int(pixels),
            "error": float(wrong / pixels) if pixels else None,
            "uncertain": float(silent / pixels) if pixels else None,
        }
        for (low, high), (pixels, wrong, silent) in zip(BORDER_BINS, totals, strict=True)
    ]


def trimap_iou(totals: np.ndarray) -> list[float | None]:
    """mIoU of the pixels within k = 1 … `TRIMAP` pixels of a true border (Kohli, Ladický, Torr, IJCV 2009).

    `totals` is `NearBorder.by_class`. With k = 1 these are the pixels that touch another value; a class that neither
    the truth nor the prediction has there is left out of the mean, and one that is only predicted there counts with 0.
    """
    truth, predicted, both = np.moveaxis(totals.cumsum(0), -1, 0)
    union = truth + predicted - both
    found: list[float | None] = []
    for intersection, whole in zip(both, union, strict=True):
        known = whole > 0
        found.append(float((intersection[known] / whole[known]).mean()) if known.any() else None)
    return found
