"""Plots of results and of pseudo-labels.

Each function returns an `<svg>` element as text, or None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from beco.evaluation.report.svg import COLOURS, INK, MARKERS, PAPER, colour_of, drawn, legend, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 8


def class_bars(table: pd.DataFrame, experiments: list[str]) -> str | None:
    """IoU by class: a group of bars per class, one bar per experiment. `table` is that of
    `tables.class_table`.
    """
    colours = colour_of(experiments)
    experiments = [name for name in experiments if name in table and table[name].notna().any()]
    if not experiments:
        return None
    step = 0.8 / len(experiments)

    def draw(figure: Figure, axis: Axes) -> None:
        rows = np.arange(len(table))
        for index, name in enumerate(experiments):
            values = 100 * table[name].to_numpy(dtype=float)
            axis.barh(rows - 0.4 + step * (index + 0.5), np.nan_to_num(values), step * 0.9,
                      color=colours[name], label=name)  # fmt: skip
        axis.set_yticks(rows, [str(name) for name in table["class"]])
        axis.set(xlim=(0, 100), xlabel="IoU (%)", ylim=(len(table) - 0.4, -0.6))
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
        legend(figure, axis, 100)

    height = 1.2 + len(table) * max(0.3, 0.13 * len(experiments) + 0.08)
    return drawn(draw, 7.2, height, "Intersection over union by class")


def quality_scatter(recipes: pd.DataFrame, runs: pd.DataFrame) -> str | None:
    """mIoU of the pseudo-labels (x, training split) against that of the result (y, evaluation split).

    Large points are means over seeds, small ones single seeds; above the dashed line the result beats its
    labels. `recipes` and `runs` are those of `tables.recipe_table` and `tables.run_table`.
    """
    known = recipes.dropna(subset=["labels_miou", "miou"])
    if known.empty:
        return None
    runs = runs[runs["experiment"].isin(known["experiment"])]
    seeds = {str(name): 100 * group["miou"].dropna() for name, group in runs.groupby("experiment")}
    values = np.concatenate([100 * known[["labels_miou", "miou"]].to_numpy().ravel(), *seeds.values()])
    low, high = max(values.min() - 6, 0), min(values.max() + 6, 100)

    def draw(figure: Figure, axis: Axes) -> None:
        axis.plot([low, high], [low, high], linestyle=(0, (4, 4)), color=INK, linewidth=0.8)
        axis.annotate(
            "as good as its labels", (high, high), (-14, -5), textcoords="offset points", ha="right",
            va="bottom", rotation=45, rotation_mode="anchor", fontsize=8,
        )  # fmt: skip
        _scatter_points(axis, known, seeds, list(recipes["experiment"]), 0.022 * (high - low))
        axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axis.set(xlabel="mIoU of its pseudo-labels, training split (%)", ylabel="mIoU, evaluation split (%)")
        legend(figure, axis)

    return drawn(draw, 5.2, 5.2, "Pseudo-label quality against final quality")


def _scatter_points(
    axis: Axes, recipes: pd.DataFrame, seeds: dict[str, pd.Series], names: list[str], step: float
) -> None:
    """One marker per recipe with its seeds; recipes of the same labels stand `step` apart."""
    colours = colour_of(names)
    shapes = {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(colours)}
    for _, group in recipes.groupby("labels", sort=False):
        shift = -step * (len(group) - 1) / 2
        for row in group.to_dict("records"):
            name, x = row["experiment"], 100 * row["labels_miou"] + shift
            look: dict[str, Any] = {"linestyle": "", "marker": shapes[name], "color": colours[name]}
            if len(seeds[name]) > 1:
                axis.plot([x] * len(seeds[name]), seeds[name], markersize=3.5, alpha=0.7, **look)
            axis.plot([x], [100 * row["miou"]], markersize=8, markeredgecolor=PAPER, label=name, **look)
            shift += step


def border_errors(
    labels: Mapping[str, list[dict[str, Any]]], results: Mapping[str, list[dict[str, Any]]]
) -> str | None:
    """Error rate by distance to the true border: pseudo-labels dashed with hollow points, experiments solid.

    Values are the `border_error` rows of `metrics.json`.
    """
    bins = next((rows for rows in [*labels.values(), *results.values()] if rows), None)
    if bins is None:
        return None
    names = _distances(bins)
    colours, label_colours = colour_of(results), dict(zip(labels, reversed(COLOURS), strict=False))

    def draw(figure: Figure, axis: Axes) -> None:
        for index, (name, rows) in enumerate(results.items()):
            axis.plot(
                range(len(rows)), _shares(rows, "error"), color=colours[name], marker=MARKERS[index % len(MARKERS)],
                markersize=4, label=name,
            )  # fmt: skip
        for index, (name, rows) in enumerate(labels.items()):
            axis.plot(
                range(len(rows)), _shares(rows, "error"), color=label_colours.get(name, COLOURS[-1]),
                marker=MARKERS[index % len(MARKERS)], markersize=5, markerfacecolor=PAPER, linestyle=(0, (5, 3)),
                label=f"labels {name}",
            )  # fmt: skip
        axis.set_xticks(range(len(names)), names)
        axis.set(xlabel="distance to the true border (pixels)", ylabel="wrong pixels (%)", ylim=(0, None))
        legend(figure, axis)

    return drawn(draw, 5.4, 4.6, "Error rate by distance to the true border")


def _distances(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{row['from']}–{row['to']}" if row["to"] is not None else f"{row['from']}+" for row in rows]


def trimap_curves(results: Mapping[str, list[list[float | None]]], of: str = "") -> str | None:
    """mIoU of the pixels within k pixels of a true border, mean over the seeds; `results` are `trimap_iou` by seed."""
    known = {name: np.array(rows, dtype=float) for name, rows in results.items() if rows}
    if not known:
        return None
    colours = colour_of(results)

    def draw(figure: Figure, axis: Axes) -> None:
        for index, (name, rows) in enumerate(known.items()):
            axis.plot(
                range(1, rows.shape[1] + 1), 100 * rows.mean(0), color=colours[name], markersize=4,
                marker=MARKERS[index % len(MARKERS)], label=name,
            )  # fmt: skip
        axis.set(xlabel="within this many pixels of a true border", ylabel="mIoU (%)")
        whole_numbers(axis)
        legend(figure, axis)

    return drawn(draw, 5.4, 4.6, f"IoU near the true borders{of}")


def calibration(labels: Mapping[str, list[dict[str, Any]]]) -> str | None:
    """Share of right pixels by confidence; `labels` are the `confidence.bins` of `metrics.json`.

    A point's area grows with the share of the pixels that it stands for.
    """
    known = {name: [row for row in rows if row["accuracy"] is not None] for name, rows in labels.items()}
    known = {name: rows for name, rows in known.items() if rows}
    if not known:
        return None
    colours = colour_of(known)

    def draw(figure: Figure, axis: Axes) -> None:
        for index, (name, rows) in enumerate(known.items()):
            x, y = ([row[key] for row in rows] for key in ("confidence", "accuracy"))
            pixels = np.array([row["pixels"] for row in rows], dtype=float)
            axis.plot(x, [100 * value for value in y], color=colours[name], linewidth=1)
            axis.scatter(
                x, [100 * value for value in y], 12 + 300 * pixels / pixels.sum(), color=colours[name],
                marker=MARKERS[index % len(MARKERS)], alpha=0.8, edgecolor=PAPER, label=f"labels {name}",
            )  # fmt: skip
        axis.set(xlabel="confidence (margin of the best class)", ylabel="right pixels (%)", xlim=(-0.03, 1.03))
        legend(figure, axis)

    return drawn(draw, 5.4, 4.6, "Right pixels by confidence")


def border_trust(labels: Mapping[str, list[dict[str, Any]]]) -> str | None:
    """By distance to the true border: share of reliable pixels, and error rates of these (solid) and the rest (dashed).

    `labels` are the `border_trust` rows of `metrics.json`.
    """
    known = {name: rows for name, rows in labels.items() if rows}
    if not known:
        return None
    names, colours = _distances(next(iter(known.values()))), colour_of(known)

    def draw(figure: Figure, axes: Any) -> None:
        for index, (name, rows) in enumerate(known.items()):
            look: dict[str, Any] = {"color": colours[name], "marker": MARKERS[index % len(MARKERS)], "markersize": 5}
            place = range(len(rows))
            axes[0].plot(place, _shares(rows, "reliable_share"), label=f"labels {name}", **look)
            axes[1].plot(place, _shares(rows, "error_reliable"), **look)
            axes[1].plot(
                place, _shares(rows, "error_rest"), linestyle=(0, (5, 3)), markerfacecolor=PAPER, **look
            )  # fmt: skip
        for axis, text in zip(axes, ("reliable pixels (%)", "wrong pixels (%)"), strict=True):
            axis.set_xticks(range(len(names)), names)
            axis.set(xlabel="distance to the true border (pixels)", ylabel=text, ylim=(0, None))
        legend(figure, axes[0], 100)

    return drawn(draw, 8.4, 4.2, "Reliable pixels and their errors by distance to the true border", 2)


def sweep_curves(swept: pd.DataFrame) -> str | None:
    """mIoU by background score, a line for each source; `swept` is that of `label_tables.sweep_table`."""
    if swept.empty:
        return None
    colours = colour_of(swept["labels"])

    def draw(figure: Figure, axis: Axes) -> None:
        for index, (name, group) in enumerate(swept.groupby("labels", sort=False)):
            colour, marker = colours[str(name)], MARKERS[index % len(MARKERS)]
            line = group.sort_values("background")
            axis.plot(line["background"], 100 * line["miou"], color=colour, marker=marker, markersize=4, label=name)
            best = line[line["best"]]
            axis.plot(
                best["background"], 100 * best["miou"], color=colour, marker=marker, markersize=9, linestyle="",
                markeredgecolor=PAPER,
            )  # fmt: skip
        axis.set(xlabel="background score", ylabel="mIoU, training split (%)")
        legend(figure, axis)

    return drawn(draw, 5.4, 4.6, "Quality of the pseudo-labels by background score")


def setting_curve(rows: pd.DataFrame, name: str, of: str = "") -> str | None:
    """mIoU and boundary IoU of experiments (`rows` of a comparison) against the setting in column `name`.

    Experiments that differ in column `line`, where there is one, have lines of their own: to join them would draw what
    is between a recipe and another.
    """
    shown = rows.assign(value=rows[name].astype(float)).dropna(subset=["value", "miou"])
    if shown["value"].nunique() < 2:
        return None
    several = "line" in shown and shown["line"].nunique() > 1
    groups = [(f"{found}, ", group) for found, group in shown.groupby("line", sort=False)] if several else [("", shown)]

    def draw(figure: Figure, axis: Axes) -> None:
        for index, (prefix, group) in enumerate(groups):
            line = group.sort_values("value", kind="stable")
            for row, (number, label) in enumerate({"miou": "mIoU", "boundary_iou": "boundary IoU"}.items()):
                spread = 100 * line["miou_std"].fillna(0) if number == "miou" else None
                look = index if several else row
                axis.errorbar(
                    line["value"], 100 * line[number], spread, color=COLOURS[look % len(COLOURS)],
                    marker=MARKERS[look % len(MARKERS)], markersize=5, linestyle=["-", "--"][row], capsize=3,
                    label=f"{prefix}{label}",
                )  # fmt: skip
        axis.set(xlabel=name, ylabel="evaluation split (%)")
        axis.set_xticks(sorted(set(shown["value"])))
        legend(figure, axis)

    return drawn(draw, 5.4, 3.6, f"Results by {name}{of}")


def gains(rows: pd.DataFrame, of: str = "") -> str | None:
    """Gain in mIoU of each experiment of a comparison over the first of its labels, with its intervals.

    `rows` are those of `comparisons.comparison_table`. Thick: 95 % over pictures; thin, with ends: over seeds, where
    there are several. Hollow: one network's gain, which has no average of two in it. A point is large if all intervals
    that it has lie on one side of zero.
    """
    shown = rows.dropna(subset=["over"])
    if shown.empty:
        return None
    height = 1.3 + 0.34 * len(shown)

    def draw(figure: Figure, axis: Axes) -> None:
        for place, row in enumerate(shown.to_dict("records")):
            middle, *ends = (100 * row[f"gain_miou{end}"] for end in ("", "_low", "_high"))
            pictures = [100 * row[f"gain_miou_pictures{end}"] for end in ("_low", "_high")]
            known = [pair for pair in (ends, pictures) if not np.isnan(pair).any()]
            sure = bool(known) and all(low > 0 or high < 0 for low, high in known)
            colour = COLOURS[0] if middle > 0 else COLOURS[1]
            axis.plot(pictures, [place] * 2, color=colour, linewidth=5, alpha=0.4, solid_capstyle="butt")
            axis.plot(ends, [place] * 2, color=colour, linewidth=1.2, marker="|", markersize=8)
            axis.plot([middle], [place], color=colour, marker="o", markersize=8 if sure else 4, linestyle="")
            if (one := row.get("gain_miou_first")) is not None:
                axis.plot(
                    [100 * one], [place], color=colour, marker="D", markersize=5, markerfacecolor=PAPER, linestyle=""
                )
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_yticks(range(len(shown)), [f"{row.experiment} − {row.over}" for row in shown.itertuples()])
        axis.set(xlabel="gain in mIoU (points)", ylim=(len(shown) - 0.5, -0.5))
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)

    return drawn(draw, 7.2, height, f"Gains in mIoU{of}")


def _shares(rows: list[dict[str, Any]], key: str) -> list[float]:
    return [np.nan if row[key] is None else 100 * row[key] for row in rows]
