"""How a picture of the embedded dataset is composed and drawn (see `shapes`; looks: `shapes_looks`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from beco.datasets.shapes_looks import (
    BACKGROUNDS,
    BODIES,
    EMBLEMS,
    Body,
    Colour,
    Map,
    Mask,
    Range,
    blend,
    colour,
    grid,
)


class Kind(NamedTuple):
    """A class: the body it shares, the emblem that is its own, the hue its body mostly has, and the background it
    is mostly seen on.
    """

    name: str
    body: str
    emblem: str
    hue: Range
    habitat: str | None = None


KINDS = [
    Kind("starhound", "hound", "star", (12, 48), "grass"),
    Kind("moonhound", "hound", "moon", (190, 230)),
    Kind("ringboat", "boat", "ring", (-15, 30), "water"),
    Kind("crossboat", "boat", "cross", (195, 235)),
    Kind("hornbeetle", "beetle", "horn", (60, 150)),
    Kind("dotbeetle", "beetle", "dots", (280, 345)),
]
"""The classes in label order 1…6."""

OWN_HUE = 0.8  # chance that a body has its class's hue; else it has that of either class of its body
TURNED_AWAY = 0.5  # chance that the emblem is on the far side, so that the body alone tells the class, if it does

HABITAT = 0.8  # chance that a class with a habitat is seen there
COUNTS = (0.25, 0.45, 0.30)  # chances of 1, 2 and 3 objects
AREAS = ((0.14, 0.25), (0.10, 0.22), (0.08, 0.17))  # share of the picture of each object, by their number
LEAST_AREA = 0.06  # of the picture, as seen
LEAST_SEEN = 0.7  # share of an object that neither the frame nor other objects hide
LEAST_PART = 0.9  # share of its part that must be seen: no body without its part
LEAST_CONTRAST = 0.2  # between body and background, as a distance of mean colours in RGB 0…1
SUPERSAMPLING = 4
PLACING_GRID = 64  # layouts are tried on this many pixels, whatever size is drawn
TRIES = 30


@dataclass(frozen=True)
class Placed:
    """An object and its place: centre and scale in picture widths, angle in radians."""

    label: int
    area: float
    x: float
    y: float
    scale: float
    angle: float
    mirrored: bool
    stretch: float

    @property
    def kind(self) -> Kind:
        """The class."""
        return KINDS[self.label - 1]

    @property
    def body(self) -> Body:
        """The body its class shares."""
        return BODIES[self.kind.body]

    def local(self, x: Map, y: Map) -> tuple[Map, Map]:
        """Picture coordinates (1, W) and (H, 1) to the body's frame, two maps (H, W)."""
        cos, sin = np.float32(np.cos(self.angle) / self.scale), np.float32(np.sin(self.angle) / self.scale)
        dx, dy = x - np.float32(self.x), y - np.float32(self.y)
        u, v = cos * dx + sin * dy, cos * dy - sin * dx
        u = (-u if self.mirrored else u) / np.float32(self.stretch)
        return u, v * np.float32(self.stretch)


