"""The command line itself: what commands leave behind in a process that runs several of them."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from pathlib import Path

import pytest

from beco.cli import main
from beco.config import Shapes
from beco.datasets.shapes import draw


def said(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What `beco` says on a standard error that is gone afterwards, as a notebook's cell or a test's is."""
    monkeypatch.setattr(sys, "argv", ["beco", *arguments])
    with io.StringIO() as error, contextlib.redirect_stderr(error):
        with contextlib.suppress(SystemExit):
            main()
        return error.getvalue()


def test_two_commands_in_one_process_speak_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "drawn"
    draw(root, Shapes(train=1, val=1, size=48))
    (root / "SegmentationClass" / "train_00000.png").unlink()  # which is warned of
    logger = logging.getLogger("beco")
    monkeypatch.setattr(logger, "handlers", [])
    log = tmp_path / "first.log"
    manifest = ("manifest", "--root", str(root), "--settings", "{format: shapes}", "--output")
    first = said(monkeypatch, "--log", str(log), *manifest, str(tmp_path / "a" / "manifest.csv"))
    kept = log.read_text()
    second = said(monkeypatch, *manifest, str(tmp_path / "b" / "manifest.csv"))
    heard = [[line.partition(" ")[2] for line in text.splitlines()] for text in (first, kept, second)]  # without time
    assert heard[0] == heard[1] == heard[2] and len(set(heard[0])) == len(heard[0]), heard
    assert "1 of the 1 training pictures have no mask" in first
    assert log.read_text() == kept, "a second command wrote to the log of the first"
    assert len(logger.handlers) == 1


def test_home_is_spelt_out_where_the_shell_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("beco"), "handlers", [])
    (tmp_path / "small.yaml").write_text("{train: 1, val: 1, size: 48}", encoding="utf-8")
    said(monkeypatch, "--log=~/a.log", "draw-shapes", "--output=~/drawn", "--settings", "~/small.yaml")
    assert (tmp_path / "drawn" / "classes.txt").is_file() and (tmp_path / "a.log").is_file()
    words = ["--settings", "{format: shapes}", "-o", "~/m/manifest.csv"]
    said(monkeypatch, "manifest", "--root", "~/drawn", *words)
    assert (tmp_path / "m" / "manifest.csv").is_file() and not (tmp_path / "~").exists()
    wrong = said(monkeypatch, "manifest", "--root", "~nobody-of-that-name/x", *words)
    assert wrong.count("\n") == 1 and "write the whole path" in wrong
    wrong = said(monkeypatch, "tables", "--runs", "a:0:crf=~nobody-of-that-name/x", "-o", "t")
    assert wrong.count("\n") == 1 and "write the whole path" in wrong
