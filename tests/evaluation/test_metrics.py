"""Metrics: by hand, against torchmetrics, against a slow second implementation, and by their symmetries."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from beco.errors import UserError
from beco.evaluation.scores import bootstrap
from beco.evaluation.scores.borders import BORDER_BINS, TRIMAP, border_distance, border_table, near_border, trimap_iou
from beco.evaluation.scores.evaluate import CONVENTION
from beco.evaluation.scores.metrics import MEAN_RULE, PICTURE_COUNTS, Scorer, band_width, contour_band
from beco.evaluation.tables.table_files import MEAN_NOTE
from beco.stage2.validate import Validator
from beco.training.trainer import Compute

CLASSES = 4
SHAPES = st.tuples(st.integers(2, 14), st.integers(2, 14))
VALUES = st.sampled_from([0, 1, 2, 3, 255])


@st.composite
def pairs(draw: st.DrawFn, values: st.SearchStrategy[int] = VALUES) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    prediction = draw(arrays(np.uint8, shape, elements=values))
    return prediction, draw(arrays(np.uint8, shape, elements=values))


def score(*pictures: tuple[np.ndarray, np.ndarray], classes: int = CLASSES) -> dict:
    scorer = Scorer(classes)
    for index, (prediction, truth) in enumerate(pictures):
        scorer.add(str(index), prediction, truth)
    return scorer.result()


def grid(*rows: str) -> np.ndarray:
    """A label map from digits; `x` is 255."""
    return np.array([[255 if char == "x" else int(char) for char in row] for row in rows], dtype=np.uint8)


# --- by hand ------------------------------------------------------------------------------------------------


def test_three_classes_by_hand() -> None:
    truth = grid("0011", "0022", "xx22")
    prediction = grid("0x10", "0122", "1222")
    # Of the 10 valid pixels: truth 0 is 4, of which 0, 0 (as 255), 0 are right and one is called 1;
    # truth 1 is 2, of which one is right and one is called 0; truth 2 is 4, all right.
    scorer = Scorer(3)
    scorer.add("a", prediction, truth)
    assert scorer.confusion.tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 4]]
    result = scorer.result()
    assert result["iou"] == [3 / 5, 1 / 3, 1.0]
    assert result["miou"] == pytest.approx((3 / 5 + 1 / 3 + 1) / 3)
    assert result["pixel_accuracy"] == 8 / 10
    assert result["precision"] == [3 / 4, 1 / 2, 1.0]
    assert result["recall"] == [3 / 4, 1 / 2, 1.0]
    assert scorer.rows == [{"image_id": "a", "pixel_accuracy": 0.8, "miou": result["miou"]}]


def test_classes_in_neither_map_have_no_iou() -> None:
    truth, prediction = grid("0000", "2222"), grid("0000", "0222")
    result = score((prediction, truth), classes=5)
    assert result["iou"] == [4 / 5, None, 3 / 4, None, None]
    assert result["miou"] == pytest.approx((4 / 5 + 3 / 4) / 2)
    assert result["precision"][1] is None and result["recall"][1] is None


def test_a_class_only_predicted_counts_as_zero() -> None:
    assert score((grid("01"), grid("00")), classes=3)["iou"] == [1 / 2, 0.0, None]


def test_one_rule_for_classes_that_are_only_predicted() -> None:
    """Of `a` and `b` beside background, `b` is predicted and never true; `c` is neither. Every mean is the same."""
    truth, prediction = grid("0011x"), grid("02122")  # the last pixel is void: `b` there is not seen
    expected = pytest.approx((1 / 2 + 1 / 2 + 0) / 3)  # over the true classes alone it would be 1/2
    scorer = Scorer(4)
    scorer.add("one", prediction, truth)
    assert scorer.result()["iou"] == [1 / 2, 1 / 2, 0.0, None]
    assert scorer.result()["miou"] == expected and scorer.rows[0]["miou"] == expected
    assert scorer.result()["precision"] == [1, 1, 0, None] and scorer.result()["recall"] == [1 / 2, 1 / 2, None, None]
    # resampled: the picture's own counts, each label value with those of its bands
    totals = np.zeros((4, len(PICTURE_COUNTS)))
    for value, *counts in scorer.class_rows[0]:
        totals[value] = counts
    assert bootstrap.scores(totals.reshape(1, -1))[0, 0] == expected
    # by distance to a border: all pixels are within 20 of one
    near = near_border(prediction, truth, 4)
    assert trimap_iou(near.by_class)[-1] == expected
    # in training: a network that gives this prediction on a mask of these pixels
    logits = torch.nn.functional.one_hot(torch.from_numpy(prediction).long(), 4).permute(2, 0, 1)[None].float()
    batches = [(logits, torch.from_numpy(truth)[None].long())]
    watched = SimpleNamespace(pictures=SimpleNamespace(classes=list("abc"), ids=["one"]), compute=Compute("cpu"))
    watched._squeezed = lambda *_: batches
    assert Validator.miou(watched) == expected  # type: ignore[arg-type]
    # and it is said beside the numbers
    assert CONVENTION.endswith(MEAN_RULE) and MEAN_RULE in MEAN_NOTE
    assert "predicted and never true has IoU 0 and counts" in MEAN_RULE and "neither is left out" in MEAN_RULE


def test_totals_are_over_the_set_not_means_of_pictures() -> None:
    first, second = (grid("11"), grid("11")), (grid("00", "00"), grid("11", "11"))
    assert score(first, second, classes=2)["iou"] == [0.0, 2 / 6]


def test_picture_of_void_alone() -> None:
    scorer = Scorer(2)
    scorer.add("void", grid("01", "10"), grid("xx", "xx"))
    assert scorer.rows[0]["miou"] is None and scorer.rows[0]["pixel_accuracy"] is None
    assert scorer.result()["miou"] is None and scorer.result()["boundary_iou"] is None


def test_shapes_and_values_are_checked() -> None:
    with pytest.raises(UserError, match=r"street: prediction is 3×2 and mask 2×3 pixels"):
        Scorer(2).add("street", np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    with pytest.raises(UserError, match="street: prediction holds the value 5"):
        Scorer(2).add("street", grid("05"), grid("00"))
    with pytest.raises(UserError, match="street: mask holds the value 7"):
        Scorer(2).add("street", grid("00"), grid("07"))


# --- properties ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(pairs(), min_size=1, max_size=4), st.randoms())
def test_the_order_of_pictures_changes_nothing(pictures: list, random: object) -> None:
    shuffled = list(pictures)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert score(*pictures) == score(*shuffled)


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_a_perfect_prediction_scores_one(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth = pair[1]
    result = score((truth, truth))
    for key in ("iou", "boundary_iou_per_class", "precision", "recall"):
        assert set(result[key]) <= {1.0, None}
    if (truth != 255).any():
        assert result["miou"] == result["pixel_accuracy"] == result["boundary_iou"] == 1.0


@settings(max_examples=60, deadline=None)
@given(pairs(st.integers(0, CLASSES - 1)))
def test_iou_is_symmetric_without_void(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, truth = pair
    one, other = score((prediction, truth)), score((truth, prediction))
    assert one["iou"] == other["iou"]
    assert one["boundary_iou_per_class"] == other["boundary_iou_per_class"]
    assert one["precision"] == other["recall"]


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_no_opinion_counts_as_background(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, truth = pair
    assert score((prediction, truth)) == score((np.where(prediction == 255, 0, prediction), truth))


@settings(max_examples=25, deadline=None)
@given(st.lists(pairs(), min_size=1, max_size=3))
def test_agrees_with_torchmetrics(pictures: list[tuple[np.ndarray, np.ndarray]]) -> None:
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.classification")
    macro = classification.MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=255)
    each = classification.MulticlassJaccardIndex(CLASSES, average="none", ignore_index=255)
    for prediction, truth in pictures:
        clean = torch.from_numpy(np.where(prediction == 255, 0, prediction).astype(np.int64))
        for metric in (macro, each):
            metric.update(clean.flatten(), torch.from_numpy(truth.astype(np.int64)).flatten())
    result = score(*pictures)
    if result["miou"] is None:
        return
    assert result["miou"] == pytest.approx(float(macro.compute()), abs=1e-6)
    # torchmetrics gives 0 where a class is in neither map
    assert [value or 0.0 for value in result["iou"]] == pytest.approx(each.compute().tolist(), abs=1e-6)


# --- boundary IoU -------------------------------------------------------------------------------------------


def slow_band(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a mask whose (2·width + 1)² window holds a pixel outside the mask or outside the picture."""
    height, columns = mask.shape
    band = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        for y in range(row - width, row + width + 1):
            for x in range(column - width, column + width + 1):
                if not (0 <= y < height and 0 <= x < columns) or not mask[y, x]:
                    band[row, column] = True
    return band


