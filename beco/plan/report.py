"""The plan: what each group of jobs costs, in all and with several jobs at a time, as a table and as JSON."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from beco.config import Config
from beco.plan import room
from beco.plan.jobs import Job, Work
from beco.plan.pictures import Pictures
from beco.plan.rates import Rates

HOUR = 3600
SURE = 0.95  # share of the time that makes a row measured, or scaled
MULTIPLES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9))


@dataclass(frozen=True)
class Plan:
    """The jobs of a configuration with their rates."""

    config: Config
    pictures: Pictures
    jobs: list[Job]
    rates: Rates

    def work_seconds(self, job: Job) -> float:
        """Seconds of one processor, all of the job's processes and threads together; of a GPU's job, by the clock."""
        if job.on_device and self.rates.gpu:
            return self.job_seconds(job)
        return sum(self.rates.seconds(work) for work in job.works)

    def job_seconds(self, job: Job) -> float:
        """Seconds by the clock on an idle machine.

        Threads and devices of a job are taken to share its work without loss. Processes that load do so while the
        networks work; without them the job loads in between.
        """
        seconds: dict[str, float] = {}
        for work in job.works:
            seconds[work.kind] = seconds.get(work.kind, 0) + self.rates.seconds(work)
        threads = job.threads
        if self.rates.gpu:
            threads = self.config.compute.devices if job.rule == "train_segmenter" else 1 if job.on_device else threads
        start, load, train = (seconds.pop(kind, 0.0) for kind in ("start", "load", "train"))
        train /= threads
        learning = max(train, load / job.loaders) if job.loaders else train + load
        return start + learning + sum(seconds.values()) / threads

    def memory(self, job: Job) -> int:
        """Bytes of the job at its peak, its loading processes without what they share."""
        return self.rates.process(job) + job.memory

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

    def disk(self) -> int:
        """Bytes of the results, from above."""
        pixels, dataset = self.pictures.pixels, self.config.dataset
        side = self.config.prediction.scored_side
        train, predicted = (
            self.pictures.train * pixels,
            self.pictures.predicted(dataset) * (side**2 if side else pixels),
        )
        drawn = train if dataset.format == "shapes" else 0
        return room.disk(
            self.config, room.Sums(train, train * self.pictures.shown, predicted, drawn), self.pictures.classes
        )


# --- as table and JSON --------------------------------------------------------------------------------------


def rows(plan: Plan) -> list[dict[str, Any]]:
    """One row for the jobs of a rule that differ in seed or shard alone, in the order of the road."""
    first: dict[tuple[str, str, str], int] = {}
    for number, job in enumerate(plan.jobs):
        first.setdefault(_of_one_row(job), number)
    result = []
    for (stage, rule, subject), group in groupby(
        sorted(plan.jobs, key=lambda job: first[_of_one_row(job)]), key=_of_one_row
    ):
        chosen = list(group)
        works = [work for job in chosen for work in job.works]
        exact = sum(plan.rates.seconds(work) for work in works if plan.rates.is_measured(work))
        total = sum(map(plan.rates.seconds, works))
        result.append(
            {
                "stage": stage,
                "rule": rule,
                "of": subject,
                "jobs": len(chosen),
                "work": amounts(works),
                "hours": sum(map(plan.work_seconds, chosen)) / HOUR,
                "longest_job_hours": max(map(plan.job_seconds, chosen)) / HOUR,
                "memory_bytes": max(map(plan.memory, chosen)),
                "on_gpu": plan.rates.gpu and chosen[0].on_device,
                "measured_share": exact / total if total else 1.0,
            }
        )
    return result


def _of_one_row(job: Job) -> tuple[str, str, str]:
    """Stage, rule, and what is neither shard nor seed of the name."""
    words = job.name.removeprefix(job.rule).split(".")
    kept = [word for word in words if word and "-of-" not in word and not word.startswith("seed")]
    return job.stage, job.rule, ".".join(kept)


def amounts(works: Iterable[Work]) -> dict[str, float]:
    """How much work there is: steps, FLOPs, pictures, CRF runs and their pixel·iterations.

    A step of a warm-up that needs no online labels counts as the share of a step that its FLOPs are.
    """
    found = {"steps": 0.0, "flops": 0.0, "pictures": 0.0, "crf_runs": 0.0, "crf_pixel_iterations": 0.0}
    for work in works:
        if work.kind in ("train", "infer"):
            found["flops"] += work.count * work.each
        if work.kind == "train":
            found["steps"] += work.count
        elif work.kind == "crf":
            found["crf_runs"] += work.count
            found["crf_pixel_iterations"] += work.count * work.each
        elif work.kind in ("infer", "scores", "evaluate", "draw"):
            found["pictures"] += work.count
    return {name: value for name, value in found.items() if value}


def summary(plan: Plan, parallel: int) -> dict[str, Any]:
    """Totals: hours of processors and of GPUs, time with `parallel` jobs at a time, disk, and the largest job."""
    on_gpu = [job for job in plan.jobs if plan.rates.gpu and job.on_device]
    on_cpu = [job for job in plan.jobs if not (plan.rates.gpu and job.on_device)]
    largest = max(plan.jobs, key=plan.memory)
    return {
        "jobs": len(plan.jobs),
        "gpu_hours": sum(map(plan.work_seconds, on_gpu)) * (plan.config.compute.devices if on_gpu else 1) / HOUR,
        "core_hours": sum(map(plan.work_seconds, on_cpu)) / HOUR,
        "parallel": parallel,
        "wall_hours": plan.wall(parallel) / HOUR,
        "disk_bytes": plan.disk(),
        "memory_bytes": plan.memory(largest),
        "memory_of": largest.name,
    }


def as_json(plan: Plan, parallel: int) -> dict[str, Any]:
    """All of the plan."""
    pictures = plan.pictures
    return {
        "device": plan.rates.device,
        "rates": plan.rates.source,
        "pictures": {
            "train": pictures.train,
            "val": pictures.val,
            "width": pictures.width,
            "height": pictures.height,
            "classes": pictures.classes,
            "classes_per_picture": pictures.shown,
            "notes": list(pictures.notes),
        },
        "rows": rows(plan),
        "total": summary(plan, parallel),
    }


def as_text(values: dict[str, Any]) -> str:
    """`as_json` to be read: where the figures are from, the table, the totals."""
    total, gpu = values["total"], any(row["on_gpu"] for row in values["rows"])
    table = pd.DataFrame(
        [
            {
                "jobs": row["jobs"],
                "": f"{row['rule']} {row['of']}".strip(),
                "work": _said(row["work"]),
                "hours": f"{_hours(row['hours'])}{' GPU' if row['on_gpu'] else ''}",
                "longest": _hours(row["longest_job_hours"]),
                "GiB": f"{row['memory_bytes'] / room.GIB:.1f}",
                "rate": _basis(row["measured_share"]),
            }
            for row in values["rows"]
        ]
    )
    unit = "hours of GPU or processor" if gpu else "hours of one processor"
    lines = [*values["pictures"]["notes"], f"rates: {values['rates']}, {values['device']}; {unit}"]
    lines += ["", _aligned(table), ""]
    cost = f"{_hours(total['gpu_hours'])} GPU hours and " if gpu else ""
    lines.append(
        f"in all: {total['jobs']} jobs, {cost}{_hours(total['core_hours'])} processor hours; "
        f"{_hours(total['wall_hours'])} hours with {total['parallel']} job{'s' * (total['parallel'] > 1)} at a time"
    )
    lines.append(
        f"        at most {total['disk_bytes'] / room.GIB:.1f} GiB of disk; "
        f"largest job {total['memory_bytes'] / room.GIB:.1f} GiB ({total['memory_of']})"
    )
    return "\n".join(lines)


def _aligned(table: pd.DataFrame) -> str:
    """Names and words to the left, numbers to the right."""
    columns = []
    for name in table:
        words = [str(name), *map(str, table[name])]
        width = max(map(len, words))
        left = name in ("", "work", "rate")
        columns.append([word.ljust(width) if left else word.rjust(width) for word in words])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _said(work: dict[str, float]) -> str:
    parts = []
    if "steps" in work:
        parts.append(f"{work['steps']:.0f} steps")
    elif "crf_runs" in work:
        parts.append(f"{work['crf_runs']:.0f} CRF runs")
    elif "pictures" in work:
        parts.append(f"{work['pictures']:.0f} pictures")
    if "flops" in work:
        letter, size = next((m for m in MULTIPLES if work["flops"] >= m[1]), MULTIPLES[-1])
        parts.append(f"{work['flops'] / size:.3g} {letter}FLOP")
    return ", ".join(parts)


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 10 else f"{hours:.3f}"


def _basis(share: float) -> str:
    return "measured" if share >= SURE else "scaled" if share <= 1 - SURE else f"{share:.0%} measured"
