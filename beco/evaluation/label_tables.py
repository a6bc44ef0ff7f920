"""The tables of pseudo-labels alone: their quality, and its sweep over background scores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from beco.evaluation.metrics import foreground_mean
from beco.evaluation.tables import (
    RUN_NUMBERS,
    LabelSource,
    markdown,
    percent,
    read_csv,
    write_text,
)
from beco.files import write_csv

LABEL_NUMBERS = [
    *RUN_NUMBERS, "precision", "recall", "border_error", "uncertain", "reliable", "accuracy_reliable", "accuracy_rest",
    "confidence_auroc",
]  # fmt: skip
SWEEP_NUMBERS = [*RUN_NUMBERS, "precision", "recall"]


def label_table(label_sources: Iterable[LabelSource]) -> pd.DataFrame:
    """One row per pseudo-label source: its metrics, and how far its confidence can be trusted.

    `precision` and `recall` are means over the foreground classes that have a value; `border_error` is the error rate
    within 1 px of a true border; `confidence_auroc` is the chance that a right pixel is more confident than a wrong
    one. A list of pictures that was measured apart has a row of its own, with the name of the list as its `split`.
    """
    rows = [row for source in label_sources for row in _label_rows(source)]
    frame = pd.DataFrame(rows, columns=["labels", *LABEL_NUMBERS, "split", "pictures"])
    return frame.astype(dict.fromkeys(LABEL_NUMBERS, float))


def _label_rows(source: LabelSource) -> list[dict[str, Any]]:
    metrics = source.metrics()
    reliable, border = metrics.get("reliable", {}), metrics.get("border_error") or [{}]
    row = {
        "labels": source.name,
        **{key: metrics.get(key) for key in RUN_NUMBERS},
        **{key: foreground_mean(list(metrics.get(key, {}).values())) for key in ("precision", "recall")},
        "border_error": border[0].get("error"),
        "uncertain": metrics.get("uncertain"),
        "reliable": reliable.get("share"),
        "accuracy_reliable": reliable.get("accuracy_inside"),
        "accuracy_rest": reliable.get("accuracy_outside"),
        "confidence_auroc": metrics.get("confidence", {}).get("auroc"),
        "split": metrics.get("split"),
        "pictures": metrics.get("pictures"),
    }
    apart = metrics.get("apart", {}).items()
    return [row, *({"labels": source.name, "split": name, **numbers} for name, numbers in apart)]


def sweep_table(label_sources: Iterable[LabelSource]) -> pd.DataFrame:
    """Rows of every source's sweep: labels, background, the numbers of `sweep.sweep`, and `best`: its highest mIoU."""
    frames = []
    for source in label_sources:
        path = source.quality / "sweep.csv"
        if path.is_file():
            frame = read_csv(path)
            best = frame["miou"] == frame["miou"].max()
            frames.append(frame.assign(labels=source.name, best=best))
    columns = ["labels", "background", *SWEEP_NUMBERS, "best"]
    return pd.concat(frames)[columns] if frames else pd.DataFrame(columns=columns)


def write_label_tables(label_sources: list[LabelSource], output: Path) -> None:
    """Write pseudo_labels and, if anything was swept, sweep (.csv, .md) into `output`."""
    labels, swept = label_table(label_sources), sweep_table(label_sources)
    write_csv(labels, output / "pseudo_labels.csv")
    header = ["labels", *(f"{name.replace('_', ' ')} (%)" for name in LABEL_NUMBERS), "split", "pictures"]
    rows = labels.to_dict("records")
    lines = (
        [row["labels"], *(percent(row[name]) for name in LABEL_NUMBERS), row["split"], row["pictures"]] for row in rows
    )
    write_text(markdown(header, lines), output / "pseudo_labels.md")
    if not swept.empty:
        write_csv(swept, output / "sweep.csv")
        write_text(_sweep_markdown(swept), output / "sweep.md")


def _sweep_markdown(swept: pd.DataFrame) -> str:
    """mIoU, one line a source and one column a background score; the best of each line in bold."""
    scores = sorted(set(swept["background"]))
    lines: list[list[Any]] = []
    for name, group in swept.groupby("labels", sort=False):
        texts = {
            row["background"]: f"**{percent(row['miou'])}**" if row["best"] else percent(row["miou"])
            for row in group.to_dict("records")
        }
        lines.append([name, *(texts.get(score, "") for score in scores)])
    return markdown(["mIoU (%) at background", *(f"{score:g}" for score in scores)], lines)
