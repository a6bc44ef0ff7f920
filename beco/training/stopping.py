"""Signals that ask a training to stop: it finishes its step, saves, and says that it wants to be run again.

Batch systems send SIGTERM, or a signal of the user's choice such as SIGUSR1, before a job's time is over or another
takes its place.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
LOOK_EVERY = 2.0  # seconds between the agreements of several processes, each of which waits for the device


class StopRequest:
    """While it is entered, SIGTERM and SIGUSR1 are noted instead of ending the process; then they are as before.

    `fabric` is Fabric, of which `world_size`, `device` and `all_reduce` are used. Only Python's main thread can change
    what signals do; in another thread they stay as they are.
    """

    def __init__(self, fabric: Any) -> None:
        self.fabric = fabric
        self.noted = 0
        """Number of the last signal that this process got, 0 without one."""
        self.agreed = 0
        """Number of the signal upon which all processes stop, 0 while they go on."""
        self.before: dict[signal.Signals, Any] = {}
        self.last: tuple[int, float] | None = None  # step and clock of the last agreement
        self.next = 0  # step of the next one

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self.before = {one: signal.signal(one, self._note) for one in SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one, handler in self.before.items():
            signal.signal(one, handler or signal.SIG_DFL)
        if self.noted and not self.agreed and error is None:
            signal.raise_signal(self.noted)  # it came after the last step, when nobody looked any more

    def look(self, step: int, due: bool) -> bool:
        """Whether to save after this step: because a process finds it `due`, or because `agreed` says to stop.

        All processes get the same answer at the same step. Several of them agree about every `LOOK_EVERY` seconds,
        at steps that follow from what they agreed upon before; one alone looks after every step.
        """
        if self.fabric.world_size == 1:
            self.agreed = self.noted
            return due or self.agreed > 0
        if step < self.next:
            return False
        now = time.monotonic()
        took = (now - self.last[1]) / (step - self.last[0]) if self.last else LOOK_EVERY
        mine = torch.tensor([due, self.noted, took], dtype=torch.float32, device=self.fabric.device)
        any_due, number, slowest = self.fabric.all_reduce(mine, reduce_op="max").tolist()
        self.last, self.next = (step, now), step + max(int(LOOK_EVERY / max(slowest, 1e-6)), 1)
        self.agreed = int(number)
        return any_due > 0 or self.agreed > 0

    @property
    def name(self) -> str:
        """Name of the signal that was agreed upon, such as SIGTERM."""
        return signal.Signals(self.agreed).name


def leave_signals_to_trainer(worker: int = 0) -> None:
    """For a loading process: one that a signal to the whole job ends would take the training's last step with it."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
