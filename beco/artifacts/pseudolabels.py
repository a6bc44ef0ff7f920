"""`labels.h5`, the contract between the two stages: pseudo-label, confidence, and the reliable pixels of each class.

Confidence is the margin of the best score over the second best. Two things are kept of it, in one byte a pixel:

- its rank: the share of the pixels of its class, in its picture, that are as confident as the pixel or more so, in
  steps of 1/20. Whatever fraction of a class is asked for is read off it exactly, wherever scores lie: the margins of a
  CRF's posteriors differ in the eighth decimal over half of a photograph, and any rounding of the margin before the cut
  makes these equal.
- the margin itself in steps of 1/200, for thresholds; close to 1, where a step holds half of a picture, as finely as
  the ranks divide it.

Within a class both fall with the confidence, so their pairs can be counted off from the most confident one: the layer
`confidence` has that number, and its attribute `steps` what the numbers stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beco.artifacts.store import Store, Writer
from beco.errors import UserError

UNCERTAIN = 255
RANKS = 20
LINEAR = 200
LEVELS = np.concatenate(
    [
        1 - np.arange(LINEAR) / LINEAR + 1e-7,  # the margin may be a float32
        np.geomspace(0.005, 1e-8, 257 - LINEAR)[1:],
    ]
)
"""(256,) float64: what may at most be missing to a margin of 1 at each level. Margins in steps of 0.005 up to 0.995,
then some nine steps a decade of what is missing."""
MARGINS = np.concatenate([np.arange(LINEAR) / LINEAR, 1 - LEVELS[LINEAR:]]).astype(np.float32)
"""(256,) float32: the lowest margin of each level."""


def doubt_of(scores: np.ndarray, probabilities: bool = False) -> np.ndarray:
    """What is missing to a margin of 1 between the best and the second best of scores: 1 − (best − second).

    `scores` (C, …) float -> (…) float64 up to 1, 0 for a single plane; below 0 only where scores exceed 1, as those of
    other programs may. `probabilities` sum to 1 over C: then it is twice the second best plus all smaller ones, and so
    known to the last digit where the best is close to 1 and a margin of floats would be 1.
    """
    if len(scores) < 2:
        return np.zeros(scores.shape[1:])
    ordered = np.partition(scores, -2, axis=0)
    if probabilities:
        doubt = ordered[:-1].sum(0, dtype=np.float64) + ordered[-2]
    else:
        doubt = 1 - (ordered[-1].astype(np.float64) - ordered[-2])
    return np.minimum(doubt, 1)  # rounding may leave a little more


def levels_of(doubt: np.ndarray) -> np.ndarray:
    """Doubts as margins are kept: (…) uint8, the highest position of `LEVELS` that is not exceeded."""
    return (np.searchsorted(-LEVELS, -np.asarray(doubt, np.float64), side="right") - 1).clip(0).astype(np.uint8)


def ranks_of(doubt: np.ndarray) -> np.ndarray:
    """Where each of the n pixels of a class stands, the most confident first: (n,) int64, 1 … 20.

    The one that p − 1 others exceed in confidence gets ⌈20 · p / n⌉, and equals get the same; 0 where there is no
    confidence (`doubt` is 1).
    """
    place = np.searchsorted(np.sort(doubt), doubt, side="left") + 1
    return np.where(doubt < 1, -(-RANKS * place // doubt.size), 0)


@dataclass(frozen=True)
class Picture:
    """The pseudo-label of one picture, each (H, W) uint8."""

    label: np.ndarray
    """0 = background, k = the manifest's k-th class, 255 = no opinion."""
    rank: np.ndarray
    """See `ranks_of`; 0 where there is no opinion, too."""
    level: np.ndarray
    """Position of the margin in `LEVELS`; 0 where there is no opinion."""

    def confidence(self) -> np.ndarray:
        """(H, W) float32 in [0, 1]: best minus second-best score, rounded down as `LEVELS` and `RANKS` have it."""
        return MARGINS[self.level]

    def reliable(self, fraction: float, threshold: float | None = None) -> np.ndarray:
        """(H, W) bool: the most confident `fraction` of each class's pixels, as published for BECO with 0.5.

        Of a class with n pixels in the picture ⌊fraction · n⌋ are kept, for fractions in steps of 0.05. Pixels that tie
        with the last of them are kept too: which of them an unstable sort would have kept is arbitrary. With a
        `threshold`, in steps of 0.005 up to 0.995, `fraction` does not count: all pixels are reliable whose confidence
        is at least that. Pixels without any confidence and uncertain ones (255) are never reliable.
        """
        if threshold is None:
            return (self.rank > 0) & (self.rank <= int(fraction * RANKS + 1e-6))
        return (self.rank > 0) & (self.level >= int(threshold * LINEAR + 1e-6))


