"""The workflow, asked for its jobs and walked: the program `snakemake`, as any user starts it, in a new folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import beco
from beco.errors import UserError
from beco.plan.job import LIMITS, SUFFIX

SNAKEFILE = Path("workflow") / "Snakefile"
STEPS = re.compile(r"(\d+) of (\d+) steps \(")
"""How Snakemake says how far it is."""
# What Snakemake knows of a job it tells a plugin for its logs, and nobody else, as values.
PLUGIN = """
import json, os
from snakemake_interface_logger_plugins.base import LogHandlerBase
KEYS = "jobid rule_name wildcards input output log benchmark threads resources shellcmd".split()
class LogHandler(LogHandlerBase):
    writes_to_stream = writes_to_file = has_filter = has_formatter = needs_rulegraph = False
    def emit(self, record):
        if str(getattr(record, "event", "")).endswith(("JOB_INFO", "job_info")):
            values = {key: getattr(record, key) for key in KEYS} | {"resources": dict(record.resources.items())}
            with open(os.environ["BECO_TRIAL_JOBS"], "a", encoding="utf-8") as file:
                file.write(json.dumps(values, default=str) + "\\n")
"""


@dataclass(frozen=True)
class Job:
    """One job of the workflow, as Snakemake tells of it."""

    log: str
    """Path of its log; the name is that of its benchmark file, too."""
    rule: str
    wildcards: dict[str, str]
    needs: tuple[str, ...]
    """Names of the jobs before it."""
    outputs: tuple[str, ...]
    threads: int
    on_gpu: bool
    learnt: float
    """Pictures that its training learns from, those of each step counted anew; 0: it trains nothing."""
    steps: int
    shards: int
    """Into how many jobs like this one the pictures are scattered."""

    @property
    def name(self) -> str:
        return Path(self.log).stem


def asked(values: dict[str, Any], folder: Path, train: int) -> list[Job]:
    """The jobs of a plain `snakemake` on a configuration, which is written to the new `folder`.

    `train`: how many training pictures there are. UserError if there is no Snakemake, or it refuses.
    """
    _run(values, folder, "--dry-run", "--cores", "9999")
    return list(_jobs(_told(folder), train))


def walked(
    values: dict[str, Any],
    folder: Path,
    train: int,
    seconds: float,
    memory: float,
    tell: Callable[[int, int], None] = lambda *_: None,
) -> list[tuple[Job, dict[str, Any]]]:
    """Walk the road of a configuration in the new `folder`: its jobs, and what each took.

    A job may use `seconds` of a processor and `memory` bytes; the first that goes beyond ends it all, and is in the
    answer with a `stopped` that is not "". UserError where the workflow fails otherwise. `tell` hears how many of how
    many jobs are done.
    """
    program = folder.with_name(f"{folder.name}-bin") / "beco"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m beco.plan.job "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    failed = None
    try:
        _run(values, folder, "--cores", "all", tell=tell, PATH=path, **{LIMITS: f"{seconds} {memory}"})
    except UserError as error:
        failed = error
    found = []
    for job in _jobs(_told(folder), train):
        took = folder / f"{job.log}{SUFFIX}"
        if took.is_file():
            size = sum(_bytes(folder / output) for output in job.outputs)
            found.append((job, json.loads(took.read_text(encoding="utf-8")) | {"disk": size}))
    if failed and not any(took["stopped"] for _, took in found):
        raise failed
    return found


def _jobs(told: list[dict[str, Any]], train: int) -> Iterator[Job]:
    makers = {path: Path(one["log"][0]).stem for one in told for path in one["output"]}
    for one in told:
        learnt, steps = _learnt(one["shellcmd"], train)
        item = re.fullmatch(r"\d+-of-(\d+)", str(one["wildcards"].get("scatteritem", "")))
        yield Job(
            one["log"][0],
            one["rule_name"],
            {name: str(value) for name, value in one["wildcards"].items()},
            tuple(sorted({makers[path] for path in one["input"] if path in makers})),
            tuple(one["output"]),
            one["threads"],
            int(one["resources"].get("gpu", 0)) > 0,
            learnt,
            steps,
            int(item[1]) if item else 1,
        )


def _run(
    values: dict[str, Any],
    folder: Path,
    *options: str,
    tell: Callable[[int, int], None] = lambda *_: None,
    **environment: str,
) -> None:
    here = Path(beco.__file__).parent.parent / SNAKEFILE
    snakefile = SNAKEFILE if SNAKEFILE.is_file() else here
    program = shutil.which("snakemake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None or not snakefile.is_file():
        what = f"{snakefile} is not there; start this" if program else "snakemake: not installed, and the plan asks it"
        raise UserError(f"{what}{' in a clone of beco' if program else '; pip install `beco[workflow]`'}")
    plugin = folder / "snakemake_logger_plugin_beco" / "__init__.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(PLUGIN, encoding="utf-8")
    text = yaml.safe_dump(values, sort_keys=False)  # the first of `sources` means something
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    search = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    where = ["--snakefile", str(snakefile.absolute()), "--directory", str(folder), "--logger", "beco"]
    command = [program, *where, "--configfile", str(folder / "config.yaml"), *options]
    variables = {**os.environ, "PYTHONPATH": search, "BECO_TRIAL_JOBS": str(folder / "jobs"), **environment}
    variables.pop("SNAKEMAKE_OUTPUT_CACHE", None)
    if own := variables.get("BECO_METHODS"):  # of this folder, which is not the trial's
        variables["BECO_METHODS"] = str(Path(os.path.expanduser(own)).absolute())  # noqa: PTH111  (raises nothing)
    status, said = _waited(command, variables, tell)
    if status:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        words = [line for line in lines if "beco: " in line] or lines
        raise UserError(f"the trial's snakemake failed: {' | '.join(words[-3:])}; mend it, `beco check` may say more")


def _waited(
    command: list[str], variables: dict[str, str], tell: Callable[[int, int], None] = lambda *_: None
) -> tuple[int, str]:
    """Exit status of a command and what it says; if this is left before its end, all its processes are ended."""
    import psutil  # type: ignore[import-untyped]  # comes with Snakemake

    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=variables, encoding="utf-8", errors="replace", **piped) as process:  # type: ignore[call-overload]
        try:
            lines = []
            for line in process.stdout or ():
                lines.append(line)
                if found := STEPS.match(line):
                    tell(int(found[1]), int(found[2]))
            process.wait()
        except BaseException:
            with suppress(psutil.NoSuchProcess):
                family = [found := psutil.Process(process.pid), *found.children(recursive=True)]
                for one in family:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                psutil.wait_procs(family[1:], timeout=10)
            raise
    return process.returncode, "".join(lines)


@contextmanager
def passing_folder() -> Iterator[Path]:
    """A new folder that is gone afterwards, also if this process is told to end; UserError if none can be made."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    heeded = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        heeded = []
    for one in heeded:
        signal.signal(one, end)
    try:
        made = tempfile.TemporaryDirectory(prefix="beco-plan-")
    except OSError as error:
        raise UserError(
            f"{error.filename or 'TMPDIR'}: no folder for a trial can be made ({error.strerror}); set TMPDIR to one "
            "that can be written to"
        ) from error
    try:
        with made as name:
            yield Path(name)
    finally:
        for one in heeded:
            signal.signal(one, signal.SIG_DFL)


def _told(folder: Path) -> list[dict[str, Any]]:
    """What the plugin has written, but for rules that only name others."""
    file = folder / "jobs"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [one for one in map(json.loads, lines) if one["log"]]


def _learnt(command: str, train: int) -> tuple[float, int]:
    """How much is learnt by a command: pictures and steps of the schedule in its settings, if there is one."""
    from beco.config import Schedule
    from beco.training.engine import total_steps

    for word in shlex.split(command):
        if '"schedule":' in word:
            schedule = Schedule.model_validate(json.loads(word)["schedule"])
            steps = total_steps(schedule, train)
            return steps * schedule.batch_size, steps
    return 0.0, 0


def _bytes(path: Path) -> int:
    """Of a file, or of all in a folder; of what is gone, as temporary files are, 0."""
    if path.is_dir():
        return sum(map(_bytes, path.iterdir()))
    return path.stat().st_size if path.is_file() else 0
