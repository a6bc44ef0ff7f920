"""Trainings that are asked to stop: they save, say so, and end where an undisturbed run ends."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_engine import BATCH, OPTIMISERS, STEPS, Squares, Tiny, assert_same_run, stop_at, train
from torch import Tensor

from beco.config import Schedule, Shapes
from beco.datasets import shapes, voc
from beco.errors import Stopped
from beco.training import stopping
from beco.training.engine import Output, Plan, fit
from beco.training.stopping import LOOK_EVERY, SIGNALS, StopRequest
from beco.training.trainer import Compute

BECO = str(Path(sys.executable).parent / "beco")
ALONE = SimpleNamespace(world_size=1)


def wait_for(path: Path, process: subprocess.Popen[str] | None = None) -> None:
    """Until there is such a file; an assertion if the process ends first, or after a minute."""
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path}: not there after a minute"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


# --- random moments -----------------------------------------------------------------------------------------


def trained(folder: Path, optimiser: str, processes: int) -> Callable[[], list[int]]:
    """Start a training of so many processes; the function that is returned waits for them and gives their statuses.

    The first process to start makes `started`; none does its last step before there is `signalled`.
    """

    def slow(step: int) -> None:
        (folder / "started").touch()
        time.sleep(0.02)
        if step == STEPS - 1:
            wait_for(folder / "signalled")  # however late that is on a busy machine

    children = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for rank in range(processes):
        children.append(os.fork())  # spares each of them the import of torch
        if children[-1]:
            continue
        if processes > 1:  # as torchrun starts them
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            names |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
            os.environ.update({name: str(value) for name, value in names.items()})
            stopping.LOOK_EVERY = 1e-9  # these steps are too few to pass two seconds
        try:
            schedule = Schedule(steps=STEPS, batch_size=4 if processes > 1 else BATCH)
            compute = Compute("cpu", devices=processes)
            plan = Plan(schedule, OPTIMISERS[optimiser], 1)
            fit(Tiny(slow), Squares(), plan, Output(folder, {"seed": 1}, "tiny"), compute)
        except Stopped as stopped:
            (folder / "said").write_text(str(stopped))
            os._exit(stopped.status)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
        os._exit(0)
    (folder / "processes").write_text(json.dumps(children))
    return lambda: [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def disturbed(plan: list[list[Any]]) -> None:
    """For each (folder, optimiser, processes, signal, delay): a training to its end in folder/whole, and one in
    folder/run that gets the signal after the delay, and then runs again.

    The signal goes to the last process, which is not the one that writes where there are several.
    """
    for name, optimiser, processes, number, delay in plan:
        whole, run = Path(name) / "whole", Path(name) / "run"
        for folder in (whole, run):
            folder.mkdir(parents=True)
        (whole / "signalled").touch()
        well = [0] * processes
        assert trained(whole, optimiser, processes)() == well
        status = trained(run, optimiser, processes)
        wait_for(run / "started")
        time.sleep(delay)
        os.kill(json.loads((run / "processes").read_text())[-1], number)
        (run / "signalled").touch()
        assert status() == [75, *well[1:]], name
        shutil.copyfile(run / "checkpoint.pt", run / "stopped.pt")
        assert trained(run, optimiser, processes)() == well


def test_a_stopped_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    signals = random.sample(SIGNALS, 2)
    plan = [
        (str(tmp_path / name), name, 1, one, random.uniform(0, 0.25))
        for name, one in zip(OPTIMISERS, signals, strict=True)
    ]
    plan.append((str(tmp_path / "two"), "adamw", 2, random.choice(SIGNALS), random.uniform(0, 0.25)))
    code = "import json, sys; sys.path[:0] = json.loads(sys.argv[1]); import test_signals as t"
    code += "; t.disturbed(json.loads(sys.argv[2]))"
    command = [sys.executable, "-c", code, json.dumps(sys.path), json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    for name, _, processes, one, _ in plan:
        whole, run = Path(name) / "whole", Path(name) / "run"
        stopped, final, expected = (
            torch.load(path, weights_only=True)
            for path in (run / "stopped.pt", run / "checkpoint.pt", whole / "checkpoint.pt")
        )
        kept = stopped["state"]["step"]
        assert 1 <= kept <= STEPS and final["state"]["step"] == STEPS
        said = f"tiny: stopped by {signal.Signals(one).name} at step {kept} of {STEPS}; the same command goes on"
        assert (run / "said").read_text() == said
        for key, value in expected["module"].items():
            assert torch.equal(final["module"][key], value), (name, key)
        tables = [pd.read_csv(folder / "history.csv").drop(columns=["seconds", "waited"]) for folder in (run, whole)]
        # a mean over processes that was saved within an epoch is a float32 of its own: the last bit may differ
        pd.testing.assert_frame_equal(*tables, **({"check_exact": True} if processes == 1 else {"rtol": 1e-6}))


# --- one process --------------------------------------------------------------------------------------------


def test_the_step_at_hand_is_finished_and_nothing_after_it(tmp_path: Path) -> None:
    for step in (0, 4, STEPS - 1):
        seen: list[int] = []

        def ask(now: int, step: int = step, seen: list[int] = seen) -> None:
            seen.append(now)
            if now == step:
                os.kill(os.getpid(), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGTERM)  # batch systems may well send more than one

        with pytest.raises(Stopped, match=f"stopped by SIGTERM at step {step + 1} of {STEPS};"):
            train(tmp_path / str(step), ask)
        assert seen == list(range(step + 1))
        assert torch.load(tmp_path / str(step) / "checkpoint.pt", weights_only=True)["state"]["step"] == step + 1


def test_handlers_are_as_before(tmp_path: Path) -> None:
    def own(number: int, frame: Any) -> None: ...

    before = [signal.signal(one, own) for one in SIGNALS]
    try:
        train(tmp_path)
        with pytest.raises(InterruptedError):
            train(tmp_path / "broken", stop_at(2))
        with pytest.raises(Stopped):
            train(tmp_path / "stopped", lambda step: os.kill(os.getpid(), signal.SIGTERM))
        assert [signal.getsignal(one) for one in SIGNALS] == [own, own]
    finally:
        for one, handler in zip(SIGNALS, before, strict=True):
            signal.signal(one, handler)


def test_a_signal_after_the_last_look_is_not_swallowed() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    try:
        with StopRequest(ALONE) as stop:
            assert not stop.look(1, False)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert got == [signal.SIGUSR1]
        with StopRequest(ALONE) as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.look(1, False) and stop.name == "SIGUSR1"
        assert got == [signal.SIGUSR1]  # that one has been obeyed
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_finished_run_has_its_history_again(tmp_path: Path) -> None:
    """Snakemake removes the outputs of a job that it runs again, of which history.csv is one."""
    task, _ = train(tmp_path / "whole")
    train(tmp_path / "again")
    (tmp_path / "again" / "history.csv").unlink()
    assert_same_run(train(tmp_path / "again")[0], tmp_path / "again", task, tmp_path / "whole")


# --- several processes --------------------------------------------------------------------------------------


class Together:
    """`all_reduce` of processes that take turns: each lays its values down, then all get the maximum."""

    def __init__(self, count: int) -> None:
        self.world_size, self.device = count, torch.device("cpu")
        self.values: list[Tensor] = []
        self.answer: Tensor | None = None

    def all_reduce(self, mine: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "max"
        if self.answer is None:
            self.values.append(mine)
            raise BlockingIOError  # the others have not come yet
        return self.answer


def ask_all(together: Together, stops: list[StopRequest], step: int, dues: list[bool]) -> list[bool]:
    together.values, together.answer = [], None
    waiting = []
    for stop, due in zip(stops, dues, strict=True):
        try:
            assert stop.look(step, due) is False  # no turn of this step
        except BlockingIOError:
            waiting.append((stop, due))
    assert len(waiting) in (0, len(stops)), "some wait for others that do not come"
    if not waiting:
        return [False] * len(stops)
    together.answer = torch.stack(together.values).max(0).values
    return [stop.look(step, due) for stop, due in waiting]


@given(st.integers(2, 4), st.lists(st.floats(0.001, 5), min_size=12, max_size=12), st.integers(1, 12), st.data())
def test_processes_agree_on_the_step(count: int, seconds: list[float], when: int, data: st.DataObject) -> None:
    together, clock = Together(count), 0.0
    stops, who = [StopRequest(together) for _ in range(count)], data.draw(st.integers(0, count - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beco.training.stopping.time.monotonic", lambda: clock)
        for step, took in enumerate(seconds * 4, 1):
            clock += took
            if step == when:
                stops[who].noted, asked = signal.SIGTERM, clock
            answers = ask_all(together, stops, step, [False] * count)
            assert len(set(answers)) == 1
            if step < when:
                assert answers[0] is False
            elif answers[0]:
                assert {stop.name for stop in stops} == {"SIGTERM"}
                # steps were as long as the slowest since the last agreement, so they were agreed upon in time
                assert clock - asked <= LOOK_EVERY * max(seconds) / min(seconds) + max(seconds)
                return
    assert clock - asked < LOOK_EVERY * max(seconds) / min(seconds) + max(seconds)


def test_a_save_that_one_finds_due_is_made_by_all() -> None:
    together = Together(2)
    stops = [StopRequest(together), StopRequest(together)]
    assert ask_all(together, stops, 1, [False, True]) == [True, True]
    assert [stop.agreed for stop in stops] == [0, 0]


# --- the command --------------------------------------------------------------------------------------------

NETWORK = {
    "encoder": {"name": "resnet10t", "options": {"channels": [8, 16, 24, 32]}},
    **{"decoder_channels": 8, "atrous_rates": [1, 2, 3]},
}
SETTINGS = {
    "crop": {"size": 32},
    "schedule": {"steps": 100_000, "batch_size": 8},
    "optimiser": {"name": "sgd", "lr": 0.02},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=16, val=4))
    voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv")
    return folder


def test_the_command_stops_with_its_loading_processes(dataset: Path, tmp_path: Path) -> None:
    """As Slurm does it: every process of the job gets the signal, the loading ones too."""
    output = tmp_path / "run"
    command = [
        *(BECO, "train", "--manifest", str(dataset / "manifest.csv"), "--root", str(dataset / "set")),
        *("--recipe", "single", "--network", yaml.safe_dump(NETWORK), "--settings", yaml.safe_dump(SETTINGS)),
        *("--device", "cpu", "--workers", "2", "--output", str(output)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    try:
        wait_for(output / "checkpoint.pt", process)
        os.killpg(process.pid, signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 75, errors
    kept = torch.load(output / "checkpoint.pt", weights_only=True)["state"]["step"]
    lines = [line for line in errors.splitlines() if "stopped" in line or "Traceback" in line or "killed" in line]
    assert lines == [f"beco: single seed 0: stopped by SIGTERM at step {kept} of 100000; the same command goes on"]
    assert not (output / "networks.safetensors").exists()
