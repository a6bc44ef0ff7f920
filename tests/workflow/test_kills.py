"""Kill anything at any moment, run the same command again: the same results, nothing half-written, no lock.

`make nightly` (BECO_KILLS=24) goes on until that many kills have been survived on the whole tiny road; the ordinary run
has one of each kind on the road's last three stages. Moments come from a seed that is printed; BECO_SEED repeats them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from conftest import Checkout
from safetensors.numpy import load_file

from beco.artifacts.store import Store
from beco.datasets import manifest as manifests
from beco.datasets.palette import read_index_png

pytestmark = pytest.mark.road

HOSTILE = "a b;$(touch x)'"  # for good measure, all of it happens in folders whose names a shell would run

SEED = int(os.environ.get("BECO_SEED", random.randrange(10**6)))
NIGHTLY = int(os.environ.get("BECO_KILLS", "0"))
SHORT = {
    "experiments": {"beco": {"recipe": "beco", "labels": "truth"}},
    "networks": {"default": {"encoder": {"like": "tiny"}, "decoder_channels": 16, "atrous_rates": [1, 2, 3]}},
}
"""Straight from the masks to a network and its scores."""
WHOLE = {
    "experiments": {"beco": {"recipe": "beco", "labels": "crf"}},
    "labels": {"crf": {"refine": "crf", "crf": {"iterations": 2, "bilateral_sxy": 10}}},
}
"""Every rule of the road, few of its jobs twice."""


class Road:
    """The tiny road in a checkout, as `snakemake` processes that can be killed."""

    def __init__(self, folder: Path, *targets: str, change: dict[str, object] | None = None) -> None:
        folder = folder / HOSTILE
        self.checkout = Checkout(folder)
        self.base = folder / f"results {HOSTILE}" / "tiny"
        config = yaml.safe_load((folder / "tests" / "tiny.yaml").read_text()) | (change or {})
        config["results"] = self.base.parent.name
        config["compute"] = {"shards": {"cams": 2, "labels": 1}, "workers": 1}
        config["training"]["schedule"] = {"epochs": 8, "batch_size": 8}
        (folder / "road.yaml").write_text(yaml.safe_dump(config))
        self.pace = 4.0  # seconds of a stage, measured on the first walk
        self.jobs = 0  # of the whole road, if kills are to be spread over all of it
        self.command = ["snakemake", *targets, "--cores", "2", "--configfile", "road.yaml"]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, cwd=self.checkout.folder, env=self.checkout.environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def finish(self) -> None:
        done = self.checkout.run(*self.command)
        assert done.returncode == 0, done.stdout + done.stderr

    def measure(self) -> float:
        """Walk it undisturbed; mean seconds of a stage."""
        started = time.monotonic()
        self.finish()
        self.pace = (time.monotonic() - started) / self.ended()
        return self.pace

    def ended(self) -> int:
        """How many jobs have come to their end."""
        return len(list((self.base / "benchmarks").glob("*.tsv")))

    def stages(self) -> list[psutil.Process]:
        """The `beco` processes at work in this checkout, orphans included; their loaders not."""
        return [process for process in self.processes() if process.ppid() not in {p.pid for p in self.processes()}]

    def loaders(self) -> list[psutil.Process]:
        stages = {process.pid for process in self.stages()}
        return [process for process in self.processes() if process.pid not in stages]

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "cwd"]):
            line = process.info["cmdline"] or []
            if any(Path(word).name == "beco" for word in line[:2]) and process.info["cwd"] == str(self.checkout.folder):
                found.append(process)
        return found

    def results(self) -> dict[str, object]:
        """All that has to be the same whatever was killed: scores, weights and predictions."""
        found: dict[str, object] = {}
        for path in sorted(self.base.rglob("*")):
            name = str(path.relative_to(self.base))
            if path.name == "metrics.json":
                content = json.loads(path.read_text())
                found[name] = {key: content[key] for key in ("miou", "boundary_iou", "pixel_accuracy", "pictures")}
            elif path.suffix == ".safetensors":
                found[name] = {key: value.tobytes() for key, value in load_file(path).items()}
            elif path.suffix == ".png" or path.name in ("per_class.csv", "per_image.csv", "manifest.csv"):
                found[name] = path.read_bytes()
        return found


def assert_whole(road: Road) -> None:
    """What bears its final name is finished; only logs may end anywhere."""
    for path in road.base.rglob("*"):
        if any(part.startswith(".") or part in ("logs", "tensorboard", "benchmarks") for part in path.parts):
            continue
        if path.suffix == ".h5":
            with Store(path) as store:
                for layer in store.layers:
                    assert all(store.get(layer, image_id).size >= 0 for image_id in store.ids(layer))
        elif path.suffix == ".safetensors":
            assert load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name == "history.csv":
            assert np.isfinite(np.genfromtxt(path, delimiter=",", skip_header=1)).all()
        elif path.name == "dataset":
            assert len(list((path / "JPEGImages").iterdir())) == 34
        elif path.name == "predictions":
            pictures = manifests.read(road.base / "manifest.csv", road.base / "dataset").split("val")
            assert all(read_index_png(path / f"{name}.png").shape == pictures.size(name) for name in pictures.ids)
        elif path.name == "report.html":
            assert path.read_text().rstrip().endswith("</html>")


def assert_nothing_left(road: Road) -> None:
    assert not [*road.base.rglob("*.tmp*"), *road.base.rglob("*.former*")]
    locks = road.checkout.folder / ".snakemake" / "locks"
    assert not locks.exists() or not list(locks.iterdir())


# --- ways to die --------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 900) -> bool:
    """Whether a condition came true while a process ran."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def kill_everything(road: Road, process: subprocess.Popen[str]) -> bool:
    os.killpg(process.pid, signal.SIGKILL)
    for stage in road.stages():  # Snakemake may have put them into groups of their own
        stage.kill()
    return True


