"""Quality of pseudo-labels: trust by hand, against second implementations, and the sweep of the background score."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from beco.artifacts import store
from beco.artifacts.pseudolabels import levels_of, put
from beco.config import Labels, Shapes
from beco.datasets import shapes, voc
from beco.datasets.manifest import Manifest
from beco.errors import UserError
from beco.evaluation.report import figures
from beco.evaluation.scores.borders import border_distance
from beco.evaluation.scores.quality import Trust, auroc, evaluate_labels, not_as_asked, trust_of
from beco.evaluation.scores.sweep import sweep
from beco.evaluation.tables.label_tables import label_table, sweep_table
from beco.evaluation.tables.table_files import write_tables
from beco.evaluation.tables.tables import LabelSource, Results
from beco.stage1.maps import CELLS
from beco.stage1.refine import labels as stage

# --- one picture --------------------------------------------------------------------------------------------


def test_trust_by_hand() -> None:
    truth = np.array([[0, 0, 0, 0, 1, 1, 1, 255]], np.uint8)
    label = np.array([[0, 0, 1, 255, 1, 1, 0, 1]], np.uint8)
    confidence = np.array([[1.0, 0.8, 0.2, 0, 0.6, 1.0, 0.4, 1.0]])
    reliable = confidence >= 0.6
    found = trust_of(label, levels_of(1 - confidence), reliable, truth)
    assert found.pixels.tolist() == [8, 1, 5, 3, 2]
    assert found.by_label.tolist() == [[3, 2], [4, 3]]
    # Six pixels have both an opinion and a truth, at 1, .8, .2, .6, 1 and .4; the third and the last are wrong.
    right = {level: row.tolist() for level, row in enumerate(found.by_level) if row[0]}
    assert right == {40: [1, 0], 80: [1, 0], 120: [1, 1], 160: [1, 1], 255: [2, 2]}
    # Distances to the borders at 3|4 and 6|7: 3 2 1 0 0 1 0.
    assert found.by_distance[0].tolist() == [[2, 0], [2, 2]] and found.by_distance[1].tolist() == [[2, 0], [0, 0]]
    assert not found.by_distance[2:].any()
    result = found.result()
    assert result["uncertain"] == 1 / 8
    assert result["reliable"] == {
        "share": 5 / 8, "share_objects": 2 / 3, "obtained": 5 / 7, "obtained_background": 2 / 3,
        "obtained_objects": 3 / 4, "accuracy_inside": 1.0, "accuracy_outside": 0.0,
    }  # fmt: skip
    assert result["confidence"]["auroc"] == 1.0  # every right pixel is more confident than either wrong one
    assert result["border_trust"][0] == {
        "from": 0, "to": 1, "reliable_share": 0.5, "error_reliable": 0.0, "error_rest": 1.0,
    }  # fmt: skip
    assert result["border_trust"][2]["reliable_share"] is None
    bins = result["confidence"]["bins"]
    assert sum(row["pixels"] for row in bins) == 6 and bins[-1]["accuracy"] == 1.0 and bins[-1]["confidence"] == 1.0
    assert [row["accuracy"] for row in bins if row["from"] <= 0.2 < row["to"]] == [0.0]


labels_of = arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 1, 2, 255]))


@given(labels_of, labels_of, arrays(np.uint8, (5, 7), elements=st.integers(0, 255)))
def test_trust_is_what_a_loop_counts(label: np.ndarray, truth: np.ndarray, levels: np.ndarray) -> None:
    reliable = (levels > 100) & (label != 255)
    expected, distance = Trust.nothing(), border_distance(truth)
    for place in np.ndindex(label.shape):
        is_object = truth[place] in (1, 2)
        expected.pixels += [1, label[place] == 255, reliable[place], is_object, is_object and reliable[place]]
        if label[place] != 255:
            expected.by_label[min(label[place], 1)] += [1, reliable[place]]
        if label[place] != 255 and truth[place] != 255:
            wrong = label[place] != truth[place]
            expected.by_level[levels[place]] += [1, not wrong]
            row = next(row for row, low in reversed(list(enumerate([0, 2, 4, 8, 16]))) if distance[place] >= low)
            expected.by_distance[row, 0 if reliable[place] else 1] += [1, wrong]
    found = trust_of(label, levels.astype(np.uint8), reliable, truth)
    assert (found.by_level == expected.by_level).all() and (found.by_label == expected.by_label).all()
    assert (found.by_distance == expected.by_distance).all() and (found.pixels == expected.pixels).all()


@given(arrays(np.int64, (20, 2), elements=st.integers(0, 9)))
def test_auroc_is_the_statistic_of_mann_and_whitney(counts: np.ndarray) -> None:
    wrong, right = counts.T
    found = auroc(np.stack([wrong + right, right], 1))
    if not wrong.sum() or not right.sum():
        assert found is None
        return
    levels = np.arange(len(counts))
    statistic = stats.mannwhitneyu(np.repeat(levels, right), np.repeat(levels, wrong)).statistic
    assert found == pytest.approx(statistic / (right.sum() * wrong.sum()))


# --- a split ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("drawn")
    shapes.draw(root / "set", Shapes(train=8, val=2, size=64))
    lists = root / "set" / "ImageSets" / "Segmentation"
    (lists / "three.txt").write_text("".join((lists / "train.txt").read_text().splitlines(keepends=True)[:3]))
    return voc.build(root / "set", "train", "val", shapes.CLASSES, root / "manifest.csv").split("train")


@pytest.fixture(scope="module")
def cams(drawn: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The masks, blurred by shrinking, as CAMs: good ones, and different for every threshold."""
    path = tmp_path_factory.mktemp("cams") / "cams.h5"
    rng = np.random.default_rng(0)
    with store.create(path, classes=drawn.classes, **CELLS) as writer:
        for image_id in drawn.ids:
            truth, values = drawn.mask(image_id), drawn.present(image_id)
            planes = [(truth == value).reshape(16, 4, 16, 4).mean((1, 3)) for value in values]
            noise = rng.random((len(values), 16, 16)) * 0.3
            writer.put(
                "cam", image_id, np.clip(np.stack(planes) * 0.8 + noise, 0, 1).astype(np.float16), classes=values
            )
    return path


