"""The road itself: what it makes, and what a change reruns. One real run at tiny size, then dry runs against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT, Checkout

from beco.artifacts.pseudolabels import PseudoLabels
from beco.datasets import manifest as manifests
from beco.datasets.palette import read_index_png

pytestmark = pytest.mark.road

STAGE_TWO = {"train_segmenter": 2, "predict": 2, "evaluate": 2, "tabulate": 1, "report": 1}
ONE_RUN = {"train_segmenter": 1, "predict": 1, "evaluate": 1, "tabulate": 1, "report": 1}  # beco, which builds on it
FROM_CRF = {"make_labels": 2, "gather_labels": 1, "evaluate_labels": 1, **STAGE_TWO}
FROM_CLASSIFIER = {
    "train_classifier": 1,
    "infer_cams": 2,
    "gather_cams": 1,
    "make_labels": 4,
    "gather_labels": 2,
    "evaluate_labels": 2,
    **STAGE_TWO,
}


def replaced(path: Path, old: str, new: str) -> str:
    """Replace `old` by `new` in a file; returns the former text, to be put back."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} should stand once in {path}"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return text


def test_the_road_makes_every_artifact(finished: Checkout) -> None:
    base = finished.folder / "results" / "tiny"
    pictures = manifests.read(base / "manifest.csv", base / "dataset")
    train, val = pictures.split("train"), pictures.split("val")
    assert (len(train), len(val)) == (24, 10)

    labels = PseudoLabels(base / "crf" / "labels.h5")
    assert sorted(labels.ids()) == sorted(train.ids)
    for image_id in train.ids:
        allowed = {0, 255, *train.present(image_id)}
        assert set(labels.label(image_id).flat) <= allowed  # no class that the picture is not labelled with
        confidence = labels.picture(image_id).confidence()
        assert confidence.min() >= 0 and confidence.max() <= 1
    assert set(labels.store.attributes) == {"labels", "cams", "classes", "supervision"}
    assert labels.store.attributes["supervision"] == ["image labels"]

    for experiment in ("single", "beco"):
        run = base / "crf" / experiment / "seed0"
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["pictures"] == 10 and 0 <= metrics["miou"] <= 1
        for image_id in val.ids:
            assert read_index_png(run / "predictions" / f"{image_id}.png").shape == (64, 64)
        training = json.loads((run / "training.json").read_text())
        assert training["steps"] == 6 and training["seed"] == 0  # 24 pictures, batch 8, 2 epochs
        assert list((run / "tensorboard").glob("events*"))
    assert "beco" in (base / "tables" / "recipes.md").read_text()
    assert (base / "report.html").stat().st_size > 50_000
    assert not list((base / "shards").glob("*")) and not list(base.rglob("*.tmp*"))


def test_a_folder_is_labelled_as_the_workflow_labels_it(finished: Checkout) -> None:
    base = finished.folder / "results" / "tiny"
    for experiment in ("single", "beco"):
        run = base / "crf" / experiment / "seed0"
        output = finished.folder / "labelled" / experiment
        done = finished.run("beco", "predict", str(run), str(base / "dataset" / "JPEGImages"), "-o", str(output))
        assert done.returncode == 0, done.stderr
        predictions = {path.name: path.read_bytes() for path in (run / "predictions").glob("*.png")}
        assert len(predictions) == 10 and len(list(output.glob("*.png"))) == 34
        assert all((output / name).read_bytes() == content for name, content in predictions.items())


def test_every_rule_left_a_log_and_a_benchmark(finished: Checkout) -> None:
    base = finished.folder / "results" / "tiny"
    logs = {path.name.split(".")[0] for path in (base / "logs").iterdir()}
    measured = {path.name.split(".")[0] for path in (base / "benchmarks").iterdir()}
    assert logs == measured == {"draw_shapes", "manifest", *FROM_CLASSIFIER}
    assert "epoch 2/2" in (base / "logs" / "train_segmenter.crf.beco.seed0.log").read_text()


