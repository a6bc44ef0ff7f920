"""Coarse maps on a picture: each cell where it was made, whatever the picture's size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.transform import resize
from torch.nn import functional as F

from beco.artifacts.grids import cell_sides, covering, grid, upsampled
from beco.stage1.placing import placed

SIZES = [(64, 96), (375, 500), (333, 500), (75, 61), (17, 33)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [4, 8, 16])
def test_an_edge_of_half_a_plane_stays_where_it_is(size: tuple[int, int], stride: int) -> None:
    """Cells that hold their mean column: at every pixel between the first and last centre the column itself."""
    rows, columns = grid(*size, stride)
    cam = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")).astype(np.float32)
    cam = (cam + 0.5) * stride - 0.5
    found = upsampled(cam, *size)
    assert found.shape == (2, *size) and found.dtype == np.float32
    for axis, (count, cells) in enumerate(zip(size, (rows, columns), strict=True)):
        along = found[axis].take(0, 1 - axis)
        last = (cells - 0.5) * stride - 0.5
        assert along == pytest.approx(np.clip(np.arange(count), (stride - 1) / 2, last), abs=1e-3)
        edge = count // 2
        assert ((along > edge - 0.5) == (np.arange(count) >= edge))[stride:-stride].all()


@pytest.mark.parametrize("size", SIZES)
def test_maps_for_a_browser_cover_the_picture_exactly(size: tuple[int, int]) -> None:
    """Cells that hold their centre's column; stretched over the picture, each lies where its value says."""
    rows, columns = grid(*size, 8)
    made = (np.arange(columns) + 0.5) * 8
    found = covering(np.tile(made, (1, rows, 1)), size)
    stretched = (np.arange(columns) + 0.5) * size[1] / columns
    assert found.shape == (1, rows, columns)
    assert found[0, 0] == pytest.approx(np.clip(stretched, made[0], made[-1]), rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_maps_of_a_resized_picture(size: tuple[int, int]) -> None:
    fed = (round(size[0] * 130 / max(size)), round(size[1] * 130 / max(size)))
    sides = (4 * size[0] / fed[0], 4 * size[1] / fed[1])
    assert cell_sides(grid(*fed), size, 130) == pytest.approx(sides)
    columns = (np.arange(grid(*fed)[1]) + 0.5) * sides[1]
    found = upsampled(np.tile(columns, (1, grid(*fed)[0], 1)), *size, 130)[0, 0]
    expected = np.clip(np.arange(size[1]) + 0.5, columns[0], columns[-1])
    assert found == pytest.approx(expected, rel=1e-5)


def test_any_other_map_covers_the_picture_exactly() -> None:
    cam = np.random.default_rng(0).random((2, 7, 9), np.float32)
    assert cell_sides((7, 9), (50, 40)) == (50 / 7, 40 / 9)
    theirs = np.stack([resize(plane, (50, 40), order=1, mode="edge") for plane in cam])
    assert upsampled(cam, 50, 40) == pytest.approx(theirs, abs=1e-5)
    assert upsampled(cam[:0], 50, 40).shape == (0, 50, 40)
    assert np.array_equal(upsampled(cam, 7, 9), cam)


def test_tensors_like_arrays_and_mirrored_ones() -> None:
    maps = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    found = placed(maps, (20, 26), (4, 4))
    assert found[1].numpy() == pytest.approx(upsampled(maps[1].numpy(), 20, 26), abs=1e-6)
    by_torch = F.interpolate(maps, (20, 28), mode="bilinear", align_corners=False)
    assert torch.allclose(placed(maps, (20, 28), (4, 4)), by_torch, atol=1e-6)
    # the mirror image of a picture 26 wide: its first cell is at the picture's right edge
    mirrored = placed(maps, (20, 26), (4, 4), mirrored=26)
    assert torch.allclose(mirrored.flip(-1), found, atol=1e-6)


def test_sizes_by_hand() -> None:
    assert grid(375, 500) == (94, 125) and grid(375, 500, 16) == (24, 32)
    assert cell_sides((94, 125), (375, 500)) == (4, 4) and cell_sides((24, 32), (375, 500)) == (16, 16)
    assert cell_sides((375, 500), (375, 500)) == (1, 1)
