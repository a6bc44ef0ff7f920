"""Pairs of near pixels, the lines between them, and the losses that IRN learns from them (Ahn et al. 2019).

The paper's parts are named by their headings: "inter-pixel relation mining from CAMs" (which pairs), "loss for
displacement field prediction" and "loss for class boundary detection".

Everything is indices into a map with a margin: its pixels are numbered row by row, so the far ends of one offset are
one constant further, and neither pictures nor pixels need a loop. Pairs that leave the picture end in the margin.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from beco.artifacts.pseudolabels import UNCERTAIN


def offsets(radius: int) -> list[tuple[int, int]]:
    """Offsets (dy, dx) less than `radius` long, one of each opposite two: each unordered pair of pixels comes once."""
    reach = range(-radius + 1, radius)
    return [(y, x) for y in range(radius) for x in reach if (y > 0 or x > 0) and y * y + x * x < radius * radius]


def line(dy: int, dx: int) -> list[tuple[int, int]]:
    """Pixels (y, x) between (0, 0) and (dy, dx), both included: those of their box less than 1 away from the line.

    So the line is thick enough that no boundary of one pixel's width has a gap for it, diagonal or not.
    """
    ys, xs = range(min(0, dy), max(0, dy) + 1), range(min(0, dx), max(0, dx) + 1)
    square = dy * dy + dx * dx
    return [(y, x) for y in ys for x in xs if (dy * x - dx * y) ** 2 < square]


class Kinds(NamedTuple):
    """Which pairs are what, each (B, O, h·w) bool; where none holds, the pair says nothing."""

    background: Tensor
    """Both pixels are background."""
    foreground: Tensor
    """Both pixels are of one class."""
    negative: Tensor
    """The pixels are of two classes, or of a class and background."""


class PixelPairs:
    """The pairs of pixels of an h×w map that are less than `radius` apart: O offsets from each of the h·w pixels.

    Offsets are ordered by the number of pixels on their line, longest first, so that one step along all lines that
    go on so far is one step along the first so many.
    """

    def __init__(self, radius: int, height: int, width: int, device: torch.device) -> None:
        lines = sorted(((line(*offset), offset) for offset in offsets(radius)), key=lambda pair: -len(pair[0]))
        self.margin = radius - 1
        row = width + 2 * self.margin
        self.offsets = torch.tensor([offset for _, offset in lines], device=device).view(-1, 2)
        """(O, 2) int64: (dy, dx) from the first pixel to the second."""
        longest = max((len(pixels) for pixels, _ in lines), default=0)
        self._steps = [
            torch.tensor([y * row + x for pixels, _ in lines for y, x in pixels[k : k + 1]], device=device)[:, None]
            for k in range(longest)
        ]
        y, x = (n.flatten() for n in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
        self._first = (y * row + x + self.margin).to(device)
        self._second = self._first + self.offsets[:, :1] * row + self.offsets[:, 1:]
        far_y, far_x = y.to(device) + self.offsets[:, :1], x.to(device) + self.offsets[:, 1:]
        self.inside = (far_y < height) & (far_x >= 0) & (far_x < width)
        """(O, h·w) bool: whether the second pixel is in the picture."""

    def framed(self, maps: Tensor, fill: float) -> Tensor:
        """Maps (…, h, w) with the margin that offsets reach, `fill` there, as (…, N) in the order of the indices."""
        return F.pad(maps, (self.margin, self.margin, 0, self.margin), value=fill).flatten(-2)

    def strongest_on_lines(self, edges: Tensor) -> Tensor:
        """Edge map (B, h, w) -> its maximum on the line of every pair, (B, O, h·w), differentiable.

        The gradient goes to the one pixel that is the maximum, the first of several, as in a max-pooling. A pair that
        is not `inside` has some value without a meaning.
        """
        framed = self.framed(edges, 0.0)
        return framed.gather(1, self._strongest(framed.detach()).flatten(1)).view(len(edges), *self.inside.shape)

    def _strongest(self, framed: Tensor) -> Tensor:
        """Where on the framed map the maxima are: (B, O, h·w) int64."""
        shape = (len(framed), *self.inside.shape)
        best = framed.new_full(shape, -torch.inf)
        where = torch.zeros(shape, dtype=torch.int64, device=framed.device)
        for step in self._steps:
            index = self._first + step
            values, count = framed[:, index], len(step)
            better = values > best[:, :count]
            best[:, :count] = torch.where(better, values, best[:, :count])
            where[:, :count] = torch.where(better, index, where[:, :count])
        return where

    def kinds(self, label: Tensor) -> Kinds:
        """Labels (B, h, w) uint8, 255 = no opinion -> which pairs are alike and which differ (relation mining)."""
        framed = self.framed(label, UNCERTAIN)
        first, second = framed[:, None, self._first], framed[:, self._second]
        known = (first != UNCERTAIN) & (second != UNCERTAIN)
        same = (first == second) & known
        return Kinds(same & (first == 0), same & (first != 0), known & ~same)

    def differences(self, field: Tensor) -> Tensor:
        """D(first) − D(second) of a field (B, 2, h, w) of displacements (y, x): (B, 2, O, h·w)."""
        # pixels first, so that one index moves a whole row; its gradient is then many times faster
        rows = self.framed(field, 0.0).permute(2, 0, 1)
        return (rows[self._first] - rows[self._second]).permute(2, 3, 0, 1)


@lru_cache(maxsize=4)
def pixel_pairs(radius: int, height: int, width: int, device: torch.device) -> PixelPairs:
    """`PixelPairs`, kept for the next step, so that no index travels to the device again."""
    return PixelPairs(radius, height, width, device)


def losses(
    edges: Tensor, field: Tensor, label: Tensor, pairs: PixelPairs, counts: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The four terms of IRN's training objective, means over pairs of one kind.

    Args:
        edges: logits of the class boundary map, (B, h, w).
        field: displacements (y, x), (B, 2, h, w).
        label: (B, h, w) uint8, 255 = no opinion.
        pairs: the pairs of an h×w map.
        counts: how many pairs there are of each kind, scalars keyed as the fields of `Kinds`.

    Returns scalars. Class boundary detection: `alike`, −log a over pairs of one label, the background's mean and that
    of the classes averaged, and `differ`, −log(1 − a) over pairs of two labels. Displacement field: `field`, |D(i) −
    D(j) − (j − i)| over pairs of one class, and `still`, |D(i) − D(j)| over pairs of background, both averaged over
    the two coordinates, as in the authors' program. With a = 1 − max σ(edge) on the line and σ increasing, −log a is
    softplus(max edge) and −log(1 − a) is softplus(−max edge): exact where a is next to 0 or 1.
    """
    kinds = pairs.kinds(label)
    strongest = pairs.strongest_on_lines(edges)

    def mean(values: Tensor, kind: str) -> Tensor:
        return (values * getattr(kinds, kind)).sum() / counts[kind]

    attract, repel = F.softplus(strongest), F.softplus(-strongest)
    moved = pairs.differences(field)
    wanted = pairs.offsets.T[:, :, None].to(moved.dtype)
    return {
        "alike": (mean(attract, "background") + mean(attract, "foreground")) / 2,
        "differ": mean(repel, "negative"),
        "field": mean((moved - wanted).abs().mean(1), "foreground"),
        "still": mean(moved.abs().mean(1), "background"),
    }
