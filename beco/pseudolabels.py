"""`labels.h5`, the contract between the two stages: pseudo-label, confidence, and the reliable pixels of each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from beco.store import Store

UNCERTAIN = 255
LEVELS = 255


def quantised(confidence: np.ndarray) -> np.ndarray:
    """Confidences in [0, 1] as they are stored: uint8, in steps of 1/255; only what is 0 becomes 0.

    float16 would take four times the room and tell apart what no rule needs: COCO's training pictures would need
    11 GB instead of 3.
    """
    steps = np.rint(np.clip(confidence, 0, 1) * np.float32(LEVELS))
    return np.where(confidence > 0, np.maximum(steps, 1), 0).astype(np.uint8)


class PseudoLabels:
    """Reads `labels.h5` by image id. May be handed to worker processes."""

    def __init__(self, path: Path | str) -> None:
        self.store = Store(path)

    def ids(self) -> list[str]:
        """Image ids in the file."""
        return self.store.ids("label")

    def label(self, image_id: str) -> np.ndarray:
        """(H, W) uint8: 0 = background, k = the manifest's k-th class, 255 = no opinion."""
        return self.store.get("label", image_id)

    def confidence(self, image_id: str) -> np.ndarray:
        """(H, W) float32 in [0, 1]: best minus second-best score, to 1/255 (see `quantised`)."""
        found = self.store.get("confidence", image_id)
        if found.dtype == np.uint8:
            return found / np.float32(LEVELS)
        return found.astype(np.float32)  # of a file made before confidences were quantised

    def reliable(self, image_id: str, fraction: float, threshold: float | None = None) -> np.ndarray:
        """(H, W) bool: the most confident pixels, see `reliable_pixels`."""
        return reliable_pixels(self.label(image_id), self.confidence(image_id), fraction, threshold)


def reliable_pixels(
    label: np.ndarray, confidence: np.ndarray, fraction: float, threshold: float | None = None
) -> np.ndarray:
    """The most confident `fraction` of each class's pixels in one picture, as published for BECO with 0.5.

    With a `threshold`, `fraction` does not count: all pixels are reliable whose confidence is at least that.
    `label` (H, W) uint8 and `confidence` (H, W) give an (H, W) bool array. Of a class with n pixels, those are kept
    whose confidence is at least that of the ⌊fraction · n⌋-th most confident one. Pixels that tie with it are kept
    too: which of them an unstable sort would have kept is arbitrary. Pixels without any confidence and uncertain
    ones (255) are never reliable.
    """
    if threshold is not None:
        return (label != UNCERTAIN) & (confidence >= threshold) & (confidence > 0)
    reliable = np.zeros(label.shape, dtype=bool)
    for value in np.unique(label):
        if value == UNCERTAIN:
            continue
        here = label == value
        scores = confidence[here]
        kept = int(fraction * scores.size)
        if kept > 0:
            threshold = np.partition(scores, scores.size - kept)[scores.size - kept]
            reliable[here] = (scores >= threshold) & (scores > 0)
    return reliable
