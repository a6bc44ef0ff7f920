"""Weak and strong augmentation against hand-made cases and other libraries."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torchvision import tv_tensors

from beco.config import Crop
from beco.datasets.manifest import IGNORE
from beco.evaluation.scores.evaluate import squeezed
from beco.training import colour
from beco.training.colour import StrongColour
from beco.training.crops import resized_label, weak_transform
from beco.training.sampling import Draws


class Given(Draws):
    """Draws that are written down; columns as `StrongColour` reads them."""

    def __init__(self, **values: float) -> None:
        names = ("changed", "gray", "blurred", "contrast", "brightness", "hue", "saturation", "value", "wide")
        quiet = dict.fromkeys(names, 0.5) | {"changed": 0.99, "gray": 0.99, "blurred": 0.99}
        self.row = torch.tensor([[(quiet | values)[name] for name in names]])

    def uniform(self, *shape: int) -> Tensor:
        assert shape == (9,)
        return self.row


PICTURE = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2


def test_no_draw_below_its_chance_changes_nothing() -> None:
    assert torch.equal(StrongColour()(PICTURE, Given()), PICTURE)


def test_half_way_is_no_change() -> None:
    assert torch.allclose(StrongColour()(PICTURE, Given(changed=0)), PICTURE, atol=1e-6)


def test_contrast_and_brightness() -> None:
    found = StrongColour()(PICTURE, Given(changed=0, contrast=0.75, brightness=0.25))
    assert torch.allclose(found, PICTURE * 1.1 - 0.1, atol=1e-5)


def test_hue_saturation_and_value_agree_with_the_standard_library() -> None:
    found = StrongColour()(PICTURE, Given(changed=0, hue=1.0, saturation=0.25, value=0.75))
    for at in np.ndindex(7, 9):
        h, s, v = colorsys.rgb_to_hsv(*PICTURE[0, :, *at].tolist())
        expected = colorsys.hsv_to_rgb((h + 20 / 180) % 1, max(s - 15 / 255, 0), min(v + 10 / 255, 1))
        assert found[0, :, *at].tolist() == pytest.approx(expected, abs=1e-5)


def test_gray_is_luma() -> None:
    found = StrongColour()(PICTURE, Given(gray=0))
    expected = 0.299 * PICTURE[:, 0] + 0.587 * PICTURE[:, 1] + 0.114 * PICTURE[:, 2]
    assert all(torch.allclose(found[:, channel], expected, atol=1e-6) for channel in range(3))


@pytest.mark.parametrize(("wide", "taps"), [(0.9, [1, 2, 1]), (0.1, [1, 4, 6, 4, 1])])
def test_blur_agrees_with_scipy(wide: float, taps: list[int]) -> None:
    found = StrongColour()(PICTURE, Given(blurred=0, wide=wide))[0].numpy()
    weights = np.array(taps) / sum(taps)
    expected = PICTURE[0].numpy()
    for axis in (1, 2):
        expected = ndimage.correlate1d(expected, weights, axis, mode="mirror")
    assert np.allclose(found, expected, atol=1e-6)


def test_one_blur_in_three_is_of_three_pixels() -> None:
    """Over evenly spaced draws instead of random ones, so that the shares are exact."""
    point = torch.zeros(1, 3, 7, 7)
    point[..., 3, 3] = 1
    reach = []
    for number in range(300):
        found = StrongColour()(point, Given(blurred=0, wide=(number + 0.5) / 300))[0, 0]
        reach.append(int((found[3] > 0).sum()))
        assert torch.equal(found > 0, (found[3] > 0)[:, None] & (found[3] > 0))
    assert {width: reach.count(width) for width in set(reach)} == {3: 100, 5: 200}


def test_bgr_swaps_and_cuts_to_eight_bits() -> None:
    found = StrongColour("bgr")(PICTURE, Given(gray=0))
    eight = (PICTURE * 255).floor() / 255
    expected = ((0.299 * eight[:, 2] + 0.587 * eight[:, 1] + 0.114 * eight[:, 0]) * 255).floor() / 255
    assert torch.allclose(found[:, 0], expected, atol=1e-6)
    plain = StrongColour("bgr")(PICTURE, Given())
    assert torch.allclose(plain, eight, atol=1 / 254)


def test_chances_are_as_published() -> None:
    images = torch.rand(1, 3, 4, 4).repeat(4000, 1, 1, 1)
    draws = Draws(0, 4000, list(range(4000)), torch.device("cpu"))
    found = StrongColour()(images, draws)
    gray = (found[:, 0] == found[:, 1]).all((1, 2)).float().mean()
    same = (found == images).all(3).all(2).all(1).float().mean()
    assert gray == pytest.approx(0.2, abs=0.03) and same == pytest.approx(0.2 * 0.8 * 0.5, abs=0.02)
    assert math.isclose(colour.HUE, 20 / 180)


def test_strong_colour_keeps_the_range_and_draws_for_each_picture() -> None:
    images = torch.rand(1, 3, 16, 16).repeat(16, 1, 1, 1)
    found = StrongColour()(images, Draws(0, 16, list(range(16)), torch.device("cpu")))
    assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1
    assert len({tuple(one.flatten()[:6].tolist()) for one in found}) > 12
    assert torch.equal(StrongColour()(images, Draws(0, 16, list(range(16)), torch.device("cpu"))), found)


def test_scales_pad_with_void_and_cut_a_square() -> None:
    image = tv_tensors.Image(torch.full((3, 40, 60), 200, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.full((2, 40, 60), 1, dtype=torch.uint8))
    sizes = set()
    for draw in range(20):
        torch.manual_seed(draw)
        found, planes = weak_transform(Crop(size=64, scales=[0.5, 1.0, 2.0], flip=0.0))(image, mask)
        assert found.shape == (3, 64, 64) and planes.shape == (2, 64, 64)
        inside = planes[0] == 1
        assert torch.equal(planes[0] == IGNORE, ~inside)
        assert (found[:, inside] == 200).all() and (found[:, ~inside] == 124).all()
        rows, columns = inside.any(1).sum(), inside.any(0).sum()
        sizes.add((int(rows), int(columns)))
    assert sizes == {(20, 30), (40, 60), (64, 64)}


# --- picture and label stay together ------------------------------------------------------------------------


def coordinates(height: int, width: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """A picture that says which row and column each of its places is, and the same as two planes of labels."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.ones_like(rows)])  # of what is no picture the third channel tells
    return tv_tensors.Image(image.float()), tv_tensors.Mask(torch.stack([rows, columns]).to(torch.uint8))


