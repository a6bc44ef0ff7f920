"""Commands as a user gives them: in a process of their own, or in this one."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

from conftest import BIN

from beco.cli import main


def beco(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "beco"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def assert_refused(done: subprocess.CompletedProcess[str], *words: str, output: Path | None = None) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("beco: ")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), done.stderr
    if output is not None:
        assert not output.exists()
        assert not [path for path in output.parent.iterdir() if ".tmp" in path.name]


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit status and standard error of `beco` in this process, as its console script would have them."""
    before = sys.argv
    error = io.StringIO()
    sys.argv = ["beco", *arguments]
    status = 0
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv = before
    return status, error.getvalue()
