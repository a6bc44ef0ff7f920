"""Palette, manifest and the VOC layout: what is read, and how each wrong input is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from voc_sets import CLASSES, SIZE, add_picture, build, refusal, set_list, small_set

from beco.datasets import manifest, voc
from beco.datasets.palette import read_index_png, voc_palette, write_index_png
from beco.errors import Problems, UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_set(tmp_path)


def test_masks_annotations_and_pictures_are_told_together(root: Path) -> None:
    (root / "SegmentationClass" / "000003.png").unlink()
    (root / "Annotations" / "000001.xml").write_text("<annotation></annotation>")
    (root / "JPEGImages" / "000001.jpg").unlink()
    with pytest.raises(Problems) as caught:
        build(root)
    mask, objects, picture = caught.value.lines
    assert "000003.png: no mask for this validation picture" in mask
    assert "000001.xml: names no object" in objects and "000001.jpg: no such picture" in picture


# --- palette ------------------------------------------------------------------------------------------------


def test_palette_has_the_published_colours() -> None:
    palette = voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128)}
    for index, colour in (known | {20: (0, 64, 128), 255: (224, 224, 192)}).items():
        assert tuple(int(v) for v in palette[index]) == colour
    assert len({tuple(row) for row in palette.tolist()}) == 256


def test_index_png_round_trip(tmp_path: Path) -> None:
    label = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_index_png(tmp_path / "new" / "a.png", label)
    assert np.array_equal(read_index_png(tmp_path / "new" / "a.png"), label)
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture.convert("RGB")), voc_palette()[label])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_grey_masks_are_read_as_they_are_and_colour_masks_refused(tmp_path: Path) -> None:
    label = np.array([[0, 1], [2, 255]], np.uint8)
    Image.fromarray(label).save(tmp_path / "grey.png")
    assert np.array_equal(read_index_png(tmp_path / "grey.png"), label)
    Image.fromarray(voc_palette()[label]).save(tmp_path / "colour.png")
    with pytest.raises(UserError, match=r"colour\.png: holds colours"):
        read_index_png(tmp_path / "colour.png")


# --- manifest -----------------------------------------------------------------------------------------------


def test_manifest_round_trip(root: Path) -> None:
    built = build(root)
    found = manifest.read(root.parent / "manifest.csv", root)
    pd.testing.assert_frame_equal(built.table, found.table)
    assert found.classes == CLASSES
    assert found.ids == ["000001", "000002", "000003"]  # text: the zeros stay
    assert found.split("val").ids == ["000003"] and len(found.split("train")) == 2
    assert found.labels().dtype == np.float32
    assert found.labels().tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert found.present("000001") == [1, 3]
    assert found.size("000002") == SIZE
    assert found.image("000001").shape == (*SIZE, 3) and found.image("000001").dtype == np.uint8
    assert np.unique(found.mask("000003")).tolist() == [0, 3, 255]
    assert found.has_masks


def test_a_split_without_pictures_names_those_there_are(root: Path) -> None:
    with pytest.raises(UserError, match=r"split `test`.*train, val"):
        build(root).split("test")


def test_rows_without_a_mask(root: Path) -> None:
    table = build(root).table.reset_index()
    table.loc[0, "mask"] = ""
    manifest.write(table, root / "m.csv")
    found = manifest.read(root / "m.csv", root)
    assert not found.has_masks and found.split("val").has_masks
    assert found.with_masks().ids == ["000002", "000003"]
    with pytest.raises(UserError, match="000001: has no mask"):
        found.mask("000001")
    with pytest.raises(UserError, match="000009: not in the manifest"):
        found.image("000009")


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("image_id", "000002", "000002 comes twice"),
        ("cat", "2", "cat is `2` in line 2; write 0 or 1"),
        ("cat", "", "cat is `` in line 2"),
        ("width", "-3", "width is `-3` in line 2"),
        ("width", "1.5", "width is `1.5` in line 2"),
        ("width", "1e300", "width is `1e300` in line 2"),
        ("width", "1" * 400, "width is `1+…` in line 2"),
        ("split", "", "empty split in line 2"),
    ],
)
def test_wrong_values_in_a_manifest(root: Path, column: str, value: str, match: str) -> None:
    table = build(root).table.reset_index().astype(str)
    table.loc[0, column] = value
    manifest.write(table, root / "m.csv")
    with pytest.raises(UserError, match=match):
        manifest.read(root / "m.csv", root)


def test_manifests_that_are_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such manifest"):
        manifest.read(tmp_path / "m.csv", tmp_path)
    (tmp_path / "m.csv").write_text("")
    with pytest.raises(UserError, match="not readable as CSV"):
        manifest.read(tmp_path / "m.csv", tmp_path)
    (tmp_path / "m.csv").write_text("image_id,split,image,width,height,cat\na,train,a.jpg,1,1,1\n")
    with pytest.raises(UserError, match=r"lacks the column\(s\) mask"):
        manifest.read(tmp_path / "m.csv", tmp_path)
    (tmp_path / "m.csv").write_text("image_id,split,image,mask,width,height,cat\n")
    with pytest.raises(UserError, match="lists no pictures"):
        manifest.read(tmp_path / "m.csv", tmp_path)


def test_manifests_with_a_column_too_long_or_without_a_name(tmp_path: Path) -> None:
    for name, match in (("c" * 200_000, "not readable as CSV"), ("", "a column without a name")):
        (tmp_path / "m.csv").write_text(f"image_id,split,image,mask,width,height,cat,{name}\na,train,a.jpg,,1,1,1,1\n")
        with pytest.raises(UserError, match=match):
            manifest.read(tmp_path / "m.csv", tmp_path)


def test_what_cannot_be_read_back_is_not_left_behind(root: Path) -> None:
    table = build(root).table.reset_index()
    before = (root.parent / "manifest.csv").read_bytes()
    table.loc[0, "image"] = "../../a.jpg"
    with pytest.raises(UserError, match=r"manifest\.csv: image is `../../a.jpg` in line 2"):
        manifest.save(table, root.parent / "manifest.csv", root)
    assert (root.parent / "manifest.csv").read_bytes() == before
    assert not list(root.parent.glob(".*manifest*"))


def test_all_problems_are_told_at_once_but_not_more_than_twenty() -> None:
    manifest.refuse([], "here")
    with pytest.raises(UserError, match=r"^only this$"):
        manifest.refuse(["only this"], "here")
    with pytest.raises(UserError) as caught:
        manifest.refuse([f"problem {n}" for n in range(30)], "here")
    lines = str(caught.value).splitlines()
    assert lines[0] == "here: 30 problems; the first 20:" and lines[-1] == "problem 19" and len(lines) == 21


# --- VOC layout ---------------------------------------------------------------------------------------------


def test_missing_picture(root: Path) -> None:
    (root / "JPEGImages" / "000002.jpg").unlink()
    assert "000002.jpg: no such picture" in refusal(root)


@pytest.mark.parametrize("kept", [0, 40, -60])
def test_truncated_picture(root: Path, kept: int) -> None:
    path = root / "JPEGImages" / "000002.jpg"
    path.write_bytes(path.read_bytes()[:kept])
    said = "truncated or damaged" if kept else "is empty (0 bytes)"
    assert f"000002.jpg: {said}; copy it again" in refusal(root)


def test_several_problems_are_one_refusal(root: Path) -> None:
    (root / "JPEGImages" / "000001.jpg").unlink()
    write_index_png(root / "SegmentationClass" / "000003.png", np.full(SIZE, 9, np.uint8))
    with pytest.raises(UserError) as caught:
        build(root)
    lines = str(caught.value).splitlines()
    assert "2 problems" in lines[0] and "000001.jpg" in lines[1] and "000003.png" in lines[2]


def test_mask_of_another_size(root: Path) -> None:
    write_index_png(root / "SegmentationClass" / "000001.png", np.zeros(SIZE[::-1], np.uint8))
    message = refusal(root)
    assert "000001.png: is 12×20, its picture 20×12 (width×height)" in message


@pytest.mark.parametrize("value", [4, 254])
def test_mask_value_above_the_class_count(root: Path, value: int) -> None:
    write_index_png(root / "SegmentationClass" / "000001.png", np.full(SIZE, value, np.uint8))
    assert f"000001.png: holds the value {value}, but labels go from 0 to 3" in refusal(root)


def test_damaged_mask(root: Path) -> None:
    path = root / "SegmentationClass" / "000003.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert "000003.png: truncated or damaged" in refusal(root)


def test_missing_validation_mask(root: Path) -> None:
    (root / "SegmentationClass" / "000003.png").unlink()
    assert "000003.png: no mask for this validation picture" in refusal(root)


def test_unknown_class_names_the_nearest(root: Path) -> None:
    path = root / "Annotations" / "000002.xml"
    path.write_text("<annotation><object><name>boot</name></object></annotation>")
    message = refusal(root)
    assert "000002.xml: unknown class `boot`" in message and "`boat`" in message


def test_entity_bomb_is_refused(root: Path) -> None:
    path = root / "Annotations" / "000002.xml"
    path.write_text(
        '<!DOCTYPE a [<!ENTITY x "cat"><!ENTITY y "&x;&x;&x;&x;">]>'
        "<annotation><object><name>&y;</name></object></annotation>"
    )
    assert "000002.xml: defines XML entities" in refusal(root)


def test_broken_and_missing_annotations(root: Path) -> None:
    path = root / "Annotations" / "000002.xml"
    path.write_text("<annotation><object>")
    assert "000002.xml: not readable as XML" in refusal(root)
    path.unlink()
    assert "000002.xml: no such annotation" in refusal(root)


def test_picture_without_any_object(root: Path) -> None:
    (root / "Annotations" / "000001.xml").write_text("<annotation></annotation>")
    assert "000001.xml: names no object" in refusal(root)


def test_missing_list_names_those_there_are(root: Path) -> None:
    message = refusal(root, train="train_augg")
    assert "train_augg.txt: no such list" in message and "train, val" in message


def test_empty_list(root: Path) -> None:
    set_list(root, "val", [" ", ""])
    assert "val.txt: names no pictures" in refusal(root)


def test_repeated_ids(root: Path) -> None:
    set_list(root, "train", ["000001", "000002", "000001"])
    assert "train.txt: names 000001 twice" in refusal(root)
    set_list(root, "train", ["000001", "000003"])
    assert "val.txt: 1 of its ids are in train.txt too, such as 000003" in refusal(root)


def test_lists_of_paths_are_understood_and_other_columns_refused(root: Path) -> None:
    set_list(root, "train", ["/JPEGImages/000002.jpg /SegmentationClass/000002.png"])
    assert build(root).split("train").ids == ["000002"]
    (root.parent / "manifest.csv").unlink()
    set_list(root, "train", ["000001  1", "000002 -1"])  # ImageSets/Main: says which pictures show a class
    assert "more than an id" in refusal(root)


def test_wrong_root_points_to_the_right_one(root: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean .*VOC2012"):
        build(root.parent)
    with pytest.raises(UserError, match="is not a folder"):
        build(root / "nothing")


@pytest.mark.parametrize("classes", [["cat", "cat"], ["split"], ["background"], []])
def test_class_names_that_cannot_be_columns(root: Path, classes: list[str]) -> None:
    with pytest.raises(UserError, match=r"dataset\.classes"):
        voc.build(root, "train", "val", classes, root.parent / "manifest.csv")


# --- augmented masks ----------------------------------------------------------------------------------------


def test_augmented_list_without_its_masks_still_builds(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_picture(root, "000004", ["cat"], masks=None)
    set_list(root, "train_aug", ["000001", "000002", "000004"])
    with caplog.at_level(logging.WARNING, "beco"):
        built = build(root, train="train_aug")
    assert "only to measure the quality of pseudo-labels" in caplog.text
    assert list(built.split("train").table["mask"] == "") == [False, False, True]
    assert built.split("val").has_masks


def test_a_gap_among_ordinary_training_masks_is_refused(root: Path) -> None:
    (root / "SegmentationClass" / "000002.png").unlink()
    assert "000002.png: no mask for this training picture" in refusal(root)


def test_augmented_masks_serve_training_and_official_ones_validation(root: Path) -> None:
    for name, label in (("000001", 1), ("000002", 2), ("000003", 3)):
        write_index_png(root / "SegmentationClassAug" / f"{name}.png", np.full(SIZE, label, np.uint8))
    built = build(root)
    folders = [str(path).split("/")[0] for path in built.table["mask"]]
    assert folders == ["SegmentationClassAug", "SegmentationClassAug", "SegmentationClass"]
    (root / "SegmentationClass" / "000003.png").unlink()
    assert build(root).table.loc["000003", "mask"] == "SegmentationClassAug/000003.png"


def test_augmented_masks_in_colour_are_refused(root: Path) -> None:
    (root / "SegmentationClassAug").mkdir()
    colours = voc_palette()[np.ones(SIZE, np.uint8)]
    Image.fromarray(colours).save(root / "SegmentationClassAug" / "000001.png")
    message = refusal(root)
    assert "SegmentationClassAug/000001.png: holds colours" in message and "palette" in message
