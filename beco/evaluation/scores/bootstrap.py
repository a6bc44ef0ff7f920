"""Paired bootstrap over pictures: how far a difference between two experiments would move on other pictures.

Pictures of the split are drawn with replacement, as many as there are, and the metrics are computed anew from the sums
of their pixel counts (Efron & Tibshirani 1993, percentile interval). Both experiments, and all their seeds, are
measured on the same draws, so that what is hard about a picture leaves the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from beco.errors import UserError
from beco.evaluation.scores.differences import LEVEL
from beco.evaluation.scores.metrics import PICTURE_COUNTS
from beco.evaluation.tables.tables import RUN_NUMBERS, read_csv

FILE = "per_image_class.csv"
RESAMPLES = 1000
SEED = 0
CHUNK = 2**22
"""Draws (resamples × pictures) held at once; bounds the memory at a few dozen MB."""


@dataclass(frozen=True)
class PictureCounts:
    """What the pictures of a split add to the totals."""

    ids: list[str]
    table: sparse.csr_array
    """(N, C · 6) float64 pixels: for each label value the counts of `PICTURE_COUNTS`."""

    @classmethod
    def read(cls, folder: Path) -> PictureCounts | None:
        """Those that `evaluate` wrote into `folder`; None if an older version of it did not."""
        if not (folder / FILE).is_file():
            return None
        ids = read_csv(folder / "per_image.csv")["image_id"].tolist()
        rows = read_csv(folder / FILE)
        number = {image_id: row for row, image_id in enumerate(ids)}
        classes = int(rows["value"].max()) + 1 if len(rows) else 1
        try:
            pictures = np.array([number[image_id] for image_id in rows["image_id"]], dtype=np.int64)
            values = rows[list(PICTURE_COUNTS)].to_numpy(dtype=np.float64)
        except (KeyError, ValueError) as error:
            raise UserError(f"{folder / FILE}: does not fit per_image.csv; evaluate again") from error
        width = len(PICTURE_COUNTS)
        columns = rows["value"].to_numpy(dtype=np.int64)[:, None] * width + np.arange(width)
        places = (np.repeat(pictures, width), columns.ravel())
        return cls(ids, sparse.csr_array((values.ravel(), places), shape=(len(ids), classes * width)))


def add_picture_intervals(differences: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """`difference_table` with `<name>_pictures_low` and `<name>_pictures_high` for each of `RUN_NUMBERS`.

    `runs` is `tables.run_table`, whose folders hold the counts. The ends are empty where the counts are missing, or
    where two runs of a pair were not measured on the same pictures.
    """
    folders = {(str(row["experiment"]), int(row["seed"])): Path(str(row["folder"])) for _, row in runs.iterrows()}
    found: dict[Path, tuple[list[str], np.ndarray] | None] = {}

    def distribution(folder: Path) -> tuple[list[str], np.ndarray] | None:
        if folder not in found:
            counts = PictureCounts.read(folder)
            found[folder] = (counts.ids, resampled(counts)) if counts and counts.ids else None
        return found[folder]

    ends = []
    for row in differences.to_dict("records"):
        seeds = [int(seed) for seed in str(row["seed_list"]).split(";")]
        sides = [[distribution(folders[str(row[side]), seed]) for seed in seeds] for side in ("experiment", "minus")]
        ends.append(_ends(sides[0], sides[1]))
    columns = [f"{name}_pictures_{end}" for name in RUN_NUMBERS for end in ("low", "high")]
    limits = pd.DataFrame(np.array(ends, dtype=float).reshape(-1, len(columns)), columns=columns)
    return pd.concat([differences.reset_index(drop=True), limits], axis=1)


Side = list[tuple[list[str], np.ndarray] | None]


def _ends(later: Side, earlier: Side) -> np.ndarray:
    """(3, 2): low and high end for each metric of later minus earlier, averaged over seeds before."""
    known = [item for item in (*later, *earlier) if item is not None]
    if len(known) < len(later) + len(earlier) or any(ids != known[0][0] for ids, _ in known):
        return np.full((len(RUN_NUMBERS), 2), np.nan)
    values = [values for _, values in known]
    difference = np.mean(values[: len(later)], axis=0) - np.mean(values[len(later) :], axis=0)
    return np.quantile(difference, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T


def resampled(counts: PictureCounts, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """(resamples, 3) mIoU, boundary IoU and pixel accuracy (`RUN_NUMBERS`) of as many draws of the pictures.

    The draws follow from `seed` and the number of pictures alone: two runs on the same pictures see the same ones.
    """
    table = counts.table.T.tocsr()
    return np.concatenate([scores((table @ weights.T).T) for weights in _weights(len(counts.ids), resamples, seed)])


def _weights(pictures: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of (r, N) float64: how often each resample draws each picture; a row sums to N."""
    rng = np.random.default_rng(seed)
    block = max(CHUNK // pictures, 1)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        draws = rng.integers(pictures, size=(rows, pictures)) + np.arange(rows)[:, None] * pictures
        yield np.bincount(draws.ravel(), minlength=rows * pictures).reshape(rows, pictures).astype(np.float64)


def scores(totals: np.ndarray) -> np.ndarray:
    """(r, C · 6) sums of counts to (r, 3) mIoU, boundary IoU and pixel accuracy, as `Scorer.result` computes them."""
    truth, predicted, both, band_truth, band_predicted, band_both = np.moveaxis(
        totals.reshape(len(totals), -1, len(PICTURE_COUNTS)), 2, 0
    )
    return np.stack(
        [
            _mean_ratio(both, truth + predicted - both),
            _mean_ratio(band_both, band_truth + band_predicted - band_both),
            _mean_ratio(both.sum(1, keepdims=True), truth.sum(1, keepdims=True)),
        ],
        axis=1,
    )


def _mean_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """(r, C) quotients to their (r,) means over the classes whose denominator is not 0; NaN if there is none.

    That is `metrics.MEAN_RULE`: in a resample that lost all pictures of a class, what is predicted of it still counts.
    """
    known = below > 0
    total = np.divide(above, below, out=np.zeros(below.shape), where=known).sum(1)
    return np.divide(total, known.sum(1), out=np.full(len(total), np.nan), where=known.any(1))
