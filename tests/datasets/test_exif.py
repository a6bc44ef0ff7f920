"""Pictures that a camera stored lying or mirrored: all that the program sees is what a viewer shows."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from beco.datasets import manifest, voc
from beco.datasets.palette import read_index_png, write_index_png
from beco.errors import UserError
from beco.exchange.foreign_formats import Unfit, read_png

STORED = np.array([[10, 60, 110], [160, 200, 250]], np.uint8)
# The EXIF standard names the visual side of the stored first row and first column; turned accordingly by hand:
SHOWN = {
    1: [[10, 60, 110], [160, 200, 250]],
    2: [[110, 60, 10], [250, 200, 160]],
    3: [[250, 200, 160], [110, 60, 10]],
    4: [[160, 200, 250], [10, 60, 110]],
    5: [[10, 160], [60, 200], [110, 250]],
    6: [[160, 10], [200, 60], [250, 110]],
    7: [[250, 110], [200, 60], [160, 10]],
    8: [[110, 250], [60, 200], [10, 160]],
}
BLOCK = 16  # of JPEG with subsampled colours


def save(path: Path, orientation: int, scale: int = 1) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(enlarged(STORED, scale)).convert("RGB").save(path, exif=exif)
    return path


def enlarged(array: np.ndarray, scale: int) -> np.ndarray:
    return np.kron(array, np.ones((scale, scale), np.uint8))


@pytest.mark.parametrize("orientation", SHOWN)
def test_a_picture_is_what_a_viewer_shows(tmp_path: Path, orientation: int) -> None:
    picture = manifest.read_picture(save(tmp_path / "a.png", orientation))
    assert picture.dtype == np.uint8 and picture.flags.c_contiguous
    assert picture[..., 0].tolist() == picture[..., 2].tolist() == SHOWN[orientation]


def dataset(folder: Path, orientation: int, masks_of: int) -> Path:
    """A VOC folder of one training and one validation picture; masks as shown under the orientation `masks_of`."""
    for name in ("a", "b"):
        save(folder / "JPEGImages" / f"{name}.jpg", orientation, BLOCK)
        mask = np.where(np.array(SHOWN[masks_of]) > 100, 1, 0).astype(np.uint8)
        write_index_png(folder / "SegmentationClass" / f"{name}.png", enlarged(mask, BLOCK))
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{name}.xml").write_text(
            "<annotation><object><name>cat</name></object></annotation>"
        )
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    return folder


@pytest.mark.parametrize("orientation", SHOWN)
def test_picture_mask_and_size_agree(tmp_path: Path, orientation: int, caplog: pytest.LogCaptureFixture) -> None:
    root = dataset(tmp_path / "voc", orientation, orientation)
    with caplog.at_level(logging.WARNING, "beco"):
        found = voc.build(root, "train", "val", ["cat"], tmp_path / "manifest.csv")
    mask, picture = found.mask("a"), found.image("a")
    assert found.size("a") == mask.shape == picture.shape[:2] == enlarged(np.array(SHOWN[orientation]), BLOCK).shape
    assert np.array_equal(mask == 1, picture[..., 1] > 105)  # JPEG: the greys are far apart
    assert ("2 pictures carry an EXIF orientation" in caplog.text) == (orientation != 1)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_on_the_pixels_as_stored_is_named_with_its_mend(tmp_path: Path, orientation: int) -> None:
    root = dataset(tmp_path / "voc", orientation, 1)
    with pytest.raises(UserError) as caught:
        voc.build(root, "train", "val", ["cat"], tmp_path / "manifest.csv")
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 2 and all("is 48×32, its picture 32×48" in line for line in lines)
    assert all("EXIF orientation: turn the mask alike, or take the orientation out" in line for line in lines)


def test_another_size_is_not_blamed_on_exif(tmp_path: Path) -> None:
    root = dataset(tmp_path / "voc", 6, 6)
    write_index_png(root / "SegmentationClass" / "a.png", np.zeros((5, 7), np.uint8))
    with pytest.raises(UserError, match="give both the same size"):
        voc.build(root, "train", "val", ["cat"], tmp_path / "manifest.csv")


@pytest.mark.parametrize("orientation", [2, 5, 6])
def test_masks_obey_their_own_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(STORED // 50).save(tmp_path / "a.png", exif=exif)
    shown = np.array(SHOWN[orientation]) // 50
    assert np.array_equal(read_index_png(tmp_path / "a.png"), shown)
    assert np.array_equal(read_png(tmp_path / "a.png", "index-png", shown.shape, 5), shown)
    with pytest.raises(Unfit):
        read_png(tmp_path / "a.png", "index-png", (2, 4), 5)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_do_not_exist_turn_nothing(tmp_path: Path, value: int) -> None:
    assert manifest.read_picture(save(tmp_path / "a.png", value))[..., 0].tolist() == STORED.tolist()


@pytest.mark.parametrize("kept", range(0, 40, 3))
def test_a_broken_exif_block_is_no_crash(tmp_path: Path, kept: int) -> None:
    path = save(tmp_path / "a.jpg", 6, BLOCK)
    content = bytearray(path.read_bytes())
    start = content.index(b"Exif\0\0") + 6
    content[start + kept : start + kept + 4] = b"\xff\xfe\xfd\xfc"
    path.write_bytes(content)
    try:
        assert manifest.read_picture(path).shape in {(32, 48, 3), (48, 32, 3)}
    except UserError as error:
        assert "a.jpg" in str(error) and "\n" not in str(error)
