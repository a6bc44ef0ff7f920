"""Comparisons: the tables of a paper, each some of the experiments in a chosen order, with the settings that vary.

In every comparison an experiment is set against the first one that learnt from the same labels with the same networks,
seed by seed and picture by picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from beco.artifacts.store import Store
from beco.config import Comparison
from beco.errors import UserError
from beco.evaluation.report import figures
from beco.evaluation.tables.pairs import ENDS as SEED_ENDS
from beco.evaluation.tables.pairs import pair_table
from beco.evaluation.tables.table_files import (
    DIFFERENCES_NOTE,
    FIRST_HEADING,
    MEAN_NOTE,
    Printed,
    first_cells,
    first_note,
    over_pictures,
    published_cells,
    write_table,
)
from beco.evaluation.tables.tables import (
    RUN_NUMBERS,
    LabelSource,
    Results,
    Run,
    mean_std,
    percent,
    recipe_table,
    run_table,
    spread,
)
from beco.schema.published import figures as published_figures
from beco.schema.slots import RECIPES

ENDS = (*SEED_ENDS, "_pictures_low", "_pictures_high")
GAINS = [f"{name}{end}" for name in RUN_NUMBERS for end in ENDS]
FIRST_GAINS = [f"miou_first{end}" for end in SEED_ENDS]


def write_comparison(comparison: Comparison, results: Results, output: Path) -> None:
    """Write `output` (.csv) and the same as Markdown and LaTeX beside it."""
    frame = comparison_table(comparison, results.runs, results.labels, results.published)
    write_table(output, frame, printed(frame, comparison), note(frame), comparison.title)


def comparison_table(
    comparison: Comparison,
    runs: list[Run],
    label_sources: list[LabelSource],
    published: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The rows of `recipe_table` for the experiments of a comparison, in its order, with what it is about.

    A column for each path of `vary` with the value that the files of the runs name, and for each of `RUN_NUMBERS`
    `gain_<number>`, its mean difference from experiment `over` on the common seeds, a share: `…_low` and `…_high` are
    the ends of the 95 % interval over seeds, `…_pictures_low` and `…_pictures_high` of the one over pictures. The first
    experiment of its labels and networks has no gain. With `miou_first` there is `gain_miou_first`, over seeds alone.

    Raises `UserError` for an experiment without a run, and for a setting that the files do not name.
    """
    by_name: dict[str, list[Run]] = {name: [] for name in comparison.experiments}
    for run in runs:
        if run.experiment in by_name:
            by_name[run.experiment].append(run)
    missing = [name for name, found in by_name.items() if not found]
    if missing:
        raise UserError(f"--runs: no run of {missing[0]}, which the comparison lists; add it")
    chosen = [run for found in by_name.values() for run in found]
    frame = recipe_table(chosen, label_sources, published).rename(columns={"difference": "over_labels"})
    folders = {source.name: source.folder for source in label_sources}
    for place, path in enumerate(comparison.vary):
        values = [setting(by_name[str(name)][0], folders, path) for name in frame["experiment"]]
        frame.insert(1 + place, path, pd.Series(values, dtype=object))
    frame = frame.merge(_gains(by_name), on="experiment", how="left", validate="1:1")
    return pd.concat([frame, _others(comparison.published, frame)], ignore_index=True)


def _others(keys: list[str], like: pd.DataFrame) -> pd.DataFrame:
    """Rows of published figures of others, with the columns of a comparison; `experiment` is method and network."""
    found = [published_figures()[key] for key in keys]
    frame = pd.DataFrame(
        {
            "experiment": [", ".join(part for part in (item.method, item.network) if part) for item in found],
            "published": [item.miou for item in found],
            "published_protocol": [item.protocol for item in found],
            "published_source": [item.source for item in found],
        }
    )
    return frame.reindex(columns=like.columns).astype(like.dtypes.drop("seeds"))


