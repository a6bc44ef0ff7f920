"""The road through a real Slurm: a job for every rule, one of which is lost on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, Checkout
from safetensors.torch import load_file
from slurm_cluster import Cluster, ask

pytestmark = pytest.mark.road

STEPS = 240  # of the classifier: seconds, so that it can be met half-way
FIELDS = ("JobID", "Comment", "MinMemory", "TimeLimit", "NumCPUs", "tres-per-job")
CHECKPOINT = "results/tiny/cam/classifier/checkpoint.pt"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "slurm") as cluster:
        yield cluster
    assert not cluster.processes()


def checkout_of_the_road(folder: Path) -> Checkout:
    """A copy of this repository with a road of one experiment, whose classifier takes longer."""
    checkout = Checkout(folder)
    settings = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text())
    settings["classifier"]["schedule"]["steps"] = STEPS
    settings["labels"] = {"crf": settings["labels"]["crf"]}
    settings["experiments"] = {"beco": settings["experiments"]["beco"]}
    (checkout.folder / "road.yaml").write_text(yaml.safe_dump(settings))
    checkout.environment.pop("PYTHONDONTWRITEBYTECODE", None)  # every job starts Snakemake three times
    seen = (
        checkout.folder / "bin" / "nvidia-smi"
    )  # rules ask for a GPU where there is this program; torch will see none
    seen.parent.mkdir()
    seen.touch(0o755)
    checkout.environment["PATH"] += f":{seen.parent}"
    return checkout


def started(checkout: Checkout, *arguments: str) -> subprocess.Popen[str]:
    """`snakemake` on the road, its output in snakemake.out."""
    with (checkout.folder / "snakemake.out").open("w") as output:
        return subprocess.Popen(
            ["snakemake", "--configfile", "road.yaml", *arguments],
            cwd=checkout.folder,
            env=checkout.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def test_the_road_through_slurm_with_a_job_lost(tmp_path: Path, cluster: Cluster) -> None:
    here, there = checkout_of_the_road(tmp_path / "here"), checkout_of_the_road(tmp_path / "there")
    there.environment |= cluster.environment
    profile = ("--workflow-profile", "workflow/profiles/slurm", "--slurm-status-command", "squeue")
    quick = ("--slurm-init-seconds-before-status-checks", "12", "--latency-wait", "5")  # a job takes about 10 s
    runs = [started(there, *profile, *quick), started(here, "--cores", "1")]
    try:
        jobs, lost = watch(runs[0], there.folder)
        for run, checkout in zip(runs, (there, here), strict=True):
            assert run.wait(600) == 0, (checkout.folder / "snakemake.out").read_text()
    finally:
        for run in runs:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)  # with the jobs that it runs itself
                run.wait()
    assert_asked_for(jobs)
    assert_went_on(there.folder, lost)
    assert_same_results(there.folder / "results" / "tiny", here.folder / "results" / "tiny")
    submitted = re.findall("has been submitted with SLURM jobid", (there.folder / "snakemake.out").read_text())
    assert len(submitted) == 16  # 15 jobs, one of them twice


@pytest.mark.skipif(not os.environ.get("BECO_KILLS"), reason="make nightly: a time limit is minutes")
def test_a_time_limit_during_a_training(tmp_path: Path, cluster: Cluster) -> None:
    """Slurm announces the end of the job's time; the training saves, is submitted again, and ends as it would have."""
    here, there = checkout_of_the_road(tmp_path / "here"), checkout_of_the_road(tmp_path / "there")
    there.environment |= cluster.environment
    wanted = ("--", "results/tiny/cam/classifier/classifier.json")
    assert started(here, "--cores", "1", *wanted).wait(600) == 0
    history = pd.read_csv(here.folder / "results" / "tiny" / "classifier" / "history.csv")
    steps = int(STEPS * 130 / history["seconds"].iloc[-1])  # seconds: too long for what follows
    for checkout in (here, there):
        settings = yaml.safe_load((checkout.folder / "road.yaml").read_text())
        settings["classifier"]["schedule"]["steps"] = steps
        (checkout.folder / "road.yaml").write_text(yaml.safe_dump(settings))
    profile = ("--workflow-profile", "workflow/profiles/slurm", "--slurm-status-command", "squeue")
    limit = ("train_classifier:runtime=3", "train_classifier:slurm_extra='--signal=TERM@60'")  # after 1 to 2 minutes
    run = started(there, *profile, "--retries", "9", "--set-resources", *limit, *wanted)
    try:
        assert run.wait(1800) == 0, (there.folder / "snakemake.out").read_text()[-2000:]
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    logs = (there.folder / ".snakemake" / "slurm_logs" / "rule_train_classifier").rglob("*.log")
    stops = [found for log in logs for found in re.findall(rf"SIGTERM at step (\d+) of {steps}", log.read_text())]
    print(f"stopped at {', '.join(sorted(stops, key=int))} of {steps} steps")
    assert stops and started(here, "--cores", "1", *wanted).wait(1200) == 0
    name = Path("results/tiny/cam/classifier/classifier.safetensors")
    first, second = (load_file(checkout.folder / name) for checkout in (here, there))
    assert all(torch.equal(first[key], second[key]) for key in first)


