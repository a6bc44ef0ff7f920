"""Strong colour augmentation of a whole batch on its device."""

from __future__ import annotations

import math
from typing import Literal

import torch
from kornia.color import hsv_to_rgb, rgb_to_hsv
from torch import Tensor, nn
from torch.nn import functional as F

from beco.sampling import Draws

# Probabilities and ranges of the published code, which relies on albumentations' defaults, in units of full range.
CHANGED, GRAY, BLURRED = 0.8, 0.2, 0.5
BRIGHTNESS = CONTRAST = 0.2
HUE, SATURATION, VALUE = 20 / 180, 30 / 255, 20 / 255
BINOMIALS = ((0.0, 0.0, 1.0, 0.0, 0.0), (0.0, 0.25, 0.5, 0.25, 0.0), (0.0625, 0.25, 0.375, 0.25, 0.0625))
LUMA = (0.299, 0.587, 0.114)


class StrongColour(nn.Module):
    """Colours changed anew for each picture; shapes stay, so labels stay.

    With probability 0.8 contrast and brightness (x · (1 ± 0.2) ± 0.2) and then hue, saturation and value (± 20° of
    180, ± 30 and ± 20 of 255, added); with 0.2 gray; with 0.5 a blur of 3 or 5 pixels. `order` "bgr" does as the
    published code, which swaps red and blue before (so that hue and gray weigh them the other way round) and cuts
    colours to 8 bits. Takes and returns (B, 3, H, W) float RGB in [0, 1].
    """

    luma: Tensor
    kernels: Tensor

    def __init__(self, order: Literal["rgb", "bgr"] = "rgb") -> None:
        super().__init__()
        self.swapped = order == "bgr"
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("kernels", torch.tensor(BINOMIALS), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        chance = draws.uniform(9).view(-1, 9, 1, 1, 1)
        if self.swapped:
            images = _eight_bits(images.flip(1))
        changed = _shifted_hsv(_contrasted(images, chance[:, 3], chance[:, 4]), chance[:, 5:8, 0])
        images = torch.where(chance[:, 0] < CHANGED, changed, images)
        gray = (images * self.luma).sum(1, keepdim=True).expand_as(images)
        images = torch.where(chance[:, 1] < GRAY, gray, images)
        wide = chance[:, 8].flatten() < 0.5
        which = torch.where(chance[:, 2].flatten() < BLURRED, wide.long() + 1, 0)
        images = _blurred(images, self.kernels[which])
        return _eight_bits(images).flip(1) if self.swapped else images


def _contrasted(images: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    factor = 1 + CONTRAST * (2 * contrast - 1)
    return (images * factor + BRIGHTNESS * (2 * brightness - 1)).clamp(0, 1)


def _shifted_hsv(images: Tensor, draws: Tensor) -> Tensor:
    """Hue, saturation and value moved by (B, 3, 1, 1) draws in [0, 1), 0.5 being no change."""
    hue, saturation, value = (2 * draws - 1).split(1, 1)
    h, s, v = rgb_to_hsv(images).split(1, 1)
    h = (h + 2 * math.pi * HUE * hue) % (2 * math.pi)
    s, v = (s + SATURATION * saturation).clamp(0, 1), (v + VALUE * value).clamp(0, 1)
    return hsv_to_rgb(torch.cat([h, s, v], 1))


def _blurred(images: Tensor, kernels: Tensor) -> Tensor:
    """Each picture by its own row of (B, 5) weights, down and across, mirrored at the edge."""
    height, width = images.shape[-2:]
    weights = kernels.view(-1, 5, 1, 1, 1).unbind(1)
    padded = F.pad(images, (0, 0, 2, 2), mode="reflect")
    images = sum((padded[..., i : i + height, :] * weight for i, weight in enumerate(weights)), torch.zeros(()))
    padded = F.pad(images, (2, 2, 0, 0), mode="reflect")
    return sum((padded[..., i : i + width] * weight for i, weight in enumerate(weights)), torch.zeros(()))


def _eight_bits(images: Tensor) -> Tensor:
    return (images * 255).floor() / 255
