"""Class re-activation maps (Chen, Wang, Wu, Hua, Zhang & Sun, CVPR 2022).

A trained classifier goes on learning with a second one beside it: each class's map, divided by its maximum, pools the
features to one vector a class, and the second classifier has to tell by softmax cross-entropy which class that vector
is of. The vectors of the classes that a picture shows are learnt from, through map and features alike. Maps of a class
are made with the product of both classifiers' weights.

Otherwise than in the authors' program: the pooling is one product of matrices, not a picture's features times each of
its maps in memory. As published `weight: 1` (VOC; COCO 0.1), four epochs and `optimiser: {lr: 5.0e-5, head_lr_factor:
10}`, where the second classifier alone counts as the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beco.config import Encoder
from beco.errors import UserError
from beco.networks import encoders
from beco.networks.weights import load_weights
from beco.stage1.localisers.base import Inputs, Localiser
from beco.training.sampling import Draws

INPUTS = ("start",)
OPTIONS = {
    "weight": {"default": 1.0, "ge": 0, "description": "of the second classifier's loss (published for COCO: 0.1)"},
    "maps": {
        "default": "product",
        "choices": ["product", "first", "second"],
        "of_maps": True,
        "description": "whose weights make the maps: both classifiers' multiplied (published), or those of one alone. "
        "A product is above 0 also where both are below, for features of other classes",
    },
}


class ReactivatedMaps(Localiser):
    """A classifier on averages of its maps, and a second on the features under each map."""

    def __init__(
        self, encoder: Encoder, output_stride: int, classes: int, dilate: bool, options: dict[str, Any]
    ) -> None:
        super().__init__(encoder, output_stride, classes, dilate, options)
        self.second = nn.Linear(self.head.in_channels, classes, bias=False)

    def begin(self, inputs: Inputs) -> None:
        """Take over the backbone, its statistics too, and the class maps; UserError if the network has others."""
        assert inputs.start
        state, metadata = encoders.load_network(inputs.start, "classifier")
        encoders.refuse_pooled(inputs.start, metadata, self.backbone)
        head = state.get("head.weight", torch.empty(0))
        if head.shape != self.head.weight.shape:
            raise UserError(
                f"start: {inputs.start} has no class map for each class that is linear in features like ours; name a "
                "source of method `cam` with this source's encoder"
            )
        prefix = "backbone."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        load_weights(self.backbone, own, str(inputs.start))
        with torch.no_grad():
            self.head.weight.copy_(head)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        """What was learnt before goes on at one rate; the second classifier is the head."""
        (backbone, _), _ = super().parameter_groups()
        return [([*backbone, *self.head.parameters()], False), (list(self.second.parameters()), True)]

    def losses(
        self, images: Tensor, batch: dict[str, Tensor], step: int, steps: int, draws: Draws
    ) -> dict[str, Tensor]:
        features = self.backbone(self.normalise(images))[-1]
        maps, target = self.head(features).float(), batch["target"]
        first = F.multilabel_soft_margin_loss(self.scored(maps), target)
        logits = self.second(pooled(features, maps)).float()
        wrong = -logits.log_softmax(2).diagonal(dim1=1, dim2=2)
        second = ((wrong * target).sum(1) / target.sum(1).clamp(min=1)).mean()
        return {"loss": first + self.options["weight"] * second, "first": first, "second": second}

    def view(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps by the weights that the option `maps` names, after the ReLU."""
        first, second = self.head.weight, self.second.weight[:, :, None, None]
        weight = {"first": first, "second": second, "product": first * second}[self.options["maps"]]
        return F.conv2d(self.backbone(self.normalise(images))[-1], weight).float().relu()


def pooled(features: Tensor, maps: Tensor) -> Tensor:
    """Features (B, D, h, w), averaged under each of the maps (B, K, h, w) after ReLU and division by its maximum (plus
    1e-5): (B, K, D).
    """
    shares = maps.relu()
    shares = shares / (shares.amax((2, 3), keepdim=True) + 1e-5)
    cells = shares.shape[2] * shares.shape[3]  # divided by before the product, whose sums could exceed half precision
    return (shares / cells).flatten(2).to(features.dtype) @ features.flatten(2).transpose(1, 2)
