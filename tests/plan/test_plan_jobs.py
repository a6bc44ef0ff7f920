"""The small configuration that is tried, the jobs that the workflow tells of, and a trial as it goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # comes with Snakemake
import pytest
from conftest import ROOT
from plans import FEW, TINY, config

from beco.config import read_config_files, validate_config
from beco.errors import UserError
from beco.networks.encoders import create_backbone, prepare_backbone
from beco.plan import job as measured
from beco.plan import pictures, small, trial, workflow
from beco.plan.pictures import Pictures
from beco.plan.small import CUTS, Cut
from beco.plan.workflow import Job

PRESETS = [ROOT / "config.yaml", *sorted((ROOT / "workflow" / "presets").glob("*.yaml"))]
MANY = Pictures(10582, 1449, 500, 375, 20)


def schedules(values: Any) -> list[dict[str, Any]]:
    return [holder["schedule"] for holder in small._sections(values, "schedule")]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("cut", CUTS)
def test_every_preset_has_a_small_one(preset: Path, cut: Cut) -> None:
    of = read_config_files([preset], [])
    values = small.small(of, MANY, {"format": "voc", "root": "few", "train": "train", "val": "val"}, 32, cut)
    for few in (validate_config(values), validate_config(small.of_one(values))):
        assert {name: experiment.recipe for name, experiment in few.experiments.items()}.items() <= {
            name: experiment.recipe for name, experiment in of.experiments.items()
        }.items()
        assert list(few.labels) == list(of.labels) and few.compute.shards.labels == 1
    before, after = schedules(of.model_dump(mode="json")["training"]), schedules(values["training"])
    for old, new in zip(before, after, strict=True):
        assert new["batch_size"] == min(old["batch_size"], cut.batch or 1000) and new["precision"] == old["precision"]
        assert 2 <= new["steps"] <= max(small.EPOCHS, of.training.validate_every or 0) * 32 // new["batch_size"]
    side = round(of.training.crop.size * cut.part)
    assert validate_config(values).training.crop.size == max(side, 32)


def test_as_many_epochs_at_both_sizes() -> None:
    """What a training does once an epoch must be of its start, and so equally often in both."""
    of = config(training={"schedule": {"epochs": 9, "batch_size": 8}, "validate_every": 6, "watch_labels": 100})
    few, more = (small.small(of, Pictures(800, 200, 64, 64, 6), {}, train, Cut()) for train in (16, 160))
    assert few["training"]["schedule"]["steps"] * 10 == more["training"]["schedule"]["steps"] == 6 * 160 // 8
    assert (few["training"]["watch_labels"], more["training"]["watch_labels"]) == (2, 20)
    short = small.small(config(training={"schedule": {"epochs": 2}}), FEW, {}, 16, Cut())
    assert short["training"]["schedule"]["steps"] == 2  # no more epochs than there are


def test_what_is_not_at_hand_is_left_out(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.touch()
    labels = {"theirs": {"refine": "import", "source": {"path": str(tmp_path / "gone")}}, "crf": {"refine": "crf"}}
    encoder = {"name": "resnet10t", "options": {"channels": [8, 16, 32, 64]}}
    classifier = {"encoder": encoder | {"weights": str(tmp_path / "gone.pth")}}
    networks = {"default": {"encoder": encoder | {"weights": str(weights)}}}
    of = config(labels=labels, classifier=classifier, networks=networks)
    values = small.small(of, FEW, {}, 8, Cut())
    assert values["labels"]["theirs"]["refine"] == "none"
    small.with_weights(values, tmp_path)
    assert values["networks"]["default"]["encoder"]["weights"] == str(weights)
    made = validate_config(values).classifier.encoder
    prepare_backbone(create_backbone(made, 16), made)  # the file fits
    (tmp_path / "gone").mkdir()
    kept = small.small(of, FEW, {}, 8, Cut())["labels"]["theirs"]
    assert kept["refine"] == "import" and "background" not in kept


def test_maps_by_fine_tuning_are_tried_at_their_full_price() -> None:
    """All steps of `rib`, whatever a network of few steps says, on crops as small as all else."""
    of = config(sources={"cam": {}, "rib": {"method": "rib", "start": "cam", "options": {"steps": 7}}})
    for cut, side in ((Cut(), 512), (Cut(2, 0.25), 128)):
        values = small.small(of, FEW, {}, 8, cut)
        options = validate_config(values).sources["rib"].options
        assert (options["steps"], options["others"], options["crop_size"]) == (7, 20, side)
        assert options["most_side"] == side * 640 // 512
        assert min(options["most_score"], options["most_covered"]) >= 1e9  # never reached
    assert of.sources["rib"].options["most_covered"] == 0.7


def test_sizes_keep_the_splits_ratio() -> None:
    for least in (2, 8, 16, 50, 300):
        train, val = small.sizes(MANY, least)
        assert least <= train <= least * 1.5 and val >= 1
        assert least < 16 or val / train == pytest.approx(1449 / 10582, rel=0.15)
    assert small.sizes(FEW, 1000) == (24, 10)


# --- a job, and its limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "limits", "stopped"),
    [
        ("sum(range(10**6))", "60 1e12", ""),
        ("while True: pass", "0.3 1e12", "time"),
        ("a = bytearray(3 * 10**8); import time; time.sleep(60)", "60 2e8", "memory"),
    ],
)
def test_a_job_is_measured_and_stopped(
    code: str, limits: str, stopped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "COMMAND", [sys.executable, "-c", code])
    monkeypatch.setenv(measured.LIMITS, limits)
    status = measured.run(["--log", str(tmp_path / "a.log"), "train"])
    took = json.loads((tmp_path / "a.log.took").read_text())
    assert took["stopped"] == stopped and (status == 0) == (not stopped)
    assert 0 < took["processor"] < 30 and took["clock"] < 30 and took["memory"] > 10**6


def test_a_trial_that_is_ended_leaves_nothing_behind(tmp_path: Path) -> None:
    code = """
