"""PPC: SEAM with features that are drawn to the prototype of their class and away from those of the others.

Du et al., "Weakly Supervised Semantic Segmentation by Pixel-to-Prototype Contrast", CVPR 2022.

SEAM's losses, and three on projected features of both views: each pixel against the other view's prototypes with its
own label, against its own with the other view's label, and, of each class, half of the pixels drawn at random and half
of those that are hard against a few prototypes that are alike. A class's prototype is the mean of the pixels that have
most of it in the batch; labels and prototypes come from the refined maps and are taken without gradient.

Otherwise than in the authors' program, for WideResNet-38 and 20 classes: ranks are relative to the number of classes;
the prototype of the background is made of the pixels that have least of the pictures' classes, in pictures where a map
of a class lives (`tied_background` gives theirs); a plane without score has a prototype of zeros, not the mean of its
features turned around; a class of one pixel counts with it. Prototypes, and the classes that are averaged over, are
those of the part of the batch at hand, so that `accumulate` and several processes make a difference here. As there,
classes that a picture does not show are contrasted with, too. On EPS, as its authors also have it, it does not stand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beco.config import Encoder
from beco.networks import encoders
from beco.stage1.correlation import View, spread, stretched, with_complement
from beco.stage1.localisers.seam import Seam, masks
from beco.training.sampling import Draws

EXTENDS = "seam"
OPTIONS = {
    "second_view": {
        "default": 0.2857,
        "gt": 0,
        "le": 1,
        "description": "side of the second view relative to the first (published: 128 pixels of 448)",
    },
    "cross_prototype": {
        "default": 0.1,
        "ge": 0,
        "description": "weight of the contrast with the other view's prototypes (published: 0.1)",
    },
    "cross_label": {
        "default": 0.1,
        "ge": 0,
        "description": "weight of the contrast by the other view's labels (published: 0.1)",
    },
    "intra": {
        "default": 0.1,
        "ge": 0,
        "description": "weight of the contrast within a view (published: 0.1)",
    },
    "background": {
        "default": 0.2,
        "gt": 0,
        "lt": 1,
        "description": "score of the background in the labels of pixels (published: 0.2)",
    },
    "tied_background": {
        "default": False,
        "description": "the background's prototype is the mean of the batch's first pixels (published: true; of pixels "
        "that all tie in a constant plane)",
    },
}
WIDTH = 128  # channels of the projection
TEMPERATURE = 0.1
PIXELS = 8  # a prototype is made of one in so many of the pixels of a picture
SKIPPED, COMPARED, RANKS = 3, 10, 21  # of 21 prototypes by likeness, those on ranks 4 to 13 are compared with


class PixelToPrototype(Seam):
    """SEAM, a projection, and its three contrasts."""

    def __init__(
        self, encoder: Encoder, output_stride: int, classes: int, dilate: bool, options: dict[str, Any]
    ) -> None:
        super().__init__(encoder, output_stride, classes, dilate, options)
        self.projection = nn.Conv2d(encoders.feature_channels(self.backbone)[-1], WIDTH, 1, bias=False)

    def terms(self, one: View, two: View, targets: Tensor, size: tuple[int, int], draws: Draws) -> dict[str, Tensor]:
        known = super().terms(one, two, targets, size, draws)
        cells = two.maps.shape[-2:]
        pixels, labels, prototypes = [], [], []
        for view in (one, two):
            projected = spread(self.projection(view.last).float().relu(), cells)
            planes = stretched(spread(view.refined[:, 1:].detach(), cells))
            pixels.append(by_pixel(F.normalize(projected)))
            labels.append(pseudo_labels(planes, targets, self.options["background"]))
            scores = self.scores(planes, targets)
            prototypes.append(class_prototypes(by_pixel(projected.detach()), by_pixel(scores), cells.numel() // PIXELS))
        return known | {
            "cross_prototype": both(contrast, pixels, labels, prototypes[::-1]),
            "cross_label": both(contrast, pixels, labels[::-1], prototypes),
            "intra": both(intra, pixels, labels, prototypes, [draws.uniform(*cells).flatten() for _ in range(2)]),
        }

    def scores(self, planes: Tensor, targets: Tensor) -> Tensor:
        """What pixels count with towards each prototype: (B, K, h, w) in [0, 1] -> (B, 1 + K, h, w)."""
        if self.options["tied_background"]:
            return F.pad(planes, (0, 0, 0, 0, 1, 0), value=self.options["background"])
        known = planes * masks(targets)
        # where no map of what a picture shows has come to life, all of it would pass for background
        told = (targets == 0).all(1) | (known.flatten(1) > 0).any(1)
        return torch.cat([with_complement(known)[:, :1] * masks(told[:, None]), planes], 1)


def both(loss: Any, *of_views: list[Tensor]) -> Tensor:
    """The mean of a loss over the two views."""
    first, second = (loss(*values) for values in zip(*of_views, strict=True))
    mean: Tensor = (first + second) / 2
    return mean


def by_pixel(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B·h·w, C)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def pseudo_labels(planes: Tensor, targets: Tensor, background: float) -> Tensor:
    """Classes' planes (B, K, h, w) in [0, 1] -> the label of each pixel, 0 … K: (B·h·w,) int64."""
    return by_pixel(F.pad(planes * masks(targets), (0, 0, 0, 0, 1, 0), value=background)).argmax(1)


