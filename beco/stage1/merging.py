"""One score map of a picture from views of it at several scales, straight and mirrored."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from beco.artifacts.grids import STRIDE, grid
from beco.config import Cam
from beco.stage1.placing import placed
from beco.training.batches import layout


class Viewer(Protocol):
    """What gives a map of one view, see `beco.stage1.localisers.base.Localiser`."""

    @property
    def stride(self) -> int:
        """Pixels to a cell."""

    def view(self, images: Tensor, targets: Tensor) -> Tensor:
        """(B, 3, H, W), (B, K) -> (B, C, ⌈H/stride⌉, ⌈W/stride⌉)."""


@torch.inference_mode()
def multi_scale_maps(network: Viewer, images: Tensor, targets: Tensor, settings: Cam) -> Tensor:
    """Sum of a localiser's views over scales and mirror images: (B, 3, h, w) -> (B, C, ⌈h/4⌉, ⌈w/4⌉) float32.

    `targets` (B, K) float32 in {0, 1}: the classes that the pictures show. Each map is read where its cells lie on the
    picture, of which the last may reach beyond it.
    """
    height, width = images.shape[-2:]
    size, stride = grid(height, width), network.stride
    shown = torch.cat([targets, targets]) if settings.flip else targets
    total = torch.zeros(())
    for scale in settings.scales:
        views = scaled(images, scale, settings.flip)
        fed = views.shape[-2:]
        sides = (stride * height / fed[0] / STRIDE, stride * width / fed[1] / STRIDE)
        maps = network.view(views, shown)
        straight, *mirrored = maps.split(len(images))
        total = placed(straight, size, sides) + total.to(maps.device)
        for one in mirrored:
            total = placed(one, size, sides, mirrored=width / STRIDE) + total
    return total


def scaled(images: Tensor, scale: float, flip: bool) -> Tensor:
    """Pictures (B, 3, h, w) resized by a factor; with `flip` their mirror images after them: (2B, 3, …)."""
    if scale != 1:
        fed = tuple(max(round(side * scale), 1) for side in images.shape[-2:])
        images = F.interpolate(images, fed, mode="bilinear", antialias=scale < 1, align_corners=False)
    views = torch.cat([images, images.flip(-1)]) if flip else images
    return views.contiguous(memory_format=layout(views.device))
