"""A trial: the workflow walked on few pictures and few steps, at two sizes; what each of its jobs took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from beco.artifacts.files import read_json
from beco.config import Config
from beco.errors import UserError
from beco.plan.pictures import Pictures
from beco.plan.small import CUTS, Cut, of_one, representative, sizes, small, with_weights
from beco.plan.workflow import Job, asked, passing_folder, walked
from beco.training.trainer import choose_device, describe

WORK = 80.0  # seconds of work, beyond imports, that the second size is chosen for
MOST = 20  # times the first size that the second may be
LONG = 40.0, 150.0  # seconds of a processor that a job of the first and of the second size may take
TELL = 10.0  # seconds between two words of how far a trial is
SPARE = 0.9  # of the free memory is what a job may take
COLUMNS = ("amount", "clock", "processor", "imports_clock", "imports_processor", "modules", "memory", "disk")
"""What is known of a job at a size: pictures (learnt from, or looked at), seconds, of them for imports, how many
modules are imported, and bytes."""
ALIKE = 0.1
"""Share of their modules in which jobs of a rule that import the same may differ, as those of two recipes do. With
torch or without it (some make_labels) are 1.7 times as many."""
NOT_TOLD_APART = ("scatteritem", "seed")
"""Wildcards in which jobs may differ that cost the same."""
MEND = "make it with `beco plan --save FILE` of this version"


@dataclass
class Trial:
    """What a machine took for the jobs of a configuration, at one or two sizes each."""

    device: str
    gpu: bool
    notes: list[str]
    """How it was tried, a line each."""
    part: float = 1.0
    """Of the sides of pictures and crops."""
    took: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """By `key`: for each size, `COLUMNS`."""

    def fit(self, key: str, amount: float, column: str) -> float:
        """`column` of a job of `amount`: what does not depend on it, as two sizes tell, and the rest in proportion.

        Seconds of imports are known apart; of a processor they are the same work in every job of a rule that imports
        the same, and tell by how much the machine's load slowed a job. Memory: the most of the sizes.
        """
        points = self.took[key]
        if column == "memory":
            return max(point[column] for point in points)
        apart = self._imports(key, column)
        first, last = ((point["amount"], self._work(point, apart, column)) for point in (points[0], points[-1]))
        (few, less), (many, more) = first, last
        if few == many:
            few, less = 0.0, min(more, self._setup(key, column))
        slope = max((more - less) / (many - few), 0.0)
        if less < slope * few:
            few, less, slope = 0.0, 0.0, more / many
        return apart + less + slope * (amount - few)

    def _imports(self, key: str, column: str) -> float:
        """The least that the imports of a job took, or of those of its rule that import the same."""
        rule = [point for other, points in self.took.items() if other.split()[0] == key.split()[0] for point in points]
        own = self.took[key][0]["modules"]
        alike = [point for point in rule if abs(point["modules"] - own) <= ALIKE * own]
        return min(point.get(f"imports_{column}", 0.0) for point in alike)

    def _work(self, point: dict[str, float], apart: float, column: str) -> float:
        """What a job took besides its imports, less what load made of it."""
        own = point.get(f"imports_{column}", 0.0)
        return (point[column] - own) * (apart / own if own and column == "processor" else 1.0)

    def _setup(self, key: str, column: str) -> float:
        """What jobs of a rule, if some were tried at two sizes, need besides imports before they work; or the most."""
        found: dict[str, list[float]] = {}
        for other, points in self.took.items():
            if len({point["amount"] for point in points}) > 1:
                setup = self.fit(other, 0, column) - self._imports(other, column)
                found.setdefault(other.split()[0], []).append(setup)
        return min(found.get(key.split()[0]) or [max(map(max, found.values()), default=0.0)])

    def beside(self, rule: str, most: int) -> float:
        """How many processors jobs of a rule kept busy, from 1 to `most`."""
        last = [points[-1] for key, points in self.took.items() if key.split()[0] == rule]
        clock, processor = (sum(point[column] for point in last) for column in ("clock", "processor"))
        return min(max(processor / clock, 1.0), most) if last else 1.0


def key(config: Config, job: Job) -> str:
    """What a job is tried as: neither shard nor seed counts, and experiments that cost the same are one."""
    wildcards = {name: value for name, value in job.wildcards.items() if name not in NOT_TOLD_APART}
    if "experiment" in wildcards:
        wildcards = {"experiment": representative(config, wildcards["experiment"])}
    return " ".join([job.rule, *(wildcards[name] for name in sorted(wildcards))])


def amount(job: Job, pictures: int) -> float:
    """How much a job does: pictures that it learns from, or of all those that it looks at its shard."""
    return job.learnt or pictures / job.shards


def here(config: Config, pictures: Pictures, jobs: list[Job], tell: Callable[[str], None] = lambda _: None) -> Trial:
    """Walk the road on this machine at two sizes; with smaller batches or pictures if a job is too large for it.

    `tell` hears now and then how far it is, in words.
    """
    device = choose_device(config.compute.device)
    begun = time.perf_counter()
    trial = Trial(describe(device), device.type == "cuda", [])
    logging.getLogger("beco").setLevel(logging.WARNING)
    batch = int(max((job.learnt / job.steps for job in jobs if job.steps), default=2))
    with passing_folder() as place:
        for number, cut in enumerate(CUTS):
            folder = place / str(number)
            trial.part, trial.took = cut.part, {}
            least = cut.together(batch)
            stopped = _walk(trial, config, pictures, cut, folder / "first", least, tell)
            if not stopped:
                work = sum(points[0]["processor"] - points[0]["imports_processor"] for points in trial.took.values())
                least *= int(min(max(WORK / max(work, 0.1), 3), MOST))
                stopped = _walk(trial, config, pictures, cut, folder / "second", least, tell)
            if not stopped:
                break
            trial.notes.append(stopped)
        else:
            raise UserError(f"{stopped}; try it on a larger machine, and give --rates the file that --save writes")
    if cut.batch:
        sides = f" and {cut.part:g} of the sides of pictures and crops" if cut.part < 1 else ""
        trial.notes.append(f"so tried with {cut.batch} pictures together{sides}: seconds are scaled, memory is more")
    trial.notes.append(f"tried in {time.perf_counter() - begun:.0f} s")
    return trial


def _walk(
    trial: Trial,
    config: Config,
    pictures: Pictures,
    cut: Cut,
    folder: Path,
    least: int,
    tell: Callable[[str], None] = lambda _: None,
) -> str:
    """Walk the road once, and lay what each job took into `trial`; what was too large, or ""."""
    train, val = sizes(pictures, least)
    values = small(config, pictures, pictures.small(folder / "pictures", train, val, cut.part), train, cut)
    values = with_weights(values if trial.took else of_one(values), folder)
    import psutil  # type: ignore[import-untyped]  # comes with Snakemake

    memory = psutil.virtual_memory().available * SPARE
    told = time.monotonic()

    def far(done: int, jobs: int) -> None:
        nonlocal told
        if time.monotonic() - told > TELL:
            told = time.monotonic()
            tell(f"  {folder.name} of two sizes: {done} of {jobs} jobs")

    found = walked(values, folder / "road", train, LONG[bool(trial.took)], memory, far)
    for job, took in found:
        if took["stopped"]:
            return f"{job.name}: takes too much {took['stopped']} here as it is"
        point = {"amount": amount(job, train + val) * cut.part**2, **{column: took[column] for column in COLUMNS[1:]}}
        trial.took.setdefault(key(config, job), []).append(point)
    steps = sorted({job.steps for job, _ in found if job.steps})
    trial.notes.append(f"tried: {train} + {val} pictures, trainings of {' and '.join(map(str, steps))} steps")
    return ""


def full(config: Config, pictures: Pictures) -> list[Job]:
    """All jobs of a configuration, in an order in which they can run, as the workflow itself says."""
    with passing_folder() as place:
        few = pictures.small(place / "pictures", 2, 1, 1.0)
        values = config.model_dump(mode="json") | {"results": "results"}
        values["dataset"] |= few
        return asked(values, place / "jobs", pictures.train)


def read(path: Path) -> Trial:
    """A trial of another machine; UserError if the file is none."""
    content = read_json(path, MEND)
    try:
        trial = Trial(**content)
        for points in trial.took.values():
            for point in points[:1] + points[-1:] or [{}]:
                if any(not 0 <= float(point[column]) < 1e18 for column in COLUMNS):
                    raise ValueError("a negative or endless figure")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: no trial of `beco plan` ({error}); {MEND}") from error
    return trial
