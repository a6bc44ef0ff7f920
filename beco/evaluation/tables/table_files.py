"""The tables as files: CSV for machines, Markdown for people, LaTeX (with `booktabs`) for papers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from beco.artifacts.files import whole, write_csv
from beco.evaluation.scores.metrics import MEAN_RULE
from beco.evaluation.scores.rank_correlation import correlation_table
from beco.evaluation.tables.label_tables import LABEL_NUMBERS, label_table, sweep_table
from beco.evaluation.tables.pairs import pair_table
from beco.evaluation.tables.tables import (
    RUN_NUMBERS,
    Results,
    class_table,
    classifier_table,
    mean_std,
    percent,
    recipe_table,
    run_table,
    spread,
)

Printed = tuple[list[str], list[list[object]]]
"""Header and rows of a table as it is printed."""

DIFFERENCES_NOTE = (
    "Over seeds, in brackets: the 95 % interval (Student's t) of the mean difference if stage two were trained again "
    "and measured on these pictures. Over pictures: the 95 % interval (paired bootstrap) of the difference between "
    "these trainings if other pictures of the same kind were measured."
)
CORRELATIONS_NOTE = (
    "Spearman's rank correlation between a property of the labels (training split) and the mIoU of the networks that "
    "learn from them, over pseudo-labels; in brackets: its 95 % interval (bootstrap over the pseudo-labels), which has "
    "no width where the order is perfect, however few they are; p: how often an order at random is as far from 0. That "
    "labels of one localiser are more alike than others neither knows. Starts: weights that these networks began with; "
    "several (weights: classifier) tell in the result as the labels do, and networks.<name>.start names one source for "
    "all. Supervision: what the labels were made from."
)
MEAN_NOTE = f"mIoU and boundary IoU are means over classes and background: {MEAN_RULE}."
FIRST_NOTE = (
    "One network: the first alone of those that a recipe trains and whose average its mIoU is. An average of two is to "
    "be compared with an average of two, and one network with one."
)
SUPERVISION_NOTE = (
    "what the labels were made from besides pictures; of imported ones their program would have to say it"
)
FIRST_HEADING = "one network, mIoU (%)"
SYMBOLS = {"±": r"$\pm$", "−": "$-$", "×": r"$\times$", "–": "--"}


def write_tables(results: Results, output: Path) -> None:
    """Write every table into `output`: recipes, differences, pseudo_labels, classifier and, if anything was swept,
    sweep, and if a recipe learnt from several labels, rank_correlations (.csv, .md, .tex), per_class.csv, runs.csv.
    """
    recipes = recipe_table(results.runs, results.labels, results.published)
    labels, swept = label_table(results.labels), sweep_table(results.labels)
    every, ap = run_table(results.runs), classifier_table(results.sources)
    differences = pair_table(every)
    write_table(output / "recipes.csv", recipes, _recipes(recipes), f"{MEAN_NOTE}{first_note(recipes)}")
    note = f"{DIFFERENCES_NOTE}{first_note(differences)}"
    write_table(output / "differences.csv", differences, _differences(differences), note)
    write_table(output / "pseudo_labels.csv", labels, _labels(labels), MEAN_NOTE)
    if not swept.empty:
        write_table(output / "sweep.csv", swept, _sweep(swept), MEAN_NOTE)
    write_table(output / "classifier.csv", ap, _classifier(ap))
    correlations = correlation_table(results.runs, labels)
    if not correlations.empty:
        write_table(
            output / "rank_correlations.csv", correlations, printed_correlations(correlations), CORRELATIONS_NOTE
        )
    write_csv(class_table(results.runs, results.labels), output / "per_class.csv")
    write_csv(every, output / "runs.csv")


def write_table(output: Path, frame: pd.DataFrame, printed: Printed, note: str = "", title: str = "") -> None:
    """Write a frame to `output` (.csv), and as it is printed to .md and .tex beside it."""
    write_csv(frame, output)
    text = (f"{title}\n\n" if title else "") + markdown(*printed) + (f"\n{note}\n" if note else "")
    _text(text, output.with_suffix(".md"))
    remarks = "".join(f"% {line}\n" for line in (title, note) if line)
    _text(remarks + latex(*printed), output.with_suffix(".tex"))


# --- as they are printed ------------------------------------------------------------------------------------


def _recipes(recipes: pd.DataFrame) -> Printed:
    first = "miou_first" in recipes
    header = ["experiment", "labels", "supervision", "mIoU (%)", *[FIRST_HEADING] * first, "seeds"]
    header += ["published (%)", "ours − published", "source"]
    header += ["boundary IoU (%)", "pixel accuracy (%)", "mIoU of its labels, train (%)", "difference", "protocol"]
    rows = [
        [
            *(row["experiment"], row["labels"], row["supervision"]),
            *(mean_std(row["miou"], row["miou_std"]), *first_cells(row), row["seeds"]),
            *published_cells(row),
            *(percent(row[key]) for key in ("boundary_iou", "pixel_accuracy", "labels_miou")),
            *(percent(row["difference"], signed=True), row["protocol"]),
        ]
        for row in recipes.to_dict("records")
    ]
    return header, rows


def first_cells(row: Mapping[Any, Any]) -> list[str]:
    """mIoU of one network of an experiment, if that was scored."""
    return [mean_std(row["miou_first"], row["miou_first_std"])] if "miou_first" in row else []


def first_note(frame: pd.DataFrame) -> str:
    """What to say of one network's mIoU beneath a table that has it, with a space before it."""
    return f" {FIRST_NOTE}" if "miou_first" in frame else ""


