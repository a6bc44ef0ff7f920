"""Whether files are what they were: by size and time, and by content where the time is another one."""

from __future__ import annotations

import hashlib
import json
import os

from beco.artifacts.files import file_hash
from beco.errors import UserError

Seen = list[int | str] | None
"""Size, time of change in nanoseconds and hash of a file; None: there is none."""


def unchanged(files: dict[str, str], before: dict[str, Seen]) -> dict[str, Seen] | None:
    """The record of the files (paths by name) with their times of now, or None if one is not what was recorded."""
    if set(files) != set(before):
        return None
    found: dict[str, Seen] = {}
    for name, path in files.items():
        state, known = _state(path), before[name]
        if (state is None) != (known is None):
            return None
        if state is not None and known is not None:
            if state[0] != known[0] or (state[1] != known[1] and _hash(path) != known[2]):
                return None
            known = [*state, known[2]]
        found[name] = known
    return found


def state_of(path: str) -> Seen:
    """What there is to record of a file; its content is read."""
    state = _state(path)
    return None if state is None else [*state, _hash(path)]


def token_of(files: dict[str, str]) -> str:
    """16 hex digits of the names, sizes and times of files (paths by name); no content is read."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(json.dumps([name, _state(files[name])]).encode())
    return digest.hexdigest()[:16]


def _state(path: str) -> list[int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _hash(path: str) -> str:
    try:
        return file_hash(path)
    except UserError:
        return ""
