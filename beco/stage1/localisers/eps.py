"""EPS: explicit pseudo-pixel supervision by saliency maps (Lee et al., CVPR 2021).

The network has a class map more, of the background. The softmax over all maps at each pixel is put together to an
estimate of the saliency map, of which classes of the picture that lie within the salient part are foreground and all
others background; its squared difference from the map is learnt from beside the labels. Saliency maps come from a
program that learnt from masks of salient objects, so this is more than image-level supervision.

Otherwise than in the original code: where a crop reaches beyond its picture nothing is known of saliency; there the
original code teaches background, see the option `padding`. Its network at stride 8 is any encoder here, and views are
summed at stride 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from beco.artifacts.grids import grid
from beco.config import Crop, Encoder
from beco.datasets.manifest import Manifest
from beco.stage1.localisers.base import Inputs, Localiser
from beco.training.augment import SalientPictures
from beco.training.sampling import Draws

INPUTS = ("saliency",)
OPTIONS = {
    "salient_share": {
        "default": 0.4,
        "ge": 0,
        "le": 1,
        "description": "a class of a picture is foreground if more than this share of its pixels is salient "
        "(the paper's tau)",
    },
    "foreground_weight": {
        "default": 0.5,
        "ge": 0,
        "le": 1,
        "description": "of the foreground's maps in the estimate; the rest is that of all but the background's "
        "(the paper's lambda; 0.9 for COCO)",
    },
    "saliency_weight": {"default": 1.0, "ge": 0, "description": "weight of the loss on saliency"},
    "padding": {
        "default": "ignored",
        "choices": ["ignored", "background"],
        "description": "what a crop's part beyond its picture counts for in the loss on saliency: nothing, or "
        "(original code) not salient",
    },
}
EPSILON = 1e-4
"""In the denominator of a class's salient share, for each pixel, as in the original code."""


class Eps(Localiser):
    """The classifier's loss, and one on saliency."""

    def __init__(
        self, encoder: Encoder, output_stride: int, classes: int, dilate: bool, options: dict[str, Any]
    ) -> None:
        super().__init__(encoder, output_stride, classes, dilate, options)
        self.head = nn.Conv2d(self.head.in_channels, classes + 1, 1, bias=False)  # the last one: background

    def pictures(self, manifest: Manifest, crop: Crop, mean: Any, inputs: Inputs) -> Dataset[dict[str, Tensor]]:
        assert inputs.saliency is not None  # see `Inputs.checked`
        return SalientPictures(manifest, inputs.saliency, crop, mean)

    def counted(self, batch: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Which cells of maps of that size count in the loss on saliency, (B, h, w) float32 of 0 and 1."""
        inside = _nearest(batch["inside"].float(), size)
        return inside if self.options["padding"] == "ignored" else torch.ones_like(inside)

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        height, width = batch["image"].shape[-2:]
        size = grid(height, width, self.stride)
        return {"cells": self.counted(batch, size).sum().clamp(min=1)}

    def losses(
        self, images: Tensor, batch: dict[str, Tensor], step: int, steps: int, draws: Draws
    ) -> dict[str, Tensor]:
        maps = self.maps(images).float()
        size = (maps.shape[2], maps.shape[3])
        saliency, counted = _nearest(batch["saliency"], size), self.counted(batch, size)
        estimate = self.estimate(maps.softmax(1), batch["target"], saliency, counted)
        on_saliency = ((estimate - saliency) ** 2 * counted).sum() / batch["cells"]
        on_classes = F.multilabel_soft_margin_loss(self.scored(maps[:, :-1]), batch["target"])
        loss = on_classes + self.options["saliency_weight"] * on_saliency
        return {"loss": loss, "loss_classes": on_classes.detach(), "loss_saliency": on_saliency.detach()}

    def estimate(self, shares: Tensor, targets: Tensor, saliency: Tensor, counted: Tensor) -> Tensor:
        """What a picture's maps say of its saliency: (B, K+1, h, w) softmax -> (B, h, w) in [0, 1].

        The classes of `targets` (B, K) whose pixels are salient enough are the foreground, and the background takes
        the others of them; the gradient flows through the maps and not through that choice. `saliency` and `counted`
        are (B, h, w).
        """
        classes = shares[:, :-1]
        own = classes.detach().round() * counted[:, None]
        salient = (own * saliency.round()[:, None]).sum((2, 3)) / (own + EPSILON).sum((2, 3))
        outside = (targets * (salient <= self.options["salient_share"]))[:, :, None, None]
        foreground = (classes * (targets[:, :, None, None] - outside)).sum(1)
        background = shares[:, -1] + (classes * outside).sum(1)
        weight = self.options["foreground_weight"]
        return weight * foreground + (1 - weight) * (1 - background)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, :-1]

    def view(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.maps(images).float().softmax(1)[:, :-1]


def _nearest(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) float32 on the cells of maps: (B, *size), the pixel under the centre of each."""
    return F.interpolate(planes[:, None], size, mode="nearest-exact")[:, 0]
