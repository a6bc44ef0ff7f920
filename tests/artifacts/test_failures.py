"""Disks that are full, folders that cannot be written, leftovers, locks and clocks."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from conftest import BIN, ROOT
from corpus_inputs import COMMANDS, SIZE, sound
from PIL import Image
from safetensors.torch import save_file
from tiny_training import assert_same_run, train

from beco.artifacts import files
from beco.artifacts.files import hold, whole, write_json
from beco.artifacts.folders import whole_folder
from beco.artifacts.store import create
from beco.datasets.palette import write_index_png
from beco.errors import UserError


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the kernel refuses as it does on a full disk, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_store(path: Path) -> None:
    with create(path) as writer:
        writer.put("label", "a", np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8))


def write_tensors(path: Path) -> None:
    with whole(path) as temporary:
        save_file({"weight": torch.rand(90, 90)}, temporary)


def write_checkpoint(path: Path) -> None:
    with whole(path) as temporary:
        torch.save({"weight": torch.rand(90, 90)}, temporary)


def write_folder(path: Path) -> None:
    with whole_folder(path) as folder:
        write_index_png(folder / "a.png", np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8))


def write_picture(path: Path) -> None:
    with whole(path) as temporary:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(temporary)


WRITERS = {
    "labels.h5": write_store,
    "network.safetensors": write_tensors,
    "checkpoint.pt": write_checkpoint,
    "predictions": write_folder,
    "a.png": write_picture,
    "metrics.json": lambda path: write_json(path, list(range(3000))),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with small_disk(3000), pytest.raises(UserError) as caught:
        WRITERS[name](path)
    message = str(caught.value)
    assert message.startswith(str(path)) and ".tmp" not in message and "\n" not in message
    assert "disk" in message and "is full" in message and message.endswith("free some space and run this again")
    assert list(tmp_path.iterdir()) == []
    WRITERS[name](path)  # and with space again it is written
    assert path.exists()


def test_a_full_disk_at_the_command_line(tmp_path: Path) -> None:
    sound(tmp_path)
    with small_disk(100):
        status, error = run(COMMANDS["manifest"](tmp_path))
    assert status == 1 and "Traceback" not in error
    assert error.splitlines()[-1].startswith(f"beco: {tmp_path}/out/new.csv: cannot be written, the disk")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_store_on_a_full_disk_is_one_line_to_the_user(tmp_path: Path) -> None:
    write_store(tmp_path / "part.h5")
    done = subprocess.run(
        [str(BIN / "beco"), "gather", str(tmp_path / "part.h5"), "--output", str(tmp_path / "all.h5")],
        capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"beco: {tmp_path}/all.h5: cannot be written"), (
        done.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["part.h5"]


FILLING = """
import resource, sys
from pathlib import Path
import numpy as np
from beco.errors import UserError
from beco.artifacts.store import Store, create

def write():
    with create(path, settings=list(range(99))) as writer:
        for number in range(20):
            writer.put("label", str(number), np.random.default_rng(number).integers(0, 256, (20, 20), dtype=np.uint8))

path, refused = Path(sys.argv[1]), 0
write()
for share in range(20):
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size * share // 20, -1))
    try:
        write()
    except UserError as error:
        refused += "is full" in str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    write()
    with Store(path) as store:
        assert store.get("label", "7").shape == (20, 20)
