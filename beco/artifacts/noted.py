"""What was noted of a folder of predictions, as `beco.stage2.journal` writes it and others read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "predictions.jsonl"
Line = dict[str, Any]


@dataclass(frozen=True)
class Noted:
    """What the journal of a folder says of it."""

    classes: list[str]
    """Names of the foreground classes in label order."""
    pictures: dict[str, str]
    """The picture of each label map, by the map's path in the folder."""
    others: frozenset[str]
    """Files that are no label maps: how sure these are, and pictures of them; and maps that were never finished."""


def noted(folder: Path) -> Noted | None:
    """What was noted of a folder of predictions; None if there is no journal in it."""
    head, lines = read(folder / NAME)
    classes = head["made_by"].get("classes") if head and isinstance(head["made_by"], dict) else None
    if head is None or not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        return None
    pictures = {str(line["label"]): str(line["image"]) for line in lines}
    return Noted(classes, pictures, frozenset(set(head["files"]) - pictures.keys()))


def read(path: Path) -> tuple[Line | None, list[Line]]:
    """The first line, None if there is none of ours; and the last of each label map."""
    try:
        texts = path.read_bytes().split(b"\n")  # a kill may have cut the last one within a letter
    except OSError:
        return None, []
    lines = list(_lines(texts))
    if not lines or not lines[0].keys() >= {"made_by", "files"}:
        return None, []
    pictures = [line for line in lines[1:] if line.keys() >= {"image", "label", "pixels", "files"}]
    return lines[0], list({line["label"]: line for line in pictures}.values())


def _lines(texts: list[bytes]) -> Iterator[Line]:
    for text in texts:
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                yield line
