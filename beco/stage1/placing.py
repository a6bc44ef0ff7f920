"""A coarse map on the cells of another grid, and labels on those of a coarser one; `beco.artifacts.grids` says where
cells lie.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def placed(maps: Tensor, size: tuple[int, int], sides: tuple[float, float], mirrored: float | None = None) -> Tensor:
    """Maps (…, h, w) float on the cells of another grid: (…, *size), bilinear between centres, edges repeated.

    `sides`: height and width of the maps' cells in cells of the new grid; both grids begin in the same corner. With
    `mirrored` the maps are of the picture turned left to right, and this is its width in cells of the new grid.
    """
    for axis, count, side, width in ((-2, size[0], sides[0], None), (-1, size[1], sides[1], mirrored)):
        low, high, share = _neighbours(count, maps.shape[axis], side, width)
        first, second = (maps.index_select(axis, torch.from_numpy(at).to(maps.device)) for at in (low, high))
        weight = torch.from_numpy(share).to(maps)
        maps = torch.lerp(first, second, weight[:, None] if axis == -2 else weight)
    return maps


def _neighbours(
    count: int, cells: int, side: float, mirrored: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `count` new centres the two of `cells` old ones about it, and the share of the second."""
    centres = np.arange(count) + 0.5
    if mirrored is not None:
        centres = mirrored - centres
    position = np.clip(centres / side - 0.5, 0, cells - 1)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, cells - 1), position - low


def picked(label: Tensor, size: tuple[int, int], sides: tuple[float, float]) -> Tensor:
    """Labels (…, H, W) -> (…, *size): of each cell, `sides` pixels high and wide, the pixel at its centre.

    The first cell begins in the corner; of cells whose centres lie beyond the picture it is the last pixel.
    """
    rows, columns = (
        ((torch.arange(cells, device=label.device) + 0.5) * side).long().clamp(max=pixels - 1)
        for cells, side, pixels in zip(size, sides, label.shape[-2:], strict=True)
    )
    return label[..., rows, :][..., columns]
