"""Masks held against image-level labels: what contradicts most of them is refused, a few contradictions are told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from beco.config import Network, Training
from beco.datasets.manifest import Manifest, check_and_measure
from beco.datasets.meaning import order
from beco.datasets.palette import voc_palette, write_index_png
from beco.errors import UserError
from beco.evaluation.scores.evaluate import evaluate_predictions
from beco.stage2 import train
from beco.training.trainer import Compute

CLASSES = ["cat", "dog", "boat"]
SIZE = (12, 16)
Change = Callable[[np.ndarray, int], np.ndarray]
ALONE = [{1}, {2}, {3}] * 4
TOGETHER = [{1, 2}, {1, 3}, {2, 3}] * 4


def right(values: set[int]) -> np.ndarray:
    """A mask that shows these values, beside each other, and some pixels of 255."""
    label = np.zeros(SIZE, np.uint8)
    for place, value in enumerate(sorted(values)):
        label[2:8, 1 + 4 * place : 4 + 4 * place] = value
    label[9, 3:9] = 255
    return label


def dataset(root: Path, shown: list[set[int]], change: Change = lambda label, index: label) -> pd.DataFrame:
    """Pictures of these classes with masks, `change`d from right ones; every third is for validation."""
    rows = []
    for index, values in enumerate(shown):
        Image.new("RGB", SIZE[::-1], (index, 99, 9)).save(root / f"{index}.jpg")
        write_index_png(root / f"m{index}.png", change(right(values), index).astype(np.uint8))
        split = "val" if index % 4 == 3 else "train"
        row = {"image_id": f"i{index}", "split": split, "image": f"{index}.jpg", "mask": f"m{index}.png"}
        rows.append(row | {name: int(value in values) for value, name in enumerate(CLASSES, 1)})
    return pd.DataFrame(rows)


def mapped(values: dict[int, int], where: Callable[[int], bool] = lambda index: True) -> Change:
    """Other values for some, in the masks of some pictures."""
    table = np.arange(256, dtype=np.uint8)
    table[list(values)] = list(values.values())
    return lambda label, index: table[label] if where(index) else label


def grey(root: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Masks of grey, whose palette says nothing."""
    for name in table["mask"]:
        with Image.open(root / name) as picture:
            label = np.array(picture)
        Image.fromarray(label).save(root / name)
    return table


