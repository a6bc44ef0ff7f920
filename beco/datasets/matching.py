"""Which files of a folder belong to which pictures."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from beco.datasets.paths import SUFFIXES, image_id

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


def pictures_of(folder: Path, ids: Iterable[str]) -> dict[str, list[Path]]:
    """The pictures of a folder, in any depth, that are named as those of `ids`; see `claims` and `paths.image_id`."""
    found = {}
    for path in _pictures(folder):
        found[Path(f"{image_id(path.relative_to(folder).as_posix())}{path.suffix}")] = path
    return {name: [found[path] for path in paths] for name, paths in claims(found, ids).items()}


def by_name(folder: Path, ids: list[str] | None = None) -> dict[str, str]:
    """The same by their name in the folder, as `beco.exchange.watch` wants them; without `ids` all."""
    paths = _pictures(folder) if ids is None else [path for one in pictures_of(folder, ids).values() for path in one]
    return {path.relative_to(folder).as_posix(): str(path) for path in paths}


def _pictures(folder: Path) -> list[Path]:
    """None if there is no such folder."""
    found = []
    for inside, _, names in os.walk(folder):
        found += [Path(inside, name) for name in names if Path(name).suffix.lower() in SUFFIXES and name[0] != "."]
    return sorted(found)
