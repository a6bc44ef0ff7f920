"""The `beco` command itself, and the options that its stages share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from beco.errors import UserError
from beco.schema.base import expanded

Function = TypeVar("Function", bound=Callable[..., Any])


class Commands(typer.Typer):
    """Commands whose paths may begin with `~`, and which write over nothing that they read, or that is not theirs.

    The shell leaves `~` as it is within quotes and behind `=`.
    """

    def command(self, *args: Any, **settings: Any) -> Callable[[Function], Function]:
        return _also(super().command(*args, **settings), guarded=True)

    def callback(self, *args: Any, **settings: Any) -> Callable[[Function], Function]:
        return _also(super().callback(*args, **settings), guarded=False)


def _also(register: Callable[[Any], Any], guarded: bool) -> Callable[[Function], Function]:
    """Register a function that looks at the paths that it is given, and leave the name to the function itself."""

    def add(function: Function) -> Function:
        @wraps(function)
        def run(**given: Any) -> Any:
            values = {name: _full(value) for name, value in given.items()}
            if guarded:
                from beco.cli import overwriting, replacing

                overwriting.refuse(function.__name__, values)
                replacing.refuse(function.__name__, values)
            return function(**values)

        register(run)
        return function

    return add


def _full(value: Any) -> Any:
    if isinstance(value, list):
        return [_full(entry) for entry in value]
    return Path(home(str(value))) if isinstance(value, Path) else value


def home(path: str) -> str:
    """A path with its `~` spelt out; UserError if there is no such home folder."""
    try:
        return expanded(path)
    except ValueError as error:
        raise UserError(str(error)) from error


app = Commands(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Weakly supervised semantic segmentation, stage by stage. `snakemake` runs them all in order.",
)

Root = Annotated[Path, typer.Option(help="dataset root that the manifest's paths are relative to")]
ManifestPath = Annotated[Path, typer.Option("--manifest", help="manifest.csv")]
Split = Annotated[str, typer.Option(help="name of the split in the manifest")]
Settings = Annotated[str | None, typer.Option(help="YAML or JSON text, or a file of it; see config.yaml")]
Output = Annotated[Path, typer.Option("--output", "-o", help="what to write")]
Shard = Annotated[str, typer.Option(help="k-of-n: work on every n-th picture")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads")]
Workers = Annotated[int, typer.Option(min=0, help="data-loading processes")]
Devices = Annotated[int, typer.Option(min=1, help="GPUs (or CPU processes) on each machine that share a batch")]
Nodes = Annotated[int, typer.Option(min=1, help="machines that share a batch")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the networks")]
Replace = Annotated[bool, typer.Option("--replace", help="drop a checkpoint of other settings")]


@app.callback()
def _options(
    log: Annotated[Path | None, typer.Option(help="write messages to this file, too")] = None,
) -> None:
    if log is not None:
        from beco.cli import overwriting

        overwriting.refuse_log(log, sys.argv[1:])
    logger = logging.getLogger("beco")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in [one for one in logger.handlers if one.name == __name__]:  # of an earlier command in this process
        logger.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = []
    if log:
        handlers.append(logging.FileHandler(log, mode="w", encoding="utf-8", errors="backslashreplace"))
    if not (log and sys.stderr.isatty()):  # on a terminal a bar shows the progress, and the file keeps the lines
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.name = __name__
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
