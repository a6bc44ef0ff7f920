"""What the workflow does before its first job: the quick part of `beco check`, in a process of its own.

Weights that do not fit, or a package that is missing, would else be found by the stage that wants them, hours later.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from beco.artifacts.files import whole
from beco.artifacts.sources import stage_hash
from beco.config import Config, validate_config
from beco.errors import UserError
from beco.networks import packages

NAME = ".checked"
"""Beside the results: what was found in order, so that only what is new is looked at."""
LOOK = [sys.executable, "-P", "-c", "from beco.project.preflight import look; look()"]
LAST_WORDS = 3
"""Lines of the end of a process that did not get as far as an answer."""


def preflight(config: Config, base: Path | str, elsewhere: bool = False) -> None:
    """Raise `UserError` with a line for all that is wrong with `config`; `elsewhere`: other machines do the work."""
    stamp, now = Path(base) / NAME, _state(config, elsewhere)
    if stamp.is_file() and stamp.read_bytes() == now.encode():
        return
    found = _asked(json.dumps({"config": config.model_dump(mode="json"), "elsewhere": elsewhere}))
    if found["wrong"]:
        raise UserError(found["wrong"])
    for line in found["doubts"]:
        sys.stderr.write(f"beco: perhaps too little: {line}\n")
    with whole(stamp) as aside:
        aside.write_text(now, encoding="utf-8")


def refuse_results(base: Path | str) -> None:
    """`UserError` if results cannot lie in `base`, since it or what it should lie in is a file."""
    for path in (Path(base), *Path(base).parents):
        if path.is_symlink() or path.exists():
            if not path.is_dir():
                raise UserError(f"results: {path} is no folder; name another folder, or move the file away")
            return


def look() -> None:
    """The other process: settings as JSON on standard input, what was found as JSON on standard output."""
    asked, found = json.load(sys.stdin), {"wrong": "", "doubts": []}
    with redirect_stdout(sys.stderr):  # some libraries speak
        from beco.datasets.manifest import refuse
        from beco.project import check

        try:
            groups = check.check(validate_config(asked["config"]), quick=True, elsewhere=asked["elsewhere"])
            found["doubts"] = [line for group in groups for line in group.doubts]
            refuse((line for group in groups for line in group.problems), "configuration")
        except UserError as error:
            found["wrong"] = str(error)
    print(json.dumps(found))


def _asked(question: str) -> dict[str, Any]:
    """The answer of `look`, or a `UserError` saying how its process ended and what its last words were."""
    mend = "run `beco check --configfile` on this configuration to see where it stops"
    try:
        done = subprocess.run(LOOK, input=question, capture_output=True, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"the look before the first job: {sys.executable}: {error.strerror}; {mend}") from error
    if done.returncode == 0:
        try:
            return json.loads(done.stdout)
        except ValueError:
            pass
    how = f"ended with status {done.returncode}"
    if done.returncode < 0:
        how = f"was killed (signal {-done.returncode}, {signal.strsignal(-done.returncode)})"
        if done.returncode == -signal.SIGKILL:
            mend = "most likely memory ran out: free some, or ask for more"
    words = " | ".join([line.strip() for line in done.stderr.splitlines() if line.strip()][-LAST_WORDS:])
    raise UserError(f"the look before the first job {how}{f', saying: {words}' if words else ''}; {mend}")


def _state(config: Config, elsewhere: bool) -> str:
    """What the result of the look follows from: the settings, the code, and the files that are started from."""
    networks = [config.networks[experiment.network].encoder for experiment in config.experiments.values()]
    shipped = [packages.weights_file(encoder) for encoder in (config.classifier.encoder, *networks)]
    paths = {*config.needed().values(), *(str(path) for path in shipped if path)}
    files = {path: _seen(Path(path)) for path in sorted(paths)}
    return json.dumps([config.model_dump(mode="json"), stage_hash("beco.project.check"), files, elsewhere])


def _seen(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
