"""SEAM: class maps that follow a change of the picture's size, refined by how alike pixels are.

Wang et al., "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic Segmentation", CVPR 2020.

A picture and a small view of it go through one network. Besides the classifier's loss (cls), their class maps have to
agree (ER), and each view's maps as refined by the pixel correlation module have to agree with the other view's maps
(ECR) and to leave a quarter of the picture empty (rv). Only the module's own convolutions learn from ECR and rv. Score
maps are the module's.

In place of WideResNet-38 there is any encoder with three stages. Otherwise than in the authors' program, logits are
averages over cells, not over the maps at the picture's size; maps are compared at the size of the small view without
going by the picture's; what shrinks is averaged, the picture and the stages, not sampled; and the picture's background
has no channel of its own, which never learnt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from beco.config import Encoder
from beco.errors import UserError
from beco.networks import encoders
from beco.stage1.correlation import PixelCorrelation, View, alone, averaged, largest, spread, stretched, with_complement
from beco.stage1.localisers.base import Localiser
from beco.training.sampling import Draws

OPTIONS = {
    "second_view": {
        "default": 0.3,
        "gt": 0,
        "le": 1,
        "description": "side of the second view relative to the first (published: 0.3)",
    },
    "er": {"default": 1.0, "ge": 0, "description": "weight of the difference of both views' maps (published: 1)"},
    "ecr": {
        "default": 1.0,
        "ge": 0,
        "description": "weight of the difference of each view's refined maps from the other's maps (published: 1)",
    },
    "rv": {
        "default": 1.0,
        "ge": 0,
        "description": "weight of refined scores in the emptiest quarter of a picture (published: 1)",
    },
    "dropout": {
        "default": 0.5,
        "ge": 0,
        "lt": 1,
        "description": "share of the last map's channels left out in training, drawn by picture (published: 0.5)",
    },
    "known_classes": {
        "default": False,
        "description": "only the classes of the picture's labels go into the refinement (published: false; all do, so "
        "that a faint absent class can take pixels of a present one)",
    },
}
HARD = 0.2  # share of the values whose mean ECR is


class Seam(Localiser):
    """Two views of each picture, and the pixel correlation module."""

    def __init__(
        self, encoder: Encoder, output_stride: int, classes: int, dilate: bool, options: dict[str, Any]
    ) -> None:
        super().__init__(encoder, output_stride, classes, dilate, options)
        widths = encoders.feature_channels(self.backbone)
        if len(widths) < 3:
            raise UserError(
                f"encoder.name: `{encoder.name}` has {len(widths)} feature maps, and `{self.method}` needs three; "
                "choose another encoder"
            )
        self.correlation = PixelCorrelation(widths[-3], widths[-2])

    def see(self, images: Tensor, targets: Tensor, draws: Draws | None = None) -> View:
        """One view (B, 3, H, W) RGB in [0, 1] of pictures of the classes `targets` (B, K); with `draws` in training."""
        picture = self.normalise(images)
        *_, shallow, middle, last = self.backbone(picture)
        if draws is not None and self.options["dropout"]:
            last = thinned(last, draws, self.options["dropout"])
        maps = self.head(last).float()
        seen = maps.detach() * masks(targets) if self.options["known_classes"] else maps.detach()
        return View(maps, self.correlation(alone(seen), picture, shallow, middle), last)

    def losses(
        self, images: Tensor, batch: dict[str, Tensor], step: int, steps: int, draws: Draws
    ) -> dict[str, Tensor]:
        targets, share = batch["target"], self.options["second_view"]
        # of one cell at least; some encoders take nothing smaller
        height, width = (max(round(side * share), min(self.stride, side)) for side in images.shape[-2:])
        one = self.see(images, targets, draws)
        two = self.see(averaged(images, (height, width)), targets, draws)
        terms = self.terms(one, two, targets, (height, width), draws)
        loss = torch.stack([self.options.get(name, 1.0) * term for name, term in terms.items()]).sum()
        return {"loss": loss, **{f"loss_{name}": term.detach() for name, term in terms.items()}}

    def terms(self, one: View, two: View, targets: Tensor, size: tuple[int, int], draws: Draws) -> dict[str, Tensor]:
        """The parts of the loss by name, before their weights, the classifier's first. `size`: that of the second view,
        pixels.
        """
        classes = [F.multilabel_soft_margin_loss(self.scored(view.maps), targets) for view in (one, two)]
        maps = [spread(stretched(view.maps), size) * masks(targets) for view in (one, two)]
        refined = [view.refined for view in (one, two)]
        empty = [emptiness(spread(planes, size), targets) for planes in refined]
        return {
            "cls": (classes[0] + classes[1]) / 2,
            "rv": (empty[0] + empty[1]) / 2,
            "er": (maps[0] - maps[1]).abs().mean(),
            "ecr": disagreement(refined[0], maps[1], targets) + disagreement(refined[1], maps[0], targets),
        }

    def view(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.see(images, targets).refined[:, 1:]

    def normalised(self, planes: Tensor) -> Tensor:
        """Each from its minimum and maximum over the picture to 0 and 1."""
        return stretched(planes)


def masks(targets: Tensor) -> Tensor:
    """Targets (B, K) as factors of class maps."""
    return targets[:, :, None, None]


def thinned(features: Tensor, draws: Draws, share: float) -> Tensor:
    """Features (B, C, h, w) of which each picture loses `share` of the channels, the others scaled up for it; the same
    whatever the parts of the batch.
    """
    kept = draws.uniform(features.shape[1]) >= share
    return features * (kept.to(features) / (1 - share))[:, :, None, None]


def emptiness(refined: Tensor, targets: Tensor) -> Tensor:
    """The rv loss of refined planes (B, 1 + K, h, w): the mean of the largest present class over the quarter of the
    pixels that have least of it.
    """
    most = (refined[:, 1:] * masks(targets)).amax(1).flatten(1)
    return most.topk(max(most.shape[1] // 4, 1), largest=False).values.relu().mean()


def disagreement(refined: Tensor, maps: Tensor, targets: Tensor) -> Tensor:
    """Half of the ECR loss: refined planes (B, 1 + K, h, w) of one view against masked maps (B, K, H, W) of the other.

    The mean, over the fifth of each picture's planes and pixels where it is largest, of the difference of the refined
    planes from the maps, of which at each pixel only the largest is kept; the maps are what is right and learn nothing.
    """
    right = largest(with_complement(maps.detach()))
    present = F.pad(masks(targets), (0, 0, 0, 0, 1, 0), value=1)
    wrong = (right - spread(stretched(refined), right.shape[-2:]) * present).abs().flatten(1)
    return wrong.topk(max(int(wrong.shape[1] * HARD), 1)).values.mean()
