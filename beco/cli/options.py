"""The `beco` command itself, and the options that its stages share."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Command = TypeVar("Command", bound=Callable[..., Any])


class _Commands(typer.Typer):
    """Commands that look, before they begin, whether they would write over what they read."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Command], Command]:
        register = super().command(name, **options)

        def guarded(function: Command) -> Command:
            @functools.wraps(function)
            def run(**values: Any) -> Any:
                from beco.cli import overwriting

                overwriting.refuse(function.__name__, values)
                return function(**values)

            register(run)
            return function

        return guarded


app = _Commands(
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
