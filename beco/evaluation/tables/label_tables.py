"""The tables of pseudo-labels alone: their quality, and its sweep over background scores.

As in `tables`, shares run from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from beco.evaluation.scores.metrics import foreground_mean
from beco.evaluation.tables.tables import RUN_NUMBERS, LabelSource, protocol_text, read_csv, supervision_text

LABEL_NUMBERS = [
    *RUN_NUMBERS, "precision", "recall", "border_error", "uncertain", "reliable_asked", "reliable",
    "reliable_background", "reliable_objects", "accuracy_reliable", "accuracy_rest", "confidence_auroc",
]  # fmt: skip
SWEEP_NUMBERS = [*RUN_NUMBERS, "precision", "recall"]


def label_table(label_sources: Iterable[LabelSource]) -> pd.DataFrame:
    """One row per pseudo-label source: what they were made from, metrics, and how far their confidence can be trusted.

    `precision` and `recall` are means over the foreground classes that have a value; `border_error` is the error rate
    within 1 px of a true border; `reliable_asked` is the reliable fraction that was set, `reliable` what came of it,
    of all pixels with an opinion, of those labelled background, and as objects; `confidence_auroc` is the chance that
    a right pixel is more confident than a wrong one. A list of pictures that was measured apart has a row of its own,
    with the name of the list as its `split`.
    """
    rows = [row for source in label_sources for row in _label_rows(source)]
    frame = pd.DataFrame(
        rows, columns=["labels", "source", "supervision", *LABEL_NUMBERS, "split", "pictures", "masks"]
    )
    return frame.astype(dict.fromkeys(LABEL_NUMBERS, float))


def _label_rows(source: LabelSource) -> list[dict[str, Any]]:
    metrics = source.metrics()
    reliable, border = metrics.get("reliable", {}), metrics.get("border_error") or [{}]
    named = {"labels": source.name, "source": source.source, "supervision": supervision_text(metrics)}
    row = {
        **named,
        **{key: metrics.get(key) for key in RUN_NUMBERS},
        **{key: foreground_mean(list(metrics.get(key, {}).values())) for key in ("precision", "recall")},
        "border_error": border[0].get("error"),
        "uncertain": metrics.get("uncertain"),
        "reliable_asked": reliable.get("asked"),
        "reliable": reliable.get("obtained"),
        "reliable_background": reliable.get("obtained_background"),
        "reliable_objects": reliable.get("obtained_objects"),
        "accuracy_reliable": reliable.get("accuracy_inside"),
        "accuracy_rest": reliable.get("accuracy_outside"),
        "confidence_auroc": metrics.get("confidence", {}).get("auroc"),
        "split": metrics.get("split"),
        "pictures": metrics.get("pictures"),
        "masks": protocol_text({"masks": metrics.get("protocol", {}).get("masks", "")}),
    }
    apart = metrics.get("apart", {}).items()
    return [row, *({**named, "split": name, "masks": row["masks"], **own} for name, own in apart)]


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
