"""Which files of a folder belong to which pictures."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

COCO_NUMBER = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?0*(\d+)")


def claims(files: Iterable[Path], ids: Iterable[str]) -> dict[str, list[Path]]:
    """The files that each image id may mean, in their order: of the same name or else of the same COCO number."""
    named: dict[str, list[Path]] = defaultdict(list)
    numbered: dict[int | None, list[Path]] = defaultdict(list)
    for file in files:
        named[file.stem].append(file)
        numbered[_coco_number(file.stem)].append(file)
    numbered.pop(None, None)  # names that are not a COCO number
    return {name: named.get(name) or numbered.get(_coco_number(name), []) for name in ids}


def _coco_number(name: str) -> int | None:
    match = COCO_NUMBER.fullmatch(name)
    return int(match[1]) if match else None
