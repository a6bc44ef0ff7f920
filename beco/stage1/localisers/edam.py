"""EDAM: masks by which two pictures that share a class are compared (Wu et al., CVPR 2021).

Embedded Discriminative Attention Mechanism. The network has a map more than classes, of the background; a cell's values
over all maps, brought to length 1, are masks. For every class its mask times the features of both pictures goes
through a transformer block of that class, in which each cell attends to all cells of both, and the average over each
picture says whether the class is in it. Nothing but these answers is learnt from. Score maps are the masks alone.

Otherwise than in the original code: whom a picture is shown with is drawn anew each time from the pictures that share a
class with it, where a list made beforehand was read in its order; a picture that shares none is shown with another crop
of itself. Attention is never thinned by dropout, so that no table of all pairs of cells has to be made. In place of
WideResNet-38 without its last ReLU there is any encoder, whose last map has mostly gone through one. Positions are made
for the size of the map, and number its cells in reading order. Where it is asked about one picture alone, as for its
average precision, the picture is shown with itself.

With `saliency: fuse` each cell that a saliency map says is salient is of its best class, and all else is background,
whatever the background score but at outlines, which lie best with one of about a half. The original code does so last,
with the CRF's result, and lets pixels stand that the CRF is all but certain of; here score maps are fused, before a
recipe's CRF. Its limit is 100 times the share meant, of maps that go up to 255, see `theta_of`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

from beco.artifacts.grids import STRIDE
from beco.config import Cam, Crop, Encoder
from beco.datasets.manifest import Manifest
from beco.stage1.localisers.base import Inputs, Localiser
from beco.training.augment import ClassifierPictures
from beco.training.sampling import Draws, mixed_seed

OPTIONS = {
    "width": {
        "default": 128,
        "ge": 4,
        "multiple_of": 4,
        "description": "channels that the classes' blocks work on, a multiple of 4 (published: 128)",
    },
    "dropout": {
        "default": 0.1,
        "ge": 0,
        "lt": 1,
        "description": "share left out within the blocks in training (published: 0.1)",
    },
    "saliency": {
        "default": "none",
        "choices": ["none", "fuse"],
        "want": {"fuse": ["saliency"]},
        "description": "what the dataset's saliency maps do: nothing, or (published) tell objects from background in "
        "the score maps; the training does not look at them",
    },
    "theta": {
        "default": 0.2,
        "ge": 0,
        "lt": 1,
        "of_maps": True,
        "description": "share of `theta_of` above which a pixel is salient (published: 0.2)",
    },
    "theta_of": {
        "default": 255,
        "choices": [255, 100],
        "of_maps": True,
        "description": "the most salient value, or (original code) 100, so that a theta of 0.2 means 20 of 255",
    },
}
HEADS, WIDER = 2, 4
"""Of a block: heads of its attention, and how many times wider its hidden layer is."""
TOGETHER = 2**17
"""Cells of all classes that go through their blocks at once; of more, a few classes at a time, whose activations are
computed again for the gradient. At a width of 128 that many need about 3 GB with their gradients."""


class Edam(Localiser):
    """Masks, and a transformer block for each class over the cells of both pictures."""

    def __init__(
        self, encoder: Encoder, output_stride: int, classes: int, dilate: bool, options: dict[str, Any]
    ) -> None:
        super().__init__(encoder, output_stride, classes, dilate, options)
        channels, width = self.head.in_channels, options["width"]
        self.head = nn.Conv2d(channels, classes + 1, 3, padding=1, bias=False)  # the last one: background
        self.reduce = nn.Conv2d(channels, width, 1)
        self.picture = nn.Parameter(0.02 * torch.randn(2, 1, width))  # which of the two a cell is of
        self.blocks = _Blocks(classes, width, options["dropout"])
        self.answer = _Linear(classes, width, 1)

    def pictures(self, manifest: Manifest, crop: Crop, mean: Any, inputs: Inputs) -> Dataset[dict[str, Tensor]]:
        return _Pairs(manifest, crop, mean)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        """As the original code: blocks and embeddings have the encoder's rate, new convolutions the head's."""
        (backbone, _), (own, _) = super().parameter_groups()
        slow = {id(self.picture), *map(id, self.blocks.parameters())}
        return [
            (backbone + [one for one in own if id(one) in slow], False),
            ([one for one in own if id(one) not in slow], True),
        ]

    def losses(
        self, images: Tensor, batch: dict[str, Tensor], step: int, steps: int, draws: Draws
    ) -> dict[str, Tensor]:
        both = torch.cat(images.chunk(2, dim=-1)).contiguous(memory_format=torch.channels_last)
        masks, features = (maps.unflatten(0, (2, -1)).transpose(0, 1) for maps in self.see(both))
        targets = torch.stack([batch["target"], batch["other_target"]], 1)
        return {"loss": F.binary_cross_entropy_with_logits(self.answers(features, masks), targets)}

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) RGB in [0, 1] -> masks (B, K+1, h, w) float32 in [0, 1], the squares of a cell's adding up to 1,
        and features (B, width, h, w).
        """
        last = self.backbone(self.normalise(images))[-1]
        return F.normalize(self.head(last).float()).abs(), self.reduce(last)

    def answers(self, features: Tensor, masks: Tensor) -> Tensor:
        """Features (B, 2, width, h, w) and masks (B, 2, K+1, h, w) of pairs -> logits (B, 2, K) float32."""
        tokens, own = features.flatten(3).transpose(2, 3), masks.flatten(3)[:, :, :-1]
        placed = positions(tokens.shape[2], tokens.shape[3], tokens.device) + self.picture
        classes = own.shape[2]
        at_once = max(TOGETHER // tokens[..., 0].numel(), 1)
        parts = [slice(first, min(first + at_once, classes)) for first in range(0, classes, at_once)]
        if len(parts) == 1 or not torch.is_grad_enabled():
            logits = [self._answers_of(part, tokens, own, placed) for part in parts]
        else:
            logits = [checkpoint(self._answers_of, part, tokens, own, placed, use_reentrant=False) for part in parts]
        return torch.cat(logits).permute(1, 2, 0)

    def _answers_of(self, part: slice, tokens: Tensor, masks: Tensor, placed: Tensor) -> Tensor:
        """Of some classes, C of them: (B, 2, n, width), (B, 2, K, n), (2, n, width) -> (C, B, 2)."""
        mask = masks[:, :, part].permute(2, 0, 1, 3)[..., None]
        attended = self.blocks((tokens * mask + placed).flatten(2, 3), part)
        pooled = attended.unflatten(2, (2, -1)).float().mean(3)
        return self.answer(pooled.flatten(1, 2), part).float().unflatten(1, pooled.shape[1:3]).squeeze(-1)

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> masks (B, K+1, h, w), see `see`."""
        return self.see(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        masks, features = self.see(images)
        return self.answers(*(maps[:, None].expand(-1, 2, -1, -1, -1) for maps in (features, masks))).mean(1)

    def view(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.maps(images)[:, :-1]

    # --- saliency -------------------------------------------------------------------------------------------

    def prepare(self, manifest: Manifest, inputs: Inputs) -> None:
        self.salient = (manifest, inputs.saliency)

    def score(self, images: Tensor, targets: Tensor, ids: list[str], settings: Cam) -> Tensor:
        """With saliency maps a plane more, the last: how much of a cell is salient."""
        planes = super().score(images, targets, ids, settings)
        if self.options["saliency"] == "none":
            return planes
        size = (images.shape[2], images.shape[3])
        shares = torch.stack([salient_share(self.salient_pixels(name), size) for name in ids])
        return torch.cat([planes, shares[:, None].to(planes)], 1)

    def salient_pixels(self, image_id: str) -> Tensor:
        """(H, W) bool."""
        manifest, saliency = self.salient
        assert saliency is not None  # see `Inputs.checked`
        return torch.from_numpy(saliency.plane(manifest, image_id)) > self.options["theta"] * self.options["theta_of"]

    def finished(self, planes: Tensor, image_id: str, values: list[int]) -> Tensor:
        own = super().finished(planes, image_id, values)
        return own if self.options["saliency"] == "none" or not values else fused(own, planes[-1])


def salient_share(salient: Tensor, size: tuple[int, int]) -> Tensor:
    """Salient pixels (H, W) bool -> their share of each cell of the picture's maps at `size`, float32."""
    shares = salient[None, None].float()
    if shares.shape[2:] != size:
        shares = F.interpolate(shares, size, mode="bilinear", antialias=True, align_corners=False)
    beyond = [-side % STRIDE for side in size]
    return F.avg_pool2d(F.pad(shares, (0, beyond[1], 0, beyond[0]), mode="replicate"), STRIDE)[0, 0]


def fused(planes: Tensor, share: Tensor) -> Tensor:
    """Planes (K', h, w) in [0, 1], at least one, whose best class has the value `share` (h, w) at each cell, and the
    others as much less as they had; cells where every class has less than 1e-6 stay empty, as in the original code.
    """
    most = planes.amax(0)
    return planes / most.clamp(min=1e-6) * share * (most >= 1e-6)


class _Pairs(ClassifierPictures):
    """Pictures, each with one that shows a class of it.

    `image` (3, S, 2·S) holds both crops side by side, so that what is done to colours is done to both; `target` is of
    the left one, `other_target` (K,) of the right one.
    """

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        index, draw = key
        other = self.partner(index, draw)
        left, right = super().__getitem__(key), super().__getitem__((other, mixed_seed(draw, 1, 8)))
        image = torch.cat([left["image"], right["image"]], dim=2)
        return {"image": image, "target": left["target"], "other_target": right["target"]}

    def partner(self, index: int, draw: int) -> int:
        """Of the classes that another picture shows, too, one is drawn, and of the others that show it one; itself, if
        there is none.
        """
        generator = torch.Generator().manual_seed(mixed_seed(draw, 0, 8))
        shown = self.targets.astype(bool)
        counts = shown.sum(0)
        shared = (shown[index] & (counts > 1)).nonzero()[0]
        if not len(shared):
            return index
        first, second = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        others = shown[:, shared[int(first * len(shared))]].nonzero()[0]
        others = others[others != index]
        return int(others[int(second * len(others))])


class _Linear(nn.Module):
    """A linear layer for each class."""

    def __init__(self, classes: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(classes, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(classes, 1, outputs))

    def forward(self, tokens: Tensor, part: slice) -> Tensor:
        """(C, N, inputs) of C classes -> (C, N, outputs)."""
        return torch.baddbmm(self.bias[part], tokens, self.weight[part])


class _Norm(nn.Module):
    """Layer normalisation for each class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(classes, 1, width)),
            nn.Parameter(torch.zeros(classes, 1, width)),
        )

    def forward(self, tokens: Tensor, part: slice) -> Tensor:
        """(C, N, width) of C classes -> the same."""
        return F.layer_norm(tokens, tokens.shape[-1:]) * self.weight[part] + self.bias[part]


class _Blocks(nn.Module):
    """A transformer block for each class: normalisation first, two heads, a hidden layer with GELU."""

    def __init__(self, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.first, self.second = _Norm(classes, width), _Norm(classes, width)
        self.attend, self.join = _Linear(classes, width, 3 * width), _Linear(classes, width, width)
        self.widen, self.narrow = _Linear(classes, width, WIDER * width), _Linear(classes, WIDER * width, width)

    def forward(self, tokens: Tensor, part: slice) -> Tensor:
        """(C, B, N, width) of C classes -> the same, each row of N having attended to itself."""
        shape = tokens.shape
        tokens = tokens.flatten(1, 2)
        asked = self.attend(self.first(tokens, part), part)
        # to (3, C·B, heads, N, width of a head)
        queries, keys, values = asked.view(-1, shape[2], 3, HEADS, shape[3] // HEADS).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(tokens.shape)
        tokens = tokens + self._thinned(self.join(found, part))
        hidden = self._thinned(F.gelu(self.widen(self.second(tokens, part), part), approximate="tanh"))
        return (tokens + self._thinned(self.narrow(hidden, part))).view(shape)

    def _thinned(self, tokens: Tensor) -> Tensor:
        return F.dropout(tokens, self.dropout, self.training)


def positions(count: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of the numbers 0 … count-1 at falling frequencies (Vaswani et al. 2017, section 3.5), by turns:
    (count, width) float32.
    """
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000) / width))
    angles = torch.arange(count, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