def put(writer: Writer, image_id: str, label: np.ndarray, doubt: np.ndarray) -> None:
    """Store one picture: `label` (H, W) uint8 and `doubt` (H, W) float, see `doubt_of`.

    `steps` has a row (label, number, rank, level) for each step; of a step that holds several levels the lowest.
    """
    number, rows = np.zeros(label.shape, np.uint8), []
    for value in np.unique(label[label != UNCERTAIN]):
        here = label == value
        rank, level = ranks_of(doubt[here]), levels_of(doubt[here]).astype(int)
        known = rank > 0
        pairs = (RANKS - rank[known]) * LINEAR + np.minimum(level[known], LINEAR - 1)
        steps, index = np.unique(-pairs, return_inverse=True)  # at most 20 + 200 - 1, since both are monotone
        lowest = np.full(steps.size, 255)
        np.minimum.at(lowest, index, level[known])
        ranks = RANKS - (-steps) // LINEAR
        rows.append(np.stack([np.full(steps.size, value), np.arange(1, steps.size + 1), ranks, lowest], 1))
        counted = np.zeros(known.size, np.uint8)
        counted[known] = index + 1
        number[here] = counted
    writer.put("label", image_id, label)
    writer.put("confidence", image_id, number, steps=np.concatenate([np.zeros((0, 4)), *rows]).astype(np.uint8))


class PseudoLabels:
    """Reads `labels.h5` by image id. May be handed to worker processes."""

    def __init__(self, path: Path | str) -> None:
        self.store = Store(path)

    def ids(self) -> list[str]:
        """Image ids in the file."""
        return self.store.ids("label")

    def check(self) -> None:
        """UserError if the file is of an older version, before the first picture is read."""
        for image_id in self.store.ids("confidence")[:1]:
            self._steps(image_id)

    def label(self, image_id: str) -> np.ndarray:
        """(H, W) uint8, see `Picture.label`, without a look at its confidence."""
        self._expect("label", image_id)
        return self.store.get("label", image_id)

    def size(self, image_id: str) -> tuple[int, ...]:
        """Height and width; no pixel is read. UserError if label and confidence are not bytes of one size, above 0."""
        label, confidence = self._expect("label", image_id), self._expect("confidence", image_id)
        if label != confidence:
            raise UserError(
                f"{self.store.path}: the confidence of {image_id} is {confidence[1]}×{confidence[0]}, its label "
                f"{label[1]}×{label[0]} (width×height); remove the file and run its stage again"
            )
        return label

    def _expect(self, layer: str, image_id: str) -> tuple[int, ...]:
        size = self.store.expect(layer, image_id, np.uint8, 2)
        if 0 in size:
            raise UserError(
                f"{self.store.path}: {layer} of {image_id} has no pixel ({size[1]}×{size[0]}); remove the file and run "
                "its stage again"
            )
        return size

    def picture(self, image_id: str) -> Picture:
        """All that is known of one picture. UserError for the file of an older version."""
        self.size(image_id)
        label, number = self.store.get("label", image_id), self.store.get("confidence", image_id)
        value, position, ranks, levels = self._steps(image_id).T
        tables = np.zeros((2, 256, 256), np.uint8)
        tables[:, value, position] = ranks, levels
        rank, level = tables[:, label, number]
        return Picture(label, rank, level)

    def highest(self, image_id: str) -> int:
        """The highest label of a picture's pixels that have any confidence; no pixel is read."""
        return int(self._steps(image_id)[:, 0].max(initial=0))

    def _steps(self, image_id: str) -> np.ndarray:
        try:
            steps = np.asarray(self.store.attribute("confidence", image_id, "steps"))
        except KeyError as error:
            raise UserError(
                f"{self.store.path}: made by an older version, whose confidences cannot tell the most reliable pixels "
                "apart; remove it and run its stage again (beco labels or beco import-labels)"
            ) from error
        if steps.dtype != np.uint8 or steps.ndim != 2 or steps.shape[1] != 4:
            raise UserError(
                f"{self.store.path}: the attribute steps of {image_id} is no table of four columns of bytes; remove "
                "the file and run its stage again"
            )
        return steps
