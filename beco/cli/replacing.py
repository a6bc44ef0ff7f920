"""No command puts its file in the place of another's: looked at for every command that writes one, before it begins.

A file of the same kind that was made here is written anew, and so is an empty one, as `mktemp` leaves it. What a file
is its content says and not its name. Folders have their own rule, see `beco.artifacts.folders`.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beco.errors import UserError

READ = 2**16
LONGEST_HEADER = 2**24
MOST_JSON = 2**28
PAGE = b"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a report may load: nothing. No page of another's says so in these words."""


@dataclass(frozen=True)
class Kind:
    """A kind of file of ours, and how it is known."""

    name: str
    is_ours: Callable[[Path], bool]


def refuse(command: str, values: Mapping[str, Any]) -> None:
    """UserError if the function `command`, called with `values`, would write over a file that is none of its kind."""
    if command == "export_labels" and values.get("form") != "coco-json":  # the others are folders
        return
    for place, kind in KINDS.get(command, {}).items():
        beside = place.startswith(".")
        given = values.get("output" if beside else place)
        if given is None:
            continue
        path = Path(given).with_suffix(place) if beside and Path(given).name else Path(given)
        if path.is_dir() or not path.exists():
            continue
        if not path.is_file():
            raise UserError(f"{path}: is a pipe, a device or such, and {kind.name} is to be written; name a file")
        if path.stat().st_size and not _is_ours(path, kind):
            raise UserError(f"{path}: is there, is not {kind.name}, and would be lost; name another file, or move it")


def _is_ours(path: Path, kind: Kind) -> bool:
    try:
        return kind.is_ours(path)
    except (OSError, ValueError, RecursionError, KeyError, RuntimeError, EOFError, tarfile.TarError):
        return False  # cut, or of something else altogether


def _store(*layers: str) -> Callable[[Path], bool]:
    """HDF5 files of ours, of these layers or any, or of no picture."""

    def is_ours(path: Path) -> bool:
        if not _begins(path, b"\x89HDF\r\n\x1a\n"):
            return False
        import h5py  # takes a while, and most commands find nothing to look at

        with h5py.File(path, "r", locking=False) as file:
            return "format_version" in file.attrs and (not layers or set(file) <= set(layers))

    return is_ours


def _begins(path: Path, *beginnings: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(READ).startswith(beginnings)


def _starts(*beginnings: bytes) -> Callable[[Path], bool]:
    return lambda path: _begins(path, *beginnings)


def _holds(*words: bytes) -> Callable[[Path], bool]:
    def is_ours(path: Path) -> bool:
        with path.open("rb") as stream:
            head = stream.read(READ)
        return all(word in head for word in words)

    return is_ours


def _table(*columns: str) -> Callable[[Path], bool]:
    """CSVs with these columns, the first of which comes first."""

    def is_ours(path: Path) -> bool:
        with path.open(encoding="utf-8") as stream:
            found = stream.readline(READ).rstrip("\n").split(",")
        return found[0] == columns[0] and set(found) >= set(columns)

    return is_ours


def _json(*keys: str) -> Callable[[Path], bool]:
    """JSON objects with all these keys."""

    def is_ours(path: Path) -> bool:
        if path.stat().st_size > MOST_JSON:
            return False
        content = json.loads(path.read_bytes())
        return isinstance(content, dict) and content.keys() >= set(keys)

    return is_ours


def _is_texts(path: Path) -> bool:
    """A safetensors whose metadata are those of `beco text-features`."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length)) if length < LONGEST_HEADER else {}
    return "texts" in header["__metadata__"]


def _is_archive(path: Path) -> bool:
    with tarfile.open(path, "r:gz") as archive:
        first = archive.next()
    return first is not None and first.name.startswith("results/VOC2012/Segmentation/")


MAPS = Kind("score maps of beco", _store("cam"))
LABELS = Kind("labels of beco", _store("label", "confidence"))
KINDS: dict[str, dict[str, Kind]] = {
    "manifest": {
        "output": Kind("a manifest", _table("image_id", "split", "image", "mask")),
        ".json": Kind("what `beco manifest` writes beside a manifest", _json("dataset")),
    },
    "text_features": {"output": Kind("a file of `beco text-features`", _is_texts)},
    "cams": {"output": MAPS},
    "refine": {"output": MAPS},
    "labels": {"output": LABELS},
    "import_labels": {"output": LABELS},
    "gather": {"output": Kind("an HDF5 file of beco", _store())},
    "export_labels": {"output": Kind("a file of `beco export-labels`", _starts(b'{"annotations": ['))},
    "archive": {"output": Kind("an archive for the VOC server", _is_archive)},
    "sweep_labels": {"output": Kind("a table of `beco sweep-labels`", _table("background", "miou", "boundary_iou"))},
    "comparison": {
        "output": Kind("a table of `beco comparison`", _table("experiment", "labels", "gain_miou")),
        ".md": Kind("a table of `beco comparison`", _holds(b"| experiment |", b"| --- |")),
        ".tex": Kind("a table of `beco comparison`", _holds(b"\\begin{tabular}", b"experiment &")),
    },
    "report": {"output": Kind("a report of beco", _holds(b"<!doctype html>", PAGE))},
    "plan": {
        "output": Kind("a plan of `beco plan`", _json("device", "rows", "total")),
        "save": Kind("a trial of `beco plan --save`", _json("device", "gpu", "took")),
    },
    "benchmark": {"output": Kind("what `beco benchmark` writes", _json("device", "torch", "threads", "commit"))},
}
"""By command what it writes: under an option, or with a suffix beside its output."""
