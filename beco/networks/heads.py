"""Decoders of the segmentation networks: from a backbone's feature maps to logits.

DeepLabV2 (Chen et al., PAMI 2018), DeepLabV3+ (Chen et al., ECCV 2018), SegFormer (Xie et al., NeurIPS 2021), DPT
(Ranftl et al., ICCV 2021) and a linear one.
Every head takes all feature maps of the backbone, shallow to deep, and picks those that it wants.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from beco.config import Network
from beco.errors import UserError

RATES = {"deeplabv2": (6, 12, 18, 24), "deeplabv3plus": (6, 12, 18)}
"""Dilations of the branches as published, at output stride 16 (deeplabv3plus) and 8 (deeplabv2)."""


def rates_of(settings: Network) -> tuple[int, ...]:
    """Dilations of the branches that look at the deepest map: those asked for, or the architecture's own."""
    return settings.atrous_rates or RATES[settings.architecture]


def create_head(settings: Network, channels: Sequence[int], strides: Sequence[int], outputs: int) -> nn.Module:
    """The decoder that `settings.architecture` names: list of maps (B, C_i, h_i, w_i) -> logits (B, outputs, h, w).

    `channels` and `strides` describe the backbone's maps, shallow to deep. The logits have the stride of the deepest
    map (deeplabv2, linear), stride 4, or an eighth of the patch (dpt). UserError if the backbone has no maps at the
    strides that the decoder wants.
    """
    if settings.architecture == "deeplabv2":
        return DeepLabV2(channels[-1], rates_of(settings), outputs)
    if settings.architecture == "linear":
        return Linear(channels[-1], settings.dropout, outputs)
    if settings.architecture == "dpt":
        return DensePrediction(settings, channels, strides, outputs)
    if settings.architecture == "deeplabv3plus":
        (early,) = _levels(settings, strides, [4])
        return DeepLabV3Plus(settings, early, channels[early], channels[-1], outputs)
    levels = _levels(settings, strides, [4, 8, 16, 32])
    return SegFormer(settings, levels, [channels[level] for level in levels], outputs)


def _levels(settings: Network, strides: Sequence[int], wanted: Sequence[int]) -> list[int]:
    missing = set(wanted) - set(strides)
    if missing:
        fitting = "linear or dpt" if suits_dpt(strides) else "linear"
        raise UserError(
            f"architecture: {settings.architecture} needs features at stride {min(missing)}, and "
            f"`{settings.encoder.name}` has strides {', '.join(map(str, strides))}; set architecture to {fitting}, "
            "or choose another encoder"
        )
    return [strides.index(stride) for stride in wanted]


def suits_dpt(strides: Sequence[int]) -> bool:
    """Whether maps of these strides are what DPT fuses: four of a plain transformer, at its patch."""
    return len(strides) == 4 and len(set(strides)) == 1


