"""A job's process: what it takes to start, and its memory. Imports nothing itself, since it is measured with."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

IMPORTS = {
    "store": ("beco.artifacts.store",),
    "pictures": ("beco.evaluation.scores.evaluate", "beco.stage1.refine.labels"),
    "tables": ("beco.evaluation.report.report",),
    "networks": ("beco.stage2.train", "beco.stage2.predict"),
}
"""What jobs import before they work, by the kind of job."""


def start_up(group: str) -> tuple[float, int]:
    """Seconds of processor time and peak bytes of a process that imports what a job of `IMPORTS` does, and ends."""
    code = (
        f"import time, beco.cli, {', '.join(IMPORTS[group])}\n"
        "from beco.benchmark.process import peak\n"
        "print(time.process_time(), peak())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, encoding="utf-8", check=True)
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak)


def peak() -> int:
    """Bytes: the most memory that this process took so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says there counts what the parent had when it started this process
        high = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")]
        return int(high[0].split()[1]) * 1024
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo
