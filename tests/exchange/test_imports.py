"""Pseudo-labels of other programs: every layout of files, and what is refused."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import assert_refused, beco
from foreign_labels import (
    CLASSES,
    EXPECTED,
    FOURTH,
    LABEL,
    MARGIN,
    SECOND,
    SIZE,
    TENSORS,
    assert_found,
    brought,
    listed,
    plane,
    refused,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beco.artifacts import store
from beco.artifacts.pseudolabels import PseudoLabels
from beco.cli import stage1 as cli
from beco.datasets.palette import voc_palette, write_index_png
from beco.errors import UserError
from beco.exchange import imports
from beco.exchange.foreign_formats import FORMATS

# --- dictionaries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("irn", TENSORS),
        ("irn", {"keys": np.array([1, 3]), "high_res": np.stack([SECOND, FOURTH])}),  # ToCo
        ("irn", {"keys": np.array([3, 1]), "high_res": torch.from_numpy(np.stack([FOURTH, SECOND])).half()}),
        ("seam", {1: SECOND, 3: FOURTH}),
        ("seam", {np.int64(3): FOURTH, np.int64(1): np.asfortranarray(SECOND)}),
        ("seam", {1: SECOND.astype(">f8"), 3: torch.from_numpy(FOURTH)}),
        ("seam-crf", {0: np.full(SIZE, 0.25, np.float32), 2: SECOND, 4: FOURTH}),
        # AMN: one plane more than keys
        ("irn", {"keys": torch.tensor([1, 3]), "high_res": np.stack([np.full(SIZE, 0.25), SECOND, FOURTH])}),
    ],
)
def test_scores_by_class(tmp_path: Path, form: str, content: dict[Any, Any]) -> None:
    labels = brought(tmp_path, {"x.npy": content}, {"x": [2, 4]})
    assert_found(labels, EXPECTED, MARGIN)
    attributes = labels.store.attributes
    assert attributes["classes"] == CLASSES and len(attributes["source"]) == 16
    assert attributes["supervision"] == ["imported"]
    assert attributes["labels"]["refine"] == "import" and attributes["labels"]["background"] == 0.25
    assert attributes["labels"]["source"] == {"path": str(tmp_path / "source"), "format": form}


def test_another_background(tmp_path: Path) -> None:
    found = brought(tmp_path, {"x.npy": {1: SECOND, 3: FOURTH}}, {"x": [2, 4]}, background=0.6)
    assert_found(found, np.array([[2, 0, 4], [4, 0, 2]]), plane(0.3, 0.4, 0.15, 0.025, 0.35, 0.4))


def test_clip_es_takes_what_is_left_for_the_background(tmp_path: Path) -> None:
    content = {"keys": np.array([1, 3]), "attn_highres": np.stack([SECOND, FOURTH]).astype(np.float16)}
    found = brought(tmp_path, {"x.npy": content}, {"x": [2, 4]})
    # background: 0.1, 0.8, 0.25, 0.375, 0.75, 0
    assert_found(found, np.array([[2, 0, 4], [4, 0, 2]]), plane(0.7, 0.6, 0.25, 0.25, 0.5, 0.5))
    assert found.store.attributes["labels"]["source"]["format"] == "clip-es"


def test_becos_scores(tmp_path: Path) -> None:
    """Twice the scores and another plane 0: the classes are divided by their maximum, 2, the background is 0.25."""
    score = torch.from_numpy(np.stack([np.full(SIZE, 0.7, np.float32), 2 * SECOND, 2 * FOURTH]))
    content = {"pred": EXPECTED.astype(np.int64), "score": score, "keys": np.array([0, 2, 4])}
    found = brought(tmp_path, {"x.pt": content, "none.pt": {**content, "score": score[:1], "keys": np.array([0])}},
                    {"x": [2, 4], "none": []})  # fmt: skip
    assert_found(found, EXPECTED, MARGIN)
    assert_found(found, np.zeros(SIZE), np.ones(SIZE), "none")
    assert found.store.attributes["labels"]["source"]["format"] == "beco-score"


def test_logits(tmp_path: Path) -> None:
    odds = np.stack([plane(1, 1, 1, 1, 1, 1), SECOND * 0, plane(8, 1, 0, 0, 0, 0), SECOND * 0, plane(0, 0, 0, 2, 0, 4)])
    with np.errstate(divide="ignore"):
        logits = np.log(np.maximum(odds, 1e-30)).astype(np.float32)[None]
    found = brought(tmp_path, {"x.npy": {"msc_seg": logits}}, {"x": [2, 4]})
    assert_found(found, np.array([[2, 0, 0], [4, 0, 4]]), plane(7 / 9, 0, 1, 1 / 3, 1, 3 / 5))


def test_strided_maps_are_enlarged(tmp_path: Path) -> None:
    cam = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    found = brought(tmp_path, {"x.npy": {"keys": torch.tensor([0]), "cam": cam}}, {"x": [1]}, (8, 7), background=0.3)
    other = torch.nn.functional.interpolate(cam[None], (8, 8), mode="bilinear", align_corners=False)[0, 0].numpy()
    other = other[:, :7]  # the last cell reaches beyond the picture
    assert_found(found, (other > 0.3).astype(np.uint8), np.abs(other - 0.3))


def test_a_picture_without_classes_is_background(tmp_path: Path) -> None:
    empty = {"keys": torch.zeros(0, dtype=torch.long), "cam": torch.zeros(0), "high_res": np.zeros((0, 9, 9))}
    found = brought(tmp_path, {"x.npy": TENSORS, "none.npy": empty}, {"x": [2, 4], "none": []})
    assert_found(found, np.zeros(SIZE), np.ones(SIZE), "none")
    (tmp_path / "numbered").mkdir()
    found = brought(tmp_path / "numbered", {"x.npy": {1: SECOND, 3: FOURTH}, "none.npy": {}}, {"x": [2, 4], "none": []})
    assert_found(found, np.zeros(SIZE), np.ones(SIZE), "none")


# --- PNGs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "RGBA"])
def test_label_pngs(tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    colours = Image.fromarray(voc_palette()[LABEL])
    picture = {"P": LABEL, "L": Image.fromarray(LABEL), "RGB": colours, "RGBA": colours.convert("RGBA")}[mode]
    with caplog.at_level(logging.INFO, "beco"):
        found = brought(tmp_path, {"x.png": picture, "x_palette.png": colours, "y.png": LABEL}, {"x": [2, 4]})
    assert_found(found, LABEL, LABEL != 255)
    form = "index-png" if mode in "PL" else "colour-png"
    assert f"recognised {form}" in caplog.text and "files: 1" in caplog.text
    assert "left out, files of no picture of this split: 1" in caplog.text  # y, but not the twin in colours


def test_export_and_import_are_inverse(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = listed(tmp_path, {name: [1, 2, 3, 4] for name in "ab"}, (20, 30))
    with store.create(tmp_path / "first.h5", classes=CLASSES) as writer:
        for name in pictures.ids:
            writer.put("label", name, rng.choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (20, 30)))
    cli.export_labels(tmp_path / "first.h5", tmp_path / "png")
    cli.import_labels(tmp_path / "png", tmp_path / "manifest.csv", tmp_path, tmp_path / "second.h5")
    first, second = PseudoLabels(tmp_path / "first.h5"), PseudoLabels(tmp_path / "second.h5")
    assert second.ids() == ["a", "b"]
    for name in pictures.ids:
        assert_found(second, first.label(name), first.label(name) != 255, name)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_index_map_comes_back(data: st.DataObject) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    cells = st.lists(st.sampled_from([0, 1, 2, 3, 4, 255]), min_size=height * width, max_size=height * width)
    label = np.array(data.draw(cells), np.uint8).reshape(height, width)
    with tempfile.TemporaryDirectory() as folder:
        grey = data.draw(st.booleans())
        picture = Image.fromarray(label) if grey else label
        found = brought(Path(folder), {"x.png": picture}, {"x": []}, (height, width))
        assert_found(found, label, label != 255)
        found.store.close()


def test_names_of_coco(tmp_path: Path) -> None:
    ids = ["COCO_train2014_000000000009", "000000000025", "30"]
    files = {"9.png": LABEL, "COCO_val2014_000000000025.png": LABEL, "000000000030.png": LABEL, "300.png": LABEL}
    found = brought(tmp_path, files, {name: [2, 4] for name in ids})
    assert sorted(found.ids()) == sorted(ids)
    for name in ids:
        assert_found(found, LABEL, LABEL != 255, name)


def test_missing_pictures_are_without_opinion_if_allowed(tmp_path: Path) -> None:
    found = brought(tmp_path, {"x.png": LABEL}, {"x": [2, 4], "y": [1]}, allow_missing=True)
    assert_found(found, np.full(SIZE, 255), np.zeros(SIZE), "y")


def test_classes_that_a_picture_is_not_labelled_with_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    brought(tmp_path, {"x.png": LABEL, "y.png": LABEL}, {"x": [2, 4], "y": [2]})
    assert "1 of 2 pictures hold classes" in caplog.text and "such as y" in caplog.text


# --- confidence ---------------------------------------------------------------------------------------------

TRUSTED = np.array([[1, 0, 1], [1, 1, 0]], np.uint8)


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(TRUSTED * 255),
        Image.fromarray(TRUSTED),
        Image.fromarray(np.stack([TRUSTED * 255] * 3, -1)),  # BECO's
        Image.fromarray(TRUSTED.astype(bool)),
    ],
)
def test_masks_as_confidence(tmp_path: Path, mask: Image.Image) -> None:
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks" / "x.png")
    found = brought(tmp_path, {"x.png": LABEL}, {"x": [2, 4]}, confidence=tmp_path / "masks")
    assert_found(found, LABEL, np.array([[1, 0, 1], [1, 0, 0]]))  # 0 where there is no opinion


def test_scores_as_confidence(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    written(tmp_path / "masks" / "x.npy", TENSORS)
    found = brought(tmp_path, {"x.png": LABEL}, {"x": [2, 4]}, confidence=tmp_path / "masks")
    assert_found(found, LABEL, np.where(LABEL == 255, 0, MARGIN))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (Image.fromarray(LABEL), ["1 × neither a 0/255 nor a 0/1 mask (masks/x.png: holds 0, 2, 4, 255)"]),
        (Image.fromarray(voc_palette()[LABEL]), ["in colours"]),
        (Image.fromarray(TRUSTED.T.copy()), ["masks/x.png: is 2×3, its picture 3×2"]),
    ],
)
def test_masks_that_are_none(tmp_path: Path, mask: Image.Image, words: list[str]) -> None:
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks" / "x.png")
    message = refused(tmp_path, {"x.png": LABEL}, {"x": [2, 4]}, confidence=tmp_path / "masks")
    assert all(word in message for word in words), message


# --- recognition --------------------------------------------------------------------------------------------


def test_numbers_are_told_apart_by_the_pictures_labels(tmp_path: Path) -> None:
    """{0, 1} are classes 1 and 2 counted from 0, or the background and class 1."""
    for number, (present, form) in enumerate([([1, 2], "seam"), ([1], "seam-crf")]):
        (folder := tmp_path / str(number)).mkdir()
        found = brought(folder, {"x.npy": {0: SECOND, 1: FOURTH}}, {"x": present})
        assert found.store.attributes["labels"]["source"]["format"] == form
    (folder := tmp_path / "unclear").mkdir()
    assert "--format seam or --format seam-crf" in refused(folder, {"x.npy": {0: SECOND, 1: FOURTH}}, {"x": [4]})


def test_a_named_format_is_taken_at_its_word(tmp_path: Path) -> None:
    found = brought(tmp_path, {"x.npy": {0: SECOND, 1: FOURTH}, "x.png": LABEL}, {"x": [4]}, form="seam")
    assert set(np.unique(found.label("x"))) == {0, 1, 2}


def test_the_help_lists_every_format() -> None:
    done = beco("import-labels", "--help")
    assert done.returncode == 0
    words = "".join(done.stdout.split())
    assert all(name in words.replace("│", "") for name in FORMATS)


# --- units ------------------------------------------------------------------------------------------------

SCORES = np.stack([SECOND, FOURTH])
RANGES = {
    "0 to 255": (255 * SCORES, "from 0 to 255"),
    "0 to 255, bytes": ((255 * SCORES).astype(np.uint8), "from 0 to 255"),
    "0 to 100": (100 * SCORES, "from 0 to 100"),
    "-10 to 10": (20 * SCORES - 10, "from -10 to 10"),
    "logarithms": (np.log(SCORES + 1e-4), "from -9.21 to"),
    "-1 to 0": (SCORES - 1, "from -1 to 0"),
}


@pytest.mark.parametrize("form", ["irn", "seam", "clip-es"])
@pytest.mark.parametrize("kind", RANGES)
def test_maps_of_another_unit_are_not_set_against_the_background(tmp_path: Path, form: str, kind: str) -> None:
    planes, words = RANGES[kind]
    content: dict[Any, Any] = {"keys": np.array([1, 3]), "high_res" if form == "irn" else "attn_highres": planes}
    content = {1: planes[0], 3: planes[1]} if form == "seam" else content
    message = refused(tmp_path, {"x.npy": content}, {"x": [2, 4]})
    assert f"source/x.npy: {words}" in message and "beyond 0 to 1" in message and "divide" in message, message
    with pytest.raises(UserError, match="beyond 0 to 1"):  # as beco check sees it
        imports.look(listed(tmp_path, {"x": [2, 4]}), tmp_path / "source")


@pytest.mark.parametrize("shift", [0.04, -0.04])
def test_overshooting_maps_are_within_their_unit(tmp_path: Path, shift: float) -> None:
    found = brought(tmp_path, {"x.npy": {1: SECOND + shift, 3: FOURTH + shift}}, {"x": [2, 4]}, background=0.2)
    assert {2, 4} <= set(np.unique(found.label("x")).tolist())
    assert imports.look(listed(tmp_path, {"x": [2, 4]}), tmp_path / "source") == "seam"


@pytest.mark.parametrize("unit", [255, 1])
def test_maps_with_a_background_of_their_own_have_any_unit(
    tmp_path: Path, unit: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The largest is the label in any unit; that thresholds on the confidence say nothing then is told."""
    planes = {0: np.full(SIZE, 0.25 * unit), 2: SECOND * unit, 4: FOURTH * unit}
    with caplog.at_level(logging.WARNING, "beco"):
        found = brought(tmp_path, {"x.npy": planes}, {"x": [2, 4]})
    assert found.label("x").tolist() == EXPECTED.tolist()
    assert ("1 of 1 pictures have scores beyond 0 to 1" in caplog.text) == (unit > 1)