def initialise(module: nn.Module) -> None:
    """Draw all convolutions and linear layers from the normal distribution of He et al. 2015 by fan-in; biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def convolution(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the map's size, batch normalisation, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def separable(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """3×3 per channel, then 1×1 across channels; batch normalisation and ReLU after each of the two."""
    return nn.Sequential(
        convolution(inputs, inputs, 3, dilation, groups=inputs),
        convolution(inputs, outputs),
    )


class ImagePooling(nn.Module):
    """The mean of the whole map as one more feature of every place: (B, C, h, w) -> (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        # one number per channel has no variance; synchronised normalisation sees the other devices' pictures too
        if self.training and features.shape[0] == 1 and isinstance(self.norm, nn.BatchNorm2d):
            raise UserError(
                "training.schedule.batch_size: deeplabv3plus cannot train on one picture per device (its image pooling "
                "normalises over the batch); give each device two or more"
            )
        pooled = F.relu(self.norm(self.project(features.mean((2, 3), keepdim=True))))
        return pooled.expand(-1, -1, *features.shape[2:])


class SeparableASPP(nn.Module):
    """Atrous spatial pyramid pooling with separable convolutions: (B, C, h, w) -> (B, width, h, w).

    1×1, one dilated 3×3 per rate, and the whole picture, side by side (Chen et al., ECCV 2018, section 3).
    """

    def __init__(self, inputs: int, width: int, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [convolution(inputs, width), *(separable(inputs, width, rate) for rate in rates)],
        )
        self.pooling = ImagePooling(inputs, width)
        self.project = convolution((len(rates) + 2) * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        parts = [branch(features) for branch in self.branches]
        return self.dropout(self.project(torch.cat([*parts, self.pooling(features)], 1)))


class DeepLabV3Plus(nn.Module):
    """ASPP on the deepest map, joined with the map of stride 4 (Chen et al., ECCV 2018, figure 2); logits at stride 4.

    In training mode it needs two pictures or more per device: UserError otherwise.
    """

    def __init__(self, settings: Network, early: int, early_channels: int, deep_channels: int, outputs: int) -> None:
        super().__init__()
        width, narrow = settings.decoder_channels, settings.low_level_channels
        self.early = early
        self.aspp = SeparableASPP(deep_channels, width, rates_of(settings), settings.dropout)
        self.low_level = convolution(early_channels, narrow)
        first = separable(width + narrow, width)
        self.fuse = nn.Sequential(first, *(separable(width, width) for _ in range(settings.decoder_convolutions - 1)))
        self.classifier = nn.Conv2d(width, outputs, 1)
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps -> logits (B, outputs, H/4, W/4)."""
        early = self.low_level(features[self.early])
        context = F.interpolate(self.aspp(features[-1]), early.shape[2:], mode="bilinear", align_corners=False)
        return self.classifier(self.fuse(torch.cat([context, early], 1)))


class DeepLabV2(nn.Module):
    """The sum of dilated 3×3 classifiers on the deepest map (Chen et al., PAMI 2018, section 3.2, for ResNet).

    No hidden layer, no normalisation and no dropout; logits at the backbone's output stride.
    """

    def __init__(self, inputs: int, rates: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate) for rate in rates)
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps -> logits (B, outputs, H/stride, W/stride)."""
        first, *others = self.branches
        logits = first(features[-1])
        for branch in others:
            logits = logits + branch(features[-1])
        return logits


class SegFormer(nn.Module):
    """A linear layer per stage, all brought to stride 4 and fused by a 1×1 convolution (Xie et al. 2021, section 3.2).

    The body is segmentation-models-pytorch's, but for its fusion, which has the linear layers' width there; the dropout
    of whole channels before the classifier is ours to add.
    """

    def __init__(self, settings: Network, levels: Sequence[int], channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        embedding, width = settings.embedding_channels, settings.decoder_channels
        self.levels = tuple(levels)
        self.body = SegformerDecoder([3, *channels], len(channels) + 1, embedding)
        self.body.fuse_stage = convolution(len(channels) * embedding, width)
        self.dropout = nn.Dropout2d(settings.dropout)
        self.classifier = nn.Conv2d(width, outputs, 1)
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps -> logits (B, outputs, H/4, W/4)."""
        chosen = [features[level] for level in self.levels]
        height, width = chosen[0].shape[2:]
        picture = chosen[0].new_empty(1, 0, 4 * height, 4 * width)  # the library reads the picture's size off it
        return self.classifier(self.dropout(self.body([picture, *chosen])))


class Linear(nn.Module):
    """One 1×1 convolution on the deepest map after batch normalisation: what features are judged by."""

    def __init__(self, inputs: int, dropout: float, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(inputs, outputs, 1)
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps -> logits (B, outputs, H/stride, W/stride)."""
        return self.classifier(self.dropout(self.norm(features[-1])))


class DensePrediction(nn.Module):
    """DPT: four maps of a plain transformer, brought to four scales and fused from coarse to fine.

    (Ranftl et al., ICCV 2021, section 3; the body is segmentation-models-pytorch's, with the class token left out.) A
    patch of 14 counts as 16 there, so the scales are those of the patch: 1/4, 1/2, 1 and 2 of it.
    """

    cells = 2
    """Of how many patches a side the pictures have to be a multiple."""

    def __init__(self, settings: Network, channels: Sequence[int], strides: Sequence[int], outputs: int) -> None:
        super().__init__()
        if not suits_dpt(strides):
            raise UserError(
                f"architecture: dpt wants a plain transformer of four blocks or more, and `{settings.encoder.name}` "
                f"has features at strides {', '.join(map(str, strides))}; choose another, or set architecture to linear"
            )
        width = settings.decoder_channels
        middle = [width, 2 * width, 4 * width, 4 * width]
        self.body = DPTDecoder(tuple(channels), (16,) * 4, False, "ignore", middle, width)
        self.dropout = nn.Dropout2d(settings.dropout)
        self.classifier = nn.Conv2d(width, outputs, 1)
        initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps (B, C, h, w), h and w even -> logits (B, outputs, 8h, 8w)."""
        return self.classifier(self.dropout(self.body(list(features), [None] * len(features))))
