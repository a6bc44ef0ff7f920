"""Scores of a split, and the tables made from them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results_for_tests import (
    CLASSES,
    ODD,
    PROTOCOL,
    SIZE,
    SUPERVISED,
    make_labels,
    make_manifest,
    make_run,
    write_metrics,
)

from beco.artifacts.files import read_json, write_json
from beco.config import InferenceCrf, Prediction
from beco.errors import UserError
from beco.evaluation.report.layers import unsqueezed
from beco.evaluation.report.report import write_report
from beco.evaluation.scores.evaluate import evaluate_predictions
from beco.evaluation.tables.table_files import write_tables
from beco.evaluation.tables.tables import LabelSource, Results, Run, mean_std, percent, protocol_text, run_table

# --- one split ----------------------------------------------------------------------------------------------


def test_predictions_are_measured(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    run = make_run(tmp_path, manifest, "beco", 0, "crf", shift=1)
    metrics = read_json(run.folder / "metrics.json")
    # v0: an object of 10×10, moved by 1: 90 of 110; the other: 10×11: 100 of 120.
    assert metrics["iou"] == {
        "background": pytest.approx((2 * 23 * 24 - 210 - 20) / (2 * 23 * 24 - 190)),
        CLASSES[0]: pytest.approx(90 / 110),
        CLASSES[1]: pytest.approx(100 / 120),
    }
    assert metrics["split"] == "val" and metrics["pictures"] == 2 and metrics["protocol"] == PROTOCOL
    assert re.fullmatch("[0-9a-f]{16}", metrics["manifest"])
    per_class = pd.read_csv(run.folder / "per_class.csv")
    assert per_class["class"].tolist() == ["background", *CLASSES]
    assert per_class["iou"].tolist() == pytest.approx(list(metrics["iou"].values()))
    assert pd.read_csv(run.folder / "per_image.csv")["image_id"].tolist() == ["v0", ODD]
    counts = pd.read_csv(run.folder / "per_image_class.csv")
    assert counts["image_id"].tolist() == ["v0", "v0", ODD, ODD] and counts["value"].tolist() == [0, 1, 0, 2]
    assert counts.loc[1, ["truth", "predicted", "both"]].tolist() == [100, 100, 90]
    assert counts.loc[3, ["truth", "predicted", "both"]].tolist() == [110, 110, 100]


def test_threads_change_nothing(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    run = make_run(tmp_path, manifest, "beco", 0, "crf", shift=2)
    for threads in (1, 4):
        evaluate_predictions(manifest.split("val"), run.folder / "predictions", tmp_path / f"{threads}", {}, threads)
    for name in ("metrics.json", "per_class.csv", "per_image.csv", "per_image_class.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "4" / name).read_bytes()


def test_a_missing_prediction_is_named(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    with pytest.raises(UserError, match=r"v0\.png: no such prediction"):
        evaluate_predictions(manifest.split("val"), tmp_path / "none", tmp_path / "out", {})


def test_labels_are_measured_with_their_trust(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    metrics = make_labels(tmp_path, manifest).metrics()
    # The objects are 10 rows high and 8 and 9 columns wide; the first column is missed.
    assert metrics["iou"][CLASSES[0]] == 7 / 8 and metrics["iou"][CLASSES[1]] == 8 / 9
    assert metrics["precision"][CLASSES[0]] == 1.0 and metrics["recall"][CLASSES[0]] == 7 / 8
    assert metrics["uncertain"] == 1 / SIZE
    assert metrics["supervision"] == SUPERVISED
    assert metrics["protocol"] == {"reliable_fraction": 0.5}
    assert metrics["reliable"]["share"] == pytest.approx(0.5 * 23 / 24, abs=0.01)
    assert metrics["reliable"]["accuracy_inside"] == 1.0
    assert metrics["reliable"]["accuracy_outside"] < 1.0
    wrong = sum(row["error"] * row["pixels"] for row in metrics["border_error"] if row["pixels"])
    assert wrong == pytest.approx(20)


def test_a_split_without_masks_is_no_error(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, masks=False)
    run = make_run(tmp_path, manifest, "beco", 0, "crf", shift=1)
    source = make_labels(tmp_path, manifest)
    assert run.metrics()["miou"] is None and "no masks" in run.metrics()["reason"]
    assert source.metrics()["miou"] is None and source.metrics()["uncertain"] == 1 / SIZE
    assert (run.folder / "per_class.csv").read_text().count("\n") == 1  # the header
    assert (run.folder / "per_image.csv").read_text() == "image_id,pixel_accuracy,miou\n"
    write_tables(Results([run], [source]), tmp_path / "tables")
    assert pd.read_csv(tmp_path / "tables" / "recipes.csv")["miou"].isna().all()
    write_report(manifest, Results([run], [source]), 2, tmp_path / "report.html")
    assert "No result to report: split <code>val</code> has no masks" in (tmp_path / "report.html").read_text()


# --- tables -------------------------------------------------------------------------------------------------


def test_tables_of_two_seeds_by_hand(tmp_path: Path) -> None:
    runs = [Run("beco", 0, "crf", tmp_path / "a"), Run("beco", 1, "crf", tmp_path / "b")]
    runs.append(Run("full", 0, "truth", tmp_path / "c"))
    for run, miou in zip(runs, (0.50, 0.54, 0.8), strict=True):
        write_metrics(run.folder, miou, miou / 2)
    write_metrics(tmp_path / "labels" / "quality", 0.47, 0.3)
    write_tables(Results(runs, [LabelSource("crf", tmp_path / "labels")]), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "recipes.csv", index_col="experiment")
    assert table.loc["beco", "miou"] == pytest.approx(0.52)
    assert table.loc["beco", "miou_std"] == pytest.approx(0.02 * 2**0.5)  # (0.02² + 0.02²) / (2 − 1)
    assert table.loc["beco", "seeds"] == 2
    assert table.loc["beco", "difference"] == pytest.approx(0.05)
    assert table.loc["full", ["miou_std", "labels_miou", "difference"]].isna().all()
    text = (tmp_path / "out" / "recipes.md").read_text()
    assert (
        "| beco | crf | unknown | 52.0 ± 2.8 | 2 |  |  |  | 26.0 | 90.0 | 47.0 | +5.0 "
        "| scales 1+0.5, flip, own size, all networks |\n" in text
    )
    assert "| full | truth | masks | 80.0 | 1 |  |  |  | 40.0 | 90.0 | – | – |" in text
    classes = pd.read_csv(tmp_path / "out" / "per_class.csv", keep_default_na=False)
    assert classes["class"].tolist() == ["background", "null"]
    assert classes.columns.tolist() == ["class", "labels crf", "beco", "full"]
    assert classes["beco"].astype(str).tolist() == ["0.52", ""]
    assert pd.read_csv(tmp_path / "out" / "runs.csv")["folder"].tolist() == [str(run.folder) for run in runs]


def test_every_row_says_which_supervision_its_labels_had(tmp_path: Path) -> None:
    """The masks themselves, what the labels say, and unknown where none were given or older ones do not say."""
    said = {"eps": ["image labels", "saliency"], "ours": ["image labels"], "theirs": ["imported"], "old": None}
    for name, words in said.items():
        write_metrics(tmp_path / name / "quality", 0.4, 0.3)
        if words:
            path = tmp_path / name / "quality" / "metrics.json"
            write_json(path, read_json(path) | {"supervision": words, "apart": {"train": {"miou": 0.5}}})
    names = [*said, "truth", "gone"]
    for name in names:
        write_metrics(tmp_path / "runs" / name, 0.5, 0.4)
    runs = [Run(f"on {name}", 0, name, tmp_path / "runs" / name) for name in names]
    write_tables(Results(runs, [LabelSource(name, tmp_path / name) for name in said]), tmp_path / "out")
    expected = ["image labels + saliency", "image labels", "imported", "unknown", "masks", "unknown"]
    assert pd.read_csv(tmp_path / "out" / "recipes.csv")["supervision"].tolist() == expected
    labels = pd.read_csv(tmp_path / "out" / "pseudo_labels.csv")
    apart = labels[labels["split"] == "train"]  # a list measured apart is of the same labels
    assert labels.drop(apart.index)["supervision"].tolist() == expected[:4]
    assert apart["supervision"].tolist() == expected[:3]
    for name in ("recipes", "pseudo_labels"):
        for kind in ("md", "tex"):
            text = (tmp_path / "out" / f"{name}.{kind}").read_text()
            assert "supervision" in text and "image labels + saliency" in text and "imported" in text


def test_tables_of_nothing(tmp_path: Path) -> None:
    write_tables(Results([], []), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        f"{name}.{kind}"
        for name in ("recipes", "differences", "pseudo_labels", "classifier")
        for kind in ("csv", "md", "tex")
    } | {
        "per_class.csv",
        "runs.csv",
    }


def test_a_metrics_file_without_metrics_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"loss": 1})
    with pytest.raises(UserError, match=r"metrics\.json: holds no metrics"):
        write_tables(Results([Run("beco", 0, "crf", tmp_path)], []), tmp_path / "out")


def test_numbers_in_words() -> None:
    assert percent(0.12345) == "12.3" and percent(None) == percent(float("nan")) == "–"
    assert percent(-0.05, signed=True) == "−5.0" and percent(0.05, signed=True) == "+5.0"
    assert mean_std(0.5, float("nan")) == "50.0"


def test_protocols_in_words() -> None:
    old = {"scales": [1.0], "flip": False, "resize": 512, "networks": "first"}  # as metrics.json once kept it
    assert protocol_text(old) == "scale 1, no flip, long side 512 px, first network"
    plain = Prediction().model_dump(mode="json")
    assert protocol_text(plain, "last") == (
        "scale 1, no flip, logits averaged, own size, all networks, no CRF, last epoch"
    )
    assert "own size, 2 networks," in protocol_text(plain | {"networks": 2})
    assert protocol_text(plain | {"networks": 1}) == "scale 1, no flip, own size, 1 network, no CRF"
    assert protocol_text(plain | {"networks": "first"}) == "scale 1, no flip, own size, first network, no CRF"
    chosen = Prediction(
        scales=[0.5, 1],
        flip=True,
        merge="max",
        squeeze=512,
        crf=InferenceCrf(image="official-code", minimum_mass=0.01, backend="torch"),
    ).model_dump(mode="json")
    assert protocol_text(chosen, "best") == (
        "scales 0.5+1, flip, max over scales, squeezed to 512×512, scored at own size, all networks, "
        "CRF (picture as in the official code, classes up to 0.01 left out), best epoch on val"
    )
    square = Prediction(squeeze=512, score_at="square").model_dump(mode="json")
    said = "scale 1, no flip, logits averaged, squeezed to 512×512, scored on the square, all networks, no CRF"
    assert protocol_text(square) == said
    del square["score_at"]  # as metrics.json kept it when there was no choice
    assert protocol_text(square) == said
    for merge, scales, said in (("max", [1.0], "logits averaged"), ("softmax", [1.0], "softmax averaged")):
        assert said in protocol_text(plain | {"merge": merge, "scales": scales, "crf": InferenceCrf().model_dump()})
    assert protocol_text(plain | {"crf": InferenceCrf().model_dump()}).endswith("all networks, CRF")


def test_the_epoch_is_part_of_the_protocol(tmp_path: Path) -> None:
    run = Run("beco", 0, "crf", tmp_path)
    write_metrics(tmp_path, 0.5, 0.25)
    assert run_table([run])["protocol"].item() == "scales 1+0.5, flip, own size, all networks"
    write_json(tmp_path / "training.json", {"settings": {"choose": "best"}})
    assert run_table([run])["protocol"].item().endswith("all networks, best epoch on val")


def test_squeezed_predictions_are_shown_at_the_pictures_shape() -> None:
    label = np.repeat(np.array([[1], [2]], np.uint8), 2, axis=1)
    assert unsqueezed(label, (4, 6)).tolist() == [[1] * 6] * 2 + [[2] * 6] * 2
    assert unsqueezed(label, (2, 2)) is label
    assert unsqueezed(np.zeros((512, 512), np.uint8), (192, 256)).shape == (192, 256)
