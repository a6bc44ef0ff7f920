"""The plan's times: by hand, as measured here, and against what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import FEW, ROADS, TINY, benchmark, config, flat, job, plan, works, write

from beco.config import validate_config
from beco.errors import UserError
from beco.plan import against, measure, rates, report
from beco.plan.jobs import Job, Work, jobs
from beco.plan.rates import Rates
from beco.plan.report import Plan


def training_seconds(steps: int, known: Rates) -> float:
    values = yaml.safe_load(TINY.read_text())
    values["training"]["schedule"] = {"steps": steps, "batch_size": 8}
    made = plan(validate_config(values), known)
    return sum(made.work_seconds(job) for job in made.jobs if job.rule == "train_segmenter")


@given(st.integers(1, 100_000))
@settings(max_examples=10)
def test_twice_the_steps_take_twice_the_time(steps: int) -> None:
    once, twice = training_seconds(steps, flat()), training_seconds(2 * steps, flat())
    assert twice == pytest.approx(2 * once, rel=1e-9)


def test_rates_by_hand(tmp_path: Path) -> None:
    known = rates.from_files([write(tmp_path / "b.json", benchmark())])
    training = works(config(), "train_segmenter.crf.single.seed0")["train"]
    assert known.seconds(training) == pytest.approx(training.count * training.each * 1.25 / 1e12)
    inferred = works(config(), "predict.crf.single.seed0")["infer"]
    assert known.seconds(inferred) == pytest.approx(inferred.count * inferred.each / 1e12)
    assert known.seconds(Work("evaluate", 7, 200 * 100)) == pytest.approx(14)  # a second for 100×100 pixels
    assert known.seconds(Work("crf", 2, 100 * 100 * 10, (None, 5))) == pytest.approx(2)
    assert known.seconds(Work("start", 1, what="networks")) == 3
    assert not known.is_measured(training) and known.is_measured(Work("start", 1, what="networks"))


def test_crf_between_few_and_many_labels(tmp_path: Path) -> None:
    values = benchmark()
    values["stages"]["pictures_per_core_s"] |= {"crf_torch_3": 1 / 2, "crf_torch_21": 1 / 8}
    known = rates.from_files([write(tmp_path / "b.json", values)])
    for labels, seconds in ((3, 2), (12, 5), (21, 8)):
        assert known.seconds(Work("crf", 1, 100 * 100 * 10, (None, labels))) == pytest.approx(seconds)


def test_the_nearest_network_lends_its_rate(tmp_path: Path) -> None:
    large = benchmark()
    large["training"] |= {"forward_gflop_per_picture": 100.0, "bare_tflop_per_s": 4.0, "network": "large"}
    files = [write(tmp_path / "small.json", benchmark()), write(tmp_path / "large.json", large)]
    points = rates.from_files(files).points["infer"]
    assert rates.nearest(points, 9e9).name == "one" and rates.nearest(points, 11e9).name == "large"


def test_processor_time_where_the_benchmark_has_it(tmp_path: Path) -> None:
    values = benchmark()
    values["training"] |= {"ratios_of": "processor time", "bare_own_s": 1.0}  # half of the time was others'
    assert rates.from_files([write(tmp_path / "b.json", values)]).points["infer"][0].rate == pytest.approx(2e12)


def test_jobs_side_by_side() -> None:
    listed = [job("a", 4), job("b", 2), job("c", 2), job("d", 1, "a", "b", "c")]
    made = Plan(config(), FEW, listed, flat())
    assert [made.wall(many) for many in (1, 2, 3, 9)] == [9, 5, 5, 5]
    assert Plan(config(), FEW, [job("a", 8, threads=4)], flat()).wall(1) == 2


def test_loading_beside_the_networks() -> None:
    work = (Work("start", 1, what="store"), Work("train", 10, 1.0, None), Work("load", 30))
    known = flat(exact={rates.key(work[1]): 1.0})
    for loaders, seconds in ((0, 40), (1, 30), (3, 10), (9, 10)):
        made = Plan(config(), FEW, [Job("r", "n", "s", work, loaders=loaders)], known)
        assert made.job_seconds(made.jobs[0]) == seconds
        assert made.work_seconds(made.jobs[0]) == 40


def test_hours_of_a_gpu_are_told_apart() -> None:
    values = report.as_json(plan(config(), flat(gpu=True)), 2)
    total, cpu = values["total"], report.as_json(plan(config()), 2)["total"]
    assert total["gpu_hours"] > 0 and cpu["gpu_hours"] == 0
    assert total["gpu_hours"] + total["core_hours"] == pytest.approx(cpu["core_hours"])
    assert "GPU hours" in report.as_text(values)
    assert {row["rule"] for row in values["rows"] if row["on_gpu"]} == {
        "train_classifier",
        "infer_cams",
        "train_segmenter",
        "predict",
    }
    assert sum(row["hours"] for row in values["rows"]) == pytest.approx(total["gpu_hours"] + total["core_hours"])


# --- what is measured here ------------------------------------------------------------------------------------


def test_everything_can_be_measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "start_up", lambda group: (1.0, 10**6))
    values = ROADS[1] | {"prediction": {"crf": {"iterations": 1}}, "quality": {"backgrounds": [0.2]}}
    small = {"squarings": 1, "crop": {"size": 64}, "schedule": {"steps": 2, "batch_size": 4}}
    values["labels"] = {"own": {"refine": "irn", "irn": small}, "crf": {"refine": "crf"}, "none": {"refine": "none"}}
    values["experiments"] = {"a": {"recipe": "beco", "labels": "own"}, "b": {"recipe": "single", "labels": "none"}}
    values["comparisons"] = {}
    of = config(**values)
    listed = jobs(of, FEW)
    known = measure.here(of, FEW, listed)
    for found in listed:
        for work in found.works:
            assert known.is_measured(work) and known.seconds(work) > 0, work
    text = report.as_text(report.as_json(Plan(of, FEW, listed, known), 1))
    assert "measured here" in text and "scaled" not in text


def test_what_is_too_large_is_cut_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "FLOPS", {"cpu": 1.0})
    monkeypatch.setattr(measure, "start_up", lambda group: (1.0, 10**6))
    of = config()
    listed = [found for found in jobs(of, FEW) if found.rule in ("train_segmenter", "predict")]
    known = measure.here(of, FEW, listed)
    assert len(known.points["train"]) == 1  # one step of one network, for both recipes
    single, beco = (works(of, f"train_segmenter.crf.{name}.seed0")["train"] for name in ("single", "beco"))
    assert not known.is_measured(single)
    ratio = (beco.count * beco.each) / (single.count * single.each)
    assert known.seconds(beco) / known.seconds(single) == pytest.approx(ratio)


# --- against what was measured --------------------------------------------------------------------------------


def measured(folder: Path, name: str, clock: float, processor: float) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{name}.tsv").write_text(f"s\tcpu_time\n{clock}\t{processor}\n")


def test_planned_by_measured(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    made = Plan(config(), FEW, [job("a", 6), job("b", 12), replace(job("c", 9), stage="other"), job("d", 5)], flat())
    measured(folder, "a", 10, 4)
    measured(folder, "b", 35.5, 15.5)  # Snakemake looked for the last time after 15.5 s: 35.5 in all
    measured(folder, "c", 9, 9)
    measured(folder, "e", 9, 9)
    table = against.compare(made, folder)
    assert table["jobs"].to_dict() == {"stage": 2, "other": 1, "in all": 3}
    assert table.loc["stage", "measured"] == pytest.approx(4 + 35.5)
    assert table.loc["stage", "factor"] == pytest.approx(18 / 39.5)
    assert table.loc["in all", "clock"] == pytest.approx(54.5)
    gpu = against.compare(replace(made, rates=flat(gpu=True)), folder)
    assert gpu.loc["stage", "measured"] == 45.5
    assert "0.46" in against.as_text(table, False)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "b.log").write_text("12:00:00 beco seed 0: going on from step 3 of 9\n")
    assert against.compare(made, folder)["jobs"]["stage"] == 1


def test_measurements_that_are_none(tmp_path: Path) -> None:
    made = Plan(config(), FEW, [job("a", 6)], flat())
    with pytest.raises(UserError, match="has no benchmark of a planned job"):
        against.compare(made, tmp_path)
    for content, said in (("", "not a benchmark"), ("x\n1\n", "not a benchmark"), ("s\tcpu_time\n-\t-\n", "not a")):
        (tmp_path / "a.tsv").write_text(content)
        with pytest.raises(UserError, match=said):
            against.compare(made, tmp_path)