print(refused)
"""


def test_a_process_lives_on_after_stores_that_found_no_room(tmp_path: Path) -> None:
    """In a process of its own: HDF5 itself crashes at the next store, wherever the disk was full."""
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(tmp_path / "s.h5")], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "20\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_a_training_on_a_full_disk_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    undisturbed, _ = train(tmp_path / "whole")
    size = (tmp_path / "whole" / "checkpoint.pt").stat().st_size

    def fill(step: int) -> None:
        if step == 4:  # the first epoch's checkpoint is there; the second's does not fit
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(UserError, match=r"checkpoint\.pt: cannot be written .*the disk is full"):
            train(tmp_path / "run", fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["state"]["step"] == 3
    task, _ = train(tmp_path / "run")
    assert len(task.losses) == 8
    assert_same_run(task, tmp_path / "run", undisturbed, tmp_path / "whole")


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A sound folder whose `out` cannot be written to, by a user who is not root for as long."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        at = Path(name)
        sound(at)
        (at / "out").mkdir()
        for path in [at, *at.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        (at / "out").chmod(0o555)
        assert run(COMMANDS["evaluate"](at / "none"))[0] == 1  # imports what another user may not read
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield at
        finally:
            os.seteuid(before)
            (at / "out").chmod(0o755)


@pytest.mark.parametrize("command", ["manifest", "evaluate", "evaluate-labels"])
def test_read_only_results(read_only: Path, command: str) -> None:
    status, error = run(COMMANDS[command](read_only))
    assert status == 1 and "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("beco: ")]
    assert len(lines) == 1 and f"{read_only}/out" in lines[0] and "; " in lines[0], error
    assert list((read_only / "out").iterdir()) == []


def test_a_read_only_folder_cannot_be_held(read_only: Path) -> None:
    with pytest.raises(UserError, match=r"out/\.lock: cannot be written \(Permission denied\); make its folder writ"):
        hold(read_only / "out")


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time of day goes back a year in the midst of a training; only the monotonic clock may count."""
    undisturbed, _ = train(tmp_path / "whole", schedule={"checkpoint_minutes": 0.5})
    now = time.time

    def harm(step: int) -> None:
        if step == 4:
            monkeypatch.setattr(time, "time", lambda: now() - 365 * 24 * 3600)

    task, state = train(tmp_path / "run", harm, schedule={"checkpoint_minutes": 0.5})
    assert_same_run(task, tmp_path / "run", undisturbed, tmp_path / "whole")
    seconds = [row["seconds"] for row in state.history]
    assert seconds == sorted(seconds) and 0 <= seconds[-1] < 600


def test_what_a_block_cannot_read_is_not_called_unwritable(tmp_path: Path) -> None:
    def read() -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "input"))

    with pytest.raises(PermissionError), whole(tmp_path / "output"):
        read()
    assert list(tmp_path.iterdir()) == []


# --- leftovers ----------------------------------------------------------------------------------------------


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def leave(folder: Path, place: str, pid: int, age: float = 0) -> tuple[Path, Path]:
    """A file and a folder such as a killed process leaves behind."""
    file, below = folder / f".cams.{place}-{pid}.tmp.h5", folder / f".predictions.{place}-{pid}.tmp"
    file.write_text("half")
    (below / "deep").mkdir(parents=True)
    for path in (file, below):
        os.utime(path, (time.time() - age, time.time() - age))
    return file, below


def test_leftovers_go_when_their_process_has(tmp_path: Path) -> None:
    here = files._place()
    gone = leave(tmp_path, here, dead_process())
    alive = leave(tmp_path, here, os.getppid())
    elsewhere = leave(tmp_path, "0" * 8, dead_process())
    long_ago = leave(tmp_path, "1" * 8, 1, age=8 * 24 * 3600)
    others = [tmp_path / ".hidden", tmp_path / ".a.tmp", tmp_path / "cams.h5"]
    for path in others:
        path.write_text("")
    write_json(tmp_path / "new.json", 1)
    left = {path for path in tmp_path.iterdir() if path.name != "new.json"}
    assert left == {*alive, *elsewhere, *others}
    assert not left & {*gone, *long_ago}


def test_a_killed_writer_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys; from beco.artifacts.folders import whole_folder\n"
        "with whole_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'half').write_text('x'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "predictions")], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and len(list(tmp_path.glob(".predictions.*.tmp"))) == 1
    with whole_folder(tmp_path / "predictions") as folder:
        write_index_png(folder / "a.png", np.zeros(SIZE, np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


# --- the lock -----------------------------------------------------------------------------------------------


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; from beco.artifacts.files import hold\n"
        "hold(sys.argv[1]); subprocess.Popen(['sleep', '60']); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError) as caught:
            hold(tmp_path)
        assert f"{tmp_path}: process {holder.pid} on " in str(caught.value) and "\n" not in str(caught.value)
        holder.kill()
        holder.wait()
        hold(tmp_path)  # although its child, a stage say, is still at work
        hold(tmp_path)  # once more is nothing new
        os.killpg(holder.pid, signal.SIGKILL)
    files._held.pop(tmp_path.resolve() / ".lock").close()
