"""What the tests of the plan, and some others, share: a small configuration, jobs, and a made-up trial of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT

from beco.config import Config, validate_config
from beco.plan.pictures import Pictures
from beco.plan.report import Plan
from beco.plan.trial import Trial
from beco.plan.workflow import Job

TINY = ROOT / "tests" / "tiny.yaml"
FEW = Pictures(24, 10, 64, 64, 6)


def config(path: Path = TINY, **changes: Any) -> Config:
    return validate_config(yaml.safe_load(path.read_text(encoding="utf-8")) | changes)


def write(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def job(name: str, *needs: str, **changes: Any) -> Job:
    """A job of a rule of its own name."""
    return replace(Job(f"logs/{name}.log", name.split(".")[0], {}, needs, (), 1, False, 0, 0, 1), **changes)


def point(amount: float, seconds: float, **changes: float) -> dict[str, float]:
    """What a job took: twice as long by the clock, for the machine was busy."""
    took = {"amount": amount, "clock": 2 * seconds, "processor": seconds, "memory": 2**30, "disk": 10 * amount}
    took |= {"imports_clock": 0, "imports_processor": 0, "modules": 0}
    return took | changes


def lasting(**seconds: float) -> Trial:
    """A trial of rules that take so long whatever their amount."""
    return Trial("CPU", False, [], took={rule: [point(1, value), point(2, value)] for rule, value in seconds.items()})


def plan(jobs: list[Job], trial: Trial, of: Config | None = None) -> Plan:
    return Plan(of or config(), FEW, jobs, trial)


def straight(start: float, each: float) -> Callable[[float], dict[str, float]]:
    """What jobs of any amount take that need so long to start, and so long for each unit."""
    return lambda amount: point(amount, start + each * amount)
