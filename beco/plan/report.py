"""The plan: what each group of jobs costs, in all and with several jobs at a time, as a table and as JSON."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import pandas as pd

from beco.config import Config
from beco.plan import trial as trials
from beco.plan.pictures import Pictures
from beco.plan.trial import Trial
from beco.plan.workflow import Job

HOUR, GIB = 3600, 2**30


@dataclass(frozen=True)
class Plan:
    """The jobs of a configuration, and a trial of it."""

    config: Config
    pictures: Pictures
    jobs: list[Job]
    trial: Trial

    def value(self, job: Job, column: str) -> float:
        """`column` of a job, 0 for one of a rule that was not tried."""
        key, amount = trials.key(self.config, job), self.amount(job)
        known = key if key in self.trial.took else next((k for k in self.trial.took if k.split()[0] == job.rule), None)
        return self.trial.fit(known, amount, column) if known else 0.0

    def amount(self, job: Job) -> float:
        return trials.amount(job, self.pictures.train + self.pictures.val)

    def work_seconds(self, job: Job) -> float:
        """Seconds of one processor, all of the job's processes and threads together; of a GPU's job, by the clock."""
        return self.value(job, "clock" if self.on_gpu(job) else "processor")

    def job_seconds(self, job: Job) -> float:
        """Seconds by the clock on an idle machine, its threads taken to share the work as they did in the trial."""
        seconds = self.work_seconds(job)
        return seconds if self.on_gpu(job) else seconds / self.trial.beside(job.rule, job.threads)

    def on_gpu(self, job: Job) -> bool:
        return self.trial.gpu and job.on_gpu

    def wall(self, parallel: int) -> float:
        """Seconds from the first job to the last with `parallel` at a time, each begun as soon as it can be."""
        waiting = {job.name: set(job.needs) for job in self.jobs}
        seconds = {job.name: self.job_seconds(job) for job in self.jobs}
        now, running = 0.0, list[tuple[float, str]]()
        while waiting or running:
            ready = sorted((name for name, needs in waiting.items() if not needs), key=lambda name: -seconds[name])
            for name in ready[: parallel - len(running)]:
                heapq.heappush(running, (now + seconds[name], name))
                del waiting[name]
            now, done = heapq.heappop(running)
            for needs in waiting.values():
                needs.discard(done)
        return now


def rows(plan: Plan) -> list[dict[str, Any]]:
    """One row for the jobs of a rule that differ in seed or shard alone, in the order of the road."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in plan.jobs:
        kept = [value for name, value in job.wildcards.items() if name not in trials.NOT_TOLD_APART]
        groups.setdefault((job.rule, " ".join(kept)), []).append(job)
    return [
        {
            "rule": rule,
            "of": subject,
            "jobs": len(chosen),
            "steps": sum(job.steps for job in chosen),
            "hours": sum(map(plan.work_seconds, chosen)) / HOUR,
            "longest_job_hours": max(map(plan.job_seconds, chosen)) / HOUR,
            "memory_bytes": max(plan.value(job, "memory") for job in chosen),
            "on_gpu": plan.on_gpu(chosen[0]),
        }
        for (rule, subject), chosen in groups.items()
    ]


def as_json(plan: Plan, parallel: int) -> dict[str, Any]:
    """All of the plan: rows, and hours of processors and of GPUs, by the clock, disk, and the largest job in all."""
    on_gpu = [job for job in plan.jobs if plan.on_gpu(job)]
    on_cpu = [job for job in plan.jobs if not plan.on_gpu(job)]
    largest = max(plan.jobs, key=lambda job: plan.value(job, "memory"))
    return {
        "device": plan.trial.device,
        "notes": [*plan.pictures.notes, *plan.trial.notes, *_not_tried(plan)],
        "rows": rows(plan),
        "total": {
            "jobs": len(plan.jobs),
            "gpu_hours": sum(map(plan.work_seconds, on_gpu)) * (plan.config.compute.devices if on_gpu else 1) / HOUR,
            "core_hours": sum(map(plan.work_seconds, on_cpu)) / HOUR,
            "parallel": parallel,
            "wall_hours": plan.wall(parallel) / HOUR,
            "disk_bytes": sum(plan.value(job, "disk") for job in plan.jobs),
            "memory_bytes": plan.value(largest, "memory"),
            "memory_of": largest.name,
        },
    }


def _not_tried(plan: Plan) -> list[str]:
    tried = {key.split()[0] for key in plan.trial.took}
    missing = sorted({job.rule for job in plan.jobs} - tried)
    return [f"not tried, and so not counted: {', '.join(missing)}"] if missing else []


def as_text(values: dict[str, Any]) -> str:
    """`as_json` to be read: where the figures are from, the table, the totals."""
    total, gpu = values["total"], any(row["on_gpu"] for row in values["rows"])
    table = pd.DataFrame(
        [
            {
                "jobs": row["jobs"],
                "": f"{row['rule']} {row['of']}".strip(),
                "steps": row["steps"] or "",
                "hours": f"{_hours(row['hours'])}{' GPU' if row['on_gpu'] else ''}",
                "longest": _hours(row["longest_job_hours"]),
                "GiB": f"{row['memory_bytes'] / GIB:.1f}",
            }
            for row in values["rows"]
        ]
    )
    lines = [*values["notes"], f"{values['device']}; hours of {'GPU or processor' if gpu else 'one processor'}"]
    lines += ["", _aligned(table), ""]
    cost = f"{_hours(total['gpu_hours'])} GPU hours and " if gpu else ""
    lines.append(
        f"in all: {total['jobs']} jobs, {cost}{_hours(total['core_hours'])} processor hours; "
        f"{_hours(total['wall_hours'])} hours with {total['parallel']} job{'s' * (total['parallel'] > 1)} at a time"
    )
    lines.append(
        f"        about {total['disk_bytes'] / GIB:.1f} GiB of disk; "
        f"largest job {total['memory_bytes'] / GIB:.1f} GiB ({total['memory_of']})"
    )
    return "\n".join(lines)


def _aligned(table: pd.DataFrame) -> str:
    """Names to the left, numbers to the right."""
    columns = []
    for name in table:
        words = [str(name), *map(str, table[name])]
        width = max(map(len, words))
        columns.append([word.rjust(width) if name else word.ljust(width) for word in words])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 10 else f"{hours:.3f}"
