"""A plan against what Snakemake has measured of the same jobs (`benchmarks/*.tsv`)."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from beco.artifacts.files import unreadable
from beco.errors import UserError
from beco.plan.report import Plan
from beco.plan.workflow import Job

OFTEN, SELDOM = 15.5, 30.0
"""Snakemake looks at a job twice a second at first, for so many seconds, and then only every so many."""


def compare(plan: Plan, folder: Path) -> pd.DataFrame:
    """Planned and measured seconds of the jobs of `plan` that `folder` has, by rule and in all.

    Columns: `jobs` (that are in both), `planned`, `measured`, `factor` (planned by measured), `clock` (what the jobs
    took by the clock, others' load included). `measured` is processor time, but of a GPU's job by the clock. Raises
    `UserError` as `benchmarked` does.
    """
    found = []
    for job, clock, processor in benchmarked(plan.jobs, folder):
        found.append((job.rule, 1, plan.work_seconds(job), clock if plan.on_gpu(job) else processor, clock))
    frame = pd.DataFrame(found, columns=["rule", "jobs", "planned", "measured", "clock"])
    table = frame.groupby("rule", sort=False).sum()
    table.loc["in all"] = table.sum()
    table["jobs"] = table["jobs"].astype(int)
    table.insert(3, "factor", table["planned"] / table["measured"])
    return table


def benchmarked(jobs: list[Job], folder: Path) -> list[tuple[Job, float, float]]:
    """Those of `jobs` that `folder` has, each with what `read` says.

    Trainings that went on from a checkpoint are left out. UserError if the folder has none of them or a file is no
    benchmark.
    """
    paths = [
        (job, folder / f"{job.name}.tsv") for job in jobs if not _went_on(folder.parent / "logs" / f"{job.name}.log")
    ]
    found = [(job, *read(path)) for job, path in paths if path.is_file()]
    if not found:
        raise UserError(f"{folder}: has no benchmark of a planned job; name results/<dataset>/benchmarks of this plan")
    return found


def _went_on(log: Path) -> bool:
    """Whether a training began at a checkpoint, so that Snakemake has measured its end alone."""
    return log.is_file() and "going on from step" in log.read_text(encoding="utf-8", errors="replace")


def read(path: Path) -> tuple[float, float]:
    """Seconds of a job by the clock, and of the processor.

    Snakemake's `cpu_time` is that of its last look; for the rest of the job the load is taken to be the same.
    """
    try:
        row = pd.read_csv(path, sep="\t").iloc[-1]
        clock, processor = float(row["s"]), float(row["cpu_time"])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise unreadable(path, error, f"not a benchmark of Snakemake ({error}); remove it") from error
    if not (0 < clock < math.inf and 0 <= processor < math.inf):
        raise UserError(f"{path}: has no times; remove it")
    last = clock if clock < OFTEN else OFTEN + SELDOM * math.floor((clock - OFTEN) / SELDOM)
    return clock, max(processor, 0.01) * clock / last


def as_text(table: pd.DataFrame) -> str:
    """The comparison to be read."""
    return table.to_string(formatters={"factor": "{:.2f}".format}, float_format="{:.1f}".format)
