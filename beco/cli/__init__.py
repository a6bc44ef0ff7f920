"""The `beco` command: parse, call, nothing else. Stages are imported when they are called."""

from __future__ import annotations

import logging
import os
import reprlib
import sys
from typing import NoReturn

from beco.artifacts.files import FULL, STORAGE
from beco.cli.options import app
from beco.errors import UserError
from beco.interpreter import settle

# each adds its commands, and `beco --help` lists them in the order of the road
# isort: off
from beco.cli import dataset  # noqa: F401
from beco.cli import stage1  # noqa: F401
from beco.cli import stage2  # noqa: F401
from beco.cli import evaluation  # noqa: F401
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; a `UserError` is one line on standard error and its exit status, 1 or 75."""
    _prepare()
    try:
        app(standalone_mode=True)
    except UserError as error:
        _fail(str(error), error.status)
    except OSError as error:
        if error.filename is None and error.errno not in FULL + STORAGE:
            _own()
        where = error.filename or "results"
        _fail(f"{where}: {error.strerror}; check the path, its permissions and the free space")
    except UnicodeEncodeError as error:
        if not any("\udc80" <= letter <= "\udcff" for letter in str(error.object)):
            _own()
        _fail(f"{reprlib.repr(error.object)}: is not text in UTF-8; rename the file, or save the text as such")
    except Exception:
        _own()


def _prepare() -> None:
    """Settle Python itself, what numpy and torch read when they are imported, and what they would say unasked."""
    settle()
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None and (asked := _threads(sys.argv[1:])):
        os.environ["OMP_NUM_THREADS"] = asked
    # A thread that waits for the others spins for milliseconds. Where another program wants the cores, too, it keeps
    # one from those it waits for: a training of 2 threads took 4 to 9 times as long as with this, which costs 8 %
    # where nothing else runs.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.unraisablehook = _unraisable
    # of a machine with CUDA's compiler and no GPU torch says so at every command; what is used stands in our own log
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def _threads(arguments: list[str]) -> str | None:
    """What `--threads` is, the last one if it is given twice: the pools of threads are made before typer is asked."""
    asked = None
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == "--threads":
            asked = value if equals else following
    return asked if asked and asked.isdecimal() else None


def _unraisable(problem: sys.UnraisableHookArgs) -> None:
    """Leave out what h5py says once more, with a traceback, when it cannot close a file on a full disk."""
    if "file write failed" not in str(problem.exc_value):
        sys.__unraisablehook__(problem)


def _own() -> NoReturn:
    """Stop on an error that is the program's, with the traceback that a report of it needs."""
    logging.getLogger("beco").exception("beco stopped on an error of its own; please report it")
    sys.exit(2)


def _fail(message: str, status: int = 1) -> None:
    for handler in logging.getLogger("beco").handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(logging.makeLogRecord({"msg": message, "levelno": logging.ERROR}))
    print(f"beco: {message}", file=sys.stderr)
    sys.exit(status)
