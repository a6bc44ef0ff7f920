"""CLIP-ES (Lin et al., "CLIP is Also an Efficient Segmenter", CVPR 2023): maps of a frozen CLIP, which learns nothing.

A picture's tokens, averaged and projected, are compared with the texts of its classes and of what backgrounds show;
GradCAM of the softmax over these at the first normalisation of the last block gives each class's map. It is refined by
class-aware attention-based affinity: the mean attention of the last blocks, brought towards a doubly stochastic matrix,
carries scores from the cells within the boxes of a map's high regions to those that attend to them.

The encoder is a CLIP image tower of timm with a weights file that has its projection (`vit_base_patch16_clip_224`; of
OpenAI's weights `vit_base_patch16_clip_quickgelu_224`), the texts a file of `beco text-features`. Published: `cam:
{scales: [1], flip: false}`; with more views the mean of their maps is taken.

Otherwise than in the authors' program: gradients are of the log-odds, those of the softmax but for a positive factor,
which the stretch to 0 to 1 takes out, and none where it rounds to 1 (`gradient_of: probability`); position embeddings
are resampled by timm, bicubic; boxes reach to the last row and column; a picture without a class has no map, instead of
ending its process. Their confidence is that of the labels after the CRF, not of maps. Their background, 1 - the highest
map, is `background: 0.5` where labels are made of thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from beco.artifacts.grids import STRIDE, grid
from beco.config import Cam, Encoder
from beco.errors import UserError
from beco.networks.joint import image_projection
from beco.networks.tokens import PlainTransformer
from beco.stage1.localisers.base import Inputs, Localiser
from beco.stage1.placing import placed
from beco.training.sampling import Draws

INPUTS = ("text",)
TRAINS = False
OPTIONS = {
    "gradient_of": {
        "default": "odds",
        "choices": ["odds", "probability"],
        "description": "odds: the logarithm of p/(1 − p), whose gradient is that of p but for its size; probability "
        "(original): p itself, whose gradient is lost in rounding where p nears 1",
    },
    "affinity": {"default": True, "description": "refine by attention; false: GradCAM alone"},
    "affinity_blocks": {"default": 8, "ge": 1, "description": "last blocks whose attention is averaged, if there are"},
    "sinkhorn": {"default": 3, "ge": 0, "description": "rounds that divide attention by the sums of columns and rows"},
    "squarings": {"default": 1, "ge": 0, "le": 16, "description": "scores are carried 2^squarings times"},
    "box_threshold": {
        "default": 0.4,
        "ge": 0,
        "lt": 1,
        "description": "share of a map's maximum above which cells make its regions; published for COCO: 0.7",
    },
}

EVEN = 1e-7
"""Added to a map's range, lest one that is the same everywhere is divided by 0."""
LEAST = 1e-12
"""Sum of the attention to a patch, lest one that nothing attends to is divided by 0."""
TOUCHING = np.ones((3, 3), bool)
"""Cells of a region touch by a side or a corner."""