def watch(run: subprocess.Popen[str], folder: Path) -> tuple[dict[str, list[list[str]]], str]:
    """Look at the queue until the run ends, and scancel the classifier's training when it has a checkpoint.

    Returns the FIELDS of the jobs that were seen, by rule, and the id of the job that was cancelled.
    """
    jobs: dict[str, dict[str, list[str]]] = {}
    lost = ""
    until = time.monotonic() + 1800  # a quiet machine takes a tenth of it
    while run.poll() is None:
        assert time.monotonic() < until, (folder / "snakemake.out").read_text()
        queue = ask("squeue", "-h", "-O", ",".join(f"{field}:60" for field in FIELDS))
        for line in queue.splitlines():
            values = [line[start : start + 60].strip() for start in range(0, 60 * len(FIELDS), 60)]
            rule = values[1].removeprefix("rule_").split("_wildcards_")[0]
            jobs.setdefault(rule, {})[values[0]] = values
            if rule == "train_classifier" and not lost and (folder / CHECKPOINT).exists():
                lost = values[0]
                ask("scancel", lost)
        time.sleep(0.3)
    return {rule: list(found.values()) for rule, found in jobs.items()}, lost


def assert_asked_for(jobs: dict[str, list[list[str]]]) -> None:
    """Every job asked for what its rule says; the second attempt for more memory."""
    asked = {rule: [values[2:] for values in found] for rule, found in jobs.items()}
    assert asked["train_classifier"] == [
        ["8000M", "12:00:00", "1", "gres:gpu:1"],
        ["16000M", "12:00:00", "1", "gres:gpu:1"],  # no more time, since it goes on where it was
    ]
    assert asked["train_segmenter"] == [["16000M", "2-00:00:00", "1", "gres:gpu:1"]]
    assert asked["infer_cams"] == 2 * [["6000M", "4:00:00", "1", "gres:gpu:1"]]
    assert asked["make_labels"] == 2 * [["3000M", "12:00:00", "1", "N/A"]]
    assert asked["evaluate"] == [["3000M", "2:00:00", "1", "N/A"]]


def assert_went_on(folder: Path, lost: str) -> None:
    """The cancelled training said where it stopped, and the next one started there."""
    assert lost, "the classifier's training was not met"
    (path,) = (folder / ".snakemake" / "slurm_logs" / "rule_train_classifier").rglob(f"{lost}.log")
    log = path.read_text()
    (step,) = re.findall(rf"beco: classifier: stopped by SIGTERM at step (\d+) of {STEPS}; the same command", log)
    assert 0 < int(step) < STEPS
    again = (folder / "results" / "tiny" / "logs" / "train_classifier.cam.log").read_text()
    assert f"classifier: going on from step {step} of {STEPS}" in again


def assert_same_results(one: Path, other: Path) -> None:
    """Scores and weights are those of the local run, to the bit."""
    for name in ("crf/beco/seed0/metrics.json", "crf/quality/metrics.json"):
        assert json.loads((one / name).read_text()) == json.loads((other / name).read_text()), name
    for name in ("cam/classifier/classifier.safetensors", "crf/beco/seed0/networks.safetensors"):
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first), name
    assert (one / "tables" / "recipes.csv").read_bytes() == (other / "tables" / "recipes.csv").read_bytes()
    assert (one / "report.html").exists()
