"""What the embedded dataset's world looks like: bodies, emblems and backgrounds (see `shapes`).

Silhouettes and emblems are implicit: a function of coordinate maps that is true inside. A body's frame has u
towards the head and v towards the feet, about ±1; an emblem's frame is its plate, ±1.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

Map = NDArray[np.floating]
Mask = NDArray[np.bool_]
Colour = NDArray[np.float32]
Range = tuple[float, float]

# --- drawing aids -------------------------------------------------------------------------------------------


def colour(rng: np.random.Generator, hue: Range, saturation: Range, value: Range) -> Colour:
    """A random colour, (3,) float32 RGB in 0…1; hue in degrees, may be negative."""
    h, s, v = (float(rng.uniform(*span)) for span in (hue, saturation, value))
    return np.array(colorsys.hsv_to_rgb(h / 360 % 1, s, v), np.float32)


def blend(first: Colour, second: Colour, share: Map) -> NDArray[np.float32]:
    """`first` where share is 0, `second` where it is 1; (H, W) to (H, W, 3)."""
    mixed = share[..., None] * (second - first)
    mixed += first
    return mixed


def noise(rng: np.random.Generator, size: int, cells: tuple[int, int], octaves: int = 3) -> Map:
    """Smooth noise, (size, size) float32, about −1…1: octaves of random grids, the first of `cells`.

    `cells` counts down and across; each octave doubles it and halves the amplitude.
    """
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        down, across = (count * 2**octave for count in cells)
        grid = rng.uniform(-1, 1, (down + 1, across + 1)).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)) / 2**octave
    return total / np.float32(1.2)


def grid(size: int) -> tuple[Map, Map]:
    """Coordinates of pixel centres in picture widths: x as (1, size), y as (size, 1)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[None, :], axis[:, None]


def _capsule(u: Map, v: Map, start: Range, end: Range, radius: float) -> Mask:
    """Within `radius` of a line segment."""
    du, dv = end[0] - start[0], end[1] - start[1]
    along = np.clip(((u - start[0]) * du + (v - start[1]) * dv) / (du * du + dv * dv), 0, 1)
    return np.hypot(u - start[0] - along * du, v - start[1] - along * dv) < radius


def _box(u: Map, v: Map, left: float, right: float, top: float, bottom: float) -> Mask:
    return (u > left) & (u < right) & (v > top) & (v < bottom)


# --- bodies -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Body:
    """What two classes share: silhouette, texture, strength of colour, and where the part with the emblem sits."""

    silhouette: Callable[[Map, Map], Mask]
    texture: Callable[[np.random.Generator, Map, Map], Map]
    """Share of the second colour, 0…1."""
    plate: Callable[[Map, Map], Mask]
    """The part's outline, in the emblem's frame."""
    centre: Range
    radius: float
    """Place and size of the part in the body's frame."""
    tilt: float
    """Largest rotation either way, degrees."""
    saturation: Range
    value: Range
    plate_colour: tuple[Range, Range, Range]

    def part_frame(self, u: Map, v: Map) -> tuple[Map, Map]:
        """Body coordinates to the emblem's."""
        return (u - self.centre[0]) / self.radius, (v - self.centre[1]) / self.radius


def _disc(a: Map, b: Map) -> Mask:
    return np.hypot(a, b) < 1


def _square(a: Map, b: Map) -> Mask:
    return np.maximum(np.abs(a), np.abs(b)) < 0.92


def _hound(u: Map, v: Map) -> Mask:
    trunk = (u / 0.78) ** 2 + (v / 0.40) ** 2 < 1
    legs = _box(np.abs(u + 0.03), v, 0.30, 0.60, 0, 0.74)
    tail = _capsule(u, v, (-0.70, -0.12), (-1.05, -0.48), 0.10)
    neck = _capsule(u, v, (0.55, -0.10), (0.85, -0.42), 0.19)
    return trunk | legs | tail | neck


