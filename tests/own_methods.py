"""Methods in a folder of one's own, edited while a test runs: what is remembered of code has to be forgotten then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from beco.artifacts import sources


def forget_code() -> None:
    """Let `beco.artifacts.sources` read every file anew."""
    for cached in (sources._file, sources._tree, sources._imports, sources._code):
        cached.cache_clear()


def edits(path: Path, text: str) -> Iterator[Callable[[str, str], None]]:
    """A function that writes `text` to `path` with something in place of something else; at the end as it was."""

    def edit(old: str, new: str) -> None:
        path.write_text(text.replace(old, new), encoding="utf-8")
        forget_code()

    yield edit
    edit("", "")
