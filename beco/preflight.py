"""What the workflow does before its first job: the quick part of `beco check`, in a process of its own.

Weights that do not fit, or a package that is missing, would else be found by the stage that wants them, hours later.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from beco.config import Config
from beco.errors import UserError
from beco.files import whole
from beco.sources import stage_hash

NAME = ".checked"
"""Beside the results: what was found in order, so that only what is new is looked at."""


def preflight(config: Config, base: Path | str, elsewhere: bool = False) -> None:
    """Raise `UserError` with a line for all that is wrong with `config`; `elsewhere`: other machines do the work."""
    stamp, now = Path(base) / NAME, _state(config, elsewhere)
    if stamp.is_file() and stamp.read_bytes() == now.encode():
        return
    command = [sys.executable, "-c", "from beco.cli import main; main()", "check", "--quick"]
    command += ["--elsewhere"] * elsewhere + ["--settings", config.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(done.stderr[done.stderr.find("beco: ") :].removeprefix("beco: ").strip())
    sys.stderr.write(done.stdout)
    with whole(stamp) as aside:
        aside.write_text(now)


def _state(config: Config, elsewhere: bool) -> str:
    """What the result of the look follows from: the settings, the code, and the files that are started from."""
    files = {path: _seen(Path(path)) for path in config.needed().values()}
    return json.dumps([config.model_dump(mode="json"), stage_hash("beco.check"), files, elsewhere])


def _seen(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
