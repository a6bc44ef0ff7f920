"""Artificial boundaries: objects of one picture pasted into another, and the band along the cut.

Whole batches on their device, without a loop over pictures or a copy to the host. Picture i is paired with picture
(i + B/2) mod B, and each of the two receives from the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from beco.training.sampling import Draws

VALUES = 256  # what a label may be; the last is no opinion


class Opinion(NamedTuple):
    """What is believed of a batch's pixels, each (B, H, W)."""

    label: Tensor
    """int64, 255 = no opinion."""
    reliable: Tensor
    """bool: what is learnt from the label rather than from the peer."""


@dataclass(frozen=True)
class Supervision:
    """What a batch is trained on. `images` (B, 3, H, W) float; `label` (B, H, W) int64, 255 = no opinion; `reliable`
    (B, H, W) bool; `band` (B, H, W) bool, the artificial boundaries; `pasted` (B, H, W) bool; `left_out` what the
    function of that name says of online labels, where they were asked for.
    """

    images: Tensor
    label: Tensor
    reliable: Tensor
    band: Tensor
    pasted: Tensor
    left_out: Tensor | None = None


class Mixing(NamedTuple):
    """How pictures are mixed."""

    classes: int
    probability: float
    """That a picture receives anything."""
    ignore_background: bool
    band_width: int
    """Pixels on either side of a pasted border; 0: no band."""


def partners(tensor: Tensor) -> Tensor:
    """Each entry's partner: the batch rolled by half its length."""
    return tensor.roll(len(tensor) // 2, 0)


def classes_in(label: Tensor, region: Tensor, classes: int) -> Tensor:
    """The labels 0 … `classes` that each picture shows within a region.

    `label` (B, H, W) int64, `region` (B, H, W) bool -> (B, classes + 1) bool. Pixels labelled 255 count for nothing.
    """
    seen = torch.where(region, label, VALUES - 1).flatten(1)
    return torch.zeros(len(label), VALUES, device=label.device).scatter_(1, seen, 1.0)[:, : classes + 1] > 0


def left_out(offline: Tensor, online: Opinion, classes: int) -> Tensor:
    """Of the classes that a picture shows by its offline labels, the share that no online label is trusted to be; the
    mean over the pictures.

    `offline` (B, H, W) int64 -> scalar float32; a picture that shows none counts with 0. It takes no mask: a class that
    is left out is learnt as something else wherever pictures are mixed, and never pasted.
    """
    shown = classes_in(offline, torch.ones_like(online.reliable), classes)[:, 1:]
    trusted = classes_in(online.label, online.reliable, classes)[:, 1:]
    return ((shown & ~trusted).sum(1) / shown.sum(1).clamp(min=1)).mean()


def choose_classes(label: Tensor, region: Tensor, classes: int, ignore_background: bool, draws: Tensor) -> Tensor:
    """Half of the classes, rounded up, that each picture shows within a region, drawn at random.

    `label` (B, H, W) int64, `region` (B, H, W) bool, `draws` (B, classes + 1) in [0, 1), the highest of which win
    -> (B, classes + 1) bool by label value. Pixels labelled 255 count for nothing.
    """
    present = classes_in(label, region, classes)
    if ignore_background:
        present[:, 0] = False
    rank = draws.masked_fill(~present, -1.0).argsort(1, descending=True).argsort(1)
    return present & (rank < (present.sum(1, keepdim=True) + 1) // 2)


def paste_mask(label: Tensor, region: Tensor, chosen: Tensor) -> Tensor:
    """The region's pixels of the chosen classes: (B, H, W) bool."""
    chosen = F.pad(chosen, (0, VALUES - chosen.shape[1]))
    return chosen.gather(1, label.flatten(1)).view_as(label) & region


def boundary_band(mask: Tensor, width: int) -> Tensor:
    """Dilation minus erosion of (B, H, W) bool masks by a square of side 2·width + 1; empty for width 0."""
    if width == 0:
        return torch.zeros_like(mask)
    near = torch.stack([mask, ~mask])  # what is not eroded is what the complement's dilation does not reach
    for axis in (2, 3):
        size, here = near.shape[axis], near.clone()
        for shift in range(1, min(width, size - 1) + 1):
            near.narrow(axis, shift, size - shift).logical_or_(here.narrow(axis, 0, size - shift))
            near.narrow(axis, 0, size - shift).logical_or_(here.narrow(axis, shift, size - shift))
    return near[0] & near[1]


def mix(
    images: Tensor,
    offline: Opinion,
    believed: Opinion,
    region: Tensor,
    how: Mixing,
    draws: Draws,
) -> Supervision:
    """Class-mix by pairs.

    Each picture receives, with the probability of `how`, half of its partner's classes: the pixels of these within
    `region` (B, H, W) bool, by the label that is `believed`. A picture that takes part is then supervised by what is
    believed, its own pixels and the pasted ones each as in the picture that they come from, even if there was nothing
    to paste; any other keeps its offline label and reliable pixels.
    """
    if len(images) % 2:
        raise ValueError("pairs need an even batch")
    donor, donor_region = Opinion(*map(partners, believed)), partners(region)
    chances, order = draws.uniform(), draws.uniform(how.classes + 1)
    chosen = choose_classes(donor.label, donor_region, how.classes, how.ignore_background, order)
    mixed = (chances < how.probability).view(-1, 1, 1)
    pasted = paste_mask(donor.label, donor_region, chosen & mixed.view(-1, 1))
    return Supervision(
        # a weight of 0 or 1 is exact, and faster than `where`
        images=torch.lerp(images, partners(images), pasted.unsqueeze(1).to(images.dtype)),
        label=torch.where(mixed, torch.where(pasted, donor.label, believed.label), offline.label),
        reliable=torch.where(mixed, torch.where(pasted, donor.reliable, believed.reliable), offline.reliable),
        band=boundary_band(pasted, how.band_width),
        pasted=pasted,
    )
