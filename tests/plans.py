"""What the tests of the plan, and some others, share: a small configuration, a made-up machine, and jobs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT

from beco.benchmark.process import IMPORTS
from beco.config import Config, validate_config
from beco.plan.jobs import Job, Work, jobs
from beco.plan.pictures import Pictures
from beco.plan.rates import Point, Rates
from beco.plan.report import Plan

TINY = ROOT / "tests" / "tiny.yaml"
FEW = Pictures(24, 10, 64, 64, 6, 2.0)


def config(path: Path = TINY, **changes: Any) -> Config:
    return validate_config(yaml.safe_load(path.read_text(encoding="utf-8")) | changes)


def benchmark(**changes: Any) -> dict[str, Any]:
    """What `beco benchmark --what all` writes, as far as the plan reads it: 1 TFLOP/s, a second for all else."""
    names = [
        "crf_torch_3",
        "crf_torch_21",
        "labels_from_cam",
        "store_write",
        "evaluate",
        "load",
        "read",
        "draw",
        "merge",
        "walk",
    ]
    training = {
        "network": "one",
        "forward_gflop_per_picture": 1.0,
        "bare_tflop_per_s": 1.0,
        "bare_s": 2.0,
        "bare_own_s": 2.0,
        "ratios_of": "time",
        "overhead_ratio": 1.25,
    }
    stages = {
        "size": 100,
        "pictures_per_core_s": dict.fromkeys(names, 1.0),
        "start_s": dict.fromkeys(IMPORTS, 3.0),
    }
    return {"device": "CPU (made up), 1 threads", "training": training, "stages": stages} | changes


def write(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def flat(**changes: Any) -> Rates:
    """A machine that needs a second for each unit of anything, and no time to start."""
    point = [Point(1.0, 1.0, "one")]
    kinds = ["load", "read", "write", "scores", "walk", "evaluate", "draw", "merge"]
    known = Rates(
        "CPU",
        False,
        "made up",
        scaled=dict.fromkeys(kinds, 1.0),
        crf_labels=(1.0, 0.5),
        points={"train": point, "infer": point},
        start=dict.fromkeys(IMPORTS, (0.0, 1000)),
    )
    return replace(known, **changes)


ROADS: list[dict[str, Any]] = [
    {},
    {
        "labels": {
            "own": {"refine": "irn", "irn": {"squarings": 2}},
            "same": {"refine": "irn", "irn": {"squarings": 2}, "background": 0.4},
            "other": {"refine": "irn", "irn": {"squarings": 3}, "foreground_threshold": 0.4},
            "crf": {"refine": "crf"},
            "none": {"refine": "none"},
            "theirs": {"refine": "import", "source": {"path": "."}},
        },
        "quality": {"backgrounds": [0.1, 0.2]},
        "experiments": {
            "a": {"recipe": "beco", "labels": "same", "seeds": [0, 1]},
            "b": {"recipe": "single", "labels": "truth"},
            "c": {"recipe": "single", "labels": "theirs"},
        },
        "comparisons": {"one": {"experiments": ["a", "c"]}, "two": {"experiments": ["b"]}},
        "compute": {"shards": {"cams": 3, "labels": 4}},
    },
]


def works(of: Config, name: str, found: Pictures = FEW) -> dict[str, Work]:
    job = next(job for job in jobs(of, found) if job.name == name)
    return {work.kind: work for work in job.works}


def plan(of: Config, known: Rates | None = None, found: Pictures = FEW) -> Plan:
    return Plan(of, found, jobs(of, found), known or flat())


def job(name: str, seconds: float, *needs: str, **changes: Any) -> Job:
    return Job("rule", name, "stage", (Work("start", 1, what="store"), Work("read", seconds)), needs, **changes)
