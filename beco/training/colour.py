"""Strong colour augmentation of a whole batch on its device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beco.training.sampling import Draws

# Probabilities and ranges of the published code, which relies on albumentations' defaults, in units of full range.
CHANGED, GRAY, BLURRED = 0.8, 0.2, 0.5
WIDE = 2 / 3  # of those that are blurred: a limit of 5 draws 3, 4 or 5, and 4 is rounded up
BRIGHTNESS = CONTRAST = 0.2
HUE, SATURATION, VALUE = 20 / 180, 30 / 255, 20 / 255
BINOMIALS = ((0.0, 0.0, 1.0, 0.0, 0.0), (0.0, 0.25, 0.5, 0.25, 0.0), (0.0625, 0.25, 0.375, 0.25, 0.0625))
LUMA = (0.299, 0.587, 0.114)

# By column of the draws: below which it happens (changed, gray, blurred; the last: by 5 pixels), and what a draw of
# 0.5 stands for and of 0 to 1 spans (contrast, brightness, hue, saturation, value).
LIMITS = (CHANGED, GRAY, BLURRED, 0.0, 0.0, 0.0, 0.0, 0.0, WIDE)
MIDDLES = (1.0, 0.0, 0.0, 0.0, 0.0)
SPANS = (2 * CONTRAST, 2 * BRIGHTNESS, 2 * HUE, 2 * SATURATION, 2 * VALUE)
TURNS = (11 / 6, 9 / 6, 7 / 6)  # where on the hue's circle red, green and blue are at their turns, a round later
TINY = 1e-8


class StrongColour(nn.Module):
    """Colours changed anew for each picture; shapes stay, so labels stay.

    With probability 0.8 contrast and brightness (x · (1 ± 0.2) ± 0.2) and then hue, saturation and value (± 20° of
    180, ± 30 and ± 20 of 255, added); with 0.2 gray; with 0.5 a blur, of 5 pixels twice in three times and else of 3.
    `order` "bgr" does as the published code, which swaps red and blue before (so that hue and gray weigh them the
    other way round) and cuts colours to 8 bits. Takes and returns (B, 3, H, W) float RGB in [0, 1].
    """

    limits: Tensor
    middles: Tensor
    spans: Tensor
    luma: Tensor
    turns: Tensor
    kernels: Tensor

    def __init__(self, order: Literal["rgb", "bgr"] = "rgb") -> None:
        super().__init__()
        self.swapped = order == "bgr"
        columns = {"limits": LIMITS, "middles": MIDDLES, "spans": SPANS, "luma": LUMA, "turns": TURNS}
        for name, values in columns.items():
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("kernels", torch.tensor(BINOMIALS), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        chance = draws.uniform(9).view(-1, 9, 1, 1)
        # weights of 0 and 1: a `lerp` by them is exact, and faster than `where`
        changed, gray, blurred, *_, wide = (chance < self.limits).float().split(1, 1)
        shifts = torch.addcmul(self.middles, chance[:, 3:8] - 0.5, self.spans)
        images = images.contiguous()  # colour by colour in memory, where what follows takes half of the time
        if self.swapped:
            images = _eight_bits(images.flip(1))
        contrasted = torch.addcmul(shifts[:, 1:2], images, shifts[:, :1]).clamp_(0, 1)
        images = torch.lerp(images, _shifted_hsv(contrasted, shifts[:, 2:], self.turns), changed)
        images = torch.lerp(images, (images * self.luma).sum(1, keepdim=True), gray)
        none, three, five = self.kernels.view(3, 1, 5, 1, 1)
        images = _blurred(images, torch.lerp(none, torch.lerp(three, five, wide), blurred))
        return _eight_bits(images).flip(1) if self.swapped else images


def _shifted_hsv(images: Tensor, shifts: Tensor, turns: Tensor) -> Tensor:
    """Hue (of a circle of 1), saturation and value (of 0 to 1) moved by (B, 3, 1, 1).

    There and back in one go. A colour channel is as high as the value within a third of the circle, as low as the
    value less the chroma within another, and in between falls linearly with the hue's distance from its turn.
    """
    red, green, blue = images.split(1, 1)
    hue_shift, saturation_shift, value_shift = shifts.split(1, 1)
    value, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - low
    is_red, is_green, _ = (images == value).float().split(1, 1)
    from_green, from_blue = (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
    sextant = torch.lerp(from_blue, from_green, is_green).lerp_(green - blue, is_red)
    sextant.div_(chroma.clamp(min=TINY))  # of a gray, 0
    chroma.div_(value.clamp(min=TINY)).add_(saturation_shift).clamp_(0, 1)
    value.add_(value_shift).clamp_(0, 1)
    chroma.mul_(value)
    distance = torch.add(turns + hue_shift, sextant, alpha=1 / 6).frac_().mul_(6).sub_(2).abs_()
    return torch.addcmul(value, chroma, distance.sub_(2).clamp_(-1, 0))


def _blurred(images: Tensor, kernels: Tensor) -> Tensor:
    """Each picture by its own (B, 5, 1, 1) weights, down and across, mirrored at the edge."""
    weights = kernels.split(1, 1)
    for axis, padding in ((2, (0, 0, 2, 2)), (3, (2, 2, 0, 0))):
        padded, size = F.pad(images, padding, mode="reflect"), images.shape[axis]
        images = padded.narrow(axis, 0, size) * weights[0]
        for start, weight in enumerate(weights[1:], 1):
            images.addcmul_(padded.narrow(axis, start, size), weight)
    return images


def _eight_bits(images: Tensor) -> Tensor:
    return (images * 255).floor() / 255
