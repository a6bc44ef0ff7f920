"""Paired differences over seeds, computed by hand, in the tables and in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import Page
from results_for_tests import make_labels, make_manifest, make_run, write_metrics

from beco.evaluation.report.report import write_report
from beco.evaluation.scores.differences import difference_table, interval
from beco.evaluation.tables.table_files import DIFFERENCES_NOTE, write_tables
from beco.evaluation.tables.tables import RUN_NUMBERS, Results, Run


def table(*runs: tuple[str, int, str, float]) -> pd.DataFrame:
    """`run_table` with boundary IoU half of the mIoU and a pixel accuracy of 0.9."""
    frame = pd.DataFrame(runs, columns=["experiment", "seed", "labels", "miou"])
    return frame.assign(boundary_iou=frame["miou"] / 2, pixel_accuracy=0.9)


def test_interval_by_hand() -> None:
    # mean 2, s = 1, n = 3, t(0.975, 2) = 4.302653: 2 ± 4.302653 / √3
    assert interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    # n = 2: t(0.975, 1) = 12.706205, s = √2 · 0.5
    assert interval(np.array([0.0, 1.0])) == pytest.approx((0.5 - 12.706205 / 2, 0.5 + 12.706205 / 2), abs=1e-5)
    assert interval(np.array([0.3, 0.3])) == (0.3, 0.3)
    assert np.isnan(interval(np.array([0.3]))).all()  # one seed says nothing of others


def test_later_minus_earlier_over_common_seeds() -> None:
    found = difference_table(
        table(
            ("single", 0, "crf", 0.50), ("single", 1, "crf", 0.52), ("single", 2, "crf", 0.54),
            ("single", 7, "crf", 0.9),
            ("beco", 2, "crf", 0.57), ("beco", 0, "crf", 0.51), ("beco", 1, "crf", 0.54), ("beco", 8, "crf", 0.1),
            ("cam", 0, "cam", 0.4), ("cam", 1, "cam", 0.4), ("once", 0, "crf", 0.4),
        ),
        RUN_NUMBERS,
    )  # fmt: skip
    assert found["seeds"].tolist() == [3, 1, 1]  # `cam` has other labels, `once` one seed and so no interval
    assert found["miou"][1:].tolist() == pytest.approx([-0.1, -0.11]) and found["miou_low"][1:].isna().all()
    row = found.iloc[0]
    assert (row["experiment"], row["minus"], row["labels"], row["seeds"]) == ("beco", "single", "crf", 3)
    assert row["seed_list"] == "0;1;2" and row["miou_by_seed"] == "0.010000;0.020000;0.030000"
    assert row["miou"] == pytest.approx(0.02)
    assert (row["miou_low"], row["miou_high"]) == pytest.approx((0.02 - 0.02484138, 0.02 + 0.02484138))
    assert (row["boundary_iou"], row["boundary_iou_high"]) == pytest.approx((0.01, 0.01 + 0.01242069))
    assert (row["pixel_accuracy"], row["pixel_accuracy_low"], row["pixel_accuracy_high"]) == (0, 0, 0)


def test_every_pair_in_the_order_of_the_configuration() -> None:
    runs = [(name, seed, "crf", 0.5 + seed / 10) for name in ("c", "a", "b") for seed in (0, 1)]
    found = difference_table(table(*runs, ("t", 0, "truth", 0.8), ("t", 1, "truth", 0.8)), RUN_NUMBERS)
    assert list(zip(found["experiment"], found["minus"], strict=True)) == [("a", "c"), ("b", "c"), ("b", "a")]


def test_a_run_without_a_number_is_left_out() -> None:
    frame = table(("a", 0, "crf", 0.5), ("a", 1, "crf", 0.5), ("b", 0, "crf", 0.5), ("b", 1, "crf", float("nan")))
    assert difference_table(frame, RUN_NUMBERS)["seed_list"].tolist() == ["0"]
    assert difference_table(frame[frame["seed"] == 1], RUN_NUMBERS).empty


def test_the_files(tmp_path: Path) -> None:
    runs = [Run(name, seed, "crf", tmp_path / f"{name}{seed}") for name in ("single", "beco") for seed in (0, 1)]
    for run, miou in zip(runs, (0.50, 0.50, 0.52, 0.54), strict=True):
        write_metrics(run.folder, miou, miou / 2)
    write_tables(Results(runs, []), tmp_path / "two")
    found = pd.read_csv(tmp_path / "two" / "differences.csv")
    assert found["miou"].tolist() == pytest.approx([0.03]) and found["miou_by_seed"].tolist() == ["0.020000;0.040000"]
    # 0.01 · 12.706205 on either side
    line = (
        "| beco − single | crf | 2 | +3.0 (−9.7 to +15.7) | – | +1.5 (−4.9 to +7.9) | – | +0.0 (+0.0 to +0.0) | – |\n"
    )
    assert line + f"\n{DIFFERENCES_NOTE}\n" in (tmp_path / "two" / "differences.md").read_text()
    write_tables(Results(runs[::2], []), tmp_path / "one")
    assert (tmp_path / "one" / "differences.csv").read_text().startswith("experiment,minus,labels,seeds,seed_list,miou")
    assert (
        "| beco − single | crf | 1 | +2.0 | – | +1.0 | – | +0.0 | – |\n"
        in (tmp_path / "one" / "differences.md").read_text()
    )
    write_tables(Results(runs[:1], []), tmp_path / "none")
    assert (tmp_path / "none" / "differences.csv").read_text().count("\n") == 1
    assert (tmp_path / "none" / "differences.md").read_text().count("\n") == 4  # header, rule, the note


def test_the_report_shows_them_if_there_are_any(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    runs = [make_run(tmp_path, manifest, name, seed, "crf", shift) for name, seed, shift in (
        ("single", 0, 3), ("single", 1, 2), ("beco", 0, 1), ("beco", 1, 2))]  # fmt: skip
    sources = [make_labels(tmp_path, manifest)]
    write_report(manifest, Results(runs, sources), 0, tmp_path / "two.html")
    write_report(manifest, Results(runs[:2], sources), 0, tmp_path / "one.html")
    two, one = Page(tmp_path / "two.html").text, Page(tmp_path / "one.html").text
    assert "beco − single" in two and "seeds are those of the second stage alone" in two
    assert "beco − single" not in one and "Seed by seed" not in one
