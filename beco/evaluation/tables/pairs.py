"""Pairs of experiments on the same labels: their differences with their intervals, as tables and report have them."""

from __future__ import annotations

import pandas as pd

from beco.evaluation.scores.bootstrap import add_picture_intervals
from beco.evaluation.scores.differences import difference_table
from beco.evaluation.tables.tables import RUN_NUMBERS

ENDS = ("", "_low", "_high")
FIRST_ENDS = [f"miou_first{end}" for end in (*ENDS, "_by_seed")]


def pair_table(runs: pd.DataFrame, minus: str | None = None) -> pd.DataFrame:
    """`difference_table` of `RUN_NUMBERS` with the intervals over pictures; `minus`: the pairs with it as the earlier.

    Where `runs`, which is `tables.run_table`, has `miou_first`, there are also the differences of the first networks
    alone, `miou_first` with its interval over seeds: a share, and empty where one of the pair has none.
    """
    found = difference_table(runs, RUN_NUMBERS)
    if minus is not None:
        found = found[found["minus"] == minus].reset_index(drop=True)
    found = add_picture_intervals(found, runs)
    if "miou_first" not in runs:
        return found
    pair = ["experiment", "minus", "labels"]
    first = difference_table(runs, ["miou_first"])[[*pair, *FIRST_ENDS]]
    return found.merge(first, on=pair, how="left", validate="1:1")
