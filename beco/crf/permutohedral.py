"""Gaussian filtering on the permutohedral lattice (Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the
Permutohedral Lattice", Eurographics 2010), as tables of indices and weights.

Vertices of the lattice in d dimensions have d+1 integer coordinates that add up to 0 and leave the same remainder
0…d when divided by d+1; every simplex has one vertex of each remainder. So the vertices of each remainder are
numbered by themselves: all points' keys of that remainder are sorted, and equal ones are one vertex.

Every step (splat, blur along an axis, slice) is then a sum of weighted rows, which `torch.nn.functional.embedding_bag`
computes in one pass, on the CPU with the widest vectors there are, adding in the order of the table: the result depends
neither on the number of threads nor on the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from beco.errors import UserError

KEY_LIMIT = 2**62  # number of distinct keys that fit an int64 with room for a step to a neighbour
COORDINATE_LIMIT = 2**22  # up to here float32 tells where within its simplex a point is
TOO_NARROW = (
    "crf: gaussian_sxy, bilateral_sxy or bilateral_srgb is too small for this picture, whose pixels are then too far "
    "apart to compute with; give larger values"
)


@dataclass(frozen=True)
class Rows:
    """A sparse matrix by rows: row k sums `weights` times the rows `indices` of the factor, from `starts[k]` on.

    `indices` (E,) and `starts` (rows + 1,) are int32, `weights` (E,) float32.
    """

    indices: Tensor
    weights: Tensor
    starts: Tensor

    def __matmul__(self, values: Tensor) -> Tensor:
        """(columns, C) float32 contiguous -> (rows, C) float32."""
        return F.embedding_bag(
            self.indices,
            values,
            self.starts,
            mode="sum",
            per_sample_weights=self.weights,
            include_last_offset=True,
        )


@dataclass(frozen=True)
class Lattice:
    """The lattice of N points: `splat` (M, N), a `blurs` (M, M) per axis, `slices` (N, M)."""

    splat: Rows
    blurs: tuple[Rows, ...]
    slices: Rows

    @property
    def points(self) -> int:
        return len(self.slices.starts) - 1

    @property
    def vertices(self) -> int:
        return len(self.splat.starts) - 1

    def filter(self, values: Tensor) -> Tensor:
        """Sum over all points, weighted by a Gaussian of their distance: (N, C) float32 -> (N, C) float32."""
        values = self.splat @ values.contiguous()
        for blur in self.blurs:
            values = blur @ values
        return self.slices @ values

    def scaled(self, before: Tensor, after: Tensor) -> Lattice:
        """The lattice that multiplies point n by `before[n]` ahead of the filter and by `after[n]` behind it.

        Both are (N,) float32.
        """
        splat = replace(self.splat, weights=self.splat.weights * before.index_select(0, self.splat.indices))
        weights = self.slices.weights.view(self.points, -1) * after[:, None]
        return replace(self, splat=splat, slices=replace(self.slices, weights=weights.view(-1)))


def build(features: Tensor) -> Lattice:
    """Lattice of the points whose coordinates, in standard deviations of the Gaussian, are the columns of `features`.

    `features` (d, N) float32, finite, d >= 1, N >= 1, d·N < 2^31. Computed on the device of `features`. Raises
    UserError where coordinates are so large that float32 or the 64-bit keys of vertices no longer tell them apart.

    pydensecrf takes the points in fours and fills up the last four with points at the origin. Their vertices let
    others reach each other in the blur, so one such point, which gives and takes nothing, is added here too.
    """
    points = features.shape[1]
    if points % 4:
        features = F.pad(features, (0, 1))
    elevated = _elevate(features)
    if not float(torch.linalg.vector_norm(elevated, math.inf)) < COORDINATE_LIMIT:
        raise UserError(TOO_NARROW)
    cells, ranks, weights = _simplex(elevated)
    weights[:, points:] = 0
    keys, span = _keys(cells, ranks)
    del elevated, cells, ranks
    splat, numbers, vertices = _numbered(keys, weights, points, span[0])
    slices = _even_rows(numbers[:, :points].T, weights[:, :points].T * _gain(len(features)))
    return Lattice(splat, _blurs(vertices, span), slices)


def _numbered(keys: Tensor, weights: Tensor, points: int, apart: int) -> tuple[Rows, Tensor, Tensor]:
    """Number the vertices, remainder by remainder, in the order of their keys.

    From `keys` and `weights` (d+1, N or N+1): the splat of the first N = `points`; the number of each entry's vertex,
    like `keys`, int32; and each vertex's key plus remainder times `apart`, int64, ascending.
    """
    numbers = torch.empty(keys.shape, dtype=torch.int32, device=keys.device)
    indices, shares, counts, vertices = [], [], [], []
    total = 0
    for remainder, row in enumerate(keys):
        ordered, permutation = row.sort(stable=True)
        unique, which, count = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
        numbers[remainder].index_copy_(0, permutation, which.to(torch.int32) + total)
        shares.append(weights[remainder].index_select(0, permutation))
        indices.append(permutation.clamp_(max=points - 1).to(torch.int32))  # the point added at the end weighs nothing
        counts.append(count)
        vertices.append(unique.long() + remainder * apart)
        total += len(unique)
    starts = F.pad(torch.cat(counts).cumsum(0, dtype=torch.int32), (1, 0))
    return Rows(torch.cat(indices), torch.cat(shares), starts), numbers, torch.cat(vertices)


def _gain(dimensions: int) -> float:
    """What makes up for the blur adding up to more than 1 (as the authors' code does; a float32 there too)."""
    return float(np.float32(1 / (1 + 2.0**-dimensions)))


def _even_rows(indices: Tensor, weights: Tensor) -> Rows:
    """Rows of equally many entries: (R, K) and (R, K)."""
    rows, entries = indices.shape
    starts = torch.arange(0, (rows + 1) * entries, entries, dtype=torch.int32, device=indices.device)
    return Rows(indices.reshape(-1), weights.reshape(-1), starts)


def _elevate(features: Tensor) -> Tensor:
    """Into the hyperplane of d+1 coordinates that add up to 0: (d, N) -> (d+1, N) float32 (§3.1, the matrix E).

    Scaled so that splat, blur and slice together have standard deviation 1. The order of the float32 operations is
    part of the result: a point on the border of two simplices may fall to either.
    """
    dimensions, points = features.shape
    deviation = float(np.float32(math.sqrt(2 / 3) * (dimensions + 1)))
    elevated = features.new_empty(dimensions + 1, points)
    total = features.new_zeros(points)
    for axis in range(dimensions, 0, -1):
        scaled = features[axis - 1] * (deviation / math.sqrt(axis * (axis + 1)))
        torch.sub(total, scaled * axis, out=elevated[axis])
        total += scaled
    elevated[0] = total
    return elevated


def _simplex(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex around each point and its barycentric coordinates there (§3.2, and p. 10 of the paper).

    From (d+1, N): `cells`, the nearest vertex of remainder 0 divided by d+1; `ranks` int8, the place of each
    coordinate by its distance from that vertex, 0 for the largest, equal ones in order; `weights`, row r that of the
    vertex of remainder r. All (d+1, N).
    """
    size = len(elevated)
    per_cell = float(np.float32(1 / size))
    cells = torch.round(elevated * per_cell)
    ranks = _ranks(elevated - cells * size)
    ranks += cells.sum(0).to(torch.int8)  # off the hyperplane by this many: the extreme coordinates move by a cell
    turn = (ranks < 0).to(torch.int8) - (ranks >= size).to(torch.int8)
    ranks += turn * size
    cells += turn
    offsets = (elevated - cells * size) * per_cell
    descending = torch.empty_like(offsets).scatter_(0, (size - 1 - ranks).long(), offsets)
    weights = torch.empty_like(descending)
    torch.sub(descending[1:], descending[:-1], out=weights[1:])
    torch.add(descending[0], 1 - descending[-1], out=weights[0])
    return cells, ranks, weights


def _ranks(values: Tensor) -> Tensor:
    """How many of its column are larger, or equal and earlier: (K, N) -> (K, N) int8."""
    size = len(values)
    ranks = torch.arange(size, dtype=torch.int8, device=values.device)[:, None].repeat(1, values.shape[1])
    for one in range(size - 1):
        for other in range(one + 1, size):
            smaller = (values[one] < values[other]).view(torch.int8)
            ranks[one] += smaller
            ranks[other] -= smaller
    return ranks


def _keys(cells: Tensor, ranks: Tensor) -> tuple[Tensor, list[int]]:
    """One integer per vertex of each point's simplex, and how far apart the integers of neighbours are.

    The first d coordinates of the vertex of remainder r are (d+1)·q + r, where q is the cell's, less 1 for the r
    coordinates of the highest ranks. Returned are (d+1, N), row r the q of its vertices as the digits of one number,
    and the place values of the digits, the number of all numbers in front. Each digit has a value to spare at either
    end, so that a step over the end never meets another vertex.
    """
    size = len(cells)
    low, high = (bound[:-1].tolist() for bound in torch.aminmax(cells, dim=1))
    span = [1]
    for least, greatest in zip(reversed(low), reversed(high), strict=True):
        span.insert(0, span[0] * (int(greatest) - int(least) + 3))
    if span[0] * size >= KEY_LIMIT:
        raise UserError(TOO_NARROW)
    dtype = torch.int32 if span[0] < 2**31 else torch.int64
    places = span[1:]
    keys = torch.empty(cells.shape, dtype=dtype, device=cells.device)
    keys[0] = 0
    for digit, least, place in zip(cells[:-1], low, places, strict=True):
        keys[0] += (digit - (least - 1)).to(dtype) * place
    steps = torch.tensor([*places, 0], dtype=dtype, device=cells.device)[:, None].expand(cells.shape)
    ordered = torch.empty_like(keys).scatter_(0, (size - 1 - ranks).long(), steps)
    for remainder in range(1, size):
        torch.sub(keys[remainder - 1], ordered[remainder - 1], out=keys[remainder])
    return keys, span


def _blurs(vertices: Tensor, span: list[int]) -> tuple[Rows, ...]:
    """Half of either neighbour and the whole of oneself along each axis (§3.3): one (M, M) for each of d+1 axes.

    `vertices` (M,) int64, ascending, are keys plus remainder times `span[0]`. A neighbour that is no vertex counts as
    zero. Along axis j the neighbour has d more in coordinate j and 1 less in all others; its remainder is one less,
    or d after 0.
    """
    size, places = len(span), [*span[1:], 0]
    count = len(vertices)
    wrapped = int(torch.count_nonzero(vertices < span[0]))
    itself = torch.arange(count, dtype=torch.int32, device=vertices.device)
    blurs = []
    for place in places:
        wanted = vertices + (place - span[0])
        wanted[:wrapped] += size * span[0] - sum(places)
        found = _positions(vertices, wanted)
        found = torch.where(vertices.index_select(0, found) == wanted, found, count)
        before = torch.where(found < count, found.to(torch.int32), itself)
        after = F.pad(itself, (0, 1)).scatter_(0, found, itself)[:count]  # the place at the end takes what is not found
        indices = torch.stack([itself, before, after], 1)
        weights = (indices != itself[:, None]) * 0.5
        weights[:, 0] = 1
        blurs.append(_even_rows(indices, weights))
    return tuple(blurs)


def _positions(ascending: Tensor, wanted: Tensor) -> Tensor:
    """Where `wanted` would be in `ascending`, as int64 within its length."""
    if ascending.is_cuda:
        return torch.searchsorted(ascending, wanted).clamp_(max=len(ascending) - 1)
    # NumPy's search starts from the place of the value before, several times faster for values that mostly ascend
    found = np.searchsorted(ascending.numpy(), wanted.numpy())
    return torch.from_numpy(found).clamp_(max=len(ascending) - 1)