class ClipEs(Localiser):
    """A CLIP image tower, its projection, and texts."""

    texts: Tensor
    """(K + n, E) float32 of length 1: the classes', then the background's."""
    projection: Tensor
    """(E, C) float32; `shift` (E,) is its bias."""
    shift: Tensor
    scale: Tensor

    def __init__(
        self, encoder: Encoder, output_stride: int, classes: int, dilate: bool, options: dict[str, Any]
    ) -> None:
        super().__init__(encoder, output_stride, classes, dilate, options)
        width, self.classes, self.encoder = self.head.in_channels, self.head.out_channels, encoder
        del self.head  # no class map is a linear function of features here
        _refuse_other(self.backbone, encoder.name)
        shapes = {"texts": (classes, 0), "projection": (0, width), "shift": (0,), "scale": ()}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.requires_grad_(False)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in ("texts", "projection", "shift"):  # how large they are is known from the file alone
            if (given := state.get(f"{prefix}{name}")) is not None:
                setattr(self, name, getattr(self, name).new_empty(given.shape))
        super()._load_from_state_dict(state, prefix, *rest)

    def begin(self, inputs: Inputs) -> None:
        """Take the texts, and the projection of the encoder's weights file; UserError if they do not fit."""
        assert inputs.text is not None  # see `Inputs.checked`
        texts = inputs.text
        self.projection, self.shift = image_projection(self.encoder)
        texts.refuse_other_width(len(self.projection))
        self.texts, self.scale = torch.cat([texts.classes, texts.background]), torch.tensor(texts.scale)

    def losses(
        self, images: Tensor, batch: dict[str, Tensor], step: int, steps: int, draws: Draws
    ) -> dict[str, Tensor]:
        """None: NotImplementedError."""
        raise NotImplementedError("it learns nothing")

    # --- what it says of pictures ---------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> log-probabilities (B, K), of the softmax over all classes and backgrounds."""
        tokens, _ = self._before_last(images)
        return self._logits(tokens, self._last.norm1(tokens)).log_softmax(1)[:, : self.classes]

    def maps(self, images: Tensor) -> Tensor:
        """None without labels, see `view`: NotImplementedError."""
        raise NotImplementedError("its maps depend on the labels of pictures; call view")

    def score(self, images: Tensor, targets: Tensor, ids: list[str], settings: Cam) -> Tensor:
        """The mean of `view` over scales and mirror images, each resized to whole patches: (B, K, ⌈h/4⌉, ⌈w/4⌉)."""
        height, width = images.shape[-2:]
        total = torch.zeros((), device=images.device)
        for scale in settings.scales:
            fed = self._resized(images, scale)
            maps = self.view(fed, targets)
            sides = height / maps.shape[-2] / STRIDE, width / maps.shape[-1] / STRIDE
            total = total + placed(maps, grid(height, width), sides)
            if settings.flip:
                maps = self.view(fed.flip(-1), targets)
                total = total + placed(maps, grid(height, width), sides, mirrored=width / STRIDE)
        return total / (len(settings.scales) * (1 + settings.flip))

    def view(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps in [0, 1] of the classes that pictures show, 0 of all others: (B, K, ⌈H/stride⌉, ⌈W/stride⌉)."""
        images = self._resized(images)
        rows, columns = (side // self.stride for side in images.shape[-2:])
        tokens, attention = self._before_last(images)
        carrying = transition(attention, self.options["sinkhorn"], self.options["squarings"])
        found = images.new_zeros(len(images), self.classes, rows * columns)
        for pictures, classes, maps in self._gradcam(tokens, targets > 0):
            maps = stretched(maps)
            if self.options["affinity"]:
                maps = stretched(self._carried(carrying[pictures], maps.unflatten(1, (rows, columns))))
            found[pictures, classes] = maps
        return found.unflatten(2, (rows, columns))

    def normalised(self, planes: Tensor) -> Tensor:
        """They are in [0, 1] already."""
        return planes.clamp(0, 1)

    # --- its parts ------------------------------------------------------------------------------------------

    @property
    def _body(self) -> Any:
        return self.backbone.body

    @property
    def _last(self) -> Any:
        return self._body.blocks[-1]

    def _resized(self, images: Tensor, scale: float = 1.0) -> Tensor:
        """Pictures at a scale whose sides are whole patches, rounded up."""
        size = tuple(-(-max(round(side * scale), 1) // self.stride) * self.stride for side in images.shape[-2:])
        if size == tuple(images.shape[-2:]):
            return images
        return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)

    @torch.no_grad()
    def _before_last(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, C) that the last block is given, and the mean attention among patches (B, P, P) of the last
        `affinity_blocks`, or of all blocks where there are fewer.
        """
        body, prefix = self._body, self._body.num_prefix_tokens
        tokens = body.patch_embed(self.normalise(self._resized(images)))
        tokens = body.norm_pre(body.patch_drop(body._pos_embed(tokens)))
        total = torch.zeros((), device=tokens.device)
        counted = body.blocks[-self.options["affinity_blocks"] :]
        for block in body.blocks:
            if block in counted:
                total = total + patch_attention(block.attn, block.norm1(tokens), prefix) / len(counted)
            if block is not self._last:
                tokens = block(tokens)
        return tokens, total

    def _logits(self, tokens: Tensor, normed: Tensor) -> Tensor:
        """Tokens before the last block, and what its first normalisation makes of them (both (B, T, C)) -> the scaled
        cosines (B, K + n) of the mean patch with all texts.
        """
        block, body = self._last, self._body
        tokens = tokens + block.ls1(block.attn(normed))
        tokens = body.norm(tokens + block.ls2(block.mlp(block.norm2(tokens))))
        mean = tokens[:, body.num_prefix_tokens :].mean(1)
        return self.scale * F.normalize(F.linear(mean, self.projection, self.shift), dim=1) @ self.texts.T

    @torch.enable_grad()
    def _gradcam(self, tokens: Tensor, shown: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The maps (R, P) before their stretch of a class each of R pictures, with the R pictures and classes.

        First the first class of every picture, then the second of those that have one, …: as much memory whatever the
        number of classes. `shown`: (B, K) bool. The softmax is over a picture's own classes and all backgrounds; a
        channel's weight is the mean of its gradient over the patches (Selvaraju et al., ICCV 2017).
        """
        prefix = self._body.num_prefix_tokens
        normed = self._last.norm1(tokens).detach().requires_grad_()
        absent = F.pad(~shown, (0, len(self.texts) - self.classes), value=False)
        logits = self._logits(tokens, normed).masked_fill(absent, -torch.inf)
        order = shown.cumsum(1) * shown
        for number in range(1, int(order.max()) + 1):
            pictures, classes = (order == number).nonzero().T
            target = self._of_class(logits[pictures], classes)
            (gradient,) = torch.autograd.grad(target.sum(), normed, retain_graph=True)
            weights = gradient[pictures, prefix:].mean(1)
            patches = normed.detach()[pictures, prefix:]
            yield pictures, classes, (patches @ weights[:, :, None]).squeeze(2).relu()

    def _of_class(self, logits: Tensor, classes: Tensor) -> Tensor:
        """What the gradient is of: of each row of logits (R, K + n) that of its class, (R,)."""
        if self.options["gradient_of"] == "probability":
            return logits.softmax(1).gather(1, classes[:, None])
        others = logits.scatter(1, classes[:, None], -torch.inf)
        return logits.gather(1, classes[:, None]) - others.logsumexp(1, keepdim=True)

    def _carried(self, carrying: Tensor, maps: Tensor) -> Tensor:
        """Maps (R, h, w) in [0, 1] after what is within their boxes is carried as (R, P, P) says: (R, P)."""
        sources = maps * in_boxes(maps, self.options["box_threshold"])
        return (carrying @ sources.flatten(1)[:, :, None]).squeeze(2)


def patch_attention(layer: Any, normed: Tensor, prefix: int) -> Tensor:
    """How much each patch attends to each, the mean over heads: (B, T, C) -> (B, P, P), without `prefix` tokens.

    One head at a time, lest memory grows with their number.
    """
    length, shape = normed.shape[1], (layer.num_heads, layer.head_dim)
    queries, keys, _ = layer.qkv(normed).unflatten(2, (3, *shape)).permute(2, 3, 0, 1, 4)
    queries, keys = layer.q_norm(queries) * layer.scale, layer.k_norm(keys)
    total = normed.new_zeros(len(normed), length - prefix, length - prefix)
    for query, key in zip(queries, keys, strict=True):
        total += (query[:, prefix:] @ key.mT).softmax(2)[:, :, prefix:]
    return total / layer.num_heads


def transition(attention: Tensor, rounds: int, squarings: int) -> Tensor:
    """Attention (…, P, P) above 0 -> how scores are carried: to row i from column j.

    Columns, then rows are divided by their sums, `rounds` times (Sinkhorn), and it is made symmetric.
    """
    for _ in range(rounds):
        attention = attention / attention.sum(-2, keepdim=True).clamp(min=LEAST)
        attention = attention / attention.sum(-1, keepdim=True).clamp(min=LEAST)
    attention = (attention + attention.mT) / 2
    for _ in range(squarings):
        attention = attention @ attention
    return attention


def in_boxes(maps: Tensor, threshold: float) -> Tensor:
    """Where maps (R, h, w) lie in the box about one of their regions: cells above `threshold` of the map's maximum
    that touch. (R, h, w) bool.
    """
    within = np.zeros(tuple(maps.shape), bool)
    high = (maps > threshold * maps.amax((1, 2), keepdim=True)).cpu().numpy()
    for one, regions in zip(within, high, strict=True):
        for box in ndimage.find_objects(ndimage.label(regions, TOUCHING)[0]):
            one[box] = True
    return torch.from_numpy(within).to(maps.device)


def stretched(maps: Tensor) -> Tensor:
    """Maps (R, P), each brought to 0 to 1 by its least and its highest score."""
    maps = maps - maps.amin(1, keepdim=True)
    return maps / (maps.amax(1, keepdim=True) + EVEN)


def _refuse_other(backbone: Any, name: str) -> None:
    """UserError unless an encoder is a plain transformer with the blocks of CLIP's image tower."""
    body: Any = getattr(backbone, "body", None)
    plain = isinstance(backbone, PlainTransformer) and isinstance(body, VisionTransformer)
    if not plain or not all(type(block) is Block and type(block.attn) is Attention for block in body.blocks):
        raise UserError(f"encoder.name: `{name}` is no image tower of CLIP; set one, such as vit_base_patch16_clip_224")
