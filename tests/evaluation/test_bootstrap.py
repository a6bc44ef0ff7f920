"""The paired bootstrap over pictures: by hand, against a plain loop, and its properties."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from beco.errors import UserError
from beco.evaluation.scores import bootstrap
from beco.evaluation.scores.bootstrap import PictureCounts, add_picture_intervals, resampled, scores
from beco.evaluation.scores.differences import difference_table
from beco.evaluation.scores.evaluate import _by_image_and_class
from beco.evaluation.scores.metrics import PICTURE_COUNTS, Scorer
from beco.evaluation.tables.tables import RUN_NUMBERS

CLASSES = 3


def scored(seed: int, pictures: int, folder: Path | None = None, noise: float = 0.3, truths: int = 0) -> Scorer:
    """Scores of noisy copies of random pictures; the pictures follow from `truths`, the noise from `seed`."""
    rng, drawn = np.random.default_rng(seed), np.random.default_rng(truths)
    scorer = Scorer(CLASSES)
    for number in range(pictures):
        truth = np.repeat(np.repeat(drawn.integers(0, CLASSES, (3, 4), dtype=np.uint8), 4, 0), 4, 1)
        truth[0, : drawn.integers(16)] = 255
        wrong = rng.random(truth.shape) < noise
        scorer.add(f"p{number}", np.where(wrong, rng.integers(0, CLASSES, truth.shape), truth).astype(np.uint8), truth)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(scorer.rows).to_csv(folder / "per_image.csv", index=False)
        _by_image_and_class(scorer).to_csv(folder / "per_image_class.csv", index=False)
    return scorer


def runs_table(folder: Path, *runs: tuple[str, int, float]) -> pd.DataFrame:
    """`run_table` of runs on the same pictures: experiment, seed, noise."""
    rows = []
    for number, (name, seed, noise) in enumerate(runs):
        result = scored(number + 1, 12, folder / f"{name}{seed}", noise).result()
        numbers = {key: result[key] for key in RUN_NUMBERS}
        rows.append({"experiment": name, "seed": seed, "labels": "crf", **numbers, "folder": f"{folder}/{name}{seed}"})
    return pd.DataFrame(rows)


def counts_of(table: np.ndarray) -> PictureCounts:
    """(N, C, 6) counts as they are held."""
    return PictureCounts([f"p{k}" for k in range(len(table))], sparse.csr_array(table.reshape(len(table), -1)))


def test_two_pictures_by_hand() -> None:
    # class 0: IoU 3/4 in the first picture; 1/2 in the second, with class 1 (absent from the first) at 0/1
    table = np.zeros((2, 2, 6))
    table[0, 0] = [4, 3, 3, 2, 2, 1]
    table[1, 0] = [1, 2, 1, 1, 1, 1]
    table[1, 1] = [1, 0, 0, 1, 0, 0]
    cases = {
        (2, 0): (3 / 4, 1 / 3, 3 / 4),
        (0, 2): ((1 / 2 + 0) / 2, (1 + 0) / 2, 1 / 2),
        (1, 1): ((4 / 6 + 0) / 2, (2 / 4 + 0) / 2, 4 / 6),
    }
    found = resampled(counts_of(table), 400)
    rows = {tuple(np.round(row, 6)) for row in found}
    assert rows == {tuple(np.round(row, 6)) for row in cases.values()}  # every draw of 2 out of 2, and no other
    both = np.isclose(found[:, 0], 1 / 3).mean()
    assert 0.4 < both < 0.6  # one of each has probability 1/2


def test_the_scores_are_those_of_the_scorer(tmp_path: Path) -> None:
    scorer = scored(1, 7, tmp_path)
    counts = PictureCounts.read(tmp_path)
    assert counts is not None and counts.ids == [f"p{k}" for k in range(7)]
    result = scorer.result()
    total = counts.table.sum(axis=0)[None]
    assert scores(total)[0].tolist() == pytest.approx([result[name] for name in RUN_NUMBERS], abs=1e-12)
    assert np.isnan(scores(np.zeros((1, 6)))).all()


def test_a_plain_loop_agrees(tmp_path: Path) -> None:
    scored(1, 9, tmp_path)
    counts = PictureCounts.read(tmp_path)
    assert counts is not None
    dense = counts.table.toarray().reshape(9, -1, len(PICTURE_COUNTS))
    rng = np.random.default_rng(bootstrap.SEED)
    expected = []
    for draw in rng.integers(9, size=(50, 9)):
        sums = sum(dense[number] for number in draw)
        ious, bands = [], []
        for truth, predicted, both, band_truth, band_predicted, band_both in sums:
            if truth + predicted - both:
                ious.append(both / (truth + predicted - both))
            if band_truth + band_predicted - band_both:
                bands.append(band_both / (band_truth + band_predicted - band_both))
        accuracy = sum(row[2] for row in sums) / sum(row[0] for row in sums)
        expected.append((sum(ious) / len(ious), sum(bands) / len(bands), accuracy))
    assert np.allclose(resampled(counts, 50), expected, atol=1e-12)


def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(1, 9, tmp_path)
    counts = PictureCounts.read(tmp_path)
    assert counts is not None
    whole = resampled(counts, 50)
    monkeypatch.setattr(bootstrap, "CHUNK", 60)  # 6 resamples a block
    assert np.array_equal(resampled(counts, 50), whole)


def test_seeds_are_pooled_and_pairs_share_their_draws(tmp_path: Path) -> None:
    runs = runs_table(tmp_path, ("a", 0, 0.4), ("a", 1, 0.4), ("b", 0, 0.2), ("b", 1, 0.2))
    found = add_picture_intervals(difference_table(runs, RUN_NUMBERS), runs).iloc[0]
    draws = {}
    for name in ("a0", "a1", "b0", "b1"):
        counts = PictureCounts.read(tmp_path / name)
        assert counts is not None
        draws[name] = resampled(counts)
    pooled = (draws["b0"] + draws["b1"]) / 2 - (draws["a0"] + draws["a1"]) / 2
    for column, name in enumerate(RUN_NUMBERS):
        low, high = np.quantile(pooled[:, column], [0.025, 0.975])
        assert (found[f"{name}_pictures_low"], found[f"{name}_pictures_high"]) == pytest.approx((low, high))
        assert low < found[name] < high
    unpaired = np.std(draws["b0"][:, 2] - draws["a0"][::-1, 2])
    assert np.std(draws["b0"][:, 2] - draws["a0"][:, 2]) < unpaired


def test_identical_runs_differ_by_exactly_nothing(tmp_path: Path) -> None:
    runs = runs_table(tmp_path, ("a", 0, 0.4), ("a", 1, 0.4))
    runs = pd.concat([runs, runs.assign(experiment="b")], ignore_index=True)
    found = add_picture_intervals(difference_table(runs, RUN_NUMBERS), runs).iloc[0]
    assert all(found[f"{name}_pictures_{end}"] == 0 for name in RUN_NUMBERS for end in ("low", "high"))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_an_interval_lies_within_what_pictures_can_give(pictures: int, seed: int) -> None:
    table = np.random.default_rng(seed).integers(0, 9, (pictures, 2, 6)).astype(float)
    table[..., 2] = np.minimum(table[..., 0], table[..., 1])
    table[..., 5] = np.minimum(table[..., 3], table[..., 4])
    found = resampled(counts_of(table), 60)
    known = found[~np.isnan(found)]
    assert (known >= 0).all() and (known <= 1).all()
    if pictures == 1:
        assert np.array_equal(found, np.repeat(found[:1], 60, 0), equal_nan=True)


def test_without_counts_or_on_other_pictures_there_is_no_interval(tmp_path: Path) -> None:
    runs = runs_table(tmp_path, ("a", 0, 0.4), ("a", 1, 0.4), ("b", 0, 0.2), ("b", 1, 0.2))
    differences = difference_table(runs, RUN_NUMBERS)
    scored(9, 11, tmp_path / "b1")
    assert add_picture_intervals(differences, runs).filter(like="_pictures_").isna().all(axis=None)
    (tmp_path / "b1" / "per_image_class.csv").unlink()
    assert add_picture_intervals(differences, runs).filter(like="_pictures_").isna().all(axis=None)
    (tmp_path / "a0" / "per_image.csv").write_text("image_id,miou\np0,0.5\n")
    with pytest.raises(UserError, match=r"per_image_class\.csv: does not fit"):
        add_picture_intervals(differences, runs)
    empty = add_picture_intervals(differences.iloc[:0], runs)
    assert empty.empty and "miou_pictures_low" in empty


def test_the_size_of_voc_takes_a_moment() -> None:
    rng = np.random.default_rng(0)
    table = np.where(rng.random((1449, 21, 1)) < 0.15, rng.integers(1, 9000, (1449, 21, 6)), 0).astype(float)
    counts = counts_of(table)
    start = time.process_time()
    assert resampled(counts).shape == (1000, 3)
    assert time.process_time() - start < 5  # half a second on an idle core
