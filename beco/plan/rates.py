"""How fast a machine is: what was measured for this very work, and otherwise what it can be scaled from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beco.artifacts.files import read_json
from beco.benchmark.process import IMPORTS
from beco.benchmark.stages import PLANES
from beco.config import Irn
from beco.errors import UserError
from beco.plan.jobs import GRID, Applied, Job, Trained, Work
from beco.plan.room import PROCESS
from beco.stage1.refine.irn_pairs import offsets

MEND = "make it with `beco benchmark --what all --output FILE` of this version"


@dataclass(frozen=True)
class Point:
    """What a network reached."""

    forward: float
    """FLOPs of a picture forwards."""
    rate: float
    """FLOP/s."""
    name: str


@dataclass
class Rates:
    """Seconds of work on a machine: of one processor, or by the clock of a GPU."""

    device: str
    gpu: bool
    source: str
    exact: dict[str, float] = field(default_factory=dict)
    """Seconds of one piece of work that was measured itself; by `key`."""
    scaled: dict[str, float] = field(default_factory=dict)
    """Seconds for each unit of size, by kind."""
    crf_labels: tuple[float, float] = (0.0, 0.0)
    """Seconds for each pixel·iteration of the CRF: a + b · labels."""
    points: dict[str, list[Point]] = field(default_factory=dict)
    """Of train and infer."""
    start: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Seconds and bytes of a process until it has imported what it needs, by group."""

    def seconds(self, work: Work) -> float:
        """Seconds that `work` takes."""
        if work.kind == "start":
            return self.start[str(work.what)][0]
        if (exact := self.exact.get(key(work))) is not None:
            return work.count * exact
        return work.count * work.each * self._unit(work)

    def is_measured(self, work: Work) -> bool:
        """Whether this very work was measured, rather than something like it."""
        return work.kind == "start" or key(work) in self.exact

    def _unit(self, work: Work) -> float:
        if isinstance(work.what, Trained | Applied):
            return 1 / nearest(self.points[work.kind], work.what.forward).rate
        if work.kind == "crf":
            return max(self.crf_labels[0] + self.crf_labels[1] * work.what[1], 1e-12)
        return self.scaled[work.kind]

    def process(self, job: Job) -> int:
        """Bytes of the job's process when it has started."""
        return max(self.start[str(work.what)][1] for work in job.works if work.kind == "start")


def key(work: Work) -> str:
    """One piece of this work, as text: what is measured once."""
    return f"{work.kind} {work.each:.6g} {work.what}"


def nearest(points: list[Point], forward: float) -> Point:
    """The network whose forward pass is most like one of `forward` FLOPs."""
    return min(points, key=lambda point: abs(math.log(point.forward / forward)))


# --- from files of `beco benchmark` -------------------------------------------------------------------------


def from_files(paths: list[Path]) -> Rates:
    """The rates of the machine that `beco benchmark --output` wrote the files on.

    Several files, of several presets, are laid together: each training is a network to scale from. UserError for a
    file that is none of these, or for files of different devices.
    """
    contents = [_read(path) for path in paths]
    devices = {str(content["device"]) for content in contents}
    if len(devices) > 1:
        raise UserError(f"--benchmark: files of different devices ({', '.join(sorted(devices))}); give those of one")
    stages = next((content["stages"] for content in contents if "stages" in content), None)
    trainings = [
        (path, content["training"]) for path, content in zip(paths, contents, strict=True) if "training" in content
    ]
    where = ", ".join(map(str, paths))
    if stages is None or not trainings:
        raise UserError(f"{where}: has no part `{'stages' if stages is None else 'training'}`; {MEND}")
    try:
        points = [_points(training) for _, training in trainings]
        device = devices.pop()
        rates = Rates(
            device,
            not device.startswith("CPU"),
            where,
            points={"train": [p[0] for p in points], "infer": [p[1] for p in points]},
        )
        _stages(rates, stages)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise UserError(f"{where}: lacks a valid figure ({type(error).__name__}: {error}); {MEND}") from error
    return rates


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, MEND)
    if not isinstance(content, dict) or "device" not in content:
        raise UserError(f"{path}: not a benchmark's file; {MEND}")
    return content


def _points(training: dict[str, Any]) -> tuple[Point, Point]:
    """What the networks reached in steps of training, and in bare passes."""
    processor = training["bare_own_s"] / training["bare_s"] if training["ratios_of"] == "processor time" else 1.0
    bare = _positive(training["bare_tflop_per_s"]) * 1e12 / _positive(processor)
    forward, name = 1e9 * _positive(training["forward_gflop_per_picture"]), str(training["network"])
    return Point(forward, bare / _positive(training["overhead_ratio"]), name), Point(forward, bare, name)


def _stages(rates: Rates, stages: dict[str, Any]) -> None:
    pixels, of = (
        _positive(stages["size"]) ** 2,
        {name: _positive(v) for name, v in stages["pictures_per_core_s"].items()},
    )
    few, many = (1 / of[f"crf_torch_{labels}"] / pixels / 10 for labels in (3, 21))
    slope = max((many - few) / 18, 0.0)
    rates.crf_labels = few - 3 * slope, slope
    for kind in ("load", "read", "evaluate", "draw"):
        rates.scaled[kind] = 1 / of[kind] / pixels
    rates.scaled["write"] = 1 / of["store_write"] / pixels
    rates.scaled["scores"] = 1 / of["labels_from_cam"] / pixels / PLANES
    rates.scaled["merge"] = 1 / of["merge"] / pixels / 21
    walk = Irn()
    neighbours = 2 * len(offsets(walk.walk_radius)) + 1
    rates.scaled["walk"] = 1 / of["walk"] / (PLANES * pixels / GRID * neighbours * 2**walk.squarings)
    for group in IMPORTS:
        rates.start[group] = _positive(stages["start_s"][group]), PROCESS if group == "networks" else PROCESS // 4


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"`{value}` where a positive number belongs")
    return float(value)