def _boat(u: Map, v: Map) -> Mask:
    hull = (v > 0) & (v < 0.52) & (np.abs(u) < 1 - 0.55 * (np.maximum(v, 0) / 0.52) ** 2)
    return hull | _box(u, v, -0.62, 0.05, -0.34, 0.01) | _box(u, v, 0.44, 0.56, -0.40, 0.01)


def _beetle(u: Map, v: Map) -> Mask:
    shell = np.abs(u / 0.82) ** 2.5 + np.abs(v / 0.58) ** 2.5 < 1
    row = np.abs(np.abs(u + 0.02) - 0.25) < 0.09
    return shell | (row & (np.abs(v) < 0.76))


def _patches(rng: np.random.Generator, u: Map, v: Map) -> Map:
    """Irregular patches: three waves that cross at random angles and phases."""
    total = np.zeros_like(u)
    for _ in range(3):
        angle, phase, pace = rng.uniform(0, math.pi), rng.uniform(0, 2 * np.pi), rng.uniform(4, 8)
        total += np.sin(pace * (math.cos(angle) * u + math.sin(angle) * v) + phase)
    return np.clip(total * 2, 0, 1)


def _planks(rng: np.random.Generator, u: Map, v: Map) -> Map:
    count, phase = rng.uniform(5, 9), rng.uniform(0, 1)
    line = ((v * count + phase) % 1 < 0.22).astype(np.float32)
    return np.where(v < 0, np.float32(0.9) - line * np.float32(0.4), line)


def _segments(rng: np.random.Generator, u: Map, v: Map) -> Map:
    pace, phase = rng.uniform(9, 15), rng.uniform(0, 2 * np.pi)
    rings = np.sin(pace * (u + 0.15 * v * v) + phase) > 0.3
    return (rings | (np.abs(v) < 0.05)).astype(np.float32)


BODIES = {
    "hound": Body(
        _hound, _patches, _disc, (0.88, -0.46), 0.32, 30,
        saturation=(0.15, 0.65), value=(0.30, 0.90),
        plate_colour=((200, 300), (0.1, 0.6), (0.12, 0.28)),
    ),
    "boat": Body(
        _boat, _planks, _square, (0.50, -0.56), 0.27, 20,
        saturation=(0.35, 0.85), value=(0.30, 0.90),
        plate_colour=((30, 60), (0.0, 0.20), (0.82, 1.0)),
    ),
    "beetle": Body(
        _beetle, _segments, _disc, (0.92, 0.0), 0.35, 180,
        saturation=(0.25, 0.80), value=(0.25, 0.80),
        plate_colour=((20, 42), (0.55, 0.95), (0.75, 1.0)),
    ),
}  # fmt: skip

# --- emblems ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Emblem:
    """What one class alone has: a sign on its part, with colours of its own."""

    sign: Callable[[Map, Map], Mask]
    hue: Range
    saturation: Range
    value: Range


def _star(a: Map, b: Map) -> Mask:
    angle = np.arctan2(a, -b)
    return np.hypot(a, b) < 0.62 + 0.30 * np.cos(5 * angle)


def _moon(a: Map, b: Map) -> Mask:
    return (np.hypot(a, b) < 0.85) & (np.hypot(a - 0.42, b + 0.10) > 0.62)


def _ring(a: Map, b: Map) -> Mask:
    return np.abs(np.hypot(a, b) - 0.53) < 0.22


def _cross(a: Map, b: Map) -> Mask:
    return (np.minimum(np.abs(a), np.abs(b)) < 0.20) & (np.maximum(np.abs(a), np.abs(b)) < 0.78)


def _horn(a: Map, b: Map) -> Mask:
    return (a > -0.45) & (a < 0.85) & (np.abs(b) < 0.75 * (0.85 - a) / 1.3)


def _dots(a: Map, b: Map) -> Mask:
    spots = [np.hypot(a - 0.50 * np.cos(t), b - 0.50 * np.sin(t)) < 0.30 for t in (0.0, 2.094, 4.189)]
    return spots[0] | spots[1] | spots[2]


