"""Profiles and environments for other machines: that they fit the workflow, and a queue of this machine's own."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Checkout

PROFILES = ROOT / "workflow" / "profiles"
SCHEDULER = PROFILES / "cluster-generic" / "scheduler.sh"
DEF_SECTIONS = {"files", "post", "environment", "runscript", "test"}


def scheduler(folder: Path, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        ["bash", str(SCHEDULER), *arguments], cwd=folder, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def submitted(folder: Path, script: str) -> str:
    path = folder / "job script.sh"
    path.write_text(script)
    return scheduler(folder, "submit", "rule", "2", "8000", "720", "1", str(path))


def status_of(folder: Path, job: str) -> str:
    until = time.monotonic() + 30
    while (status := scheduler(folder, "status", job)) == "running" and time.monotonic() < until:
        time.sleep(0.1)
    return status


def test_what_a_job_ends_with(tmp_path: Path) -> None:
    assert status_of(tmp_path, submitted(tmp_path, "true")) == "success"
    assert status_of(tmp_path, submitted(tmp_path, "exit 75")) == "failed"
    warned = submitted(tmp_path, "kill -USR1 $$; bash -c 'kill -USR1 $$'")  # as before the end of its time
    assert status_of(tmp_path, warned) == "success"


def test_a_job_is_cancelled(tmp_path: Path) -> None:
    job = submitted(tmp_path, "sleep 300 & echo $! >pid; wait")
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert scheduler(tmp_path, "status", job) == "running"
    inside = (tmp_path / "pid").read_text().strip()
    done = subprocess.run([str(SCHEDULER.with_name("cancel.sh")), job], cwd=tmp_path)
    assert done.returncode == 0 and status_of(tmp_path, job) == "failed"
    assert not Path("/proc", inside, "environ").exists() or not Path("/proc", inside, "environ").read_bytes()


@pytest.mark.parametrize(
    ("system", "program", "answer", "words"),
    [
        ("sge", "qsub", "17", ["-pe", "smp", "2", "-l", "h_rt=43200,s_rt=43080,h_vmem=4000M,gpu=1"]),
        ("lsf", "bsub", "Job <17> is submitted to queue <main>.", ["-W", "720", "-wt", "2", "-wa", "USR1"]),
    ],
)
def test_what_other_systems_are_asked(tmp_path: Path, system: str, program: str, answer: str, words: list[str]) -> None:
    """Against programs that only note what they are given: neither system is at hand."""
    fake = tmp_path / "bin" / program
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >arguments\ncat >script\necho '{answer}'\n")
    fake.chmod(0o755)
    (tmp_path / "job.sh").write_text("echo done >done\n")
    values = {"BECO_SCHEDULER": system, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    job = scheduler(tmp_path, "submit", "train", "2", "8000", "720", "1", "job.sh", **values)
    assert job == "17"
    asked = (tmp_path / "arguments").read_text().split("\n")
    assert "\n".join(words) in "\n".join(asked)
    subprocess.run(["bash", "script"], cwd=tmp_path, check=True)
    assert (tmp_path / "done").exists()


def test_an_unknown_system_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(SCHEDULER), "status", "1"],
        cwd=tmp_path,
        env=os.environ | {"BECO_SCHEDULER": "pbs"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "pbs-status: unknown; BECO_SCHEDULER is sge, lsf or local" in done.stderr


@pytest.mark.road
def test_a_part_of_the_road_through_the_generic_profile(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    done = checkout.run(
        *("snakemake", "--workflow-profile", "workflow/profiles/cluster-generic", "--configfile", "tests/tiny.yaml"),
        *("--seconds-between-status-checks", "1", "manifest"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"Submitted job \d+ with external jobid", done.stdout + done.stderr)) == 2
    assert (tmp_path / "results" / "tiny" / "manifest.csv").exists()


@pytest.mark.parametrize("profile", sorted(path.parent.name for path in PROFILES.glob("*/config.yaml")))
def test_profiles_name_rules_that_there_are(profile: str) -> None:
    settings = yaml.safe_load((PROFILES / profile / "config.yaml").read_text())
    rules = {
        name
        for path in (ROOT / "workflow" / "rules").glob("*.smk")
        for name in re.findall(r"^(?:use )?rule .*?(\w+)(?: with)?:$", path.read_text(), re.MULTILINE)
    }
    named = {*settings.get("set-resources", {})} | {line.split("=")[0] for line in settings.get("set-threads", [])}
    assert named <= rules and "train_irn" in rules


# --- environments: neither can be made here, for lack of conda channels and of Apptainer --------------------


def test_the_container_is_made_of_files_that_there_are() -> None:
    text = (ROOT / "envs" / "beco.def").read_text()
    header, *sections = re.split(r"^%", text, flags=re.MULTILINE)
    keys = dict(line.split(": ", 1) for line in header.splitlines() if line and not line.startswith("#"))
    assert keys["Bootstrap"] == "docker" and re.fullmatch(r"python:3\.1[1-3]-slim-\w+", keys["From"])
    bodies = {name: body for name, _, body in (section.partition("\n") for section in sections)}
    assert bodies.keys() == DEF_SECTIONS
    for line in bodies["files"].splitlines():
        if line.strip():
            source, target = line.split()
            assert (ROOT / source).exists() and target.startswith("/")
    for name in DEF_SECTIONS - {"files"}:
        subprocess.run(["sh", "-n"], input=bodies[name], text=True, check=True)


def test_the_conda_environment_installs_the_lock_file() -> None:
    environment = yaml.safe_load((ROOT / "envs" / "beco.yaml").read_text())
    assert environment.keys() == {"channels", "dependencies"} and "pip" in environment["dependencies"]
    (python,) = (name for name in environment["dependencies"] if name.startswith("python="))
    assert python.split("=")[1] in ("3.11", "3.12", "3.13")
    after = ROOT / "envs" / "beco.post-deploy.sh"
    subprocess.run(["bash", "-n", str(after)], check=True)
    assert "requirements.lock" in after.read_text()


@pytest.mark.parametrize(
    ("cores", "devices", "threads"), [("1", 1, 1), ("2", 1, 2), ("8", 1, 2), ("8", 3, 2), ("2", 2, 1)]
)
def test_a_training_takes_the_threads_that_it_is_granted(
    tmp_path: Path, cores: str, devices: int, threads: int
) -> None:
    compute = f"compute={{threads: 2, devices: {devices}}}"
    done = Checkout(tmp_path).snakemake("--dry-run", "--printshellcmds", "--cores", cores, "--config", compute)
    assert done.returncode == 0, done.stderr
    asked = re.findall(r"beco .* train .*--threads (\d+)\s", done.stdout)
    assert len(asked) == 2 and set(asked) == {str(threads)}, asked
