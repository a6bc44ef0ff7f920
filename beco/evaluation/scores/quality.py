"""How good pseudo-labels are, and how far their confidence can be trusted, against the masks of their pictures.

These are the numbers behind the paper's Figures 1 and 2: mIoU, errors by distance to a true border inside and outside
the reliable mask, and how often a pixel of a given confidence is right.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from beco.artifacts import supervision
from beco.artifacts.ordered import in_order
from beco.artifacts.pseudolabels import MARGINS, UNCERTAIN, PseudoLabels
from beco.datasets.belonging import check_label, open_labels
from beco.datasets.manifest import Manifest
from beco.errors import UserError
from beco.evaluation.scores import spread
from beco.evaluation.scores.borders import BORDER_BINS, NearBorder, border_distance, near_border
from beco.evaluation.scores.evaluate import write_result
from beco.evaluation.scores.metrics import VOID, Counts, Scorer, count
from beco.schema.stage2 import not_kept

CALIBRATION_BINS = 15
TOLERANCE = 0.01  # between a share asked for and one obtained
APART = ("miou", "boundary_iou", "pixel_accuracy", "pictures")

log = logging.getLogger("beco")


@dataclass
class Trust:
    """What one picture, or a sum of pictures, tells of the confidence."""

    pixels: np.ndarray
    """(5,) int64: all pixels, those without an opinion, reliable ones; pixels of true objects, their reliable ones."""
    by_label: np.ndarray
    """(2, 2) int64: pixels labelled background and as objects; those and the reliable ones of them."""
    by_level: np.ndarray
    """(256, 2) int64: pixels with an opinion and a truth by the level of their confidence; those that are right."""
    by_distance: np.ndarray
    """(bins of `BORDER_BINS`, 2, 2) int64: reliable pixels and the others with an opinion; all and wrong ones."""

    @classmethod
    def nothing(cls) -> Trust:
        """The sum of no pictures."""
        shapes = (5,), (2, 2), (len(MARGINS), 2), (len(BORDER_BINS), 2, 2)
        return cls(*(np.zeros(shape, dtype=np.int64) for shape in shapes))

    def add(self, other: Trust) -> None:
        """Add another picture's numbers."""
        self.pixels += other.pixels
        self.by_label += other.by_label
        self.by_level += other.by_level
        self.by_distance += other.by_distance

    def result(self) -> dict[str, Any]:
        """All numbers as `metrics.json` has them; None where there is nothing to divide by."""
        every, uncertain, reliable, objects, of_objects = (int(number) for number in self.pixels)
        (background, of_background), (objects_claimed, of_claimed) = self.by_label
        inside, outside = self.by_distance.sum(0)
        return {
            "uncertain": share(uncertain, every),
            "reliable": {
                "share": share(reliable, every),
                "share_objects": share(of_objects, objects),
                "obtained": share(reliable, every - uncertain),
                "obtained_background": share(of_background, background),
                "obtained_objects": share(of_claimed, objects_claimed),
                "accuracy_inside": share(inside[0] - inside[1], inside[0]),
                "accuracy_outside": share(outside[0] - outside[1], outside[0]),
            },
            "confidence": {"auroc": auroc(self.by_level), "bins": self._calibration()},
            "border_trust": self._by_distance(),
        }

    def _calibration(self) -> list[dict[str, Any]]:
        rows = []
        for number in range(CALIBRATION_BINS):
            here = np.minimum((MARGINS * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1) == number
            pixels, right = self.by_level[here].sum(0)
            mean = share(float(self.by_level[here, 0] @ MARGINS[here].astype(float)), int(pixels))
            bounds = {"from": number / CALIBRATION_BINS, "to": (number + 1) / CALIBRATION_BINS}
            rows.append({**bounds, "pixels": int(pixels), "confidence": mean, "accuracy": share(right, pixels)})
        return rows

    def _by_distance(self) -> list[dict[str, Any]]:
        return [
            {
                "from": low,
                "to": high,
                "reliable_share": share(inside[0], inside[0] + outside[0]),
                "error_reliable": share(inside[1], inside[0]),
                "error_rest": share(outside[1], outside[0]),
            }
            for (low, high), (inside, outside) in zip(BORDER_BINS, self.by_distance, strict=True)
        ]


def share(part: float, total: int) -> float | None:
    """A quotient, or None of nothing."""
    return float(part / total) if total else None


def auroc(by_level: np.ndarray) -> float | None:
    """Chance that a right pixel has a higher confidence than a wrong one, ties counting half.

    `by_level` is (levels, 2) int: pixels and right ones by confidence. This is the area under the ROC curve of the
    confidence as a detector of right pixels (Mann-Whitney); 0.5 means that it knows nothing. None if all are right, or
    all wrong.
    """
    right = by_level[:, 1].astype(float)
    wrong = by_level[:, 0] - right
    if not right.sum() or not wrong.sum():
        return None
    below = np.cumsum(wrong) - wrong
    return float(right @ (below + wrong / 2) / (right.sum() * wrong.sum()))


def not_as_asked(reliable: Mapping[str, Any]) -> str:
    """What to say where the reliable share is not the one asked for, to a point; "" where it is, or none was.

    `reliable` is that of `metrics.json`. More than was asked for are reliable where confidences are equal, which are
    kept or left together; fewer where there is no confidence.
    """
    asked = reliable.get("asked")
    kinds = {"background": "obtained_background", "objects": "obtained_objects"}
    obtained = {kind: value for kind, key in kinds.items() if (value := reliable.get(key)) is not None}
    if asked is None or all(abs(value - asked) <= TOLERANCE for value in obtained.values()):
        return ""
    shares = ", ".join(f"{100 * value:.0f} % of {kind}" for kind, value in obtained.items())
    fewer = all(value < asked + TOLERANCE for value in obtained.values())
    why = "pixels without confidence never are" if fewer else "equal confidences are kept or left together"
    return f"{100 * asked:g} % were to be reliable, and {shares} are: {why}"


def trust_of(
    label: np.ndarray,
    level: np.ndarray,
    reliable: np.ndarray,
    truth: np.ndarray | None,
    distance: np.ndarray | None = None,
) -> Trust:
    """The numbers of one picture: (H, W) arrays, uint8, levels, bool, and uint8 or None without a mask.

    `distance` is `border_distance` of the truth, if it is at hand. Only pixels with an opinion count as right or wrong:
    an uncertain one claims nothing.
    """
    found = Trust.nothing()
    found.pixels[:3] = label.size, np.count_nonzero(label == UNCERTAIN), np.count_nonzero(reliable)
    for row, claimed in zip(found.by_label, (label == 0, (label > 0) & (label != UNCERTAIN)), strict=True):
        row[:] = np.count_nonzero(claimed), np.count_nonzero(claimed & reliable)
    if truth is None:
        return found
    objects = (truth != VOID) & (truth > 0)
    found.pixels[3:] = np.count_nonzero(objects), np.count_nonzero(objects & reliable)
    known = (truth != VOID) & (label != UNCERTAIN)
    wrong, levels = label[known] != truth[known], level[known]
    found.by_level[:, 0] = np.bincount(levels, minlength=len(MARGINS))
    found.by_level[:, 1] = np.bincount(levels[~wrong], minlength=len(MARGINS))
    distance = border_distance(truth) if distance is None else distance
    bins = np.digitize(distance[known], [low for low, _ in BORDER_BINS[1:]])
    cells = (bins * 2 + ~reliable[known]) * 2
    flat = np.bincount(cells, minlength=found.by_distance.size)
    flat[1::2] = np.bincount(cells[wrong], minlength=len(flat))[::2]
    found.by_distance[:] = flat.reshape(found.by_distance.shape)
    return found


def evaluate_labels(
    manifest: Manifest,
    labels: Path,
    output: Path,
    fraction: float = 0.5,
    threads: int = 2,
    threshold: float | None = None,
    apart: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Measure the pseudo-labels in `labels` (`labels.h5`) on the pictures of `manifest`, usually the
    training split.

    Writes and returns what `evaluate_predictions` does, and in addition, over every picture whether it has a mask or
    not: `uncertain`, the share of pixels without an opinion (255), and `reliable` with the `share` of all pixels that
    the reliable mask keeps (by `fraction` or `threshold`, see `Picture.reliable`), the share that was `asked` for
    and the one `obtained` of the pixels with an opinion, of all, those labelled background, and as objects; where these
    differ by more than a point, a warning says so. Over the pixels that have an opinion and a truth: `accuracy_inside`
    and `accuracy_outside` the mask, `confidence` with its `auroc` and accuracy by bins, and `border_trust`, error rates
    by distance to the border inside and outside the mask. `spread` says how much of the pictures that show a class is
    background (`beco.evaluation.scores.spread`), and what no photographs have is warned of; `supervision` says what the
    labels were made from (`beco.artifacts.supervision`). `apart` names lists of pictures whose mIoU is given once more
    for them alone (VOC: train within train_aug).
    """
    if words := not_kept(fraction if threshold is None else None, threshold):
        raise UserError(f"{'--fraction' if threshold is None else '--threshold'}: {words}")
    source = open_labels(labels, manifest)
    size = len(manifest.classes) + 1
    total, border, trust = Scorer(size), NearBorder.nothing(size), Trust.nothing()
    spreads = np.zeros(5, dtype=np.int64)
    lists = {name: (set(ids), Scorer(size)) for name, ids in (apart or {}).items()}
    rule = {"reliable_fraction": fraction} if threshold is None else {"reliable_threshold": threshold}
    work = partial(_one, manifest, set(manifest.with_masks().ids), source, (fraction, threshold))
    each = in_order(work, manifest.ids, threads, "evaluate labels")
    for image_id, (one, own_spread, measured) in zip(manifest.ids, each, strict=True):
        trust.add(one)
        spreads += own_spread
        if measured:
            counts, near = measured
            total.merge(image_id, counts)
            border.add(near)
            for members, scorer in lists.values():
                if image_id in members:
                    scorer.merge(image_id, counts)
    made_from = supervision.said_by(source.store.attributes)
    source.store.close()
    trusted = trust.result()
    trusted["reliable"]["asked"] = fraction if threshold is None else None
    if words := not_as_asked(trusted["reliable"]):
        log.warning("%s: %s", labels, words)
    found = spread.result(spreads)
    for words in spread.warnings(found):
        log.warning("%s: %s", labels, words)
    extra = {
        **trusted,
        "spread": found,
        supervision.KEY: made_from,
        "apart": {name: {key: scorer.result()[key] for key in APART} for name, (_, scorer) in lists.items()},
    }
    return write_result(manifest, total, border, rule, extra, output)


def _one(
    manifest: Manifest,
    masks: set[str],
    source: PseudoLabels,
    rule: tuple[float, float | None],
    image_id: str,
) -> tuple[Trust, np.ndarray, tuple[Counts, NearBorder] | None]:
    pseudo = source.picture(image_id)
    label, reliable = pseudo.label, pseudo.reliable(*rule)
    check_label(source.store.path, image_id, label, manifest)
    own_spread = spread.spread_of(label, bool(manifest.present(image_id)))
    if image_id not in masks:
        return trust_of(label, pseudo.level, reliable, None), own_spread, None
    truth = manifest.mask(image_id)
    classes = len(manifest.classes) + 1
    counts = count(label, truth, classes, image_id)
    distance = border_distance(truth)
    trust = trust_of(label, pseudo.level, reliable, truth, distance)
    return trust, own_spread, (counts, near_border(label, truth, classes, distance))
