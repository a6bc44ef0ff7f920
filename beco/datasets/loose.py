"""Pictures without a list: whatever lies in folders, at any depth, or is named one by one.

In a folder every file counts that is called as pictures are, and every other whose first bytes are a picture's. What
begins with a dot does not, and neither does what was written here: the output, and folders of earlier ones.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from beco.artifacts.firstbytes import begins_as_picture
from beco.artifacts.ordered import in_order
from beco.artifacts.text import breaks_lines, readable
from beco.datasets.manifest import Manifest, read_picture
from beco.datasets.palette import opened, upright_size
from beco.datasets.paths import SUFFIXES, composed, too_long
from beco.errors import UserError

MANY = 3
"""Files that a refusal names of several."""


@dataclass(frozen=True)
class Loose:
    """A picture and what it is told by."""

    path: Path
    name: str
    """Path relative to the folder that was given, with `/`; of a file that was given, its name."""

    @property
    def place(self) -> Path:
        """What is the same of two spellings of a path; links to one file are two."""
        return self.path.parent.resolve() / self.path.name

    @property
    def image_id(self) -> str:
        """What files are named after: the name without its suffix, folders kept."""
        return os.path.splitext(self.name)[0]  # noqa: PTH122  (a Path would lose "./" and such)


def find(inputs: Sequence[Path], output: Path, marks: Collection[str]) -> list[Loose]:
    """The pictures that folders and files name, ordered by name; a file that is named twice counts once.

    The names of pictures of several folders begin with the folder's own. `output`, and folders with a file of the
    names `marks` in them, are passed over. Raises `UserError` if an input is missing, if there is no picture, or if two
    would share an id.
    """
    found: dict[Path, Loose] = {}
    for given in inputs:
        if given.is_dir():
            before = f"{given.resolve().name}/" if len(inputs) > 1 else ""
            for path in _walk(given, output.resolve(), marks):
                one = Loose(path, before + path.relative_to(given).as_posix())
                found.setdefault(one.place, one)
        elif given.exists() or given.is_symlink():
            one = Loose(given, given.name)
            found.setdefault(one.place, one)
        else:
            raise UserError(f"{given}: no such picture or folder; check the path")
    if not found:
        where = ", ".join(map(str, inputs[:MANY]))
        raise UserError(f"{where}: no picture there; name a folder that holds some, at any depth, or files")
    pictures = sorted(found.values(), key=lambda one: one.name)
    _refuse_shared(pictures)
    return pictures


def _walk(folder: Path, output: Path, marks: Collection[str]) -> Iterator[Path]:
    """Files of a folder that may be pictures; links to folders are followed, once each."""
    seen: set[tuple[int, int]] = set()

    def refused(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be looked into ({error.strerror}); check its permissions") from error

    for at, folders, names in os.walk(folder, onerror=refused, followlinks=True):
        state = os.stat(at)  # noqa: PTH116
        ours = Path(at).resolve() == output or not set(marks).isdisjoint(names)
        if (state.st_dev, state.st_ino) in seen or (ours and Path(at) != folder):
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(at, name) for name in sorted(names) if _may_be_picture(Path(at, name)))


def _may_be_picture(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return path.suffix.lower() in SUFFIXES or begins_as_picture(path)


def _refuse_shared(pictures: list[Loose]) -> None:
    first: dict[str, Loose] = {}
    shared = [(other, one) for one in pictures if (other := first.setdefault(composed(one.image_id), one)) is not one]
    if shared:
        one, other = shared[0]
        more = f" (and {len(shared) - 1} more such pairs)" if len(shared) > 1 else ""
        raise UserError(
            f"{one.path} and {other.path}{more}: what is made of both would be called {one.image_id}.png; rename one, "
            "or give them to two calls with two outputs"
        )


Bad = dict[str, str]
"""What is wrong with pictures, by their names."""


def measure(pictures: Sequence[Loose], classes: list[str], threads: int, whole: bool) -> tuple[Manifest, Bad]:
    """A manifest of those that can be opened, by `image_id`, and what is wrong with the others.

    Sizes stand at the beginning of most files. With `whole` each is decoded to its end, so that nothing is left to be
    found later.
    """
    rows, bad = [], Bad()
    sizes = in_order(partial(_measured, whole), pictures, threads, "looking at pictures")
    for one, size in zip(pictures, sizes, strict=True):
        if isinstance(size, str):
            bad[one.name] = size
        else:
            rows.append([one.image_id, "", str(one.path), "", size[1], size[0]])
    table = pd.DataFrame(rows, columns=["image_id", "split", "image", "mask", "width", "height"])
    return Manifest(Path(), table.set_index("image_id"), classes), bad


def _measured(whole: bool, one: Loose) -> tuple[int, int] | str:
    """(height, width) of a picture as it is shown, or what is wrong with it."""
    for name in (str(one.path), one.name):
        if breaks_lines(name):
            return f"{readable(name)}: holds characters that no text has; rename it"
    for part in one.name.split("/"):
        if problem := too_long(part, str(one.path)):
            return problem
    try:
        if whole:
            height, width = read_picture(one.path).shape[:2]
            return height, width
        with opened(one.path) as picture:
            return upright_size(picture)
    except UserError as error:
        return str(error)