def test_a_second_run_does_nothing(finished: Checkout) -> None:
    assert finished.planned() == {}


def test_nor_does_one_in_another_locale(finished: Checkout, latin1: dict[str, str]) -> None:
    before = finished.environment
    finished.environment = before | latin1
    try:
        assert finished.planned() == {}
    finally:
        finished.environment = before


def test_how_the_classifier_learns_reruns_it_and_what_follows(finished: Checkout) -> None:
    assert (
        finished.planned("--config", "classifier={dilate: false, crop: {size: 64, long_side: [64, 80]}}")
        == FROM_CLASSIFIER
    )


def test_changed_crf_settings_rerun_crf_and_what_follows(finished: Checkout) -> None:
    assert finished.planned("--config", "labels={crf: {crf: {iterations: 3}}}") == FROM_CRF


def test_changed_stage_two_settings_rerun_stage_two(finished: Checkout) -> None:
    assert finished.planned("--config", "training={warmup: 0.5}") == STAGE_TWO


def test_another_protocol_predicts_again_and_trains_nothing(finished: Checkout) -> None:
    again = {rule: count for rule, count in STAGE_TWO.items() if rule != "train_segmenter"}
    assert finished.planned("--config", "prediction={flip: true}") == again


def test_one_network_beside_the_average_makes_nothing_again_that_is_made(finished: Checkout) -> None:
    alone = {"predict_first": 1, "evaluate_first": 1, "tabulate": 1, "report": 1}  # `single` is one network
    assert finished.planned("--config", "prediction={networks: both}") == alone
    assert finished.planned("--config", "prediction={networks: both}", "--", "scores") == {
        "predict_first": 1,
        "evaluate_first": 1,
        "scores": 1,
    }


def test_a_setting_of_one_experiment_reruns_that_one(finished: Checkout) -> None:
    change = "experiments={beco: {training: {mix: {probability: 0.7}}}}"
    alone = {"train_segmenter": 1, "predict": 1, "evaluate": 1, "tabulate": 1, "report": 1}
    assert finished.planned("--config", change) == alone


def test_another_source_is_made_beside_the_first(finished: Checkout) -> None:
    # with drawn objects as saliency maps, too, in training and inference
    sources = "sources={cam: {}, other: {method: edam, options: {saliency: fuse}, classifier: {seed: 1}}}"
    assert finished.planned("--config", sources) == {}  # nothing is made of it
    beside = {"train_classifier": 1, "infer_cams": 2, "gather_cams": 1, "make_labels": 2, "gather_labels": 1}
    labels = "labels={theirs: {refine: none, source: other}}"
    planned = beside | {"evaluate_labels": 1, "tabulate": 1, "report": 1}
    assert finished.planned("--config", sources, labels) == planned
    assert finished.planned("--config", "networks={default: {start: cam}}") == {}  # as they do by themselves
    begun = finished.planned("--config", sources, "networks={default: {start: other}}")
    assert begun["train_classifier"] == 1 and begun["train_segmenter"] == 2 and "make_labels" not in begun
    alone = "sources={cam: {cam: {flip: false}}}"
    expected = {key: count for key, count in FROM_CLASSIFIER.items() if key != "train_classifier"}
    assert finished.planned("--config", alone) == expected


def test_what_to_run_on_reruns_nothing(finished: Checkout) -> None:
    assert finished.planned("--config", "compute={threads: 2, device: cpu}") == {}


