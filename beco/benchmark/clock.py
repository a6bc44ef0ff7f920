"""Timing by turns: what is compared is measured side by side, so that a busy machine slows all of it alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch.utils import benchmark

Task = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of one task, one entry a round: by the clock, and of the processor (all threads of this process)."""

    wall: np.ndarray
    cpu: np.ndarray
    by_cpu: bool
    """Whether ratios are of processor time: on one thread of a CPU it is the time of an idle machine, nearly."""

    @property
    def seconds(self) -> float:
        """Median by the clock."""
        return float(np.median(self.wall))

    @property
    def own(self) -> np.ndarray:
        """The seconds that ratios are made of."""
        return self.cpu if self.by_cpu else self.wall

    def __add__(self, other: Times) -> Times:
        return Times(self.wall + other.wall, self.cpu + other.cpu, self.by_cpu)

    def over(self, other: Times) -> float:
        """Median over the rounds of this task's time divided by the other's of the same round."""
        return float(np.median(self.own / other.own))


def by_turns(tasks: dict[str, Task], rounds: int, by_cpu: bool, calls: int = 1, warm: int = 1) -> dict[str, Times]:
    """Run every task once a round, in turn, `rounds` times after `warm` rounds that do not count.

    A measurement is the mean of `calls` calls, which share one wait for the device.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for number in range(warm + rounds):
        for name, task in tasks.items():
            times = timed(task, calls)
            if number >= warm:
                found[name].append(times)
    arrays = {name: np.array(times) for name, times in found.items()}
    return {name: Times(times[:, 0], times[:, 1], by_cpu) for name, times in arrays.items()}


def timed(task: Task, calls: int = 1) -> tuple[float, float]:
    """Seconds of a call by the clock and of the processor; the device is waited for before and after."""
    wall, cpu = benchmark.timer(), time.process_time()
    for _ in range(calls):
        task()
    return (benchmark.timer() - wall) / calls, (time.process_time() - cpu) / calls


def fastest(task: Task, rounds: int) -> float:
    """Seconds by the clock of the fastest of some calls, the first of which does not count."""
    task()
    return min(timed(task)[0] for _ in range(rounds))