import sys
from beco.plan import workflow
with workflow.passing_folder() as folder:
    (folder / "half").write_text("of it")
    print("begun", flush=True)
    workflow._waited([sys.executable, "-c", sys.argv[1]], {})
"""
    inner = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {child(tmp_path)!r}])"
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen([sys.executable, "-c", code, inner], env=environment, stdout=subprocess.PIPE) as process:
        while not (tmp_path / "pid").is_file():
            time.sleep(0.05)
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    assert not [*(tmp_path / "tmp").iterdir()]
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def child(folder: Path) -> str:
    """A program that writes its process's number and then waits for a minute."""
    return f"""
import os, time
with open({str(folder / "half")!r}, "w") as file:
    file.write(str(os.getpid()))
os.rename({str(folder / "half")!r}, {str(folder / "pid")!r})
time.sleep(60)
"""


def test_no_place_for_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: Any) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(workflow.tempfile, "TemporaryDirectory", none)
    with pytest.raises(UserError, match="TMPDIR: no folder for a trial can be made"), workflow.passing_folder():
        pass


def test_methods_of_ones_own_are_found_from_the_trials_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []
    monkeypatch.setattr(workflow, "_waited", lambda command, variables, *_: (given.append(variables), (0, ""))[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BECO_METHODS", "mine")
    assert workflow.asked({}, tmp_path / "jobs", 1) == []
    assert given[0]["BECO_METHODS"] == str(tmp_path / "mine")


def test_the_first_source_stays_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of labels which name none, whatever it is called."""
    monkeypatch.setattr(workflow, "_waited", lambda *_: (0, ""))
    of = config(sources={"zebra": {}, "ant": {"method": "amn", "labels": "crf"}})
    workflow.asked(of.model_dump(mode="json"), tmp_path / "jobs", 1)
    assert read_config_files([tmp_path / "jobs" / "config.yaml"], []) == of


def walk(limit: float, sizes: list[Any]) -> Any:
    """Instead of the workflow: a training of 5 s and 0.1 s a picture, stopped beyond `limit` pictures together."""

    def walked(values: dict[str, Any], folder: Path, train: int, *limits: float) -> list[tuple[Job, dict[str, Any]]]:
        schedule = values["training"]["schedule"]
        learnt, batch = schedule["steps"] * schedule["batch_size"], schedule["batch_size"]
        sizes.append((train, batch))
        made = Job("logs/train.log", "train", {}, (), (), 1, False, learnt, schedule["steps"], 1)
        took = {"clock": 9.0, "processor": 5 + 0.1 * learnt, "memory": 1e9, "disk": 5.0}
        took |= {"imports_clock": 4.0, "imports_processor": 4.0, "modules": 3700}
        return [(made, took | {"stopped": "memory" if batch > limit else ""})]

    return walked


def test_it_hears_how_far_the_trial_is() -> None:
    heard: list[tuple[int, int]] = []
    said = "3 of 7 steps (43%) done\nbeside 1 of 2 steps (\n7 of 7 steps (100%) done\n"
    told = workflow._waited([sys.executable, "-c", f"print({said!r}, end='')"], {}, lambda *one: heard.append(one))
    assert heard == [(3, 7), (7, 7)] and told == (0, said)


def test_what_is_too_large_is_tried_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    of, many = config(), Pictures(800, 200, 64, 64, 6)
    jobs = [Job("logs/train.log", "train", {}, (), (), 1, False, 1600, 200, 1)]
    for limit, batch, notes in ((8, 8, 0), (2, 2, 1)):
        sizes: list[Any] = []
        monkeypatch.setattr(trial, "walked", walk(limit, sizes))
        found = trial.here(of, many, jobs)
        assert [one for _, one in sizes[-2:]] == [batch] * 2 and sizes[-1][0] > sizes[-2][0] >= batch
        assert found.fit("train", 1600, "processor") == pytest.approx(165)
        assert sum("too much memory" in note for note in found.notes) == notes
    monkeypatch.setattr(trial, "walked", walk(1, []))
    with pytest.raises(UserError, match=r"train: takes too much memory.*--rates"):
        trial.here(of, many, jobs)


# --- the workflow ---------------------------------------------------------------------------------------------


def test_without_snakemake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow.shutil, "which", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"snakemake: not installed.*beco\[workflow\]"):
        workflow.asked({}, tmp_path / "a", 3)


def test_what_snakemake_refuses_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels\.crf\.refine") as error:
        workflow.asked({"labels": {"crf": {"refine": "x"}}}, tmp_path / "a", 3)
    assert "\n" not in str(error.value)


@pytest.mark.road
def test_the_workflow_tells_its_jobs_and_is_walked(tmp_path: Path) -> None:
    """The one real trial: of the tiny road, at one size."""
    of = config()
    found = pictures.count(of.dataset)
    listed = trial.full(of, found)
    names = [one.name for one in listed]
    for number, one in enumerate(listed):
        assert set(one.needs) <= set(names[:number]), one
    training = next(one for one in listed if one.name == "train_segmenter.crf.beco.seed0")
    assert (training.steps, training.learnt, training.rule) == (6, 48, "train_segmenter")
    assert next(one for one in listed if one.name == "infer_cams.cam.1-of-2").shards == 2
    known = trial.Trial("CPU", False, [])
    assert trial._walk(known, of, found, Cut(), tmp_path / "walk", 8) == ""
    tried = {trial.key(of, one) for one in listed}
    assert set(known.took) == tried - {name for name in tried if name.split()[-1] == "beco"}  # one experiment's
    for points in known.took.values():
        assert points[0]["processor"] > 0.1 and points[0]["memory"] > 10**7 and points[0]["amount"] > 0
    assert known.took["train_segmenter single"][0]["disk"] > 10**5
    assert known.took["make_labels crf"][0]["disk"] == 0  # shards are temporary
    assert not any(ROOT.glob(".snakemake/log/*tiny*")) and TINY.is_file()