def slow_boundary_iou(prediction: np.ndarray, truth: np.ndarray, width: int) -> list[float | None]:
    valid = truth != 255
    prediction = np.where(prediction == 255, 0, prediction)
    found: list[float | None] = []
    for value in range(CLASSES):
        one = slow_band((prediction == value) & valid, width)
        other = slow_band((truth == value) & valid, width)
        union = (one | other).sum()
        found.append(float((one & other).sum() / union) if union else None)
    return found


@settings(max_examples=40, deadline=None)
@given(pairs())
def test_boundary_iou_agrees_with_the_slow_way(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, truth = pair
    width = band_width(*truth.shape)
    assert score(pair)["boundary_iou_per_class"] == pytest.approx(
        slow_boundary_iou(prediction, truth, width), nan_ok=True
    )


@pytest.mark.parametrize("width", [1, 2, 3])
def test_contour_band_agrees_with_the_slow_way_on_blobs(width: int) -> None:
    noise = np.random.default_rng(width).normal(size=(20, 24)).cumsum(0).cumsum(1)
    labels = np.digitize(noise, np.quantile(noise, [0.3, 0.6, 0.9])).astype(np.uint8)
    labels[5:8, 5:15] = 255
    expected = np.zeros(labels.shape, dtype=bool)
    for value in range(CLASSES):
        expected |= slow_band(labels == value, width)
    assert (contour_band(labels, width) == expected).all()


def test_boundary_iou_by_hand() -> None:
    # A 5×5 object in 9×9 pixels, and the same one pixel to the right: d = 1, the bands are rings of 16.
    truth, prediction = np.zeros((2, 9, 9), dtype=np.uint8)
    truth[2:7, 1:6], prediction[2:7, 2:7] = 1, 1
    assert band_width(9, 9) == 1
    # The rings share their top and bottom rows in 4 columns each, and nothing else: 8 of 16 + 16 − 8.
    assert score((prediction, truth), classes=2)["boundary_iou_per_class"][1] == 8 / 24


def test_band_width_is_two_percent_of_the_diagonal() -> None:
    assert band_width(64, 64) == 2  # 1.81
    assert band_width(375, 500) == 12  # 12.5, and Python rounds half to even
    assert band_width(4, 4) == 1


# --- distance to the border ---------------------------------------------------------------------------------


def test_border_distance_by_hand() -> None:
    truth = np.zeros((3, 40), dtype=np.uint8)
    truth[:, 20:] = 1
    assert border_distance(truth)[1].tolist() == [*range(19, -1, -1), *range(20)]


def test_error_by_distance_by_hand() -> None:
    truth = np.zeros((1, 40), dtype=np.uint8)
    truth[:, 20:] = 1
    truth[0, 39] = 255  # void: a border of its own, and not counted
    prediction = truth.copy()
    prediction[0, [20, 21]] = 0, 255  # wrong at distance 0; without an opinion, and so wrong, at distance 1
    rows = border_table(near_border(prediction, truth, 2).by_bin)
    assert [(row["from"], row["to"]) for row in rows] == list(BORDER_BINS)
    # distance 0 and 1: two pixels on either side of 20, and 38, 37 beside the void
    assert rows[0] == {"from": 0, "to": 1, "pixels": 6, "error": 2 / 6, "uncertain": 1 / 6}
    assert sum(row["pixels"] for row in rows) == 39
    assert [row["error"] for row in rows[1:]] == [0.0, 0.0, 0.0, 0.0]


def test_a_picture_without_border_is_far_from_it() -> None:
    found = near_border(np.ones((4, 5), np.uint8), np.zeros((4, 5), np.uint8), 2)
    assert not found.by_class.any() and found.result()["trimap_iou"] == [None] * TRIMAP
    assert found.by_bin.tolist() == [[0, 0, 0]] * 4 + [[20, 20, 0]]


def test_iou_near_the_border_by_hand() -> None:
    truth = np.zeros((1, 40), dtype=np.uint8)
    truth[:, 20:] = 1
    prediction = truth.copy()
    prediction[0, [20, 25]] = 0, 255  # wrong at distance 0 and, without an opinion, at distance 5
    found = trimap_iou(near_border(prediction, truth, 3).by_class)
    # Within k pixels: k of each class; the first wrong pixel counts from k = 1, the second from k = 6.
    assert found[0] == pytest.approx((1 / 2 + 0 / 1) / 2)
    assert found[4] == pytest.approx((5 / 6 + 4 / 5) / 2)
    assert found[5] == pytest.approx((6 / 8 + 4 / 6) / 2)
    assert len(found) == TRIMAP and found[-1] == pytest.approx((20 / 22 + 18 / 20) / 2)


@given(st.data())
def test_iou_far_from_the_border_is_that_of_all_pixels(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(2, 9), st.integers(2, 9)))
    truth, prediction = (data.draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255]))) for _ in "ab")
    if (truth == truth[0, 0]).all():
        return  # no border, and so nothing near it
    scorer = Scorer(3)
    scorer.add("a", prediction, truth)
    expected = scorer.result()["miou"]
    found = trimap_iou(near_border(prediction, truth, 3).by_class)[-1]  # no pixel is further than 8 from a border
    assert found == (None if expected is None else pytest.approx(expected))
