"""Pseudo-labels of other programs: every layout of files, what is refused, and that no file runs code."""

from __future__ import annotations

import io
import logging
import os
import pickle
import shlex
import struct
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_bad_input import assert_refused, beco

from beco import store
from beco.cli import stage1 as cli
from beco.datasets import manifest as manifests
from beco.datasets.manifest import Manifest
from beco.datasets.palette import voc_palette, write_index_png
from beco.errors import UserError
from beco.pseudolabels import PseudoLabels
from beco.stage1 import imports
from beco.stage1.foreign_formats import FORMATS

CLASSES = ["ant", "bee", "cow", "dog"]
SIZE = (2, 3)  # height, width
LABEL = np.array([[0, 2, 2], [4, 255, 0]], np.uint8)


def listed(folder: Path, pictures: dict[str, list[int]], size: tuple[int, int] = SIZE) -> Manifest:
    """A manifest of pictures with their label values; the pictures themselves are nowhere needed."""
    header = ",".join([*manifests.COLUMNS, *CLASSES])
    rows = [
        f"{name},train,{name}.jpg,,{size[1]},{size[0]},{','.join(str(int(k + 1 in present)) for k in range(4))}"
        for name, present in pictures.items()
    ]
    (folder / "manifest.csv").write_text("\n".join([header, *rows]) + "\n")
    return manifests.read(folder / "manifest.csv", folder)


def brought(
    folder: Path, files: dict[str, Any], pictures: dict[str, list[int]], size: tuple[int, int] = SIZE, **options: Any
) -> PseudoLabels:
    """Write the files and import them. Arrays become palette PNGs, dictionaries .npy or .pt, bytes stay as they are."""
    source = folder / "source"
    source.mkdir()
    for name, content in files.items():
        written(source / name, content)
    imports.make(listed(folder, pictures, size), source, folder / "labels.h5", **options)
    return PseudoLabels(folder / "labels.h5")


def written(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Image.Image):
        content.save(path)
    elif path.suffix == ".png":
        write_index_png(path, content)
    elif path.suffix == ".pt":
        torch.save(content, path)
    else:
        np.save(path, content, allow_pickle=True)