def made(drawn: Manifest, cams: Path, settings: Labels, folder: Path) -> LabelSource:
    stage.make(drawn, cams, settings, "1-of-1", folder / "labels.h5")
    evaluate_labels(drawn, folder / "labels.h5", folder / "quality", apart={"three": drawn.ids[:3]})
    return LabelSource(folder.name, folder)


def test_a_list_is_measured_apart(drawn: Manifest, cams: Path, tmp_path: Path) -> None:
    whole = made(drawn, cams, Labels(refine="none", background=0.4), tmp_path / "cam")
    three = Manifest(drawn.root, drawn.table.iloc[:3], drawn.classes)
    alone = evaluate_labels(three, whole.folder / "labels.h5", tmp_path / "alone")
    apart = whole.metrics()["apart"]["three"]
    assert apart == {key: alone[key] for key in ("miou", "boundary_iou", "pixel_accuracy", "pictures")}
    assert apart["miou"] != whole.metrics()["miou"] and apart["pictures"] == 3
    table = label_table([whole])
    assert table["split"].tolist() == ["train", "three"] and table["pictures"].tolist() == [8, 3]
    assert table["miou"].tolist() == [whole.metrics()["miou"], alone["miou"]] and table["uncertain"].isna()[1]


def test_the_share_asked_for_beside_the_share_obtained(
    drawn: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where confidences differ a fraction gives what it says; where a third of them are equal, it is said."""
    rng = np.random.default_rng(0)
    for name, equal in (("differ", 0.0), ("tie", 0.7)):
        with store.create(tmp_path / f"{name}.h5", classes=drawn.classes) as writer:
            for image_id in drawn.ids:
                doubt = rng.uniform(0.1, 0.9, (64, 64))
                doubt[rng.random((64, 64)) < equal] = 0
                put(writer, image_id, np.where(drawn.mask(image_id) == 255, 0, drawn.mask(image_id)), doubt)
    for fraction in (0.25, 0.5, 0.75):
        caplog.clear()
        found = evaluate_labels(drawn, tmp_path / "differ.h5", tmp_path / "out", fraction)["reliable"]
        assert found["asked"] == fraction and not caplog.messages
        for key in ("obtained", "obtained_background", "obtained_objects"):
            assert found[key] == pytest.approx(fraction, abs=0.01)
    found = evaluate_labels(drawn, tmp_path / "tie.h5", tmp_path / "out", 0.5)["reliable"]
    assert found["obtained"] == pytest.approx(0.7, abs=0.02)
    (message,) = caplog.messages
    assert "tie.h5: 50 % were to be reliable, and 70 % of background" in message and "equal confidences" in message
    words = not_as_asked({"asked": 0.5, "obtained_background": 0.5, "obtained_objects": 0.3})
    assert words == "50 % were to be reliable, and 50 % of background, 30 % of objects are: " + (
        "pixels without confidence never are"
    )
    with pytest.raises(UserError, match=r"--fraction: .*steps of 0.05; take 0.3 or 0.35"):
        evaluate_labels(drawn, tmp_path / "tie.h5", tmp_path / "out", 0.333)


def test_without_masks_the_spread_of_the_labels_warns(
    drawn: Manifest, cams: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blind = Manifest(drawn.root, drawn.table.assign(mask=""), drawn.classes)
    logging.getLogger("beco").propagate = True
    found = {}
    for name, background in (("low", 0.0), ("high", 1.0), ("right", 0.4)):
        caplog.clear()
        stage.make(drawn, cams, Labels(refine="none", background=background), "1-of-1", tmp_path / f"{name}.h5")
        metrics = evaluate_labels(blind, tmp_path / f"{name}.h5", tmp_path / name)
        assert metrics["miou"] is None
        found[name] = metrics["spread"]["background"], "flood" in caplog.text, "are missed" in caplog.text
    assert found["low"][1:] == (True, False) and found["high"][1:] == (False, True)
    assert found["right"][1:] == (False, False)
    assert found["low"][0] < found["right"][0] < found["high"][0] == 1


def test_a_threshold_instead_of_a_fraction(drawn: Manifest, cams: Path, tmp_path: Path) -> None:
    source = made(drawn, cams, Labels(refine="none", background=0.4), tmp_path / "cam")
    found = evaluate_labels(drawn, source.folder / "labels.h5", tmp_path / "strict", threshold=0.9)
    assert found["protocol"] == {"reliable_threshold": 0.9}
    assert found["reliable"]["share"] < source.metrics()["reliable"]["share"]


@pytest.mark.parametrize("refine", ["none", "irn"])
def test_a_sweep_scores_what_the_stage_makes(drawn: Manifest, cams: Path, tmp_path: Path, refine: str) -> None:
    path = cams
    if refine == "irn":
        path = tmp_path / "scores.h5"
        with store.Store(cams) as source, store.create(path, walk={}, **source.attributes) as writer:
            writer.copy(source)
    settings = Labels.model_validate({"refine": refine})
    found = sweep(drawn, path, settings, [0.2, 0.5], tmp_path / "cam" / "quality" / "sweep.csv", threads=2)
    for row, background in zip(found.to_dict("records"), (0.2, 0.5), strict=True):
        one = made(drawn, path, settings.model_copy(update={"background": background}), tmp_path / f"{background}")
        metrics = one.metrics()
        assert row["background"] == background and row["miou"] == metrics["miou"] > 0.3
        assert row["boundary_iou"] == metrics["boundary_iou"]
        assert row["precision"] == pytest.approx(np.mean(list(metrics["precision"].values())[1:]))
        assert row["recall"] == pytest.approx(np.mean(list(metrics["recall"].values())[1:]))
    assert found["miou"].nunique() == 2


def test_a_sweep_of_the_crf_is_one_run_per_score(drawn: Manifest, cams: Path, tmp_path: Path) -> None:
    settings = Labels.model_validate({"refine": "crf", "crf": {"iterations": 2, "bilateral_sxy": 10}})
    found = sweep(drawn, cams, settings, [0.3], tmp_path / "sweep.csv")
    # Two runs with almost the same score agree, so that the stage leaves next to nothing without an opinion.
    close = settings.model_copy(update={"foreground_threshold": 0.3, "background_threshold": 0.2999})
    expected = made(drawn, cams, close, tmp_path / "close").metrics()
    assert expected["uncertain"] < 0.01 and found["miou"][0] == pytest.approx(expected["miou"], abs=0.01)
    from_scores = sweep(drawn, cams, settings.model_copy(update={"unary": "scores"}), [0.3], tmp_path / "other.csv")
    assert from_scores["miou"][0] != found["miou"][0]


def test_a_sweep_without_masks_or_of_the_wrong_maps(drawn: Manifest, cams: Path, tmp_path: Path) -> None:
    blind = Manifest(drawn.root, drawn.table.assign(mask=""), drawn.classes)
    with pytest.raises(UserError, match=r"none of the pictures has a mask .*; leave the sweep out"):
        sweep(blind, cams, Labels(refine="none"), [0.2], tmp_path / "sweep.csv")
    with pytest.raises(UserError, match="give the scores of beco refine"):
        sweep(drawn, cams, Labels(refine="irn"), [0.2], tmp_path / "sweep.csv")
    assert not (tmp_path / "sweep.csv").exists()


# --- tables and figures -------------------------------------------------------------------------------------


def test_tables_and_figures_of_sweeps(tmp_path: Path) -> None:
    sources = []
    for name, scores in {"cam": [0.3, 0.5, 0.4], "crf": [0.6, 0.2, 0.1], "theirs": []}.items():
        source = LabelSource(name, tmp_path / name)
        source.quality.mkdir(parents=True)
        (source.quality / "metrics.json").write_text('{"miou": 0.4}')
        (source.quality / "per_class.csv").write_text("value,class,iou\n0,background,0.4\n")
        if scores:
            frame = pd.DataFrame({"background": [0.1, 0.2, 0.3], "miou": scores})
            frame.assign(boundary_iou=0.1, pixel_accuracy=0.5, precision=0.5, recall=0.5).to_csv(
                source.quality / "sweep.csv", index=False
            )
        sources.append(source)
    table = sweep_table(sources)
    assert table[table["best"]][["labels", "background"]].to_numpy().tolist() == [["cam", 0.2], ["crf", 0.1]]
    write_tables(Results([], sources), tmp_path / "tables")
    lines = (tmp_path / "tables" / "sweep.md").read_text().splitlines()
    assert lines[0] == "| mIoU (%) at background | 0.1 | 0.2 | 0.3 |"
    assert lines[2:4] == ["| cam | 30.0 | 50.0* | 40.0 |", "| crf | 60.0* | 20.0 | 10.0 |"]
    drawn = figures.sweep_curves(table)
    assert drawn is not None and "background score" in drawn and ">cam<" in drawn and ">theirs<" not in drawn
    assert figures.sweep_curves(sweep_table(sources[2:])) is None


def test_figures_of_trust() -> None:
    label = np.array([[0, 1, 1, 255]], np.uint8)
    truth = np.array([[0, 1, 0, 0]], np.uint8)
    trust = trust_of(
        label, np.array([[255, 100, 50, 0]], np.uint8), np.array([[True, True, False, False]]), truth
    ).result()
    calibration = figures.calibration({"cam": trust["confidence"]["bins"], "none": []})
    assert calibration is not None and "labels cam" in calibration and "labels none" not in calibration
    shares = figures.border_trust({"cam": trust["border_trust"]})
    assert shares is not None and "reliable pixels" in shares
    assert figures.calibration({}) is None and figures.border_trust({"none": []}) is None