def published_cells(row: Mapping[Any, Any]) -> list[str]:
    """The published figure, ours less it, and its source with what is known of its protocol; empty without one."""
    if not row["published_source"]:
        return ["", "", ""]
    known = f" ({row['published_protocol']})" if row["published_protocol"] else ""
    number = "" if pd.isna(row["published"]) else percent(row["published"])
    less = "" if pd.isna(row["minus_published"]) else percent(row["minus_published"], signed=True)
    return [number, less, row["published_source"] + known]


def _differences(differences: pd.DataFrame) -> Printed:
    first = "miou_first" in differences
    header = ["difference", "labels", "seeds"]
    for name in ("mIoU", "boundary IoU", "pixel accuracy"):
        header += [f"{name} (points, over seeds)", f"{name} over pictures"]
        header += ["one network, mIoU (points, over seeds)"] * (first and name == "mIoU")
    rows = [
        [
            *(f"{row['experiment']} − {row['minus']}", row["labels"], row["seeds"]),
            *(spread(row, "miou"), over_pictures(row, "miou")),
            *([spread(row, "miou_first")] if first else []),
            *(cell for name in RUN_NUMBERS[1:] for cell in (spread(row, name), over_pictures(row, name))),
        ]
        for row in differences.to_dict("records")
    ]
    return header, rows


def over_pictures(row: Mapping[Any, Any], name: str) -> str:
    """The bootstrap's interval of a number in percentage points: `−0.3 to +2.7`; `–` if there is none."""
    low, high = (row[f"{name}_pictures_{end}"] for end in ("low", "high"))
    return "–" if pd.isna(low) else f"{percent(low, signed=True)} to {percent(high, signed=True)}"


def _labels(labels: pd.DataFrame) -> Printed:
    others = ["split", "pictures", *(["masks"] if labels["masks"].any() else [])]
    header = ["labels", "source", "supervision", *(f"{name.replace('_', ' ')} (%)" for name in LABEL_NUMBERS), *others]
    rows = [
        [
            *(row["labels"], row["source"], row["supervision"], *(percent(row[name]) for name in LABEL_NUMBERS)),
            *(row[name] for name in others),
        ]
        for row in labels.to_dict("records")
    ]
    return header, rows


def _sweep(swept: pd.DataFrame) -> Printed:
    """mIoU, one line a source and one column a background score; the best of each line with an asterisk."""
    scores = sorted(set(swept["background"]))
    rows: list[list[object]] = []
    for name, group in swept.groupby("labels", sort=False):
        texts = {
            row["background"]: percent(row["miou"]) + ("*" if row["best"] else "") for row in group.to_dict("records")
        }
        rows.append([name, *(texts.get(score, "") for score in scores)])
    return ["mIoU (%) at background", *(f"{score:g}" for score in scores)], rows


def _classifier(ap: pd.DataFrame) -> Printed:
    rows = [[row["source"], row["class"], percent(row["ap"])] for row in ap.to_dict("records")]
    return ["source", "class", "AP (%)"], rows


def printed_correlations(correlations: pd.DataFrame) -> Printed:
    """One line a group of experiments, one column a property."""
    names = list(dict.fromkeys(correlations["property"]))
    rows: list[list[object]] = []
    for (recipe, experiments), group in correlations.groupby(["recipe", "experiments"], sort=False):
        texts = {row["property"]: _coefficient(row) for row in group.to_dict("records")}
        named = str(experiments).replace(";", ", ")
        first = group.iloc[0]
        told = first["labels"], first["starts"], first["supervision"].replace(";", "; ")
        rows.append([recipe, *told, *(texts[name] for name in names), named])
    properties = [name.replace("_", " ") for name in names]
    return ["recipe", "pseudo-labels", "starts", "supervision", *properties, "experiments"], rows


def _coefficient(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["correlation"]):
        return "–"
    numbers = "{:+.2f} ({:+.2f} to {:+.2f})".format(*(row[key] for key in ("correlation", "low", "high")))
    return f"{numbers}, p {_p(row['p'])}".replace("-", "−")


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


# --- formats ------------------------------------------------------------------------------------------------


def markdown(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def latex(header: list[str], rows: list[list[object]]) -> str:
    """A LaTeX `tabular` with the rules of `booktabs`; what LaTeX would read as a command is escaped."""
    cells = [[str(cell) for cell in row] for row in rows]
    text = pd.DataFrame(cells, columns=header).to_latex(index=False, escape=True, column_format="l" * len(header))
    for symbol, command in SYMBOLS.items():
        text = text.replace(symbol, command)
    return text


def _text(text: str, path: Path) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
