"""Curves over the epochs: what is drawn, by the data of the lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from beco.evaluation.report import curves
from beco.evaluation.tables.tables import Run


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, before they become SVG."""
    made: list[Figure] = []

    def drawn(draw: Any, width: float, height: float, label: str, columns: int = 1) -> str:
        figure = Figure(figsize=(width, height))
        draw(figure, figure.subplots(1, columns))
        made.append(figure)
        return label

    monkeypatch.setattr(curves, "drawn", drawn)
    return made


def run(root: Path, experiment: str, labels: str = "crf", **columns: Any) -> Run:
    folder = root / experiment
    folder.mkdir()
    pd.DataFrame({"epoch": [1, 2, 3], **columns}).to_csv(folder / "history.csv", index=False)
    return Run(experiment, 0, labels, folder)


def lines(figure: Figure, panel: int) -> dict[str, tuple[list[float], list[float]]]:
    """x and y of the lines of a panel, by what the legend calls them."""
    found = figure.axes[panel].get_lines()
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in found}


def test_what_online_labels_leave_out_is_a_figure_of_its_own(tmp_path: Path, figure: list[Figure]) -> None:
    runs = [run(tmp_path, "beco", share_left_out=[0.0, 0.5, 0.25]), run(tmp_path, "single", loss=[3.0, 2.0, 1.0])]
    assert curves.share_curves(runs) is None and curves.left_out_curves(runs)
    assert lines(figure[0], 0)["beco"] == ([1, 2, 3], [0, 50, 25])


def test_trust_in_online_labels_beside_that_of_the_pseudo_labels(tmp_path: Path, figure: list[Figure]) -> None:
    nan = np.nan
    runs = [
        run(
            tmp_path,
            "beco",
            online_trusted=[nan, 0.5, 0.75],
            online_trusted_objects=[nan, 0.25, 0.5],
            online_right=[nan, 0.8, 0.9],
            share_agreeing=[0.1] * 3,
        ),
        run(tmp_path, "single", loss=[3.0, 2.0, 1.0]),  # did not look
    ]
    levels = {"crf": {"share": 0.6, "share_objects": 0.7, "accuracy_inside": 0.95}, "none": {"share": None}}
    assert curves.online_curves(runs, levels)
    trusted, of_objects, right = (lines(figure[0], panel) for panel in range(3))
    assert trusted == {"beco": ([2, 3], [50, 75]), "reliable pixels of crf": ([0, 1], [60, 60])}
    assert of_objects == {"beco": ([2, 3], [25, 50]), "reliable pixels of crf": ([0, 1], [70, 70])}
    assert right == {"beco": ([2, 3], [80, 90]), "reliable pixels of crf": ([0, 1], [95, 95])}


def test_without_a_look_at_online_labels_nothing_is_drawn(tmp_path: Path, figure: list[Figure]) -> None:
    runs = [run(tmp_path, "single", loss=[3.0, 2.0, 1.0], online_right=[np.nan] * 3)]
    assert curves.online_curves(runs, {"crf": {"share": 0.6}}) is None
    assert curves.share_curves(runs) is None and not figure


def test_shares_and_losses_have_panels_of_their_own(tmp_path: Path, figure: list[Figure]) -> None:
    runs = [
        run(tmp_path, "single", loss=[3.0, 2.0, 1.0]),
        run(tmp_path, "beco", loss=[4.0, 3.0, 2.0], share_agreeing=[0.1, 0.2, 0.3], share_pasted=[0.0, 0.2, 0.2]),
    ]
    assert curves.training_curves(runs) and curves.share_curves(runs)
    losses, shares = figure
    assert lines(losses, 0) == {"single": ([1, 2, 3], [3, 2, 1]), "beco": ([1, 2, 3], [4, 3, 2])}
    assert [list(lines(shares, panel)) for panel in (0, 1)] == [["beco"], ["beco"]]
    assert shares.axes[0].get_ylim()[0] == 0
