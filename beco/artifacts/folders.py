"""Folders that are either whole or absent, in the place of an empty one or of one made here, and of no other."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from beco.artifacts.files import renamed
from beco.errors import UserError

WRITTEN = ".beco.json"
"""Names the files of a folder that was made here, so that those of others among them are known."""
OF_NOBODY = (WRITTEN, ".snakemake_timestamp", ".DS_Store", "Thumbs.db", "desktop.ini")
"""What Snakemake and file managers leave in folders."""


@contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """Yield a new folder beside `path`; rename it to `path` if the block ends well, remove it otherwise.

    It takes the place of a folder that holds nothing, as a workflow makes it beforehand, or nothing but what was
    written this way. Raises `UserError` if there is a file, or a folder with other files, and as `whole` does.
    """
    path = Path(path)
    refuse_foreign(path, _written(path))
    with renamed(path) as folder:
        folder.mkdir()
        yield folder
        names = json.dumps(sorted(_files(folder)), indent=0)
        (folder / WRITTEN).write_text(names + "\n", encoding="utf-8")


def refuse_foreign(path: Path, own: Collection[str] = ()) -> None:
    """UserError if `path` is a file, or a folder with files that are neither `own` (paths in it) nor `OF_NOBODY`."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, and a folder is to be written; name a new folder")
    foreign = sorted(name for name in _files(path) if name not in own and Path(name).name not in OF_NOBODY)
    if foreign:
        which = foreign[0] if len(foreign) == 1 else f"{foreign[0]} and {len(foreign) - 1} more"
        raise UserError(f"{path}: holds other files ({which}), which would be lost; name a new folder, or move them")


def _written(folder: Path) -> set[str]:
    try:
        names = json.loads((folder / WRITTEN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # none was made here
        return set()
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _files(folder: Path) -> Iterator[str]:
    """Paths within a folder of all that is no folder, links to folders too; nothing if it is not there."""

    def refused(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise UserError(f"{error.filename}: cannot be looked into ({error.strerror}); name a new folder") from error

    for at, folders, files in os.walk(folder, onerror=refused):
        links = [name for name in folders if Path(at, name).is_symlink()]
        yield from (str(Path(at, name).relative_to(folder)) for name in (*files, *links))
