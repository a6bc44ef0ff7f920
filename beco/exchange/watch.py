"""A folder with a file for each picture, watched as a dataset is, see `beco.datasets.watch`: of pseudo-labels that are
imported, or of saliency maps.

Beside what was made of them lies a record of the files that it was made from. Other files of the folder count for
nothing, nor does where the folder lies or how its path is spelt.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from beco.artifacts.files import whole
from beco.artifacts.states import Seen, state_of, token_of, unchanged
from beco.datasets.matching import claims
from beco.datasets.watch import NAME, listed_in
from beco.errors import UserError

SUFFIXES = (".npy", ".png", ".pt", ".pth")
"""Of files that some format has; the formats themselves are not asked, since they take their time to import."""
SPLIT = "train"
"""What the workflow imports labels of."""
Files = Callable[[Path, list[str] | None], dict[str, str]]
"""From a folder, and the ids of some pictures or None for all, to the paths of its files by their name."""


def labels_of(folder: Path, ids: list[str] | None = None) -> dict[str, str]:
    """Files of pseudo-labels by their name: those of some pictures, or all that may be of any."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError:
        return {}
    found = [path for path in found if not path.name.startswith(".")]
    if ids is not None:
        found = [path for paths in claims(found, ids).values() for path in paths]
    return {path.name: str(path) for path in found}


def source_token(folder: Path, base: Path, manifest: Path, files: Files = labels_of) -> str:
    """What is made in `base` of `folder` depends on: the record's token, or another one if a file differs.

    A folder that is not there, and one that nothing was imported from so far, has a token, too.
    """
    known = _record(base)
    if known is not None:
        now = unchanged(
            files(folder, [picture.image_id for picture in listed_in(manifest) if picture.split == SPLIT]), known[1]
        )
        if now is not None:
            if now != known[1]:  # of other times alone; they need not be read again
                with suppress(UserError):  # someone else's results
                    _keep(base, known[0], now)
            return known[0]
    return token_of(files(folder, None))  # of all, as there may be no manifest yet


def record(folder: Path, base: Path, ids: list[str], given: str, files: Files = labels_of) -> None:
    """Note beside what is new the files that it was made from, and the token that its rule was given."""
    _keep(base, given, {name: state_of(path) for name, path in files(folder, ids).items()})


def _record(base: Path) -> tuple[str, dict[str, Seen]] | None:
    """Token and files that were recorded, or None if nothing was that can be read."""
    try:
        known: Any = json.loads((base / NAME).read_bytes())
        return str(known["token"]), dict(known["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _keep(base: Path, given: str, files: dict[str, Seen]) -> None:
    with whole(base / NAME) as temporary:
        temporary.write_text(json.dumps({"token": given, "files": files}), encoding="utf-8")
