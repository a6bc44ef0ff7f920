"""VOC's layout as people have it: other suffixes and cases, odd ids, annotations of odd content."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from voc_sets import build, refusal, set_list, small_set


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_set(tmp_path)


@pytest.mark.parametrize("text", ['<?xml version="1.0" encoding="nothing"?><annotation/>', "<a>" * 50_000, "\0"])
def test_annotations_of_no_encoding_or_depth(root: Path, text: str) -> None:
    (root / "Annotations" / "000002.xml").write_text(text)
    assert "000002.xml: not readable as XML" in refusal(root)


def test_an_object_that_is_background(root: Path) -> None:
    path = root / "Annotations" / "000002.xml"
    path.write_text("<annotation><object><name>Background</name></object></annotation>")
    message = refusal(root)
    assert "000002.xml" in message and "label 0 by itself; leave it out" in message


def test_annotations_of_another_size_and_classes_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = root / "Annotations" / "000002.xml"
    sized = (
        "<annotation><size><width>{}</width><height>{}</height></size><object><name>dog</name></object></annotation>"
    )
    for width, height in ((20, 12), (12, 20), (0, 0), ("x", 12)):  # lying or upright, or not given
        path.write_text(sized.format(width, height))
        build(root)
    assert "another size" not in caplog.text
    path.write_text(sized.format(500, 375))
    with caplog.at_level(logging.INFO, "beco"):
        build(root)
    assert (
        "1 annotations give another size" in caplog.text and "000002.xml: 500×375, the picture is 20×12" in caplog.text
    )
    assert "1 cat (1), 2 dog (1), 3 boat (2)" in caplog.text


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("JPEGImages/000002.jpg", "000002.JPG"),
        ("JPEGImages/000002.jpg", "000002.jpeg"),
        ("JPEGImages/000002.jpg", "000002.png"),
        ("SegmentationClass/000002.png", "000002.PNG"),
        ("Annotations/000002.xml", "000002.XML"),
        ("ImageSets/Segmentation/val.txt", "Val.txt"),
        ("ImageSets/Segmentation/val.txt", "val.TXT"),
    ],
)
def test_files_of_another_suffix_or_case_are_named(root: Path, file: str, found: str) -> None:
    """And the mend is one: renamed as it says, the file is read."""
    path = root / file
    path.rename(path.with_name(found))
    message = refusal(root)
    assert f"{path}: no " in message and f"but there is {found}; rename it to {path.name}" in message
    path.with_name(found).rename(path)
    assert len(build(root)) == 3


def test_a_mask_that_is_a_jpeg_is_not_to_be_renamed(root: Path) -> None:
    path = root / "SegmentationClass" / "000002.png"
    path.rename(path.with_suffix(".jpg"))
    assert "000002.png: no mask for this training picture" in refusal(root)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("000002.jpg", "without its suffix"),
        ("/JPEGImages/a\\b.jpg /SegmentationClass/a.png", "backslash"),
        ("/x/.. y", "no name of a picture"),
        ("ä" * 101, "too long"),
        ("0\x7f2", "names no picture"),
        ("x/000001.jpg x/000001.png", "`000001` and `x/000001.jpg x/000001.png` are both JPEGImages/000001.jpg"),
    ],
)
def test_ids_that_cannot_be_used(root: Path, line: str, words: str) -> None:
    set_list(root, "train", ["000001", line])
    message = refusal(root)
    assert "train.txt: " in message and words in message


def test_a_list_in_utf16(root: Path) -> None:
    for encoding in ("utf-16", "utf-16-le"):
        (root / "ImageSets" / "Segmentation" / "train.txt").write_bytes("000001\n".encode(encoding))
        message = refusal(root)
        assert "train.txt: not text in UTF-8 (it looks like UTF-16); save it" in message