def class_prototypes(features: Tensor, scores: Tensor, count: int) -> Tensor:
    """Features (N, D) and scores (N, 1 + K) of a batch's pixels -> (1 + K, D): of each plane the mean of the `count`
    pixels that have most of it, weighted by the score, brought to length 1; zeros if none has any.

    Of pixels that tie the first in the batch.
    """
    order = scores.argsort(dim=0, descending=True, stable=True)[: max(count, 1)]
    weights = scores.gather(0, order).T
    return F.normalize((weights[:, None] @ features[order.T]).squeeze(1))


def contrast(pixels: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    """Pixels (N, D) of length 1, their labels (N,) and prototypes (1 + K, D) -> the mean cross-entropy of the labels
    under the softmax of likeness over temperature.
    """
    return F.cross_entropy(pixels @ prototypes.T / TEMPERATURE, labels)


def intra(pixels: Tensor, labels: Tensor, prototypes: Tensor, chance: Tensor) -> Tensor:
    """The same within a view, where a pixel is compared with the prototypes of middle ranks, and each class counts
    alike: half of its pixels, those with least `chance` (N,), and half of those that are hard.
    """
    likeness = pixels @ prototypes.T
    own = likeness.gather(1, labels[:, None])
    others = likeness.gather(1, likeness.argsort(dim=1, descending=True, stable=True)[:, middle_ranks(len(prototypes))])
    losses = (torch.cat([own, others], 1) / TEMPERATURE).logsumexp(1) - own.squeeze(1) / TEMPERATURE
    member = (labels[:, None] == torch.arange(len(prototypes), device=labels.device)).long()
    count = member.sum(0)[labels]
    rank = rank_within(own.squeeze(1), member, labels)
    outliers = count // 10
    hard = (rank >= outliers) & (rank < torch.maximum(count * 6 // 10, outliers + 1))
    drawn = rank_within(chance, member, labels) < (count // 2).clamp(min=1)
    halves = [member * chosen[:, None] for chosen in (hard, drawn)]
    means = [losses @ half.float() / half.sum(0).clamp(min=1) for half in halves]
    return (means[0] + means[1]).sum() / 2 / member.amax(0).sum()


def middle_ranks(rows: int) -> slice:
    """Which of `rows` prototypes by likeness a pixel is compared with: of 21 those on ranks 4 to 13."""
    first = max(round(rows * SKIPPED / RANKS), 1)
    return slice(first, first + max(round(rows * COMPARED / RANKS), 1))


def rank_within(values: Tensor, member: Tensor, labels: Tensor) -> Tensor:
    """The rank of each of N values among those of its class, the least first: (N,) int64. `member`: (N, C) of 0 and 1,
    and `labels` (N,) its columns.
    """
    order = values.detach().argsort(stable=True)
    ranks = member[order].cumsum(0).gather(1, labels[order][:, None]).squeeze(1) - 1
    return torch.empty_like(ranks).scatter(0, order, ranks)