def test_what_is_wrong_with_confidences_names_their_folder(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    written(tmp_path / "masks" / "x.npy", {1: 255 * SECOND, 3: FOURTH})
    files = {"x.png": LABEL, "y.png": LABEL.T.copy()}
    message = refused(tmp_path, files, {"x": [2, 4], "y": [2, 4]}, confidence=tmp_path / "masks")
    first, second = message.index(f"{tmp_path}/masks: "), message.index(f"{tmp_path}/source: ")
    assert "masks/x.npy: from 0 to 255" in message[first:] and "source/y.png: is 2×3" in message[second:], message


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"x.png": LABEL}, ["1 × no file (source/y)", "--allow-missing"]),
        ({"x.png": LABEL, "y.png": LABEL.T.copy()}, ["source/y.png: is 2×3, its picture 3×2"]),
        ({"x.png": LABEL, "y.png": b"\x89PNG nothing"}, ["1 × unreadable or damaged (source/y.png"]),
        ({"x.png": LABEL, "y.png": LABEL * 3}, ["beyond", "y.png: up to 253 of 4", "imsave"]),
        ({"x.png": LABEL, "y.png": Image.fromarray(voc_palette()[LABEL])}, ["not of this format", "mode RGB"]),
        ({n: Image.fromarray(voc_palette()[LABEL] + np.uint8(n > "x.png")) for n in ("x.png", "y.png")},
         ["colours that no label", "y.png: 4: #010101"]),
        ({"x.png": np.minimum(LABEL, 1) * 255, "y.png": LABEL * 0}, ["no pixel of any class", "masks"]),
        ({"x.png": LABEL, "y.npy": TENSORS}, [".npy and .png", "--format"]),
        ({"x.npy": TENSORS, "y.npy": {**TENSORS, "keys": torch.tensor([1, 9])}}, ["y.npy: label value 10 of 4"]),
        ({"x.npy": TENSORS, "y.npy": {**TENSORS, "keys": torch.tensor([7])}}, ["y.npy: label value 8 of 4"]),
        ({"x.npy": TENSORS, "y.npy": {**TENSORS, "high_res": np.zeros((5, *SIZE))}}, ["shape (5, 2, 3) for 2 keys"]),
        ({"x.npy": TENSORS, "y.npy": {**TENSORS, "high_res": np.zeros((2, 5, 5))}}, ["is 5×5, its picture 3×2"]),
        ({"x.npy": TENSORS, "y.npy": {**TENSORS, "high_res": np.full((2, *SIZE), np.nan)}}, ["NaN"]),
        ({"x.npy": TENSORS, "y.npy": {1: SECOND}}, ["1 × not of this format (source/y.npy", "`keys`"]),
        ({"x.npy": TENSORS, "y.npy": SECOND}, ["holds an array (2, 3) float32, not a dictionary"]),
        ({"x.npy": TENSORS, "y.npy": {"keys": "many", "cam": SECOND}}, ["something else than arrays of numbers"]),
        ({"x.npy": TENSORS, "y.npy": [1, 2]}, ["y.npy"]),
        ({"x.npy": TENSORS, "y.npy": b"\x93NUMPY\x01\x00"}, ["1 × unreadable or damaged (source/y.npy"]),
        ({"x.npy": {"classes": SECOND}, "y.npy": {"classes": SECOND}}, ["no known format (their keys are classes)"]),
        ({"x.pt": b"PK\x03\x04", "y.pt": b"nothing"}, ["no known format (x.pt unreadable"]),
        ({"a.png": LABEL}, ["none of its 1 files has the name", "x.png"]),
        ({"notes.txt": b""}, ["holds no .npy, .png, .pt, .pth file"]),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path: Path, files: dict[str, Any], words: list[str]) -> None:
    message = refused(tmp_path, files, {"x": [2, 4], "y": [2, 4]})
    assert "source" in message and all(word in message for word in words), message


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    files = {f"{n}.png": LABEL for n in range(3)} | {f"{n}.png": LABEL.T.copy() for n in range(3, 8)}
    message = refused(tmp_path, {**files, "0000.png": LABEL}, {str(n): [2, 4] for n in range(9)} | {"00": [1]})
    assert "5 × another size than the picture (source/3.png: is 2×3, its picture 3×2, source/4.png" in message
    assert message.count("another size") == 1 and ", …)" in message
    assert "1 × no file (source/8)" in message and "1 × more than one file (source/0.png)" in message


def test_folders_are_named(tmp_path: Path) -> None:
    pictures = listed(tmp_path, {"x": [1]})
    (tmp_path / "out" / "sem_seg").mkdir(parents=True)
    for folder, form, word in [
        ("none", "auto", "no such folder"),
        ("out", "auto", "sem_seg"),
        ("out", "x", "index-png"),
    ]:
        with pytest.raises(UserError, match=word):
            imports.make(pictures, tmp_path / folder, tmp_path / "labels.h5", form)


def test_a_refusal_at_the_command_line(tmp_path: Path) -> None:
    listed(tmp_path, {"x": [1], "y": [2]})
    (tmp_path / "source").mkdir()
    write_index_png(tmp_path / "source" / "x.png", LABEL * 30)
    done = beco("import-labels", tmp_path / "source", "--manifest", tmp_path / "manifest.csv", "--root", tmp_path,
                "--output", tmp_path / "labels.h5")  # fmt: skip
    assert_refused(done, "1 × values beyond the manifest's classes", "1 × no file", output=tmp_path / "labels.h5")
