"""SEAM's pixel correlation module: class maps averaged over the pixels of a picture that look alike.

Wang et al., "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic Segmentation", CVPR 2020,
section 3.3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = 1e-5
AFFINITIES = 2**24
"""Entries of the affinity matrix that are worked on at once: 64 MiB of float32."""


class View(NamedTuple):
    """What a network with such a module makes of one view of pictures."""

    maps: Tensor
    """(B, K, h, w), before the ReLU."""
    refined: Tensor
    """(B, 1 + K, h, w) in [0, 1], the background's first; its gradient ends in the module's convolutions."""
    last: Tensor
    """(B, C, h, w): the last map, after dropout."""


class PixelCorrelation(nn.Module):
    """The picture and two stages of a backbone -> how alike pixels are -> class maps averaged accordingly.

    Its three convolutions alone learn from what is done with its maps: maps and stages are taken without their
    gradients.
    """

    def __init__(self, shallow: int, middle: int) -> None:
        """`shallow`, `middle`: channels of the two stages before the last map."""
        super().__init__()
        self.shallow = nn.Conv2d(shallow, 64, 1, bias=False)
        self.middle = nn.Conv2d(middle, 128, 1, bias=False)
        self.joint = nn.Conv2d(3 + 64 + 128, 192, 1, bias=False)
        nn.init.kaiming_normal_(self.shallow.weight)
        nn.init.kaiming_normal_(self.middle.weight)
        nn.init.xavier_uniform_(self.joint.weight, gain=4)

    def forward(self, planes: Tensor, picture: Tensor, shallow: Tensor, middle: Tensor) -> Tensor:
        """Planes (B, C, h, w) of `alone`, the normalised picture (B, 3, H, W) and the two stages (B, …) -> planes.

        Each pixel of the result is a convex combination of the pixels of `planes` (or 0, if it is like none).
        """
        size = planes.shape[-2:]
        picture, shallow, middle = (averaged(one.detach().float(), size) for one in (picture, shallow, middle))
        parts = [picture, self.shallow(shallow).relu(), self.middle(middle).relu()]
        features = self.joint(torch.cat(parts, 1)).flatten(2)
        with torch.autocast(planes.device.type, enabled=False):
            features = features.float()
            features = features / (features.norm(dim=1, keepdim=True) + SMALL)
            return correlated(planes.detach().float().flatten(2), features).unflatten(2, size)


def correlated(planes: Tensor, features: Tensor, most: int = AFFINITIES) -> Tensor:
    """Planes (B, C, n) and features of length 1 (B, D, n) -> planes: at each pixel the mean over all pixels, weighted
    by the cosine with it where that is positive; (B, C, n).

    The weights are n × n. About `most` of them are worked on at once, so many columns; none are kept for the backward
    pass, which computes them again. The gradient is that of the features; `planes` have none.
    """
    wide = max(most // (features.shape[0] * features.shape[2]), 1)
    if wide >= features.shape[2]:
        return _columns(planes, features, features)
    found: Tensor = _InPieces.apply(planes, features, wide)
    return found


class _InPieces(torch.autograd.Function):
    """`correlated` by `wide` columns at a time. (torch's own checkpoint would do, but first imports its compiler.)"""

    @staticmethod
    def forward(ctx: Any, planes: Tensor, features: Tensor, wide: int) -> Tensor:
        ctx.save_for_backward(planes, features)
        ctx.wide = wide
        return torch.cat([_columns(planes, features, chunk) for chunk in features.split(wide, dim=2)], 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        planes, features = ctx.saved_tensors
        total = torch.zeros_like(features)
        for start, gradient in enumerate(gradients[0].split(ctx.wide, dim=2)):
            with torch.enable_grad():
                leaf = features.detach().requires_grad_()
                chunk = leaf[:, :, start * ctx.wide : (start + 1) * ctx.wide]
                total += torch.autograd.grad(_columns(planes, leaf, chunk), leaf, gradient)[0]
        return None, total, None


def _columns(planes: Tensor, features: Tensor, chunk: Tensor) -> Tensor:
    weights = (features.transpose(1, 2) @ chunk).relu_()
    return planes @ weights / (weights.sum(1, keepdim=True) + SMALL)


def alone(maps: Tensor) -> Tensor:
    """Class maps (B, K, h, w) -> planes (B, 1 + K, h, w) in [0, 1]: the background's, which is 1 minus the largest
    class, and the classes' divided by their maxima, each kept only where it is the largest of them.
    """
    positive = maps.relu()
    shares = (positive - SMALL).relu() / (positive.amax((2, 3), keepdim=True) + SMALL)
    return largest(with_complement(shares))


def with_complement(planes: Tensor) -> Tensor:
    """Classes' planes (B, K, h, w) -> (B, 1 + K, h, w), the first 1 minus their maximum."""
    return torch.cat([1 - planes.amax(1, keepdim=True), planes], 1)


def largest(planes: Tensor) -> Tensor:
    """Planes (B, 1 + K, h, w), of which the classes' are set to 0 where another class has more; ties stay."""
    classes = planes[:, 1:]
    return torch.cat([planes[:, :1], classes * (classes == classes.amax(1, keepdim=True))], 1)


def stretched(planes: Tensor) -> Tensor:
    """Planes (…, h, w), negative values as 0, from their minimum and maximum to 0 and 1; a constant one to 0."""
    positive = planes.relu()
    low, high = positive.amin((-2, -1), keepdim=True), positive.amax((-2, -1), keepdim=True)
    return (positive - low - SMALL).relu() / (high - low + SMALL)


def averaged(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Maps or pictures (B, C, h, w) float at another size, averaged where they shrink; as they are at their own."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", antialias=True, align_corners=False)


def spread(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) of a network at another size, corner cells on corner pixels, so that maps of views of other
    sizes lie upon each other: a network's strided convolutions see the corner pixel at their first cell.
    """
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)
