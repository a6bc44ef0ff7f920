"""`predictions.jsonl`: what was predicted by what, so that a run that was killed goes on where it stood.

The first line says which networks and settings made the folder, and which files are its own. Every other is a picture
whose files are all there: their states (`beco.artifacts.states`), its size and its pixels of each label value. Lines
are only ever added at the end, and one that a kill has cut short does not count.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from beco.artifacts.files import hold, whole
from beco.artifacts.folders import refuse_foreign
from beco.artifacts.states import state_of, unchanged
from beco.errors import UserError

NAME = "predictions.jsonl"
LOCK = ".lock"
Line = dict[str, Any]


class Journal:
    """The file in a folder, open for more lines until the block ends.

    `made_by` is what has to agree for pictures to be kept; `replace` removes what others have made. Raises `UserError`
    if the folder holds files of another's, predictions of other networks or settings, or another process's work.
    """

    def __init__(self, folder: Path, made_by: Line, planned: Iterable[str], replace: bool) -> None:
        self.folder, self.path = folder, folder / NAME
        before, lines = _read(self.path)
        if before is None:
            refuse_foreign(folder, (LOCK,))
        own = set(before["files"]) if before else set()
        planned = sorted(planned)
        if foreign := [name for name in planned if name not in own and (folder / name).exists()]:
            raise UserError(
                f"{folder}: holds a file of another's ({foreign[0]}), which would be lost; name a new folder"
            )
        if before and before["made_by"] != made_by:
            _refuse_others(folder, before["made_by"], made_by, replace)
        hold(folder)
        if before and before["made_by"] != made_by:
            _clear(folder, own)
            own, lines = set(), []
        self.lines = {line["image"]: line for line in lines}
        with whole(self.path) as temporary:
            head = {"made_by": made_by, "files": sorted(own.union(planned))}
            temporary.write_text("".join(_text(line) for line in (head, *lines)), encoding="utf-8")
        self._stream: IO[str] = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def has(self, name: str, files: dict[str, Path]) -> bool:
        """Whether a picture's files, the picture among them, are what was noted."""
        line = self.lines.get(name)
        if line is None or not files.keys() <= line["files"].keys():
            return False
        known = {what: line["files"][what] for what in files}
        return unchanged({what: str(path) for what, path in files.items()}, known) is not None

    def note(self, name: str, files: dict[str, Path], facts: Line) -> None:
        """Add a picture whose files are written."""
        line = {"image": name, **facts, "files": {what: state_of(str(path)) for what, path in files.items()}}
        self.lines[name] = line
        self._stream.write(_text(line))
        self._stream.flush()


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
    head, lines = _read(folder / NAME)
    classes = head["made_by"].get("classes") if head and isinstance(head["made_by"], dict) else None
    if head is None or not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        return None
    pictures = {str(line["label"]): str(line["image"]) for line in lines}
    return Noted(classes, pictures, frozenset(set(head["files"]) - pictures.keys()))


def _read(path: Path) -> tuple[Line | None, list[Line]]:
    """The first line, None if there is none of ours; and the last of each picture."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None, []
    lines = list(_lines(texts))
    if not lines or not lines[0].keys() >= {"made_by", "files"}:
        return None, []
    pictures = [line for line in lines[1:] if line.keys() >= {"image", "label", "pixels", "files"}]
    return lines[0], list({line["image"]: line for line in pictures}.values())


def _lines(texts: list[str]) -> Iterator[Line]:
    for text in texts:
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                yield line


def _text(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _refuse_others(folder: Path, before: Line, now: Line, replace: bool) -> None:
    if not replace:
        what = "other networks" if before.get("networks") != now["networks"] else "other settings"
        raise UserError(f"{folder}: holds predictions by {what}; name a new folder, or drop them with --replace")


def _clear(folder: Path, names: Iterable[str]) -> None:
    """Remove files of the folder and the folders that they leave empty."""
    for name in names:
        path = folder / name
        if folder.resolve() not in path.resolve().parents:  # a journal that somebody has changed
            continue
        path.unlink(missing_ok=True)
        for above in path.parents:
            if above == folder:
                break
            with suppress(OSError):  # it holds more, or is gone
                above.rmdir()
