"""One class, one picture, nothing positive, nothing to measure: said before a training, and null in what is written."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from plans import config
from results_for_tests import ODD, make_labels, make_manifest, make_run, make_source
from torchmetrics.functional.classification import multilabel_average_precision

from beco.artifacts.files import read_json, write_json
from beco.config import Classifier, Crop, Encoder, Schedule, Training
from beco.datasets.manifest import Manifest
from beco.datasets.palette import write_index_png
from beco.errors import UserError
from beco.evaluation.report.report import write_report
from beco.evaluation.tables.table_files import write_tables
from beco.evaluation.tables.tables import LabelSource, Results
from beco.project import check
from beco.stage1 import train as classifier
from beco.stage2.validate import Validator
from beco.training.trainer import Compute

SMALL = Encoder(name="resnet10t", options={"channels": [8, 8, 8, 8]})
SETTINGS = Classifier(encoder=SMALL, schedule=Schedule(steps=1, batch_size=2), crop=Crop(size=32))


def pictures(root: Path, train: list[list[int]], val: list[list[int]], size: tuple[int, int] = (40, 36)) -> Manifest:
    """A manifest of random pictures with these image-level labels."""
    classes = [f"c{number}" for number in range(len(train[0]))]
    rows = []
    for number, shown in enumerate([*train, *val]):
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        split = "train" if number < len(train) else "val"
        row = {"image_id": f"{number}", "split": split, "image": f"{number}.png", "mask": ""}
        rows.append(row | {"width": size[1], "height": size[0]} | dict(zip(classes, shown, strict=True)))
    return Manifest(root, pd.DataFrame(rows).set_index("image_id"), classes)


def train_classifier(manifest: Manifest, val: str, settings: Classifier, output: Path, replace: bool = False) -> None:
    wanted = classifier.Wanted(settings)
    classifier.train(manifest.split("train"), manifest.split(val), wanted, Compute("cpu"), output, replace)


def strict(path: Path) -> dict[str, object]:
    """JSON without the words that are none (NaN, Infinity)."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path}: {word}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# --- the classifier -----------------------------------------------------------------------------------------


def test_average_precision_is_that_of_torchmetrics_where_there_is_one() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = 4 * torch.randn(30, 3, generator=generator)
    targets = (torch.rand(30, 3, generator=generator) < 0.4).long()
    expected = multilabel_average_precision(scores, targets, 3, average="none").tolist()
    assert classifier.average_precision(scores, targets) == pytest.approx(expected, abs=1e-6)
    assert classifier.average_precision(scores[:, :1], targets[:, :1]) == pytest.approx(expected[:1], abs=1e-6)


def test_average_precision_by_hand_with_one_class_and_with_none_positive() -> None:
    scores = torch.tensor([[3.0], [2.0], [1.0]])
    assert classifier.average_precision(scores, torch.tensor([[1], [0], [1]])) == [pytest.approx((1 + 2 / 3) / 2)]
    assert classifier.average_precision(scores, torch.zeros(3, 1).long()) == [None]
    assert classifier.average_precision(scores[:1], torch.ones(1, 1).long()) == [1]


@pytest.mark.parametrize(
    ("train", "val", "ap", "said"),
    [
        ([[1], [1]], [[1], [0]], True, ""),
        ([[1], [1]], [[0]], None, "shows c0"),
        ([[1, 0], [0, 1]], [[0, 0], [0, 0]], None, "shows c0, c1"),
        ([[1, 0], [0, 1]], [[0, 1]], True, "shows c0:"),
    ],
    ids=["one class", "one class, nowhere", "nothing positive", "one class without a positive"],
)
def test_a_classifier_ends_well_and_tells_before_what_it_cannot_score(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    train: list[list[int]],
    val: list[list[int]],
    ap: bool | None,
    said: str,
) -> None:
    manifest = pictures(tmp_path, train, val)
    with caplog.at_level(logging.INFO, "beco"):
        train_classifier(manifest, "val", SETTINGS, tmp_path / "out")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [said in text for text in warnings] == ([True] if said else [])
    assert not said or caplog.records[0].levelno == logging.WARNING  # first of all, not after hours
    written = strict(tmp_path / "out" / "classifier.json")
    assert (written["map"] is None) == (ap is None)
    shown = np.array(val).any(0)
    assert [value is not None for value in written["ap"].values()] == shown.tolist()  # type: ignore[attr-defined]
    assert (tmp_path / "out" / "classifier.safetensors").is_file()