@pytest.mark.parametrize(
    ("module", "old", "new", "expected"),
    [
        (
            "stage1/refine/labels.py",
            "1e-12",
            "1e-11",
            FROM_CRF | {"make_labels": 4, "gather_labels": 2, "evaluate_labels": 2},
        ),
        ("stage2/recipes/cotraining.py", "first.max(1)", "first.min(1)", ONE_RUN),
        ("stage1/localisers/base.py", "mean((2, 3))", "amax((2, 3))", FROM_CLASSIFIER),
        ("evaluation/report/report.py", '"""Write the report as one HTML file.', '1\n    """', {"report": 1}),
    ],
)
def test_edited_code_reruns_its_stage_and_what_follows(
    finished: Checkout, module: str, old: str, new: str, expected: dict[str, int]
) -> None:
    path = finished.folder / "beco" / module
    before = replaced(path, old, new)
    try:
        assert finished.planned() == expected
    finally:
        path.write_text(before)


def test_comments_and_the_readme_rerun_nothing(finished: Checkout) -> None:
    readme, module = finished.folder / "README.md", finished.folder / "beco" / "training" / "engine.py"
    texts = readme.read_text(), module.read_text()
    try:
        readme.write_text(texts[0] + "\nOne more sentence.\n")
        module.write_text("# a comment\n" + texts[1])
        assert finished.planned() == {}
    finally:
        readme.write_text(texts[0])
        module.write_text(texts[1])


ALL = {"manifest": 1, **FROM_CLASSIFIER}


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("JPEGImages/val_00004.jpg", "JPEGImages/val_00003.jpg", ALL),
        ("Annotations/train_00004.xml", "Annotations/train_00003.xml", ALL),
        (
            "SegmentationClass/val_00004.png",
            "SegmentationClassAug/val_00004.png",
            {"evaluate": 2, "tabulate": 1, "report": 1},
        ),
        (
            "SegmentationClass/train_00004.png",
            "SegmentationClassAug/train_00004.png",
            {"evaluate_labels": 2, "tabulate": 1, "report": 1},
        ),
    ],
)
def test_another_file_reruns_what_reads_it(
    finished: Checkout, source: str, target: str, expected: dict[str, int]
) -> None:
    data = finished.folder / "results" / "tiny" / "dataset"
    path = data / target
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((data / source).read_bytes())
    try:
        assert finished.planned() == expected
    finally:
        path.unlink() if before is None else path.write_bytes(before)
    assert finished.planned() == {}  # of another time, but the same


def test_results_of_another_dataset_are_not_overwritten(finished: Checkout) -> None:
    other = finished.folder / "elsewhere"
    done = finished.snakemake("--dry-run", "--config", f"dataset={{format: voc, root: {other}}}")
    assert done.returncode != 0
    assert "results/tiny: holds results of another dataset (format was shapes, is now voc)" in done.stdout + done.stderr


def test_a_wrong_key_stops_before_any_job(finished: Checkout) -> None:
    done = finished.snakemake("--config", "training={warm_up: 0.5}")
    assert done.returncode != 0
    assert "training.warm_up: unknown key; did you mean `warmup`?" in done.stdout + done.stderr


@pytest.mark.parametrize("target", ["manifest", "classifiers", "pseudo_labels", "scores", "tables", "report"])
def test_parts_of_the_road_can_be_named(finished: Checkout, target: str) -> None:
    assert finished.planned(target) == {}


def test_force_and_graph(finished: Checkout) -> None:
    assert finished.planned("--forcerun", "gather_cams")["make_labels"] == 4
    graph = finished.snakemake("--rulegraph")
    assert graph.returncode == 0 and "train_segmenter" in graph.stdout


def test_snakemakes_own_report(finished: Checkout) -> None:
    done = finished.snakemake("--report", "snakemake.html")
    assert done.returncode == 0, done.stderr
    assert "recipes" in (finished.folder / "snakemake.html").read_text()


@pytest.mark.parametrize("preset", sorted(path.name for path in (ROOT / "workflow" / "presets").glob("*.yaml")))
def test_presets_plan_without_data(tmp_path: Path, preset: str) -> None:
    checkout = Checkout(tmp_path)
    done = checkout.run("snakemake", "-n", "--cores", "1", "--configfile", f"workflow/presets/{preset}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train_segmenter" in done.stdout