def test_a_ramp_of_labels_by_hand() -> None:
    """24 to 32 pixels: the centre of new pixel i is at (i + 0.5) · 3/4."""
    by_hand = [0, 1, 1, 2, 3, 4, 4, 5, 6]
    assert resized_label(torch.arange(24, dtype=torch.uint8).expand(24, 24), (32, 32))[5, :9].tolist() == by_hand
    for crop in (Crop(size=32, area=(1, 1), ratio=(1, 1), flip=0), Crop(size=32, scales=[32 / 24], flip=0)):
        _, planes = weak_transform(crop)(*coordinates(24, 24))
        assert planes[1, 5, :9].tolist() == by_hand and planes[0, :9, 5].tolist() == by_hand


@pytest.mark.parametrize(
    "crop",
    [
        Crop(size=32, area=(0.2, 1)),
        Crop(size=45, area=(0.5, 0.75)),
        Crop(size=64, area=(0.1, 0.3), ratio=(0.5, 2)),
        Crop(size=64, scales=[0.5, 0.75, 1, 1.5, 1.75, 2]),
        Crop(size=32, scales=[0.3, 1.1, 2.7]),
    ],
)
@pytest.mark.parametrize("sides", [(24, 24), (33, 71), (64, 64), (100, 75), (251, 190)])
def test_labels_lie_where_the_picture_shows_them(crop: Crop, sides: tuple[int, int]) -> None:
    """The label of a new pixel is that of the old one under its centre, and neither side is favoured.

    Where the centre lies between two old pixels, the latter is taken; these do not count as a favour.
    """
    image, mask = coordinates(*sides)
    transform, away = weak_transform(crop), []
    for draw in range(12):
        torch.manual_seed(draw)
        found, planes = transform(image, mask)
        inside = (found[2] == 1) & (planes[0] != IGNORE)
        for axis in (0, 1):
            shown, said = found[axis].double(), planes[axis].double()
            # along its edges a picture that is made smaller is an average of fewer pixels, so that the ramp bends
            inner = inside & (shown > 3) & (shown < sides[axis] - 4)
            inner[[0, 1, 2, -3, -2, -1]] = inner[:, [0, 1, 2, -3, -2, -1]] = False
            away.append((said - shown)[inner])
    every = torch.cat(away)
    assert every.abs().max() < 0.5 + 1e-3
    decided = every[every.abs() < 0.5 - 1e-3]
    assert len(decided) > 1000 and abs(decided.mean()) < 0.06


def test_two_ways_of_resizing_labels_agree() -> None:
    """Validation squeezes with torch, the final evaluation with Pillow; no centre here lies between two pixels."""
    generator = np.random.default_rng(0)
    for height, width, side in [(24, 31, 32), (375, 500, 512), (333, 499, 321), (99, 61, 45), (17, 90, 200)]:
        label = generator.integers(0, 21, (height, width), np.uint8)
        assert np.array_equal(resized_label(torch.from_numpy(label), (side, side)).numpy(), squeezed(label, side))