def refusal(root: Path, table: pd.DataFrame) -> str:
    with pytest.raises(UserError) as caught:
        check_and_measure(table, root, CLASSES)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 or lines[0].endswith(":")  # several files of one kind
    return lines[-1]


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [ALONE, TOGETHER, [{1}] * 5, [{1}, {2}], [{3}]])
def test_right_masks_pass_without_a_word(
    tmp_path: Path, shown: list[set[int]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "beco"):
        check_and_measure(dataset(tmp_path, shown), tmp_path, CLASSES)
    assert not caplog.records


@pytest.mark.parametrize("shown", [ALONE, TOGETHER, [{1}, {1}]])
def test_masks_of_0_and_255(tmp_path: Path, shown: list[set[int]]) -> None:
    said = refusal(tmp_path, dataset(tmp_path, shown, mapped({1: 255, 2: 255, 3: 255})))
    assert "hold none of the classes" in said and "255 means no opinion" in said and "1 cat, 2 dog, 3 boat" in said


def test_masks_without_any_object(tmp_path: Path) -> None:
    said = refusal(tmp_path, dataset(tmp_path, ALONE, mapped({1: 0, 2: 0, 3: 0, 255: 0})))
    assert "12 of 12 masks hold none of the classes" in said and "means no opinion" not in said


def test_masks_of_255_alone(tmp_path: Path) -> None:
    table = dataset(tmp_path, ALONE, lambda label, index: np.full(SIZE, 255))
    assert "all 12 masks hold 255 (no opinion) alone; write label values" in refusal(tmp_path, table)


def test_one_split_whose_masks_say_nothing(tmp_path: Path) -> None:
    table = dataset(tmp_path, ALONE, lambda label, index: np.full(SIZE, 255) if index % 4 == 3 else label)
    assert "all 3 masks hold 255" in refusal(tmp_path, table)


@pytest.mark.parametrize("shown", [ALONE, TOGETHER], ids=["alone", "together"])
@pytest.mark.parametrize("values", [{1: 2, 2: 1}, {1: 2, 2: 3, 3: 1}, {1: 3, 2: 2, 3: 1}, {2: 1, 3: 1}])
def test_classes_in_another_order_or_all_as_one(tmp_path: Path, shown: list[set[int]], values: dict[int, int]) -> None:
    said = refusal(tmp_path, dataset(tmp_path, shown, mapped(values)))
    assert "0 background, 1 cat, 2 dog, 3 boat" in said and "order" in said


def test_two_of_many_classes_swapped(tmp_path: Path) -> None:
    """Few pictures contradict, but of these two classes nearly all."""
    shown = [{3}] * 20 + [{1}, {1}, {2}, {2}]
    said = refusal(tmp_path, dataset(tmp_path, shown, mapped({1: 2, 2: 1})))
    assert "in another order (2 cat, 1 dog)" in said


def test_a_few_contradictions_are_told_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changed = {4: {2: 3}, 5: {3: 255}}  # a dog drawn as a boat; a boat that is void
    table = dataset(tmp_path, ALONE, lambda label, index: mapped(changed.get(index, {0: 0}))(label, index))
    with caplog.at_level(logging.WARNING, "beco"):
        check_and_measure(table, tmp_path, CLASSES)
    strange, silent = (record.getMessage() for record in caplog.records)
    assert "1 of 12 masks hold classes" in strange and "m4.png: boat" in strange
    assert "1 of 12 masks hold none" in silent and "m5.png" in silent


def test_labels_that_name_the_main_object_alone_are_told_and_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = dataset(tmp_path, [{1, 2, 3}] * 9).assign(dog=0, boat=0)
    with caplog.at_level(logging.WARNING, "beco"):
        check_and_measure(table, tmp_path, CLASSES)
    assert "9 of 9 masks hold classes" in caplog.text and "m0.png: dog, boat" in caplog.text


ONE = [{1}] * 8
QUARTER = [{1}] * 6 + [set()] * 2
HALF = [{1}, set()] * 4


@pytest.mark.parametrize("shown", [ONE, QUARTER, HALF, [{1}, {2}] * 4], ids=["all", "quarter", "half", "two classes"])
def test_background_and_a_class_swapped(tmp_path: Path, shown: list[set[int]]) -> None:
    """The labels of one class cannot tell, the border of the pictures can."""
    check_and_measure(dataset(tmp_path, shown).assign(split="train"), tmp_path, CLASSES)
    table = grey(tmp_path, dataset(tmp_path, shown, mapped({0: 1, 1: 0, 255: 1})).assign(split="train"))
    said = refusal(tmp_path, table)
    assert "8 of 8 masks hold 1 cat along their border" in said and "0 background, 1 cat" in said


def test_background_taken_for_another_class(tmp_path: Path) -> None:
    said = refusal(tmp_path, grey(tmp_path, dataset(tmp_path, TOGETHER, mapped({0: 3, 3: 0}))))
    assert "3 boat along their border" in said


def test_a_class_that_labels_name_often_and_no_mask_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = dataset(tmp_path, [{1, 2}] * 10 + [{1}], mapped({2: 0})).assign(split="train")
    said = refusal(tmp_path, table)
    assert "labels name dog in 10 pictures with masks, and none of these masks holds 2" in said
    check_and_measure(table[1:], tmp_path, CLASSES)  # a few may be slips


@pytest.mark.parametrize(
    "change",
    [lambda label, index: np.ones(SIZE), mapped({0: 255}), lambda label, index: np.where(label == 0, 2, label)],
    ids=["constant", "255", "textures"],
)
def test_masks_without_any_background_are_told_and_accepted(
    tmp_path: Path, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    table = grey(tmp_path, dataset(tmp_path, [{1, 2}] * 8, change))
    with caplog.at_level(logging.WARNING, "beco"):
        check_and_measure(table, tmp_path, CLASSES)
    assert "none of the 8 masks holds any background; background is 0" in caplog.text


def test_masks_whose_background_is_void_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = grey(tmp_path, dataset(tmp_path, ALONE, mapped({0: 255, 255: 0})))
    with caplog.at_level(logging.WARNING, "beco"):
        check_and_measure(table, tmp_path, CLASSES)
    assert "12 of 12 masks hold 255 along most of their border; background is 0" in caplog.text


def test_objects_that_reach_the_border_are_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def road(label: np.ndarray, index: int) -> np.ndarray:
        label = np.ones(SIZE)
        label[0, 3:9] = 0  # a piece of sky
        return label

    with caplog.at_level(logging.WARNING, "beco"):
        check_and_measure(grey(tmp_path, dataset(tmp_path, ONE, road)), tmp_path, CLASSES)
    assert not caplog.records


@pytest.mark.parametrize("shown", [[{1}], [{1}, {2}]])
@pytest.mark.parametrize("value", [0, 3], ids=["nothing", "another"])
def test_one_or_two_masks_may_be_slips(
    tmp_path: Path, shown: list[set[int]], value: int, caplog: pytest.LogCaptureFixture
) -> None:
    table = dataset(tmp_path, shown, mapped({1: value, 2: value, 255: 0}))
    with caplog.at_level(logging.WARNING, "beco"):
        check_and_measure(table, tmp_path, CLASSES)
    assert f"{len(shown)} of {len(shown)} masks hold" in caplog.text


def test_one_mask_of_0_and_255_is_none(tmp_path: Path) -> None:
    assert "255 means no opinion" in refusal(tmp_path, dataset(tmp_path, [{1}], mapped({1: 255})))


def test_pictures_given_as_masks(tmp_path: Path) -> None:
    table = dataset(tmp_path, ALONE)
    assert "is the picture, given as its mask" in refusal(tmp_path, table.assign(mask=table["image"]))
    Image.new("L", SIZE[::-1], 1).save(tmp_path / "m0.png", format="JPEG")
    assert "m0.png: is a JPEG, which changes label values" in refusal(tmp_path, table)


# --- palettes -----------------------------------------------------------------------------------------------


def sort_anew(path: Path, new: dict[int, int]) -> None:
    """Give pixels other values and keep how they look, as an editor does that sorts a palette."""
    with Image.open(path) as picture:
        label, palette = np.array(picture), np.array(picture.getpalette()).reshape(-1, 3).copy()
    table = np.arange(256, dtype=np.uint8)
    table[list(new)] = list(new.values())
    moved = palette.copy()
    moved[list(new.values())] = palette[list(new)]
    picture = Image.fromarray(table[label])
    picture.putpalette(moved.astype(np.uint8).tobytes())
    picture.save(path)


@pytest.mark.parametrize("which", [range(12), range(3)], ids=["all", "a few"])
def test_a_palette_whose_background_has_moved(tmp_path: Path, which: range) -> None:
    """Values 0 and 1 in every mask, as before: the labels cannot tell, the colours can."""
    table = dataset(tmp_path, [{1}] * 12, mapped({255: 0}))
    for index in which:
        sort_anew(tmp_path / f"m{index}.png", {0: 1, 1: 0})
    said = refusal(tmp_path, table)
    assert "palette is in another order" in said and "m0.png" in said and "0 #800000, 1 #000000" in said


def test_a_palette_of_ones_own_that_was_sorted_in_some_masks(tmp_path: Path) -> None:
    table = dataset(tmp_path, TOGETHER)
    own = np.random.default_rng(0).permutation(voc_palette()[60:])
    own = np.concatenate([own, own[:60] // 3])[:256].astype(np.uint8)
    for index in range(12):
        with Image.open(tmp_path / f"m{index}.png") as opened:
            picture = opened.copy()
        picture.putpalette(own.tobytes())
        picture.save(tmp_path / f"m{index}.png")
    check_and_measure(table, tmp_path, CLASSES)  # colours of one's own are no fault
    sort_anew(tmp_path / "m3.png", {1: 2, 2: 1})
    assert "m3.png: the palette is in another order" in refusal(tmp_path, table)


def test_colours_that_contradict_values_which_fit_the_labels_mean_nothing(tmp_path: Path) -> None:
    table = dataset(tmp_path, ALONE)
    swapped = voc_palette()[[0, 2, 1, *range(3, 256)]]
    for index in range(12):
        with Image.open(tmp_path / f"m{index}.png") as opened:
            picture = opened.copy()
        picture.putpalette(swapped.tobytes())
        picture.save(tmp_path / f"m{index}.png")
    check_and_measure(table, tmp_path, CLASSES)


@pytest.mark.parametrize("count", [1, 6])
def test_colours_of_vocs_in_ones_own_order(tmp_path: Path, count: int) -> None:
    """Every picture shows both, so that labels fit either way; in the second set they tell."""
    swapped = voc_palette()[[0, 2, 1, *range(3, 256)]]

    def painted(shown: list[set[int]], change: Change) -> pd.DataFrame:
        table = dataset(tmp_path, shown, change)
        for name in table["mask"]:
            with Image.open(tmp_path / name) as opened:
                picture = opened.copy()
            picture.putpalette(swapped.tobytes())
            picture.save(tmp_path / name)
        return table

    check_and_measure(painted([{1, 2}] * count, mapped({})), tmp_path, CLASSES)
    said = refusal(tmp_path, painted([{1, 3}, {1, 3}, {2, 3}] * count, mapped({1: 2, 2: 1})))
    assert "palette is in another order" in said


# --- other doors --------------------------------------------------------------------------------------------


def manifest(root: Path, change: Change) -> Manifest:
    """A manifest that nobody has checked."""
    table = dataset(root, ALONE, change).assign(height=SIZE[0], width=SIZE[1])
    return Manifest(root, table.set_index("image_id"), CLASSES)


@pytest.mark.parametrize("values", [{1: 255, 2: 255, 3: 255}, {1: 2, 2: 3, 3: 1}])
def test_evaluate_refuses_them_as_well(tmp_path: Path, values: dict[int, int]) -> None:
    pictures = manifest(tmp_path, mapped(values))
    for image_id in pictures.ids:
        write_index_png(tmp_path / "predictions" / f"{image_id}.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(UserError, match=r"12 of 12 masks hold none|in another order"):
        evaluate_predictions(pictures, tmp_path / "predictions", tmp_path / "out", {}, 1)
    assert not list((tmp_path / "out").glob("*"))


def test_training_on_masks_refuses_them_before_it_begins(tmp_path: Path) -> None:
    pictures = manifest(tmp_path, mapped({1: 2, 2: 3, 3: 1}))
    with pytest.raises(UserError, match="order of the classes"):
        wanted = train.Wanted("single", Network(), Training())
        train.train(pictures.split("train"), None, wanted, Compute("cpu"), tmp_path, False)


def test_the_order_of_many_classes_is_told_in_short() -> None:
    assert order(CLASSES) == "0 background, 1 cat, 2 dog, 3 boat"
    assert order([f"c{n}" for n in range(1, 21)]).endswith("5 c5, …, 20 c20")
