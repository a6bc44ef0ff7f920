"""The plan's times: by hand, from two sizes, and against what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import config, job, lasting, plan, point, straight

from beco.errors import UserError
from beco.plan import against, report
from beco.plan.trial import Trial, key

AMOUNT = st.floats(1, 1e4)


@given(st.floats(0, 100), st.floats(0, 10), AMOUNT, AMOUNT, AMOUNT)
def test_two_sizes_tell_start_and_work(start: float, each: float, one: float, two: float, full: float) -> None:
    few, many = sorted((one, two + 1e4))
    took = straight(start, each)
    trial = Trial("CPU", False, [], took={"r": [took(few), took(many)]})
    assert trial.fit("r", full, "processor") == pytest.approx(start + each * full, rel=1e-6, abs=1e-6)
    assert trial.fit("r", full, "clock") == pytest.approx(2 * (start + each * full), rel=1e-6, abs=1e-6)


@given(*[st.floats(0.01, 1e3)] * 2, AMOUNT)
def test_noise_makes_no_nonsense(first: float, second: float, full: float) -> None:
    """Whatever the two times are: never less than nothing, and never more for less."""
    trial = Trial("CPU", False, [], took={"r": [point(10, first), point(50, second)]})
    found = [trial.fit("r", amount, "processor") for amount in (1, 10, full, full + 1)]
    assert found[0] >= 0 and found[0] <= found[1] + 1e-9 and found[2] <= found[3] + 1e-9


def test_one_size_takes_the_start_of_its_rule() -> None:
    took = straight(5, 0.1)
    trial = Trial("CPU", False, [], took={"r a": [took(10), took(50)], "r b": [point(50, 25)], "s b": [point(50, 25)]})
    assert trial.fit("r b", 100, "processor") == pytest.approx(5 + 20 / 50 * 100)
    assert trial.fit("s b", 100, "processor") == pytest.approx(5 + 20 / 50 * 100)  # no rule takes longer to start
    alone = replace(trial, took={"s b": [point(50, 25)]})
    assert alone.fit("s b", 100, "processor") == pytest.approx(50)
    less = replace(trial, took=trial.took | {"r c": [point(50, 3)]})
    assert less.fit("r c", 500, "processor") == pytest.approx(3)  # all of it is start


def test_imports_tell_how_much_load_slowed_a_job() -> None:
    """The second size was tried on a machine half as fast: 3 s of imports took 6, and its 10 s of work 20."""
    few, many = ({"imports_processor": seconds, "imports_clock": 0} for seconds in (3, 6))
    trial = Trial("CPU", False, [], took={"r": [point(10, 3 + 2, **few), point(50, 6 + 20, **many)]})
    assert trial.fit("r", 100, "processor") == pytest.approx(3 + 0.2 * 100)


def test_jobs_of_a_rule_that_import_other_things_are_not_taken_for_slow_ones() -> None:
    """As thresholds alone and a CRF, whose job imports torch."""

    def took(amount: float, imports: float, each: float, modules: float) -> dict[str, float]:
        return point(amount, imports + each * amount, imports_processor=imports, modules=modules)

    without, with_torch, slow = (2, 0.001, 1250), (5, 0.02, 2170), (10, 0.04, 2180)
    of = {"r a": without, "r b": with_torch, "r c": slow}
    trial = Trial("CPU", False, [], took={key: [took(size, *facts) for size in (20, 80)] for key, facts in of.items()})
    assert trial.fit("r a", 500, "processor") == pytest.approx(2 + 0.001 * 500)
    assert trial.fit("r b", 500, "processor") == pytest.approx(5 + 0.02 * 500)
    assert trial.fit("r c", 500, "processor") == pytest.approx(5 + 0.02 * 500)  # on a machine half as fast


def test_memory_is_the_most() -> None:
    trial = Trial("CPU", False, [], took={"r": [point(1, 1, memory=5), point(9, 1, memory=7)]})
    assert trial.fit("r", 1000, "memory") == 7


def test_what_jobs_share() -> None:
    """Seeds and shards cost the same, and experiments of one recipe; other recipes and labels do not."""
    of = config(
        experiments={
            "a": {"recipe": "beco", "labels": "crf", "seeds": [0, 1]},
            "b": {"recipe": "beco", "labels": "cam", "training": {"peer_weight": 2}},
            "c": {"recipe": "single", "labels": "cam"},
            "d": {"recipe": "beco", "labels": "cam", "training": {"schedule": {"batch_size": 4}}},
        }
    )

    def of_run(name: str, seed: str) -> str:
        wildcards = {"labels": of.experiments[name].labels, "experiment": name, "seed": seed}
        return key(of, job("train", wildcards=wildcards))

    assert of_run("a", "0") == of_run("a", "1") == of_run("b", "0")
    assert len({of_run(name, "0") for name in "acd"}) == 3
    shards = [key(of, job("r", wildcards={"labels": "crf", "scatteritem": f"{k}-of-2"})) for k in (1, 2)]
    assert shards[0] == shards[1] != key(of, job("r", wildcards={"labels": "cam"}))


def test_amounts_by_hand() -> None:
    took = straight(1, 0.5)
    known = Trial("CPU", False, [], took={rule: [took(4), took(9)] for rule in ("train", "look")})
    jobs = [job("train", learnt=160, steps=20), *(job(f"look.{k}", shards=2) for k in (1, 2))]
    made = plan(jobs, known)  # of 24 + 10 pictures
    assert made.work_seconds(jobs[0]) == pytest.approx(1 + 0.5 * 160)
    assert made.work_seconds(jobs[1]) == pytest.approx(1 + 0.5 * 17)
    rows = {row["rule"]: row for row in report.rows(made)}
    assert rows["look"]["jobs"] == 2 and rows["look"]["hours"] * 3600 == pytest.approx(2 + 0.5 * 34)
    assert rows["train"]["steps"] == 20
    total = report.as_json(made, 1)["total"]
    assert total["disk_bytes"] == pytest.approx(10 * (160 + 34))
    assert total["core_hours"] == pytest.approx(sum(row["hours"] for row in rows.values()))


def test_jobs_side_by_side() -> None:
    jobs = [job("a"), job("b"), job("c"), job("d", "a", "b", "c")]
    made = plan(jobs, lasting(a=4, b=2, c=2, d=1))
    assert [made.wall(many) for many in (1, 2, 3, 9)] == [9, 5, 5, 5]


def test_threads_share_the_work_as_they_did() -> None:
    both = Trial("CPU", False, [], took={"a": [point(1, 8, clock=4), point(2, 8, clock=4)]})
    assert plan([job("a", threads=4)], both).wall(1) == 4  # two of four processors were busy
    assert plan([job("a")], both).wall(1) == 8
    assert plan([job("a", threads=4)], lasting(a=8)).wall(1) == 8


def test_hours_of_a_gpu_are_told_apart() -> None:
    jobs = [job("a", on_gpu=True), job("b", "a")]
    known = lasting(a=4, b=2)
    values = report.as_json(plan(jobs, replace(known, gpu=True)), 1)
    assert values["total"]["gpu_hours"] * 3600 == pytest.approx(8)  # by the clock
    assert values["total"]["core_hours"] * 3600 == pytest.approx(2)
    assert "GPU hours" in report.as_text(values)
    assert report.as_json(plan(jobs, known), 1)["total"]["gpu_hours"] == 0


def test_what_was_not_tried_is_said() -> None:
    values = report.as_json(plan([job("a"), job("b")], lasting(a=4)), 1)
    assert any("not tried" in note and note.endswith("b") for note in values["notes"])
    assert values["total"]["core_hours"] * 3600 == pytest.approx(4)


# --- against what was measured --------------------------------------------------------------------------------


def measured(folder: Path, name: str, clock: float, processor: float) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{name}.tsv").write_text(f"s\tcpu_time\n{clock}\t{processor}\n")


def test_planned_by_measured(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    made = plan([job("a.x"), job("a.y"), job("c"), job("d")], lasting(a=9, c=9, d=5))
    measured(folder, "a.x", 10, 4)
    measured(folder, "a.y", 35.5, 15.5)  # Snakemake looked for the last time after 15.5 s: 35.5 in all
    measured(folder, "c", 9, 9)
    measured(folder, "e", 9, 9)
    table = against.compare(made, folder)
    assert table["jobs"].to_dict() == {"a": 2, "c": 1, "in all": 3}
    assert table.loc["a", "measured"] == pytest.approx(4 + 35.5)
    assert table.loc["a", "factor"] == pytest.approx(18 / 39.5)
    assert table.loc["in all", "clock"] == pytest.approx(54.5)
    assert "0.46" in against.as_text(table)
    on_gpu = replace(made, jobs=[replace(one, on_gpu=True) for one in made.jobs], trial=replace(made.trial, gpu=True))
    assert against.compare(on_gpu, folder).loc["a", "measured"] == 45.5
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.y.log").write_text("12:00:00 beco seed 0: going on from step 3 of 9\n")
    assert against.compare(made, folder)["jobs"]["a"] == 1


def test_measurements_that_are_none(tmp_path: Path) -> None:
    made = plan([job("a")], lasting(a=6))
    with pytest.raises(UserError, match="has no benchmark of a planned job"):
        against.compare(made, tmp_path)
    for content, said in (("", "not a benchmark"), ("x\n1\n", "not a benchmark"), ("s\tcpu_time\n-\t-\n", "not a")):
        (tmp_path / "a.tsv").write_text(content)
        with pytest.raises(UserError, match=said):
            against.compare(made, tmp_path)
