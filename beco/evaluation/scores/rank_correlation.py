"""Which property of pseudo-labels predicts the network: the question of the paper's Figure 1, as rank correlations.

Trainings with the same settings on several pseudo-labels are one group; each of its pseudo-labels is one point.
Spearman's coefficient between a property of the labels and the networks' mIoU says whether the order of one is that of
the other; its interval is that of a percentile bootstrap over the points (Efron & Tibshirani 1993), i.e. what other
pseudo-labels of the same kind would have given. Of an order that is perfect it has no width, however few the points
are, so there stands also how often an order at random would be as far from 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from beco.evaluation.scores.differences import LEVEL
from beco.evaluation.tables.tables import Run

PROPERTIES = ("miou", "precision", "recall", "boundary_iou", "pixel_accuracy", "accuracy_reliable")
LEAST = 4
"""Pseudo-labels of a group, below which an order says nothing."""
RESAMPLES = 2000
ORDERS = 10_000
"""Random orders; all of them where there are fewer."""
SEED = 0
COLUMNS = ["recipe", "experiments", "labels", "starts", "supervision", "property", "correlation", "low", "high", "p"]


def correlation_table(
    runs: Iterable[Run], labels: pd.DataFrame, properties: Sequence[str] = PROPERTIES
) -> pd.DataFrame:
    """One row per group of experiments and property of their labels; without a group, the header alone.

    `labels` is `label_tables.label_table`; its rows of the labels' first split count. `experiments` names the group's,
    `labels` counts its pseudo-labels, `starts` the weights that the networks started from, of which more than one is a
    second difference between them, as is more than one `supervision` that the labels were made from. `correlation` is
    Spearman's, from −1 to 1, empty where a property or the mIoU is the same everywhere or unknown, `low` and `high` are
    its 95 % interval, and `p` is that of `by_chance`.
    """
    known = labels.drop_duplicates("labels").set_index("labels")
    rows = []
    for names, recipe, group in _groups(runs):
        group = group[group["labels"].isin(known.index)]
        points = group.groupby("labels", sort=False)["miou"].mean()
        if len(points) < LEAST:
            continue
        of = known.loc[points.index]
        told = (recipe, ";".join(names), len(points), group["start"].nunique(), ";".join(of["supervision"].unique()))
        for name in properties:
            both = of[name].to_numpy(float), points.to_numpy(float)
            rows.append((*told, name, *correlated(*both), by_chance(*both)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _groups(runs: Iterable[Run]) -> list[tuple[list[str], str, pd.DataFrame]]:
    """Names of the experiments, their recipe, and a row (labels, start, miou) a run, of those that differ in their
    labels alone, or in the weights that they start from.
    """
    rows = []
    for run in runs:
        training = run.training()
        if "recipe" in training and run.labels != "truth":
            start, metrics = str(training.get("weights")), run.metrics()  # a file's by its content
            group = _settings(training, metrics)
            rows.append((group, training["recipe"], run.experiment, run.labels, start, metrics["miou"]))
    frame = pd.DataFrame(rows, columns=["settings", "recipe", "experiment", "labels", "start", "miou"])
    return [
        (list(dict.fromkeys(group["experiment"])), group["recipe"].iloc[0], group[["labels", "start", "miou"]])
        for _, group in frame.groupby("settings", sort=False)
    ]


def _settings(training: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """What two trainings have to share to be one group; seeds, labels and what the encoder starts from may differ."""
    return json.dumps(
        [training.get("recipe"), training.get("settings"), training.get("network"), metrics.get("protocol")]
    )


def correlated(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Spearman's coefficient of two (n,) float64 arrays, and its percentile interval over `RESAMPLES` draws of points.

    All three NaN where either holds NaN or one value only. Draws in which all points are alike in one of them have no
    coefficient and are left out.
    """
    if np.isnan(first).any() or np.isnan(second).any():
        return np.nan, np.nan, np.nan
    drawn = np.random.default_rng(SEED).integers(len(first), size=(RESAMPLES, len(first)))
    every = spearman(first[drawn], second[drawn])
    every = every[~np.isnan(every)]
    found = float(spearman(first[None], second[None])[0])
    if np.isnan(found) or not len(every):
        return np.nan, np.nan, np.nan
    low, high = np.quantile(every, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return found, float(low), float(high)


def by_chance(first: np.ndarray, second: np.ndarray) -> float:
    """The share of all orders of `first`, or of `ORDERS` random ones, whose coefficient is at least as far from 0: a
    two-sided permutation test. NaN where there is no coefficient.
    """

    def far(orders: np.ndarray, axis: int = -1) -> np.ndarray:
        """Of the orders in the last axis, which is the one that SciPy asks for."""
        rows = orders.reshape(-1, len(second))
        return np.abs(spearman(rows, np.broadcast_to(second, rows.shape))).reshape(orders.shape[:-1])

    if np.isnan(far(first)):
        return np.nan
    found = stats.permutation_test(
        (first,),
        far,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=ORDERS,
        vectorized=True,
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's coefficient of each row of two (R, n) float64 arrays: (R,) float64, NaN for a constant row.

    Pearson's coefficient of the ranks, of which ties have the mean (Spearman 1904).
    """
    a, b = (stats.rankdata(values, axis=1) for values in (first, second))
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (a, b))
    length = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), length, out=np.full(len(length), np.nan), where=length > 0)
