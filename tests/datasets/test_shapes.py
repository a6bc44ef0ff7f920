"""The embedded dataset: reproducible, valid VOC, and hard in the ways it claims to be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beco.config import Shapes
from beco.datasets import shapes, voc
from beco.datasets.manifest import Manifest
from beco.datasets.shapes_drawing import KINDS, Picture, _unit_areas, draw_picture
from beco.datasets.shapes_looks import BODIES
from beco.errors import UserError

COUNT = 150


def settings(**values: int) -> Shapes:
    return Shapes.model_validate(values)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [draw_picture(np.random.default_rng([7, 0, index]), 64) for index in range(COUNT)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("shapes") / "drawn"
    shapes.draw(root, settings(seed=7, train=20, val=6))
    return voc.build(root, "train", "val", shapes.CLASSES, root / "manifest.csv")


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- the files ----------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_and_more_pictures_change_none(tmp_path: Path) -> None:
    for name, asked in {
        "once": settings(seed=3, train=3, val=2),
        "again": settings(seed=3, train=3, val=2),
        "more": settings(seed=3, train=5, val=2),
        "other": settings(seed=4, train=3, val=2),
    }.items():
        shapes.draw(tmp_path / name, asked)
    once, again, more, other = (digests(tmp_path / name) for name in ("once", "again", "more", "other"))
    assert once == again
    assert len(once) == 5 * 3 + 3
    pictures = {name for name in once if name.startswith(("JPEGImages", "Annotations", "SegmentationClass"))}
    assert all(more[name] == once[name] for name in pictures)
    assert len({once[name] for name in once if name.endswith(".jpg")}) == 5  # train and val differ
    assert all(other[name] != once[name] for name in pictures if name.endswith(".jpg"))


def test_image_level_labels_are_the_classes_of_the_mask(drawn: Manifest) -> None:
    assert len(drawn.split("train")) == 20 and len(drawn.split("val")) == 6
    for image_id in drawn.ids:
        values = set(np.unique(drawn.mask(image_id)).tolist())
        assert 255 in values and 0 in values
        assert values - {0, 255} == set(drawn.present(image_id))
        assert drawn.size(image_id) == drawn.mask(image_id).shape == (64, 64)


def test_files_are_what_voc_readers_expect(drawn: Manifest) -> None:
    assert (drawn.root / "classes.txt").read_text().split() == shapes.CLASSES
    with Image.open(drawn.root / "SegmentationClass" / "val_00000.png") as stored:
        assert stored.mode == "P"
    tree = voc.SafeTree.parse(drawn.root / "Annotations" / "val_00000.xml")
    mask = drawn.mask("val_00000")
    boxed = np.zeros_like(mask, dtype=bool)
    for box in tree.iter("bndbox"):
        left, top, right, bottom = (int(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax"))
        assert 1 <= left < right <= 64 and 1 <= top < bottom <= 64
        boxed[top - 1 : bottom, left - 1 : right] = True
    assert not ((mask > 0) & (mask < 255) & ~boxed).any()


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="mine: holds other files"):
        shapes.draw(tmp_path / "mine", settings(train=1, val=1))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    (tmp_path / "empty" / "ImageSets").mkdir(parents=True)  # as a workflow leaves it
    for _ in range(2):  # and its own drawing may be replaced
        shapes.draw(tmp_path / "empty", settings(train=1, val=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine"]


@pytest.mark.parametrize("size", [48, 50, 200])
def test_any_size_shows_the_same_scene(size: int) -> None:
    small, large = (draw_picture(np.random.default_rng(1), side) for side in (64, size))
    assert large.image.shape == (size, size, 3) and large.image.dtype == np.uint8
    assert large.label.shape == (size, size) and large.label.dtype == np.uint8
    assert small.objects == large.objects and small.background == large.background
    for number in range(len(small.objects)):
        assert (large.owner == number).mean() == pytest.approx((small.owner == number).mean(), abs=0.01)


# --- the world ----------------------------------------------------------------------------------------------


def test_objects_are_neither_tiny_nor_hidden(pictures: list[Picture]) -> None:
    areas = [(p.owner == number).mean() for p in pictures for number in range(len(p.objects))]
    assert min(areas) >= 0.055 and max(areas) <= 0.26
    assert 0.10 < np.mean(areas) < 0.16
    assert 0.22 < np.mean([(p.owner >= 0).mean() for p in pictures]) < 0.35
    for picture in pictures:
        for number, label in enumerate(picture.objects):
            assert (picture.label[picture.owner == number] == label).sum() > 50


def test_the_border_is_a_thin_ring_along_outlines(pictures: list[Picture]) -> None:
    for picture in pictures:
        border = picture.label == 255
        across = picture.owner[:, 1:] != picture.owner[:, :-1]
        assert border[:, 1:][across].all() and border[:, :-1][across].all()
        assert 0.02 < border.mean() < 0.25
        inside = picture.label[~border]
        values = np.array([*picture.objects, 0])[picture.owner[~border]]
        assert np.array_equal(inside, values)


def test_classes_are_balanced_and_objects_are_one_to_three(pictures: list[Picture]) -> None:
    labels = [label for picture in pictures for label in picture.objects]
    counts = np.bincount(labels, minlength=7)
    assert counts[0] == 0 and len(counts) == 7
    assert counts[1:].min() > 0.6 * counts[1:].max()
    numbers = np.bincount([len(picture.objects) for picture in pictures], minlength=4) / COUNT
    assert len(numbers) == 4 and numbers[0] == 0
    assert numbers[1:] == pytest.approx([0.25, 0.45, 0.30], abs=0.12)


def test_two_classes_have_habitats_and_the_others_live_anywhere(
    pictures: list[Picture],
) -> None:
    for label, kind in enumerate(KINDS, start=1):
        seen = [picture.background for picture in pictures if label in picture.objects]
        if kind.habitat:
            assert 0.68 < seen.count(kind.habitat) / len(seen) < 0.92
        else:
            assert len(set(seen)) == 4
            assert max(seen.count(name) for name in set(seen)) / len(seen) < 0.6
    assert sum(kind.habitat is not None for kind in KINDS) == 2


def test_pairs_share_a_body_and_differ_in_a_small_part() -> None:
    assert sorted(kind.body for kind in KINDS) == sorted([*BODIES] * 2)
    assert len({kind.emblem for kind in KINDS}) == len(KINDS) == 6
    for name in BODIES:
        whole, part = _unit_areas(name)
        assert 0.10 < part / whole < 0.20


def test_colour_alone_does_not_segment(pictures: list[Picture]) -> None:
    """The best lookup from colour to foreground, fitted to these very pictures, stays far from the masks."""
    colours = np.concatenate([picture.image.reshape(-1, 3) for picture in pictures]) // 32
    bins = np.ravel_multi_index(tuple(colours.T.astype(np.int64)), (8, 8, 8))
    truth = np.concatenate([picture.owner.ravel() >= 0 for picture in pictures])
    share = np.bincount(bins, truth, 512) / np.maximum(np.bincount(bins, minlength=512), 1)
    guess = share[bins] > 0.35
    overlap = (guess & truth).sum() / (guess | truth).sum()
    assert 0.3 < overlap < 0.65
