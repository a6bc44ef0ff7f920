"""Published figures, to stand beside ours: `published.csv`, one row a figure, each with where it was read.

Here and not among the tables, because the configuration names rows of it. The paper's tables were read from the picture
of them in the authors' repository; a figure that could not be found has an empty cell, and no guess takes its place.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from beco.schema.base import nearest

FILE = Path(__file__).with_suffix(".csv")


@dataclass(frozen=True)
class Figure:
    """One published mean IoU."""

    key: str
    """method/dataset/split, then what else tells it apart: the network, one network, no CRF."""
    method: str
    network: str
    """As the source names it; empty if it does not."""
    supervision: str
    miou: float | None
    """A share from 0 to 1 as ours; None if it was not found."""
    protocol: str
    """What is known of how it was measured, in parts divided by commas; what it does not name is not known."""
    source: str


@cache
def figures() -> Mapping[str, Figure]:
    """Every figure by its key, in the order of the file."""
    with FILE.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {
        row["key"]: Figure(
            key=row["key"],
            method=row["method"],
            network=row["network"],
            supervision=row["supervision"],
            miou=round(float(row["miou"]) / 100, 6) if row["miou"] else None,
            protocol=row["known protocol"],
            source=row["source"],
        )
        for row in rows
    }
    return MappingProxyType(found)


def unknown(where: str, key: str) -> str:
    """What is wrong with a `key` given at `where`: one line, or nothing if there is such a figure."""
    return "" if key in figures() else f"{where}: no `{key}` in beco/schema/published.csv{nearest(key, figures())}"


def misfit(where: str, key: str, ours: Mapping[str, bool]) -> str:
    """What keeps the figure `key`, named at `where`, from standing beside a row of ours: one line, or nothing.

    `ours` says of parts of a protocol, in the words of the file, whether they hold for the row. A part that is not
    known of the figure rules nothing out, nor does any where the figure itself was not found.
    """
    figure = figures()[key]
    wrong = [part for part in figure.protocol.split(", ") if not ours.get(part, True)]
    if figure.miou is None or not wrong:
        return ""
    return (
        f"{where}: `{key}` was measured with `{wrong[0]}`, unlike this experiment; name another figure or none, or set"
        " recipe and prediction alike"
    )
