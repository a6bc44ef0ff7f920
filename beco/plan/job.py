"""One job of a trial: runs `beco`, and writes beside its log what it took. Stands for `beco` on the trial's PATH.

Snakemake's own benchmark files look at a job twice a second, so that the processor time of a short one is up to half a
second too low: as much as all of its work in a trial.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

LIMITS, SUFFIX = "BECO_TRIAL_LIMITS", ".took"
COMMAND = [sys.executable, "-P", "-c", "from beco.cli import main; main()"]


def run(words: list[str]) -> int:
    """Run `beco` with `words` within the limits of the environment: `SECONDS BYTES` of processor time and memory.

    Writes {clock, processor, memory, stopped} to the log's path with `.took` behind it. A job that goes beyond a limit
    is ended, and `stopped` says which.
    """
    import psutil  # type: ignore[import-untyped]  # comes with Snakemake

    seconds, most = map(float, os.environ[LIMITS].split())
    stopped, peak, begun = "", 0, time.perf_counter()
    process = subprocess.Popen([*COMMAND, *words])
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
    clock, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    took = {"clock": clock, "processor": used.ru_utime + used.ru_stime, "memory": peak, "stopped": stopped}
    log = Path(words[words.index("--log") + 1])
    log.with_name(log.name + SUFFIX).write_text(json.dumps(took), encoding="utf-8")
    return process.returncode


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
