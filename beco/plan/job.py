"""One job of a trial: runs `beco`, and writes beside its log what it took. Stands for `beco` on the trial's PATH.

Snakemake's own benchmark files are too coarse for it: they look at a job twice a second, so that the processor time of
a short one is up to half a second too low, as much as all of its work; and importing torch, which takes most of a short
job's time, is not told from the work.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMITS, SUFFIX = "BECO_TRIAL_LIMITS", ".took"
COMMAND = [
    sys.executable,
    "-P",
    "-c",
    "from beco.plan.job import importing\nwith importing():\n from beco.cli import main\n main()",
]
IMPORTS = "BECO_TRIAL_IMPORTS"


@contextmanager
def importing() -> Iterator[None]:
    """What imports take in it, by the clock and of a processor, and the modules there are then, go to the file of
    `IMPORTS`.
    """
    spent, outermost, plain = [0.0, 0.0], True, builtins.__import__

    def timed(*arguments: Any, **named: Any) -> Any:
        nonlocal outermost
        if not outermost:
            return plain(*arguments, **named)
        outermost, begun = False, (time.perf_counter(), time.process_time())
        try:
            return plain(*arguments, **named)
        finally:
            outermost = True
            spent[0] += time.perf_counter() - begun[0]
            spent[1] += time.process_time() - begun[1]

    builtins.__import__ = timed
    try:
        yield
    finally:
        builtins.__import__ = plain
        Path(os.environ[IMPORTS]).write_text(json.dumps([*spent, len(sys.modules)]), encoding="utf-8")


def run(words: list[str]) -> int:
    """Run `beco` with `words` within the limits of the environment: `SECONDS BYTES` of processor time and memory.

    Writes {clock, processor, imports_clock, imports_processor, modules, memory, stopped} to the log's path with `.took`
    behind it: seconds, those of imports included, how many modules it has imported, and bytes. A job that goes beyond a
    limit is ended; `stopped` says which.
    """
    import psutil  # type: ignore[import-untyped]  # comes with Snakemake

    seconds, most = map(float, os.environ[LIMITS].split())
    before = _spent()
    stopped, peak, begun = "", 0, time.perf_counter()
    log = Path(words[words.index("--log") + 1])
    imports = log.with_name(log.name + ".imports")
    process = subprocess.Popen([*COMMAND, *words], env={**os.environ, IMPORTS: str(imports)})
    seen = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [seen, *seen.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in family))
            used = sum(sum(one.cpu_times()[:2]) for one in family)
            stopped = "memory" if peak > most else "time" if used > seconds else ""
            if stopped:
                for one in reversed(family):
                    one.kill()
        except psutil.NoSuchProcess:
            pass
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    clock, used = time.perf_counter() - begun, _spent() - before
    apart = json.loads(imports.read_text(encoding="utf-8")) if imports.is_file() else (0.0, 0.0, 0)
    # between two looks a job may have taken more, and a short one is met before it has begun
    peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    took = {"clock": clock, "processor": used, "memory": peak, "stopped": stopped}
    took |= {"imports_clock": apart[0], "imports_processor": apart[1], "modules": apart[2]}
    log.with_name(log.name + SUFFIX).write_text(json.dumps(took), encoding="utf-8")
    return process.returncode


def _spent() -> float:
    """Seconds of a processor that children which have ended took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