def sections(
    comparisons: Mapping[str, Comparison],
    runs: list[Run],
    label_sources: list[LabelSource],
    published: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The comparisons as the report shows them: title, rows with their numbers, the settings that vary, figures."""
    found = []
    for name, comparison in comparisons.items():
        frame = comparison_table(comparison, runs, label_sources, published)
        ours = frame[frame["experiment"].isin(comparison.experiments)]
        varied = (
            comparison.vary[0] if len(comparison.vary) == 1 and ours[comparison.vary[0]].map(_is_number).all() else None
        )
        if varied:
            figure = figures.setting_curve(ours.assign(line=_lines(ours, runs)), varied, f", {name}")
        else:
            figure = _near_borders(comparison, runs, name)
        gains = figures.gains(ours, f", {name}")
        found.append(
            {
                "name": name,
                "title": comparison.title or name,
                "rows": frame.to_dict("records"),
                "vary": [(path, _short(path)) for path in comparison.vary],
                "published": bool(frame["published_source"].ne("").any()),
                "note": common_protocol(frame),
                "curve": varied is not None,
                "figure": Markup(figure) if figure else None,
                "gains": Markup(gains) if gains else None,
            }
        )
    return found


def _lines(rows: pd.DataFrame, runs: list[Run]) -> list[str]:
    """Recipe and labels of each experiment: what a curve over a setting must not join."""
    recipes = {run.experiment: run.training().get("recipe", "") for run in runs}
    return [f"{recipes[name]} on {labels}" for name, labels in zip(rows["experiment"], rows["labels"], strict=True)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _near_borders(comparison: Comparison, runs: list[Run], of: str) -> str | None:
    """IoU by distance to borders, if that is not too many lines."""
    if len(comparison.experiments) > figures.MOST_LINES:
        return None
    curves = {name: by_seed(runs, name, "trimap_iou") for name in comparison.experiments}
    return figures.trimap_curves(curves, f", {of}")


def by_seed(runs: list[Run], experiment: str, key: str) -> list[Any]:
    """A list in the metrics of every seed of an experiment that has it."""
    found = [run.metrics().get(key) for run in runs if run.experiment == experiment]
    return [values for values in found if values]


def setting(run: Run, label_folders: Mapping[str, Path], path: str) -> Any:
    """The value of a setting such as `training.mix.probability`, `network.output_stride` or `labels.background`.

    None where it plays no part: in another recipe, and of labels that are imported or the true masks. Raises
    `UserError` if the run's files do not name it.
    """
    part, *keys = path.split(".")
    found: Any = None
    if part == "labels" and run.labels in label_folders:
        with Store(label_folders[run.labels] / "labels.h5") as store:
            found = store.attributes.get("labels", {})
    elif part != "labels":
        found = run.training().get({"training": "settings"}.get(part, part))
    if path.startswith(RECIPES.fact(str(run.training().get("recipe")), "UNUSED")):
        return None
    for key in keys:
        if part == "labels" and (found is None or key not in found):
            return None
        if not isinstance(found, dict) or key not in found:
            raise UserError(f"{run.folder}: its files do not name {path}; take it off `vary`")
        found = found[key]
    return found


def _gains(by_name: Mapping[str, list[Run]]) -> pd.DataFrame:
    """One row per experiment with `over` and a column for each of `GAINS`; none for the first of its group."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, runs in by_name.items():
        network = json.dumps(runs[0].training().get("network"), sort_keys=True)
        groups.setdefault((runs[0].labels, network), []).append(name)
    found = []
    for first, *others in groups.values():
        table = run_table([run for name in (first, *others) for run in by_name[name]])
        found.append(pair_table(table, first))
    every = pd.concat(found, ignore_index=True).rename(columns={"minus": "over"})
    numbers = [*GAINS, *(FIRST_GAINS if "miou_first" in every else [])]
    every = every[["experiment", "over", *numbers]].astype(dict.fromkeys(numbers, float))
    return every.rename(columns={name: f"gain_{name}" for name in numbers})


def note(frame: pd.DataFrame) -> str:
    """What is true of the whole table: its protocol, if it is one, its means, and what the intervals are."""
    said = [common_protocol(frame), MEAN_NOTE, DIFFERENCES_NOTE if frame["over"].notna().any() else ""]
    return " ".join(part for part in said if part) + first_note(frame)


def common_protocol(frame: pd.DataFrame) -> str:
    """The protocol of all rows in a sentence; empty if there are several."""
    protocols = frame["protocol"].dropna().unique()
    return f"Protocol: {protocols[0]}." if len(protocols) == 1 else ""


def printed(frame: pd.DataFrame, comparison: Comparison) -> Printed:
    """Header and rows as they are printed, in percent and percentage points."""
    against = frame["published_source"].ne("").any()
    several, first = frame["protocol"].nunique() > 1, "miou_first" in frame
    ours = [
        *map(_short, comparison.vary),
        "labels",
        "supervision",
        "their mIoU, train (%)",
        "mIoU (%)",
        *[FIRST_HEADING] * first,
        "boundary IoU (%)",
    ]
    ours += ["pixel accuracy (%)", "seeds", "gain in mIoU (points, over seeds)", "over pictures"]
    ours += [*["gain of one network in mIoU"] * first, "gain in boundary IoU", "over pictures", "gain over"]
    header = ["experiment", *ours, *(["published (%)", "ours − published", "source"] if against else [])]
    rows = []
    for row in frame.to_dict("records"):
        known = row["experiment"] in comparison.experiments
        cells = [row["experiment"], *(_our_cells(row, comparison.vary) if known else [""] * len(ours))]
        cells += published_cells(row) if against else []
        rows.append([*cells, row["protocol"] if known else ""] if several else cells)
    return [*header, *(["protocol"] if several else [])], rows


def _short(path: str) -> str:
    """A setting's name as a heading."""
    return path.rpartition(".")[2].replace("_", " ")


def _our_cells(row: Mapping[Any, Any], vary: list[str]) -> list[object]:
    settings = ["" if row[path] is None else row[path] for path in vary]
    numbers = [percent(row["labels_miou"]), mean_std(row["miou"], row["miou_std"]), *first_cells(row)]
    numbers += [percent(row["boundary_iou"]), percent(row["pixel_accuracy"]), str(int(row["seeds"]))]
    return [*settings, row["labels"], row["supervision"], *numbers, *_gain_cells(row)]


def _gain_cells(row: Mapping[Any, Any]) -> list[str]:
    """Gains in mIoU and in boundary IoU with both of their intervals, and over what; empty without one."""
    first = "gain_miou_first" in row
    if pd.isna(row["over"]):
        return [""] * (5 + first)
    gains = {key.removeprefix("gain_"): value for key, value in row.items() if str(key).startswith("gain_")}
    miou, boundary = ([text(gains, name) for text in (spread, over_pictures)] for name in ("miou", "boundary_iou"))
    return [*miou, *([spread(gains, "miou_first")] if first else []), *boundary, row["over"]]