EMBLEMS = {
    "star": Emblem(_star, (42, 58), (0.65, 1.0), (0.85, 1.0)),
    "moon": Emblem(_moon, (40, 220), (0.0, 0.18), (0.85, 1.0)),
    "ring": Emblem(_ring, (-12, 12), (0.7, 1.0), (0.6, 0.95)),
    "cross": Emblem(_cross, (205, 245), (0.6, 1.0), (0.25, 0.7)),
    "horn": Emblem(_horn, (250, 300), (0.3, 0.7), (0.1, 0.35)),
    "dots": Emblem(_dots, (150, 200), (0.0, 0.25), (0.85, 1.0)),
}

# --- backgrounds --------------------------------------------------------------------------------------------


def _grass(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    dark = colour(rng, (70, 125), (0.30, 0.75), (0.20, 0.45))
    light = colour(rng, (55, 115), (0.25, 0.65), (0.45, 0.80))
    blades = noise(rng, size, (9, 26), 2) * np.float32(0.8)
    return blend(dark, light, np.clip(0.5 + 0.45 * (blades + noise(rng, size, (3, 3), 2)), 0, 1))


def _water(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    deep = colour(rng, (185, 230), (0.35, 0.80), (0.30, 0.60))
    crest = colour(rng, (175, 220), (0.10, 0.50), (0.55, 0.90))
    _, y = grid(size)
    waves = np.sin(2 * np.pi * (rng.uniform(5, 10) * y + 0.45 * noise(rng, size, (3, 4), 2)))
    return blend(deep, crest, np.clip(0.45 + 0.35 * waves + 0.25 * noise(rng, size, (12, 6), 2), 0, 1))


def _bricks(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    hue = float(rng.uniform(0, 45))
    brick = colour(rng, (hue, hue), (0.20, 0.65), (0.35, 0.70))
    lighter = colour(rng, (hue - 12, hue + 12), (0.15, 0.55), (0.50, 0.85))
    mortar = colour(rng, (20, 60), (0.0, 0.20), (0.35, 0.85))
    rows = int(rng.integers(6, 11))
    x, y = grid(size)
    down = y * rows + rng.uniform(0, 1)
    row = np.floor(down).astype(np.int64)
    across = x * rows / 2 + (row % 2) * 0.5 + rng.uniform(0, 1)
    shade = rng.uniform(0, 1, (rows + 2, rows + 3))[row, np.floor(across).astype(np.int64)]
    share = np.clip(shade + 0.3 * noise(rng, size, (16, 16), 2), 0, 1).astype(np.float32)
    joint = (down % 1 < 0.12) | (across % 1 < 0.07)
    return np.where(joint[..., None], mortar, blend(brick, lighter, share))


def _pairs(axis: NDArray[Any]) -> NDArray[Any]:
    """All points (x, y) of a square grid, (n², 2), row by row."""
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)


def _pebbles(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    dark = colour(rng, (0, 360), (0.05, 0.30), (0.20, 0.45))
    light = colour(rng, (0, 360), (0.0, 0.30), (0.55, 0.90))
    count = int(rng.integers(7, 12))
    half = -(-size // 2)  # cells are found at half the resolution, for speed
    pixels = count * _pairs((np.arange(half) + 0.5) / half)
    stones = _pairs(np.arange(-1, count + 1)) + rng.uniform(0, 1, ((count + 2) ** 2, 2))
    distance, nearest = cKDTree(stones).query(pixels, k=2)
    gap = np.clip((distance[:, 1] - distance[:, 0]) * 4, 0, 1)
    share = (gap * (0.35 + 0.65 * rng.uniform(0, 1, len(stones))[nearest[:, 0]])).reshape(half, half)
    share = share.repeat(2, 0).repeat(2, 1)[:size, :size].astype(np.float32)
    return blend(dark, light, np.clip(share + 0.15 * noise(rng, size, (20, 20), 2), 0, 1))


BACKGROUNDS: dict[str, Callable[[np.random.Generator, int], NDArray[np.float32]]] = {
    "grass": _grass,
    "water": _water,
    "bricks": _bricks,
    "pebbles": _pebbles,
}
"""Each draws (size, size, 3) float32 RGB in 0…1."""
