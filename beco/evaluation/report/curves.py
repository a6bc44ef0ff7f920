"""Plots of a training over its epochs.

Each function returns an `<svg>` element as text, or None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from beco.evaluation.report.svg import COLOURS, DASHES, INK, colour_of, drawn, legend, whole_numbers
from beco.evaluation.tables.tables import Run, read_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT_OUT = "share_left_out"


def training_curves(runs: list[Run]) -> str | None:
    """Loss by epoch: a colour and dashes for each experiment, a thin line for each further seed."""
    words = {"loss": "training loss"}
    return _curves(runs, lambda name: name == "loss", words, "Training loss by epoch")


def share_curves(runs: list[Run]) -> str | None:
    """Every `share_…` column of the histories by epoch, one panel each, but for that of `left_out_curves`."""
    return _curves(
        runs, lambda name: name.startswith("share_") and name != LEFT_OUT, {}, "Shares of pixels during training"
    )


def left_out_curves(runs: list[Run]) -> str | None:
    """Of the classes that pictures show, the share that online labels leave out, by epoch."""
    words = {LEFT_OUT: "classes left out (%)"}
    return _curves(runs, lambda name: name == LEFT_OUT, words, "Classes that online labels leave out", 100)


def online_curves(runs: list[Run], reliable: Mapping[str, Mapping[str, float | None]]) -> str | None:
    """How many pixels of training pictures online labels would be trusted on, and how many of these are right.

    The `online_…` columns of the histories, which `training.watch_labels` asks for, beside the same of the
    pseudo-labels' reliable pixels: `reliable` is that of `metrics.json` by source.
    """
    panels = {
        "online_trusted": ("trusted pixels (%)", "share"),
        "online_trusted_objects": ("trusted pixels of objects (%)", "share_objects"),
        "online_right": ("right, of the trusted pixels (%)", "accuracy_inside"),
    }
    words = {name: text for name, (text, _) in panels.items()}
    levels = {
        name: {source: 100 * value for source, found in reliable.items() if (value := found.get(key)) is not None}
        for name, (_, key) in panels.items()
    }
    label = "Trust in online labels during training"
    return _curves(runs, lambda name: name in panels, words, label, 100, levels)


def _curves(
    runs: list[Run],
    wanted: Callable[[str], bool],
    words: Mapping[str, str],
    label: str,
    scale: float = 1,
    levels: Mapping[str, Mapping[str, float]] = {},
) -> str | None:
    """A panel for each column that is wanted, at most three; `levels` are horizontal lines by column.

    Without levels a panel's scale begins at 0.
    """
    colours = colour_of(run.experiment for run in runs)
    dashes = {name: DASHES[index % len(DASHES)] for index, name in enumerate(colours)}
    histories = [(run, read_csv(run.folder / "history.csv")) for run in runs if (run.folder / "history.csv").is_file()]
    known = [str(name) for _, frame in histories for name in frame if frame[name].notna().any()]
    panels = [name for name in dict.fromkeys(known) if wanted(name)][:3]
    if not panels:
        return None

    def draw(figure: Figure, axes: Any) -> None:
        for axis, name in zip(np.atleast_1d(axes), panels, strict=True):
            named: set[str] = set()
            for run, frame in histories:
                if name in frame and frame[name].notna().any():
                    line = scale * frame.groupby("epoch")[name].mean().dropna()
                    first = run.experiment not in named
                    named.add(run.experiment)
                    axis.plot(
                        line.index, line, color=colours[run.experiment], linewidth=1.4 if first else 0.7,
                        linestyle=dashes[run.experiment], alpha=1 if first else 0.7,
                        marker="o" if len(line) == 1 else None, label=run.experiment if first else None,
                    )  # fmt: skip
            for index, (source, level) in enumerate(levels.get(name, {}).items()):
                look: Any = {"color": INK, "linewidth": 0.9, "linestyle": DASHES[-1 - index % len(DASHES)]}
                axis.axhline(level, label=f"reliable pixels of {source}", **look)
            axis.set(xlabel="epoch", ylabel=words.get(name, name.replace("_", " ")))
            axis.margins(x=0.01)
            if not levels:
                axis.set_ylim(0, None)
            whole_numbers(axis)
        legend(figure, np.atleast_1d(axes)[0])

    return drawn(draw, (5.4, 7.2, 10.2)[len(panels) - 1], 3.6, label, len(panels))


def classifier_curve(history: pd.DataFrame) -> str | None:
    """Loss of the classifier by epoch, and beside it the mAP where the history has one."""
    names = [name for name in ("loss", "map", "val_map") if name in history and "epoch" in history]
    if not names:
        return None

    def draw(figure: Figure, axes: Any) -> None:
        for axis, name in zip(np.atleast_1d(axes), names, strict=True):
            line = history.groupby("epoch")[name].mean()
            axis.plot(line.index, line, color=COLOURS[0], marker="o" if len(line) < 30 else None, markersize=3)
            axis.set(xlabel="epoch", ylabel="loss" if name == "loss" else "mAP", ylim=(0, None))
            whole_numbers(axis)

    return drawn(draw, 3.6 * len(names), 2.8, "Classifier training", len(names))
