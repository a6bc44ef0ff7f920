"""COCO's lists as people have them: what nobody annotated, names that repeat or lead astray, turned pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_sets import CORNER, LEFT, LISTS, SIZE, TOP, build, instance, write_set
from PIL import ExifTags, Image

from beco.config import Coco
from beco.datasets import coco
from beco.errors import Problems, UserError

TRAIN, VAL = LISTS
FIRST = f"COCO_{TRAIN}_000000000001.jpg"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training pictures and two for validation; every class is shown in training."""
    folder = tmp_path / "coco"
    write_set(folder, TRAIN, [instance(3, LEFT), instance(17, TOP), instance(9, CORNER)])
    write_set(folder, VAL, [instance(9, LEFT, 4)], (3, 4))
    return folder


def edit(root: Path, change: Callable[[dict[str, Any]], Any], *lists: str) -> None:
    for name in lists or LISTS:
        path = root / "annotations" / f"instances_{name}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def move(root: Path, name: str, number: int, file: str) -> None:
    """Another name for a picture, in the list and on the disk."""

    def change(content: dict[str, Any]) -> None:
        entry = content["images"][number]
        (root / name / file).parent.mkdir(parents=True, exist_ok=True)
        (root / name / entry["file_name"]).rename(root / name / file)
        entry["file_name"] = file

    edit(root, change, name)


def refused(root: Path, *words: str, classes: list[str] | None = None) -> str:
    """The one line of the refusal; no manifest may be left behind."""
    with pytest.raises(UserError) as caught:
        build(root, classes=classes)
    assert not (root.parent / "manifest.csv").exists()
    lines = caught.value.lines if isinstance(caught.value, Problems) else [str(caught.value)]
    assert len(lines) == 1 and "\n" not in lines[0] and all(word in lines[0] for word in words), lines
    return lines[0]


# --- what nobody annotated ----------------------------------------------------------------------------------


def test_a_class_that_no_training_picture_shows_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(root, lambda content: content["annotations"].pop(2), TRAIN)
    with caplog.at_level(logging.INFO, "beco"):
        build(root)
    assert "no training picture shows dog" in caplog.text
    assert "1 traffic light (1), 2 dog (1), 3 cat (1)" in caplog.text  # with counts, in label order
    assert "2 pictures show no class" in caplog.text


def test_a_category_without_annotations_may_be_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(root, lambda content: content["categories"].append({"id": 0, "name": "things"}))
    with caplog.at_level(logging.WARNING, "beco"):
        assert build(root).classes[0] == "things"
    assert "no training picture shows things" in caplog.text
    names = ["traffic light", "dog", "cat"]
    assert build(root, classes=names).labels()[0].tolist() == [1, 1, 1]
    coco.render(root, *LISTS, names, Coco(), root.parent / "masks")
    assert build(root, classes=names).mask(FIRST[:-4]).max() == 3
    (root.parent / "manifest.csv").unlink()
    refused(root, "cat in one alone", classes=["traffic light", "dog"])  # it has annotations


def test_the_group_of_the_others_does_not_become_label_1(root: Path) -> None:
    def grouped(content: dict[str, Any]) -> None:
        for entry in content["categories"]:
            entry["supercategory"] = "things"
        content["categories"].append({"id": 0, "name": "things", "supercategory": "none"})

    edit(root, grouped)
    line = refused(root, "instances_train2014.json", "things", "dataset.classes: [traffic light, dog, cat]")
    assert "label 1" in line
    assert build(root, classes=["traffic light", "dog", "cat"]).classes == ["traffic light", "dog", "cat"]


@pytest.mark.parametrize("name", LISTS)
def test_lists_without_annotations_are_refused(root: Path, name: str) -> None:
    edit(root, lambda content: content.update(annotations=[]), name)
    refused(root, f"instances_{name}.json", "`annotations` is empty")


@pytest.mark.parametrize("name", LISTS)
def test_boxes_without_outlines_are_refused(root: Path, name: str) -> None:
    edit(root, lambda content: [entry.update(segmentation=[]) for entry in content["annotations"]], name)
    refused(root, f"instances_{name}.json: none of its ", "has an outline", "dataset.format: folder")