def test_check_tells_what_will_not_be_scored_and_which_value_is_which_class(tmp_path: Path) -> None:
    group = check.Group("dataset")
    manifest = pictures(tmp_path, [[1, 0], [0, 1]] * 8, [[0, 1]])
    check._describe(config(), replace(manifest, table=manifest.table.assign(mask="m.png")), group)
    assert any("shows c0: there will be no average precision" in note for note in group.notes)
    assert any("0 background, 1 c0, 2 c1" in note for note in group.notes) and not group.problems


def test_a_split_without_pictures_is_refused_before_the_training(tmp_path: Path) -> None:
    manifest = pictures(tmp_path, [[1], [1]], [[1]])
    with pytest.raises(UserError, match="split `test`: no pictures"):
        train_classifier(manifest, "test", SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1)])
def test_pictures_of_one_pixel_and_smaller_than_the_crop(tmp_path: Path, size: tuple[int, int]) -> None:
    manifest = pictures(tmp_path, [[1, 0], [0, 1]], [[1, 1]], size)
    for crop in (Crop(size=32), Crop(size=32, scales=[0.5]), Crop(size=32, long_side=(32, 48))):
        settings = SETTINGS.model_copy(update={"crop": crop})
        train_classifier(manifest, "val", settings, tmp_path / "out", True)
    assert strict(tmp_path / "out" / "classifier.json")["map"] == 1


# --- scores -------------------------------------------------------------------------------------------------


@pytest.fixture
def sparse(tmp_path: Path) -> Manifest:
    """Two training and two evaluation pictures; one mask of each is void, and a class has no pixel anywhere."""
    manifest = make_manifest(tmp_path)
    for image_id in ("NA", "v0"):
        path = tmp_path / str(manifest.table.loc[image_id, "mask"])
        write_index_png(path, np.full((24, 24), 255, np.uint8))
    return replace(manifest, table=manifest.table.assign(never=0), classes=[*manifest.classes, "never"])


def test_tables_and_report_where_pictures_classes_and_the_classifier_have_no_number(
    tmp_path: Path, sparse: Manifest
) -> None:
    runs = [make_run(tmp_path, sparse, name, seed, "crf", 1) for name in ("single", "beco") for seed in (0, 1)]
    labels = make_labels(tmp_path, sparse)
    results = Results(runs, [labels], [make_source(tmp_path, sparse)])
    write_json(tmp_path / "classifier" / "classifier.json", {"map": None, "ap": dict.fromkeys(sparse.classes)})
    write_tables(results, tmp_path / "tables")
    write_report(sparse, results, 4, tmp_path / "report.html")
    for path in (runs[0].folder / "metrics.json", labels.quality / "metrics.json"):
        metrics = strict(path)
        assert metrics["iou"]["never"] is None and metrics["miou"] is not None  # type: ignore[index]
    per_image = pd.read_csv(runs[0].folder / "per_image.csv").set_index("image_id")["miou"]
    assert math.isnan(per_image["v0"]) and per_image[ODD] > 0
    for path in [*(tmp_path / "tables").glob("*"), tmp_path / "report.html"]:
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in ("nan %", ">nan<", "NaN", "| nan |", "None |", ">None<")), path
    assert "mean | – |" in (tmp_path / "tables" / "classifier.md").read_text()


def test_a_single_evaluation_picture_has_tables_intervals_and_a_report(tmp_path: Path) -> None:
    whole = make_manifest(tmp_path)
    manifest = replace(whole, table=whole.table.drop(index=ODD))
    runs = [make_run(tmp_path, manifest, name, seed, "crf", seed) for name in ("single", "beco") for seed in (0, 1)]
    write_tables(Results(runs, []), tmp_path / "tables")
    sources: list[LabelSource] = []
    write_report(manifest, Results(runs, sources), 4, tmp_path / "report.html")
    assert read_json(runs[0].folder / "metrics.json")["pictures"] == 1
    assert len(pd.read_csv(tmp_path / "tables" / "differences.csv")) == 1


def test_validation_on_masks_without_a_label_is_refused_before_the_training(tmp_path: Path, sparse: Manifest) -> None:
    void = sparse.split("val")
    void = replace(void, table=void.table.loc[["v0"]])
    arguments = (sparse.split("train"), Training(validate_every=1), Compute("cpu"), tmp_path / "best", {})
    with pytest.raises(UserError, match=r"validate_every.*255"):
        Validator([], void, *arguments)
    Validator([], sparse.split("val"), *arguments)  # one void mask of two is no trouble
