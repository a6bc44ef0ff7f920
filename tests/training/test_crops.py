"""Pictures resized at random and cut out, padded, as IRN does it: sizes, places, colours, and their masks."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from beco.config import Crop, Encoder
from beco.datasets.manifest import IGNORE
from beco.training.augment import Normalise, unit_range
from beco.training.crops import RandomSize, weak_transform


def drawn(crop: Crop, height: int, width: int, count: int, **more: Any) -> list[tuple[Tensor, Tensor]]:
    """Crops of a white picture, whose mask is 1 everywhere."""
    image = tv_tensors.Image(torch.full((3, height, width), 255, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.ones(2, height, width, dtype=torch.uint8))
    transform, found = weak_transform(crop, **more), []
    for draw in range(count):
        torch.manual_seed(draw)
        found.append(transform(image, mask))
    return found


def box(mask: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of where the picture is."""
    rows, columns = (mask[0] == 1).any(1).nonzero()[:, 0], (mask[0] == 1).any(0).nonzero()[:, 0]
    return int(rows[0]), int(columns[0]), len(rows), len(columns)


def test_long_sides_are_whole_numbers_of_the_range_alike() -> None:
    for height, width in ((50, 100), (100, 50)):
        boxes = [box(mask) for _, mask in drawn(Crop(size=64, long_side=(40, 44)), height, width, 600)]
        sides = Counter(max(box[2:]) for box in boxes)
        assert set(sides) == {40, 41, 42, 43, 44} and min(sides.values()) > 80  # of 120
        for _, _, tall, wide in boxes:
            short, long = sorted((tall, wide))
            assert short == round(long / 2) and (tall > wide) == (height > width)


def test_factors_are_drawn_from_a_range() -> None:
    widths = [box(mask)[3] for _, mask in drawn(Crop(size=160, rescale=(0.5, 1.5)), 50, 100, 400)]
    assert min(widths) in (50, 51, 52) and max(widths) in (148, 149, 150)
    quarters = Counter(min((width - 50) // 25, 3) for width in widths)
    assert min(quarters.values()) > 60  # of 100; a list of a few factors would leave most widths out
    assert len(set(widths)) > 60


def test_a_smaller_picture_lies_anywhere_in_the_square() -> None:
    found = [box(mask) for _, mask in drawn(Crop(size=36, long_side=(32, 32)), 24, 32, 900)]
    assert {place[2:] for place in found} == {(24, 32)}
    tops, lefts = (Counter(place[axis] for place in found) for axis in (0, 1))
    assert set(tops) == set(range(13)) and min(tops.values()) > 35  # of 69
    assert set(lefts) == set(range(5)) and min(lefts.values()) > 120  # of 180


def test_a_larger_picture_is_cut_anywhere() -> None:
    ramp = torch.arange(40, dtype=torch.uint8).expand(3, 34, 40)
    image, lefts = tv_tensors.Image(ramp.contiguous()), Counter()
    for draw in range(300):
        torch.manual_seed(draw)
        found = weak_transform(Crop(size=32, long_side=(40, 40), flip=0.0))(image)
        assert found.shape == (3, 32, 32) and torch.equal(found[0, 0], ramp[0, 0, found[0, 0, 0] :][:32])
        lefts[int(found[0, 0, 0])] += 1
    assert set(lefts) == set(range(9)) and min(lefts.values()) > 15  # of 33


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)])
def test_the_padding_is_the_mean_colour_and_void(mean: tuple[float, float, float]) -> None:
    """IRN pads with zeros after normalisation; a colour of 8 bits is that to within half a level."""
    normalise = Normalise(Encoder(mean=mean))
    for image, mask in drawn(Crop(size=64, long_side=(32, 60)), 40, 60, 10, mean=mean):
        inside = mask[0] == 1
        assert 0 < int(inside.sum()) < 64 * 64 and (mask[:, ~inside] == IGNORE).all() and (mask[:, inside] == 1).all()
        assert (image[:, inside] == 255).all()
        found = normalise(unit_range(image.as_subclass(Tensor)[None]))[0][:, ~inside]
        assert float(found.abs().max()) <= 0.5 / 255 / 0.224 + 1e-6  # gray 124 would be 0.35 off in blue


def test_half_of_the_pictures_are_mirrored() -> None:
    image = tv_tensors.Image(torch.arange(32, dtype=torch.uint8).expand(3, 32, 32).contiguous())
    crop, mirrored = Crop(size=32, long_side=(32, 32)), 0
    for draw in range(200):
        torch.manual_seed(draw)
        found = weak_transform(crop)(image)
        assert torch.equal(found, image) or torch.equal(found, image.flip(-1))
        mirrored += bool(found[0, 0, 0])
    assert 70 < mirrored < 130


def test_labels_stay_on_their_pixels() -> None:
    """A ramp from 24 to 32 pixels, label by pixel centres: output i takes floor((i + ½) · ¾)."""
    ramp = torch.arange(24, dtype=torch.uint8).expand(2, 24, 24).contiguous()
    mask = tv_tensors.Mask(ramp)
    image = tv_tensors.Image((10 * ramp[:1]).expand(3, 24, 24).contiguous())
    found, planes = weak_transform(Crop(size=32, long_side=(32, 32), flip=0.0))(image, mask)
    assert planes[0, 0, :9].tolist() == [0, 1, 1, 2, 3, 4, 4, 5, 6] and isinstance(planes, tv_tensors.Mask)
    assert torch.equal(planes[1], planes[0]) and planes[0, 5].tolist() == [int((i + 0.5) * 0.75) for i in range(32)]
    assert float((found[0].float() - 10 * planes[0].float()).abs().max()) <= 5  # half a pixel of the ramp
    flat = RandomSize(Crop(long_side=(32, 32)))(image, tv_tensors.Mask(ramp[0]))
    assert torch.equal(flat[1], planes[0])  # a mask of one plane


def test_it_can_be_sent_to_a_loading_process() -> None:
    again: v2.Transform = pickle.loads(pickle.dumps(weak_transform(Crop(size=32, rescale=(0.5, 1.5)))))
    assert again(tv_tensors.Image(torch.zeros(3, 9, 9, dtype=torch.uint8))).shape == (3, 32, 32)