def test_outlines_in_fractions_are_refused(root: Path) -> None:
    def unit(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["segmentation"] = [[0, 0.25, 0.75, 0.25, 0.75, 1]]

    edit(root, unit, VAL)
    refused(root, f"instances_{VAL}.json: its outlines run from 0 to 1 in pictures of up to 6 ", "multiply")
    edit(root, lambda content: content["annotations"][0].update(segmentation=[[0, 0, 6, 0, 6, 4]]), VAL)
    build(root)  # one that is larger than a pixel tells that these are pixels


@pytest.mark.parametrize("folder", ["", "./"])
def test_file_names_may_be_relative_to_the_root(root: Path, folder: str) -> None:
    before = build(root).table

    def whole(name: str) -> None:
        def change(content: dict[str, Any]) -> None:
            for entry in content["images"]:
                entry["file_name"] = f"{folder}{name}/{entry['file_name']}"

        edit(root, change, name)

    for name in LISTS:
        whole(name)
    assert build(root).table.equals(before)
    coco.render(root, *LISTS, None, Coco(), root.parent / "masks")
    assert {path.stem for path in (root.parent / "masks").glob("*.png")} == set(before.index)


def test_crowds_alone_show_nothing(root: Path) -> None:
    edit(root, lambda content: [entry.update(iscrowd=1) for entry in content["annotations"]], TRAIN)
    refused(root, "no training picture shows any class")
    assert build(root, Coco(crowd_labels=True)).labels().any()


@pytest.mark.parametrize("name", ["background", "Background", "_background_"])
def test_background_is_to_be_left_out(root: Path, name: str) -> None:
    edit(root, lambda content: content["categories"].append({"id": 0, "name": name}))
    refused(root, name, "label 0 by itself", "dataset.classes: [traffic light, dog, cat]")
    assert len(build(root, classes=["traffic light", "dog", "cat"]).classes) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "no name"), (" \u200b", "no name"), ("\ud800", "no text has"), ("Dog", "`dog` and `Dog` differ by")],
)  # fmt: skip
def test_names_of_categories_that_cannot_be_classes(root: Path, name: str, words: str) -> None:
    edit(root, lambda content: content["categories"][0].update(name=name))
    refused(root, "instances_train2014.json: categories", words)


def test_names_of_categories_are_brought_to_one_spelling(root: Path) -> None:
    edit(root, lambda content: content["categories"][0].update(name="Ba\u0308r\n\u00a0braun "), TRAIN)
    edit(root, lambda content: content["categories"][0].update(name="Bär braun"), VAL)
    assert build(root).classes == ["traffic light", "dog", "Bär braun"]


def test_a_wrong_root_and_a_missing_folder_of_pictures(root: Path) -> None:
    for wrong in (root.parent, root / "annotations"):
        with pytest.raises(UserError, match=rf"dataset\.root: .*did you mean {root}\?"):
            coco.build(wrong, *LISTS, None, Coco(), root.parent / "masks", root.parent / "manifest.csv")
    with pytest.raises(UserError, match="is not a folder"):
        coco.build(root / "none", *LISTS, None, Coco(), root.parent / "masks", root.parent / "manifest.csv")
    (root / VAL).rename(root / "pictures")
    refused(root, f"{root / VAL}: no such folder", "instances_val2014.json")


def test_pictures_that_are_not_listed_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("L", SIZE[::-1]).save(root / TRAIN / "more.jpg")
    with caplog.at_level(logging.INFO, "beco"):
        build(root)
    assert "1 pictures are not in instances_train2014.json" in caplog.text


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("sub\\a.jpg", "backslash"),
        ("../../../a.jpg", "leaves the folder"),
        ("/etc/a.jpg", "leaves the folder"),
        ("a\nb.jpg", "names no picture"),
        ("", "no image"),
        (".", "names no picture"),
        (f"{'ä' * 101}.jpg", "too long"),
    ],
)
def test_names_that_cannot_be_used_are_refused_by_the_list(root: Path, file: str, words: str) -> None:
    if "\\" in file:
        (root / TRAIN / FIRST).rename(root / TRAIN / file)  # even where there is such a file
    edit(root, lambda content: content["images"][0].update(file_name=file), TRAIN)
    refused(root, "instances_train2014.json: picture 1: ", words)


def test_names_that_repeat_in_a_list_get_ids_of_the_whole_path(root: Path) -> None:
    move(root, TRAIN, 0, "x/0001.jpg")
    move(root, TRAIN, 1, "y/0001.jpg")
    move(root, VAL, 0, "x/0002.jpg")
    built = build(root)
    assert built.ids == ["x__0001", "y__0001", "0002", "COCO_val2014_000000000004"]
    assert built.image("x__0001")[0, 0, 0] != built.image("y__0001")[0, 0, 0]
    coco.render(root, *LISTS, None, Coco(), root.parent / "masks")
    assert built.mask("x__0001").any() and not built.mask("y__0001").any()


def test_names_that_both_lists_have_are_two_pictures_unless_they_are_one(root: Path) -> None:
    move(root, TRAIN, 0, "0001.jpg")
    move(root, VAL, 1, "0001.jpg")
    built = build(root)
    assert built.split("train").ids[0] == "0001" and built.split("val").ids[1] == "val2014__0001"
    coco.render(root, *LISTS, None, Coco(), root.parent / "masks")
    assert built.mask("0001").max() == 3 and built.mask("val2014__0001").max() == 2
    (root.parent / "manifest.csv").unlink()
    (root / VAL / "0001.jpg").write_bytes((root / TRAIN / "0001.jpg").read_bytes())
    refused(root, "lists 0001, which is in train2014 too")