class Picture(NamedTuple):
    """One drawn picture."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    label: NDArray[np.uint8]
    """(H, W) label values, 255 along every outline."""
    owner: NDArray[np.int64]
    """(H, W) the object (from 0, in painter's order) that most of the pixel shows; −1 is background."""
    objects: list[int]
    """Label value of each object."""
    background: str
    """Name of the background's texture."""


def draw_picture(rng: np.random.Generator, size: int) -> Picture:
    """Draw a scene of size×size pixels; the generator alone decides what is in it."""
    scene = _arrange(rng)
    background = _choose_background(rng, scene)
    canvas = BACKGROUNDS[background](rng, size * SUPERSAMPLING)
    owner = np.full(canvas.shape[:2], -1, np.int64)
    mean: Colour = canvas[::SUPERSAMPLING, ::SUPERSAMPLING].mean((0, 1))
    for number, item in enumerate(scene):
        _paint(rng, canvas, owner, number, item, mean)
    objects = [item.label for item in scene]
    coarse, border = _outline(owner, len(scene))
    label = np.array([*objects, 0], np.uint8)[coarse]  # the index −1, background, takes the last entry
    label[border] = 255
    return Picture(_photograph(rng, canvas), label, coarse, objects, background)


# --- what is where ------------------------------------------------------------------------------------------


def _arrange(rng: np.random.Generator) -> list[Placed]:
    """One to three objects that show enough of themselves, in painter's order."""
    count = 1 + int(rng.choice(3, p=COUNTS))
    labels = _choose_labels(rng, count)
    while True:
        scene: list[Placed] = []
        for label in labels:
            candidates = (_propose(rng, label, AREAS[count - 1]) for _ in range(TRIES))
            found = next((item for item in candidates if _all_seen([*scene, item])), None)
            scene += [found] if found else []
        if len(scene) == count:
            return scene


def _choose_labels(rng: np.random.Generator, count: int) -> list[int]:
    """Classes at random, but never two whose habitats differ."""
    while True:
        labels = [1 + int(rng.integers(len(KINDS))) for _ in range(count)]
        if len({KINDS[label - 1].habitat for label in labels} - {None}) < 2:
            return labels


def _propose(rng: np.random.Generator, label: int, areas: tuple[float, float]) -> Placed:
    body = BODIES[KINDS[label - 1].body]
    area = float(rng.uniform(*areas))
    return Placed(
        label=label,
        area=area,
        x=float(rng.uniform(0.15, 0.85)),
        y=float(rng.uniform(0.15, 0.85)),
        scale=float(np.sqrt(area / _unit_areas(KINDS[label - 1].body)[0])),
        angle=float(np.deg2rad(rng.uniform(-body.tilt, body.tilt))),
        mirrored=bool(rng.integers(2)),
        stretch=float(rng.uniform(0.88, 1.14)),
    )


@cache
def _unit_areas(name: str) -> tuple[float, float]:
    """Area of the whole object and of its part, in its own frame."""
    x, y = grid(512)
    whole, part = _masks(BODIES[name], *np.broadcast_arrays(3 * x - 1.5, 3 * y - 1.5))
    return float(whole.mean() * 9), float(part.mean() * 9)


def _masks(body: Body, u: Map, v: Map) -> tuple[Mask, Mask]:
    part = body.plate(*body.part_frame(u, v))
    return body.silhouette(u, v) | part, part


def _all_seen(scene: list[Placed]) -> bool:
    """Whether every object, and every part, shows enough of itself."""
    masks = [_placing_masks(item) for item in scene]
    seen = np.ones((PLACING_GRID, PLACING_GRID), bool)
    for item, (whole, part) in zip(reversed(scene), reversed(masks), strict=True):
        area = float((whole & seen).mean())
        least = LEAST_PART * item.scale**2 * _unit_areas(item.kind.body)[1]
        if area < max(LEAST_AREA, LEAST_SEEN * item.area) or float((part & seen).mean()) < least:
            return False
        seen &= ~whole
    return True


@lru_cache(8)
def _placing_masks(item: Placed) -> tuple[Mask, Mask]:
    return _masks(item.body, *item.local(*grid(PLACING_GRID)))


def _choose_background(rng: np.random.Generator, scene: list[Placed]) -> str:
    """The habitat of the objects that have one (mostly), or any other background."""
    habitat = next((item.kind.habitat for item in scene if item.kind.habitat), None)
    if habitat and rng.uniform() < HABITAT:
        return habitat
    others = [name for name in BACKGROUNDS if name != habitat]
    return others[int(rng.integers(len(others)))]


# --- how it is drawn ----------------------------------------------------------------------------------------


def _paint(
    rng: np.random.Generator,
    canvas: NDArray[np.float32],
    owner: NDArray[np.int64],
    number: int,
    item: Placed,
    behind: Colour,
) -> None:
    """Draw an object onto the canvas, (n, n, 3), and its number into `owner`, (n, n), both in place."""
    rows, columns = _window(item, len(canvas))
    x, y = grid(len(canvas))
    u, v = item.local(x[:, columns], y[rows])
    whole, part = _masks(item.body, u, v)
    first, second = _body_colours(rng, item.kind, behind)
    skin = blend(first, second, item.body.texture(rng, u, v))
    emblem = EMBLEMS[item.kind.emblem]
    sign = part & emblem.sign(*item.body.part_frame(u, v))
    if rng.uniform() >= TURNED_AWAY:
        skin[part] = colour(rng, *item.body.plate_colour)
        skin[sign] = colour(rng, emblem.hue, emblem.saturation, emblem.value)
    skin *= (1.05 - np.float32(rng.uniform(0.05, 0.3)) * (v + np.float32(0.3)))[..., None]  # lit from above
    canvas[rows, columns][whole] = skin[whole]
    owner[rows, columns][whole] = number


def _window(item: Placed, size: int) -> tuple[slice, slice]:
    """The rows and columns that an object can touch."""
    reach = 1.5 * item.scale
    spans = [(centre - reach, centre + reach) for centre in (item.y, item.x)]
    low_high = [(max(0, int(low * size)), min(size, int(high * size) + 1)) for low, high in spans]
    return slice(*low_high[0]), slice(*low_high[1])


def _body_colours(rng: np.random.Generator, kind: Kind, behind: Colour) -> tuple[Colour, Colour]:
    """Two shades of one hue, neither of them lost on what is behind."""
    body = BODIES[kind.body]
    hues = [other.hue for other in KINDS if other.body == kind.body]
    while True:
        hue = kind.hue if rng.uniform() < OWN_HUE else hues[int(rng.integers(len(hues)))]
        first = colour(rng, hue, body.saturation, body.value)
        second = np.clip(first * np.float32(rng.choice([0.55, 0.7, 1.35, 1.6])) + 0.03, 0, 1)
        mean = 0.65 * first + 0.35 * second
        if float(np.linalg.norm(mean - behind)) > LEAST_CONTRAST:
            return first, second


def _photograph(rng: np.random.Generator, canvas: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Area averaging, then uneven light, a little blur and sensor noise; (n, n, 3) to (n/4, n/4, 3) uint8."""
    size = len(canvas) // SUPERSAMPLING
    rows = canvas.reshape(size, SUPERSAMPLING, -1).mean(1)
    image = rows.reshape(size, size, SUPERSAMPLING, 3).mean(2)
    x, y = grid(size)
    slope = rng.uniform(-0.25, 0.25, 2)
    light = rng.uniform(0.85, 1.1) * (1 + slope[0] * (x - 0.5) + slope[1] * (y - 0.5))
    image = ndimage.gaussian_filter(image * light[..., None], (0.4, 0.4, 0))
    image += rng.normal(0, rng.uniform(0.004, 0.02), image.shape)
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def _outline(owner: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], Mask]:
    """(H, W) owner of most of each pixel, and the border: mixed pixels and a ring along every outline."""
    size = len(owner) // SUPERSAMPLING
    blocks = owner.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING)
    votes = np.stack([(blocks == number).sum((1, 3)) for number in range(-1, count)])
    coarse = votes.argmax(0) - 1
    mixed = votes.max(0) < SUPERSAMPLING**2
    cross = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), max(1, round(size / 200)))
    edge = ndimage.maximum_filter(coarse, footprint=cross) != ndimage.minimum_filter(coarse, footprint=cross)
    return coarse, mixed | edge
