"""Rank correlations between properties of labels and networks: against SciPy, by hand, and in the tables."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results_for_tests import write_metrics
from scipy import stats

from beco.artifacts.files import read_json, write_json
from beco.evaluation.scores.rank_correlation import LEAST, by_chance, correlated, correlation_table, spearman
from beco.evaluation.tables.table_files import write_tables
from beco.evaluation.tables.tables import LabelSource, Results, Run


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_is_scipys(ties: bool) -> None:
    draws = np.random.default_rng(3)
    for _ in range(20):
        first, second = draws.random((2, 6))
        if ties:
            first, second = (first * 3).round(), (second * 3).round()
        slow = stats.spearmanr(first, second).statistic if min(np.ptp(first), np.ptp(second)) > 0 else np.nan
        assert spearman(first[None], second[None])[0] == pytest.approx(slow, nan_ok=True)


def test_interval_is_that_of_resampled_points() -> None:
    draws = np.random.default_rng(5)
    first = draws.random(12)
    second = first + 0.4 * draws.random(12)
    found, low, high = correlated(first, second)
    again = np.random.default_rng(99)
    slow = []
    for _ in range(2000):
        chosen = again.integers(12, size=12)
        slow.append(stats.spearmanr(first[chosen], second[chosen]).statistic)
    assert found == pytest.approx(stats.spearmanr(first, second).statistic)
    assert (low, high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.04)
    assert correlated(first, first)[0] == pytest.approx(1) and correlated(first, -first)[0] == pytest.approx(-1)


@pytest.mark.parametrize("values", [[0.1, 0.1, 0.1, 0.1], [0.1, np.nan, 0.3, 0.4]])
def test_nothing_is_said_of_constants_and_gaps(values: list[float]) -> None:
    assert np.isnan(correlated(np.array(values), np.array([1.0, 2, 3, 4]))).all()


@pytest.mark.parametrize("seed", range(3))
def test_how_often_an_order_at_random_is_as_far_from_zero(seed: int) -> None:
    first, second = np.random.default_rng(seed).random((2, 5)).round(1)
    slow = [stats.spearmanr(order, second).statistic for order in itertools.permutations(first)]
    own = abs(stats.spearmanr(first, second).statistic)
    assert by_chance(first, second) == pytest.approx(np.mean([abs(one) >= own - 1e-9 for one in slow]), abs=1e-9)
    assert by_chance(np.arange(4.0), np.arange(4.0)) == pytest.approx(2 / 24)
    assert by_chance(np.arange(11.0), np.arange(11.0)) < 0.001 and np.isnan(by_chance(np.ones(4), second[:4]))


def runs_on(root: Path, recipe: str, scores: dict[str, float], seed: int = 0, steps: int = 9) -> list[Run]:
    """A run for each of several pseudo-labels, with the mIoU given."""
    runs = []
    for labels, miou in scores.items():
        folder = root / recipe / labels / f"{seed}-{steps}"
        write_metrics(folder, miou, 0.5)
        weights = labels if recipe == "beco" else "one file"
        training = {"recipe": recipe, "settings": {"steps": steps}, "network": {}, "weights": weights}
        write_json(folder / "training.json", training)
        runs.append(Run(f"{recipe}_{labels}", seed, labels, folder))
    return runs


def labels_with(root: Path, **mious: float) -> list[LabelSource]:
    for name, miou in mious.items():
        write_metrics(root / name / "quality", miou, 1 - miou)
    return [LabelSource(name, root / name) for name in mious]


def test_points_are_pseudo_labels_of_equal_trainings(tmp_path: Path) -> None:
    labels = labels_with(tmp_path, a=0.3, b=0.4, c=0.5, d=0.6, unused=0.1)
    for source in labels:
        metrics = read_json(source.folder / "quality" / "metrics.json")
        supervision = ["image labels", "saliency"] if source.name == "c" else ["image labels"]
        write_json(source.folder / "quality" / "metrics.json", {**metrics, "supervision": supervision})
    rising = {"a": 0.2, "b": 0.3, "c": 0.4, "d": 0.5}
    runs = [
        *runs_on(tmp_path, "single", rising),
        *runs_on(tmp_path, "single", rising | {"a": 0.9}, seed=1),      # a's mean over seeds becomes the highest
        *runs_on(tmp_path, "beco", {name: -score + 1 for name, score in rising.items()}),
        *runs_on(tmp_path, "single", {"a": 0.0, "b": 0.9, "truth": 1.0}, steps=5),   # another length, and two labels
    ]  # fmt: skip
    write_tables(Results(runs, labels), tmp_path / "tables")
    found = pd.read_csv(tmp_path / "tables" / "rank_correlations.csv").set_index(["recipe", "property"])
    assert set(found.index.get_level_values("recipe")) == {"single", "beco"}
    assert found.loc[("beco", "miou"), "correlation"] == pytest.approx(-1)
    assert found.loc[("beco", "boundary_iou"), "correlation"] == pytest.approx(1)
    slow = stats.spearmanr([0.3, 0.4, 0.5, 0.6], [0.55, 0.3, 0.4, 0.5]).statistic
    assert found.loc[("single", "miou"), "correlation"] == pytest.approx(slow)
    assert np.isnan(found.loc[("single", "pixel_accuracy"), "correlation"])  # the same for all
    assert found.loc[("single", "miou"), "labels"] == 4
    assert found.loc[("single", "miou"), "starts"] == 1 and found.loc[("beco", "miou"), "starts"] == 4
    printed = (tmp_path / "tables" / "rank_correlations.md").read_text(encoding="utf-8")
    assert "| beco | 4 | 4 | image labels; image labels + saliency | −1.00 (−1.00 to −1.00), p 0.083 |" in printed


def test_too_few_labels_make_no_table(tmp_path: Path) -> None:
    labels = labels_with(tmp_path, **{str(number): number / 10 for number in range(LEAST - 1)})
    runs = runs_on(tmp_path, "single", {source.name: 0.5 for source in labels})
    write_tables(Results(runs, labels), tmp_path / "tables")
    assert not (tmp_path / "tables" / "rank_correlations.csv").exists()
    assert correlation_table([], pd.DataFrame(columns=["labels"])).empty