def refused(folder: Path, files: dict[str, Any], pictures: dict[str, list[int]], **options: Any) -> str:
    """The one line with which an import is refused; nothing may be left behind."""
    with pytest.raises(UserError) as caught:
        brought(folder, files, pictures, **options)
    assert sorted(path.name for path in folder.iterdir() if path.name != "masks") == ["manifest.csv", "source"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def plane(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(SIZE)


# Two classes, 2 and 4 (from 0: 1 and 3). With the background at 0.25:
SECOND = plane(0.9, 0.1, 0.5, 0.0, 0.25, 1.0)
FOURTH = plane(0.2, 0.2, 0.75, 0.625, 0.0, 0.5)
EXPECTED = np.array([[2, 0, 4], [4, 0, 2]], np.uint8)  # background wins the tie at 0.25
MARGIN = plane(0.65, 0.05, 0.25, 0.375, 0.0, 0.5)
TENSORS = {"keys": torch.tensor([1, 3]), "cam": torch.zeros(2, 1, 1), "high_res": np.stack([SECOND, FOURTH])}


def assert_found(labels: PseudoLabels, label: np.ndarray, confidence: np.ndarray, name: str = "x") -> None:
    found = labels.confidence(name)
    assert labels.label(name).dtype == np.uint8 and found.dtype == np.float32
    assert labels.label(name).tolist() == label.tolist()
    assert found.astype(float) == pytest.approx(confidence.astype(float), abs=0.5 / 255 + 1e-6)


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
    other = torch.nn.functional.interpolate(cam[None], (8, 7), mode="bilinear", align_corners=False)[0, 0].numpy()
    assert_found(found, (other > 0.3).astype(np.uint8), np.abs(other - 0.3))


def test_a_picture_without_classes_is_background(tmp_path: Path) -> None:
    empty = {"keys": torch.zeros(0, dtype=torch.long), "cam": torch.zeros(0), "high_res": np.zeros((0, 9, 9))}
    found = brought(tmp_path, {"x.npy": TENSORS, "none.npy": empty}, {"x": [2, 4], "none": []})
    assert_found(found, np.zeros(SIZE), np.ones(SIZE), "none")
    (tmp_path / "numbered").mkdir()
    found = brought(tmp_path / "numbered", {"x.npy": {1: SECOND, 3: FOURTH}, "none.npy": {}}, {"x": [2, 4], "none": []})
    assert_found(found, np.zeros(SIZE), np.ones(SIZE), "none")


def elsewhere(content: bytes) -> bytes:
    """What `torch.save` wrote, as if from a GPU."""
    assert b"X\x03\x00\x00\x00cpu" in content
    return content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")


def storage_of(tensor: torch.Tensor) -> Any:
    return torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)


def saved(value: Any, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


class Reduced:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.called


def test_tensors_from_a_gpu(tmp_path: Path) -> None:
    """In a .npy a tensor holds the bytes of a torch.save of its storage; in a .pt its place stands in data.pkl."""
    maps = torch.from_numpy(np.stack([SECOND, FOURTH]))
    storage = Reduced(torch.storage._load_from_bytes, elsewhere(saved(storage_of(maps), legacy=True)))
    tensor = Reduced(torch._utils._rebuild_tensor_v2, storage, 0, (2, *SIZE), (6, 3, 1), False, {})
    assert_found(
        brought(tmp_path, {"x.npy": {"keys": torch.tensor([1, 3]), "high_res": tensor}}, {"x": [2, 4]}),
        EXPECTED,
        MARGIN,
    )

    content = {"score": torch.cat([torch.full((1, *SIZE), 0.25), maps]).half(), "keys": np.array([0, 2, 4])}
    moved = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(content))) as old, zipfile.ZipFile(moved, "w") as new:
        for name in old.namelist():
            new.writestr(name, elsewhere(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(io.BytesIO(moved.getvalue()), weights_only=False)
    (tmp_path / "pt").mkdir()
    assert_found(brought(tmp_path / "pt", {"x.pt": moved.getvalue()}, {"x": [2, 4]}), EXPECTED, MARGIN)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_pickles_of_older_programs(tmp_path: Path, protocol: int, core: str) -> None:
    """numpy 1 names its functions otherwise, and old protocols keep bytes as Latin-1 text."""
    content = pickle_of(np.array({1: SECOND, 3: FOURTH}, object), protocol)
    for name in (b"numpy.core", b"numpy._core"):
        content = renamed(content, name + b".multiarray", core.encode() + b".multiarray", protocol)
    assert_found(brought(tmp_path, {"x.npy": content}, {"x": [2, 4]}), EXPECTED, MARGIN)


def pickle_of(value: Any, protocol: int = 4) -> bytes:
    """A .npy file of a 0-d array of objects, with any pickle in it."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    return header.getvalue() + (value if isinstance(value, bytes) else pickle.dumps(value, protocol))


def renamed(content: bytes, old: bytes, new: bytes, protocol: int) -> bytes:
    """Replace a name in a pickle; in protocol 4 its length stands before it, and frames are left out."""
    if protocol < 4:
        return content.replace(old, new)
    start = content.index(b"\x80\x04") + 2
    if content[start : start + 1] == b"\x95":
        content = content[:start] + content[start + 9 :]
    return content.replace(bytes([0x8C, len(old)]) + old, bytes([0x8C, len(new)]) + new)


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


# --- hostile files ------------------------------------------------------------------------------------------


def by_name(module: str, name: str, argument: str, protocol: int = 4) -> bytes:
    """A pickle that calls the function of that name, which protocol 4 lets go through attributes."""
    text = argument.encode()
    if protocol < 4:
        called = f"c{module}\n{name}\n".encode()
    else:
        called = b"".join(bytes([0x8C, len(part)]) + part.encode() for part in (module, name)) + b"\x93"
    return bytes([0x80, protocol]) + called + b"X" + struct.pack("<I", len(text)) + text + b"\x85R."


def in_torch_bytes(blob: bytes) -> bytes:
    """A tensor in a .npy whose storage holds a pickle of its own."""
    return pickle.dumps({"cam": Reduced(torch.storage._load_from_bytes, blob)}, 4)


HOSTILE: dict[str, Callable[[str], bytes]] = {
    "os.system": lambda command: pickle.dumps(Reduced(os.system, command), 2),
    "in the array": lambda command: pickle.dumps(np.array({"cam": Reduced(os.system, command)}, object), 4),
    "eval": lambda command: pickle.dumps(Reduced(eval, f"__import__('os').system({command!r})"), 4),
    "protocol 0": lambda command: b"cos\nsystem\n(V" + command.encode() + b"\ntR.",
    "f2py": lambda command: by_name("numpy.f2py", "os.system", command),
    "dotted": lambda command: by_name("torch.serialization", "os.system", command),
    "copyreg": lambda command: pickle.dumps(Reduced(getattr, Reduced(__import__, "os"), "system"), 4)[:-1]
    + b"X" + struct.pack("<I", len(command)) + command.encode() + b"\x85R.",
    "in torch's bytes": lambda command: in_torch_bytes(pickle.dumps(Reduced(os.system, command), 2)),
    "in torch's archive": lambda command: in_torch_bytes(saved(Reduced(os.system, command))),
    "inst": lambda command: b"(V" + command.encode() + b"\nios\nsystem\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_no_pickle_runs_code(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    blob = HOSTILE[name](f"touch {shlex.quote(str(marker))}")
    with suppress(RuntimeError):  # torch runs the pickle, and only then looks whether it is what it should be
        pickle.loads(blob)
    assert marker.exists()  # the ordinary way to read it would have done it
    marker.unlink()
    (folder := tmp_path / "import").mkdir()
    message = refused(folder, {"x.npy": TENSORS, "y.npy": pickle_of(blob)}, {"x": [2, 4], "y": [2]})
    assert "1 × would run code when read, refused (source/y.npy: names " in message, message
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_no_archive_of_torch_runs_code(tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "marker"
    blob = saved({"score": Reduced(os.system, f"touch {shlex.quote(str(marker))}"), "keys": 1}, legacy)
    torch.load(io.BytesIO(blob), weights_only=False)
    assert marker.exists()
    marker.unlink()
    content, before = {"score": torch.ones(2, *SIZE), "keys": np.array([0, 2])}, torch.serialization.get_safe_globals()
    (folder := tmp_path / "import").mkdir()
    message = refused(folder, {"x.pt": content, "y.pt": blob}, {"x": [2], "y": [2]})
    assert "1 × would run code when read, refused (source/y.pt: names posix.system)" in message
    assert not marker.exists() and torch.serialization.get_safe_globals() == before


def state_of(name: str, state: Any) -> bytes:
    """A pickle that gives a function a new state, such as other default values."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode() + pickle.dumps(state, 0)[:-1] + b"b."


def test_a_pickle_cannot_alter_what_it_may_call(tmp_path: Path) -> None:
    blob = state_of("torch._utils._rebuild_tensor_v2", (None, {"__defaults__": (1, 2)}))
    pickle.loads(blob)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (1, 2)
    torch._utils._rebuild_tensor_v2.__defaults__ = (None,)
    message = refused(tmp_path, {"x.npy": TENSORS, "y.npy": pickle_of(blob)}, {"x": [2, 4], "y": [2]})
    assert "alters a function" in message
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


class Vast(np.ndarray):
    """An array whose pickle claims another shape or kind than its bytes have."""

    claimed: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), self.claimed


@pytest.mark.parametrize(
    "state",
    [
        (1, (10**6, 10**6), np.dtype("f4"), False, b"1234"),
        (1, (-1, 3), np.dtype("f4"), False, b"1234"),
        (1, (1,), np.dtype("V8"), False, b"12345678"),
        (1, (2,), np.dtype("O"), False, [1, 2]),
        (1, (2,), np.dtype("O"), False, b"1234567812345678"),  # forged pointers, were they believed
    ],
)
def test_arrays_that_claim_what_they_are_not(tmp_path: Path, state: tuple[Any, ...]) -> None:
    array = np.zeros(1).view(Vast)
    array.claimed = state
    message = refused(tmp_path, {"x.npy": TENSORS, "y.npy": {**TENSORS, "high_res": array}}, {"x": [2, 4], "y": [2]})
    assert "1 × unreadable" in message or "1 × not of this format" in message


def test_a_tensor_beyond_its_storage(tmp_path: Path) -> None:
    tensor = Reduced(
        torch._utils._rebuild_tensor_v2, storage_of(torch.zeros(6)), 0, (2, 10**6, 10**6), (6, 3, 1), False, {}
    )
    message = refused(
        tmp_path, {"x.npy": TENSORS, "y.npy": {"keys": torch.tensor([1]), "cam": tensor}}, {"x": [2, 4], "y": [2]}
    )
    assert "1 × unreadable or damaged (source/y.npy: setStorage" in message
