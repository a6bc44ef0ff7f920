"""`predictions.jsonl`: what was predicted by what, so that a run that was killed goes on where it stood.

The first line says which networks and settings made the folder, and which files are its own. Every other is a picture
whose files are all there: where it was read, their states (`beco.artifacts.states`), its size and its pixels of each
label value. A label map has one line, that of the picture it was made of. While a call works lines are only added at
the end, and one that a kill has cut short does not count.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from beco.artifacts.files import hold, whole
from beco.artifacts.folders import refuse_foreign
from beco.artifacts.noted import NAME, Line, read
from beco.artifacts.states import state_of, unchanged
from beco.errors import UserError
from beco.stage2.outputs import More

LOCK = ".lock"


@dataclass(frozen=True)
class Picture:
    """A picture of this call, and what is made of it."""

    name: str
    path: Path
    place: str
    """The path from the root, links to folders followed: where it was read."""
    files: dict[str, str]
    """What is made of it (`More.files`), relative to the folder of all."""

    @property
    def label(self) -> str:
        """Its label map, by which all is told apart."""
        return self.files["label"]

    def is_as_in(self, line: Line) -> bool:
        """Whether the picture is the one of a line, and has not changed."""
        known = {"picture": line["files"].get("picture")}
        return line["image"] == self.name and unchanged({"picture": str(self.path)}, known) is not None

    def follows(self, line: Line) -> bool:
        """Whether it is the picture of a line, wherever it lies now, or has come in its place."""
        before = Path(line.get("source", self.place))
        here = Path(self.place)
        replaced = before.parent == here.parent and not before.exists()
        return before == here or replaced or self.is_as_in(line)


class Journal:
    """The file in a folder, open for more lines until the block ends.

    `made_by` is what has to agree for pictures to be kept; `pictures` are those of this call, `bad` those that cannot
    be read, and `beside` what is written but for them. What is there of a picture that is now another one, or that
    cannot be read any more, is removed: no label map stays that is not what its picture would give. `replace` removes
    what others have made. Raises `UserError` if the folder holds files of another's, predictions of other networks,
    settings or pictures, or another process's work.
    """

    def __init__(
        self,
        folder: Path,
        made_by: Line,
        pictures: Sequence[Picture],
        bad: Sequence[Picture],
        beside: Iterable[str],
        replace: bool,
    ) -> None:
        self.folder, self.path = folder, folder / NAME
        before, lines = read(self.path)
        lines = [line for line in lines if (folder / line["label"]).is_file()]
        if before is None:
            refuse_foreign(folder, (LOCK,))
        own = set(before["files"]) if before else set()
        planned = {*beside, *(name for one in pictures for name in one.files.values())}
        if foreign := [name for name in sorted(planned) if name not in own and (folder / name).exists()]:
            raise UserError(
                f"{folder}: holds a file of another's ({foreign[0]}), which would be lost; name a new folder"
            )
        others = _others(folder, before["made_by"], made_by) if before else ""
        others = others or _taken(folder, [*pictures, *bad], lines)
        if others and not replace:
            raise UserError(f"{others}; name a new folder, or drop what is there with --replace")
        hold(folder)
        if others:
            _clear(folder, own)
            own, lines = set(), []
        self.lines = {line["label"]: line for line in lines}
        self.dropped = sum(self._settle(one) for one in (*pictures, *bad))
        """Label maps that were of another picture, or of what it was before; they are removed."""
        with whole(self.path) as temporary:
            head = {"made_by": made_by, "files": sorted(own | planned)}
            written = "".join(_text(line) for line in (head, *self.lines.values()))
            temporary.write_text(written, encoding="utf-8", errors=ESCAPED)
        noted = {name for line in self.lines.values() for name in _files(line)}
        _clear(folder, own - noted - set(beside))  # also what a kill has kept from being noted
        self._stream: IO[str] = self.path.open("a", encoding="utf-8", errors=ESCAPED)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _settle(self, picture: Picture) -> bool:
        """Take the line out that stands in a picture's place, unless it is of the picture as it is; whether it did."""
        if (line := self.lines.get(picture.label)) is None:
            return False
        if picture.is_as_in(line):
            line["source"] = picture.place  # which may have been moved with its folder
            return False
        del self.lines[picture.label]
        return True

    def knows(self, picture: Picture) -> bool:
        """Whether there is a label map of the picture as it is."""
        return picture.label in self.lines

    def has(self, picture: Picture) -> bool:
        """Whether a picture's files, the picture among them, are what was noted."""
        line = self.lines.get(picture.label)
        files = self._paths(picture)
        if line is None or not files.keys() <= line["files"].keys():
            return False
        known = {what: line["files"][what] for what in files}
        return unchanged({what: str(path) for what, path in files.items()}, known) is not None

    def note(self, picture: Picture, facts: Line) -> None:
        """Add a picture whose files are written; what was made of it before, and is not now, is as true as it was."""
        states = {what: state_of(str(path)) for what, path in self._paths(picture).items()}
        before = self.lines.get(picture.label, {"files": {}})["files"]
        line = {"image": picture.name, "label": picture.label, "source": picture.place, **facts}
        self.lines[picture.label] = line | {"files": before | states}
        self._stream.write(_text(self.lines[picture.label]))
        self._stream.flush()

    def _paths(self, picture: Picture) -> dict[str, Path]:
        return {"picture": picture.path, **{what: self.folder / name for what, name in picture.files.items()}}


ESCAPED = "backslashreplace"
"""What of a path is no text: so it is what JSON reads as just that."""


def _text(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _files(line: Line) -> list[str]:
    """What was made of the picture of a line, relative to the folder."""
    names = More(confidence=True, overlay=True).files(line["label"].removesuffix(".png"))
    return [names[what] for what in line["files"] if what in names]


def _others(folder: Path, before: Line, now: Line) -> str:
    """What is wrong with a folder that was made by something else; "" if it was not."""
    if before == now:
        return ""
    what = "networks" if before.get("networks") != now["networks"] else "settings"
    return f"{folder}: holds predictions by other {what}"


def _taken(folder: Path, pictures: Sequence[Picture], lines: list[Line]) -> str:
    """What is wrong with pictures that want a file which has been made of another picture; "" if none does."""
    owners = {name: line for line in lines for name in _files(line)}
    inside = {str(above): line for name, line in owners.items() for above in PurePosixPath(name).parents}
    for one in pictures:
        for name in one.files.values():
            line = owners.get(name) or inside.get(name)
            line = line or next((owners[str(up)] for up in PurePosixPath(name).parents if str(up) in owners), None)
            if line and not (line["label"] == one.label and one.follows(line)):
                return f"{one.path}: what is made of it would be called {name} in {folder}, as that of {_where(line)}"
    return ""


def _where(line: Line) -> str:
    return str(line.get("source", line["image"]))


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
