"""Where the cells of a coarse map lie on a picture, and the same map on other cells.

A map at stride s of a picture has ⌈height/s⌉ rows of cells s pixels wide, the first of which begins at the edge; the
last may reach beyond the picture. To stretch such a map to the picture's size would move its far end by up to s − 1
pixels; so maps are read at the places of their cells' centres, and what reaches beyond is cut off.
"""

from __future__ import annotations

import math

import numpy as np
from skimage.transform import AffineTransform, warp

STRIDE = 4
STRIDES = (4, 8, 16)


def fitted_size(height: int, width: int, resize: int | None, squeeze: int | None = None) -> tuple[int, int]:
    """Height and width with the long side set to `resize`, or both to `squeeze`; unchanged if both are None."""
    if squeeze is not None:
        return squeeze, squeeze
    if resize is None:
        return height, width
    factor = resize / max(height, width)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def grid(height: int, width: int, stride: int = STRIDE) -> tuple[int, int]:
    """Size of the maps of a picture: a `stride`-th of it, rounded up."""
    return math.ceil(height / stride), math.ceil(width / stride)


def cell_sides(shape: tuple[int, ...], picture: tuple[int, int], resize: int | None = None) -> tuple[float, float]:
    """Height and width, in pixels of a picture of size `picture`, of the cells of a map (h, w) of it.

    A map of the size that the picture's own, or the one with its long side set to `resize`, has at stride 4, 8 or 16
    is taken for that; any other is taken to cover the picture exactly.
    """
    fed = fitted_size(*picture, resize)
    for stride in STRIDES:
        if tuple(shape) == grid(*fed, stride):
            return stride * picture[0] / fed[0], stride * picture[1] / fed[1]
    return picture[0] / shape[0], picture[1] / shape[1]


def upsampled(cam: np.ndarray, height: int, width: int, resize: int | None = None) -> np.ndarray:
    """Maps (K, h, w) of a picture -> (K, height, width) float32, bilinear between centres, edges repeated.

    Which cells the maps have is read off their size and that of the picture, see `cell_sides`.
    """
    tall, wide = cell_sides(cam.shape[1:], (height, width), resize)
    return _read(cam, (height, width), (tall, wide))


def covering(cam: np.ndarray, picture: tuple[int, int], resize: int | None = None) -> np.ndarray:
    """Maps (K, h, w) of a picture of size (height, width) -> as many cells, float32, that cover it exactly.

    This is what may be stretched over the picture by something that knows nothing of cells, such as a browser.
    """
    size = cam.shape[1], cam.shape[2]
    tall, wide = cell_sides(size, picture, resize)
    return _read(cam, size, (tall * size[0] / picture[0], wide * size[1] / picture[1]))


def _read(cam: np.ndarray, size: tuple[int, int], sides: tuple[float, float]) -> np.ndarray:
    """(K, *size) float32: maps whose cells measure `sides` new ones, bilinear between centres."""
    tall, wide = sides
    cells = AffineTransform(scale=(1 / wide, 1 / tall), translation=(0.5 / wide - 0.5, 0.5 / tall - 0.5))
    planes = [warp(plane, cells, None, size, order=1, mode="edge") for plane in cam.astype(np.float32)]
    return np.stack(planes).astype(np.float32) if planes else np.zeros((0, *size), np.float32)
