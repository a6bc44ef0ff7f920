"""Paths of pictures as lists name them: what cannot be used, the ids made from them, and files that are misnamed."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path, PurePosixPath

from beco.artifacts.text import breaks_lines
from beco.errors import UserError

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".ppm", ".pgm", ".ico", ".avif", ".tga")
)
"""What files of the formats that are read are mostly called."""
LONGEST_ID = 200  # bytes; with suffixes and temporary names it must stay below the 255 of most file systems


def composed(text: str) -> str:
    """Text in Unicode's composed form (NFC), because macOS decomposes names."""
    return unicodedata.normalize("NFC", text)


def image_id(path: str) -> str:
    """The id of a picture from its path relative to the folder: no suffix, `__` for each `/`, NFC."""
    return composed("__".join(PurePosixPath(path).with_suffix("").parts))


def unusable(given: str, folder: str = "") -> str:
    """Why the path of a picture, as a list gives it relative to `folder` of the root, cannot be used; "" if it can.

    The root and not `folder` is what it must stay in: lists may share a folder of pictures.
    """
    if not given:
        return "no image; write the picture's path in the folder"
    path = posixpath.normpath(posixpath.join(folder, given))
    if given.startswith("/") or path == ".." or path.startswith("../"):
        return f"{given} leaves the folder of the pictures; write a path inside dataset.root"
    if path in (".", folder) or breaks_lines(given):
        return f"{given!a} names no picture; write its path in the folder"
    if "\\" in given:
        return f"{given} has a backslash in it; write / between folders, and rename a picture that has \\ in its name"
    return too_long(image_id(path), given)


def too_long(name: str, given: str) -> str:
    """Why an id is too long for files to be named after it, with the mend; nothing if it is not."""
    if len(name.encode()) <= LONGEST_ID:
        return ""
    return f"{given}: the name is too long for files made from it; use at most {LONGEST_ID} bytes"


def check_root(root: Path, inside: str, mend: str) -> None:
    """Raise a `UserError` unless `root` is a folder that holds the folder `inside`; it points to one that does."""
    if (root / inside).is_dir():
        return
    if not root.is_dir():
        raise UserError(f"dataset.root: {root} is not a folder; set it to the one that holds {inside}")
    below = sorted([*root.glob(f"*/{inside}"), *root.glob(f"*/*/{inside}")])
    if root.name == inside:
        mend = f"did you mean {root.parent}?"
    elif below:
        mend = f"did you mean {below[0].parent}?"
    raise UserError(f"dataset.root: {root} holds no folder {inside}; {mend}")


# --- misnamed files -----------------------------------------------------------------------------------------


def missing(path: Path, words: str, suffixes: Collection[str]) -> str:
    """What to say of a file that is missing: `what; mend`, or the mend that `alike` finds.

    A name without a suffix of these is the list's mistake: a file called so would hardly be found again.
    """
    found = alike(path, suffixes)
    if not found:
        return words
    whole = path.suffix.lower() in suffixes
    mend = f"rename it to {path.name}" if whole else f"write {found} where {path.name} is named"
    return f"{words.partition(';')[0]}, but there is {found}; {mend}"


def alike(path: Path, suffixes: Collection[str]) -> str:
    """For a file that is missing: the name of one beside it of other case or suffix (one of these); "" without one.

    `suffixes` are in lower case. A picture may be renamed to any of them, since its content decides how it is read.
    """
    try:
        beside = _stems(path.parent, path.parent.stat().st_mtime_ns).get(_folded(path.stem), [])
    except (OSError, ValueError):
        return ""
    found = [name for name in beside if PurePosixPath(name).suffix.lower() in suffixes and name != path.name]
    return min(found, key=lambda name: (_folded(name) != _folded(path.name), name), default="")


def _folded(stem: str) -> str:
    return composed(stem).casefold()


@lru_cache(maxsize=4)
def _stems(folder: Path, changed: int) -> dict[str, list[str]]:
    """The files of a folder by their folded stems, looked up once for all that miss there."""
    found: dict[str, list[str]] = {}
    for path in folder.iterdir():
        found.setdefault(_folded(path.stem), []).append(path.name)
    return found
