"""Paired differences: two experiments on the same labels, seed by seed.

Runs of one seed share the labels and the draws of the training, so part of what chance does is common to both and
leaves their difference. The interval is over seeds of stage two alone: stage one, and so the labels, are the same in
every pair, and what another classifier would change is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95
COLUMNS = ["experiment", "minus", "labels", "seeds", "seed_list"]


def difference_table(runs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row per pair of experiments with the same labels and a common seed: later minus earlier.

    `runs` is `tables.run_table`, its experiments in the order of the configuration. `seeds` counts the common seeds,
    `seed_list` names them (`0;1;2`). For each of the columns `names`, which are shares: the mean of the differences
    by seed, `<name>_low` and `<name>_high` of its 95 % interval (`interval`; empty for one seed), and
    `<name>_by_seed` with the differences in the order of `seed_list`. A run that lacks one of the numbers is left out.
    Without a pair, the header alone.
    """
    numbers = list(names)
    groups = {
        (str(labels), str(name)): group.set_index("seed")[numbers]
        for (labels, name), group in runs.dropna(subset=numbers).groupby(["labels", "experiment"], sort=False)
    }
    rows = []
    for ((labels, earlier), first), ((others, later), second) in combinations(groups.items(), 2):
        common = sorted(set(first.index) & set(second.index))
        if labels != others or not common:
            continue
        found = second.loc[common] - first.loc[common]
        row: dict[str, Any] = {"experiment": later, "minus": earlier, "labels": labels, "seeds": len(common)}
        row["seed_list"] = ";".join(str(seed) for seed in common)
        for name in numbers:
            values = found[name].to_numpy(dtype=float)
            row[name] = values.mean()
            row[f"{name}_low"], row[f"{name}_high"] = interval(values)
            row[f"{name}_by_seed"] = ";".join(f"{value:.6f}" for value in values)
        rows.append(row)
    ends = ("", "_low", "_high", "_by_seed")
    return pd.DataFrame(rows, columns=[*COLUMNS, *(f"{name}{end}" for name in numbers for end in ends)])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean of (n,) values: mean ± t(0.975, n - 1) · s / √n; NaN for n = 1."""
    if len(values) < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)