def kill_snakemake(road: Road, process: subprocess.Popen[str]) -> bool:
    process.kill()  # its stages go on, and meet those of the next run
    return True


def kill_stage(road: Road, process: subprocess.Popen[str]) -> bool:
    stages = road.stages()
    for stage in stages[:1]:
        stage.kill()
    return bool(stages)


def kill_loader(road: Road, process: subprocess.Popen[str]) -> bool:
    loaders = road.loaders()
    for loader in loaders[:1]:
        loader.kill()
    return bool(loaders)


WAYS = {"everything": kill_everything, "stage": kill_stage, "loader": kill_loader, "snakemake": kill_snakemake}


def run_and_kill(road: Road, way: str, draw: random.Random) -> str | None:
    """Start the road and kill what `way` says at a random moment; what was at work then, None if it came too late."""
    wanted = road.loaders if way == "loader" else road.stages
    # any of the jobs that are still to come; loaders are at work in few of them
    spread = road.jobs > road.ended() and way != "loader"
    first = draw.randrange(road.ended(), road.jobs) if spread else 0
    process = road.start()
    hit = None
    try:
        if wait_for(lambda: road.ended() >= first and wanted(), process):
            # a loader lives for a second or two
            wait_for(lambda: False, process, draw.uniform(0, 0.5 if way == "loader" else 2 * road.pace))
            work = " ".join(word for stage in road.stages() for word in stage.cmdline()[4:5])
            if process.poll() is None and WAYS[way](road, process):
                hit = work or "between stages"
    except psutil.NoSuchProcess:
        hit = None  # it ended by itself in that moment
    output = process.communicate()[0]
    if hit and way == "loader" and process.returncode:
        assert "beco: compute.workers: a data-loading process was killed" in output and "Traceback" not in output
    assert hit or process.returncode == 0, output
    return hit


def survive(road: Road, ways: list[str], seed: int, again: Callable[[], None]) -> list[str]:
    """Kill until every way has had its turn; where the road ends before, `again` sets it back. Tells what was hit."""
    draw, hits = random.Random(seed), []
    waiting = list(ways)
    for _ in range(5 * len(ways)):
        if not waiting:
            break
        hit = run_and_kill(road, waiting[0], draw)
        assert_whole(road)
        if hit:
            hits.append(f"{waiting.pop(0)} ({hit})")
        else:
            again()
    assert not waiting, f"no moment was found for {waiting}; hits: {hits}"
    return hits


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Road, dict[str, object]]:
    """The short road, walked once undisturbed, and its results."""
    road = Road(tmp_path_factory.mktemp("short"), f"results {HOSTILE}/tiny/truth/beco/seed0/metrics.json", change=SHORT)
    road.measure()
    return road, road.results()


def test_killed_and_run_again(short: tuple[Road, dict[str, object]]) -> None:
    road, expected = short
    print(f"BECO_SEED={SEED}")

    def again() -> None:
        shutil.rmtree(road.base / "truth")

    again()
    hits = survive(road, ["everything", "loader", "stage"], SEED, again)
    print("killed:", ", ".join(hits))
    road.finish()
    assert road.results() == expected, f"seed {SEED}: {hits}"
    assert_nothing_left(road)


def test_a_second_run_is_refused_in_one_line(short: tuple[Road, dict[str, object]]) -> None:
    road, _ = short
    shutil.rmtree(road.base / "truth")
    first = road.start()
    try:
        assert wait_for(road.stages, first)
        for stage in road.stages():
            stage.suspend()  # or a busy machine lets it end before the others have looked
        second = road.checkout.run(*road.command)
        dry = road.checkout.run(*road.command, "--dry-run")
    finally:
        kill_everything(road, first)
        first.communicate()
    assert second.returncode == 1 and "Traceback" not in second.stderr
    lines = [line for line in second.stderr.splitlines() if line.startswith("beco: ")]
    assert len(lines) == 1, second.stderr
    assert (
        f"beco: results {HOSTILE}/tiny: process {first.pid} on " in lines[0]
        and "works in it; wait for its end" in lines[0]
    )
    assert dry.returncode == 0 and "train_segmenter" in dry.stdout  # looking is allowed
    # and no `--unlock`: the killed run's lock went with it, as `test_killed_and_run_again` shows for whole roads


@pytest.mark.skipif(not NIGHTLY, reason="make nightly")
def test_many_kills_on_the_whole_road(tmp_path: Path) -> None:
    print(f"\nBECO_SEED={SEED}")
    undisturbed, road = (Road(tmp_path / name, change=WHOLE) for name in ("undisturbed", "disturbed"))
    road.pace, road.jobs = undisturbed.measure(), undisturbed.ended()
    expected = undisturbed.results()
    print(f"{len(expected)} results to compare, {road.pace:.1f} s a stage", flush=True)
    names = list(WAYS)
    survived: list[str] = []

    def again() -> None:
        """The road has come to its end between two kills: compare, and set out anew."""
        while road.stages():
            time.sleep(0.1)
        road.finish()
        assert road.results() == expected, f"seed {SEED}: {survived}"
        assert_nothing_left(road)
        shutil.rmtree(road.base)

    for number in range(NIGHTLY):
        survived += survive(road, [names[number % len(names)]], SEED + number, again)
        print(f"{number + 1}: killed {survived[-1]}", flush=True)
    again()