def test_pictures_that_share_an_id_are_named(root: Path) -> None:
    move(root, TRAIN, 0, "a/b.jpg")
    move(root, TRAIN, 1, "a/b.png")
    refused(root, "a/b.jpg and a/b.png have the same id `a__b`", "rename")
    edit(root, lambda content: content["images"][1].update(file_name="./a/b.jpg"), TRAIN)
    refused(root, "picture 2 (./a/b.jpg) twice")


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png"])
def test_a_picture_of_another_suffix_is_named(root: Path, suffix: str) -> None:
    path = root / TRAIN / FIRST
    path.rename(path.with_suffix(suffix))
    refused(root, f"{FIRST}: no such picture, but there is {path.stem}{suffix}; rename it to {FIRST}")


# --- turned pictures ----------------------------------------------------------------------------------------


def turn(root: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.full(SIZE, 50, np.uint8)).save(root / TRAIN / FIRST, exif=exif)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_outlines_of_turned_pictures_of_the_same_size_are_to_be_looked_at(
    root: Path, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    turn(root, orientation)
    with caplog.at_level(logging.WARNING, "beco"):
        build(root)
    said = "1 pictures carry an EXIF orientation" in caplog.text and "outlines" in caplog.text
    assert said == (orientation != 1)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_outlines_on_the_pixels_as_stored_are_named_with_their_mend(
    root: Path, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    turn(root, orientation)
    refused(root, "is 4×6, its annotation 6×4", "EXIF orientation: turn the outlines alike", "exiftool")

    def change(content: dict[str, Any]) -> None:  # as the mend says
        content["images"][0].update(height=SIZE[1], width=SIZE[0])
        content["annotations"] = [instance(k, [[0, 0, 2, 0, 2, 2, 0, 2]]) for k in (3, 9, 17)]

    edit(root, change, TRAIN)
    with caplog.at_level(logging.WARNING, "beco"):
        built = build(root)
    assert "1 pictures carry an EXIF orientation" in caplog.text
    coco.render(root, *LISTS, None, Coco(), root.parent / "masks")
    assert built.mask(built.ids[0]).shape == built.image(built.ids[0]).shape[:2] == SIZE[::-1]


def test_masks_stay_as_they_are_where_a_list_is_refused(root: Path) -> None:
    masks = root.parent / "masks"
    coco.render(root, *LISTS, None, Coco(), masks)
    before = {path.name: path.read_bytes() for path in masks.iterdir()}
    edit(root, lambda content: content["annotations"][0].update(category_id=17), TRAIN)
    edit(root, lambda content: content["annotations"][0].update(segmentation=[[0, 0, 99, 0, 9, 9]]), VAL)
    with pytest.raises(UserError, match=r"instances_val2014\.json: annotation 100"):
        coco.render(root, *LISTS, None, Coco(), masks)
    assert {path.name: path.read_bytes() for path in masks.iterdir()} == before


# --- values that no reader expects --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([[0, 0, 10**399, 0, 3, 4]], "not pairs of numbers"),
        ([[0, 0, -(10**399), 0, 3, 4]], "not pairs of numbers"),
        ([{}], "not pairs of numbers"),
        (["000000"], "not pairs of numbers"),
        ({"size": [4, 6], "counts": [0.5, 23.5]}, "do not fill"),
        ({"size": [4, 6], "counts": [10**400, 1]}, "do not fill"),
        ({"size": [4.0, 6.0], "counts": [24]}, "an RLE of size"),
        ({"size": [10**400, 6], "counts": [24]}, "an RLE of size"),
    ],
)
def test_outlines_of_odd_values(root: Path, segmentation: Any, words: str) -> None:
    edit(root, lambda content: content["annotations"][0].update(segmentation=segmentation), TRAIN)
    assert len(refused(root, "annotation 100 of picture 1", words)) < len(str(root)) + 400


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("height", 10**400, "no size"),
        ("width", 10**7, "no size"),
        ("height", 4.0, "found 4.0"),
        ("id", "1", "found '1'"),
        ("id", None, "lacks a valid `id`"),
    ],
)
def test_pictures_of_odd_values(root: Path, key: str, value: Any, words: str) -> None:
    edit(root, lambda content: content["annotations"].clear() or content["images"][0].update({key: value}), TRAIN)
    refused(root, "instances_train2014.json", words)


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"images": ' + "1" * 5000 + "}", "\ufeff{"])
def test_json_that_no_reader_takes(root: Path, text: str) -> None:
    (root / "annotations" / f"instances_{TRAIN}.json").write_text(text)
    refused(root, "instances_train2014.json: not readable as JSON")
