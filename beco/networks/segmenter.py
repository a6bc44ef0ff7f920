"""Segmentation networks of stage two: a backbone of `beco.networks.encoders` and a decoder of `beco.networks.heads`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beco.config import Network
from beco.errors import UserError
from beco.networks import encoders
from beco.networks.heads import create_head
from beco.networks.strides import OwnStride
from beco.networks.tokens import whole_patches
from beco.training.augment import Normalise


def backbone_of(settings: Network) -> nn.Module:
    """The backbone, dilated as the settings say, with random weights or the library's ImageNet weights.

    UserError if encoder, stride and dilation do not fit together.
    """
    encoder = settings.encoder
    try:
        backbone = encoders.create_backbone(encoder, settings.output_stride)
    except OwnStride as error:
        if settings.architecture != "segformer":
            raise
        raise UserError(  # its own stride would be refused, too: segformer's is 32
            f"architecture: segformer needs features at strides 4, 8, 16 and 32, and those of `{error.name}` end at "
            f"{error.stride}; set architecture to linear and output_stride to {error.stride}, or choose another encoder"
        ) from error
    if _dilates_first_blocks(settings, backbone):
        encoders.dilate_first_blocks(backbone, encoder.name)
    if settings.multi_grid:
        encoders.set_multi_grid(backbone, settings.multi_grid, encoder.name)
    stride = encoders.feature_strides(backbone)[-1]
    if stride != settings.output_stride:
        raise UserError(
            f"output_stride: the features of `{encoder.name}` end at stride {stride}, not "
            f"{settings.output_stride}; choose that stride or another encoder"
        )
    return backbone


class Segmenter(nn.Module):
    """A network that takes pictures of any size and gives logits of the same size.

    `backbone` holds the parameters that weights files are for, `decoder` all the others. The classes are those of the
    data set and the background. UserError if encoder and decoder do not fit together.
    """

    def __init__(self, settings: Network, classes: int) -> None:
        super().__init__()
        encoder = settings.encoder
        self.normalise = Normalise(encoder)
        self.output_stride = settings.output_stride
        self.frozen = settings.frozen
        """Whether the encoder learns nothing and stays in inference mode."""
        self.backbone = backbone_of(settings).requires_grad_(not settings.frozen)
        strides = encoders.feature_strides(self.backbone)
        self.decoder = create_head(settings, encoders.feature_channels(self.backbone), strides, classes + 1)
        self.multiple = settings.output_stride * int(getattr(self.decoder, "cells", 1))
        """What the sides of the pictures that are fed are multiples of."""

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode, but for an encoder that is frozen."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> logits (B, K+1, H, W) float32."""
        height, width = images.shape[-2:]
        return self.enlarged(self.coarse(images), (height, width), (height, width))

    def coarse(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> logits (B, K+1, h, w) float32 at the decoder's own stride.

        They cover the pictures as padded to the right and below to `multiple`s; see `enlarged`.
        """
        padded = whole_patches(self.normalise(images), self.multiple)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(padded)
        return self.decoder(features).float()

    def enlarged(self, coarse: Tensor, fed: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Logits of `coarse` at `size`, in one bilinear step and without the padding: (B, K+1, *size) float32.

        `fed` is (H, W) of the pictures that `coarse` was given. Pixels are squares and compared at their centres
        (align_corners False), as BECO's test script brings the logits of a squeezed picture to its own size.
        """
        padded = self._padded(*fed)
        if size == fed:
            return F.interpolate(coarse, padded, mode="bilinear", align_corners=False)[..., : fed[0], : fed[1]]
        if padded == fed:
            return F.interpolate(coarse, size, mode="bilinear", align_corners=False)
        return _sampled(coarse, (fed[0] / padded[0], fed[1] / padded[1]), size)

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        return height + -height % self.multiple, width + -width % self.multiple


def _sampled(maps: Tensor, shares: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """The upper left part of (B, C, h, w), `shares` of its height and width, bilinearly as (B, C, *size)."""
    # The centre of pixel i of n lies at (i + 1/2)/n of the part; the sampler counts from -1 to 1 over the whole.
    down, along = (
        (torch.arange(n, device=maps.device) + 0.5) * (2 * share / n) - 1 for n, share in zip(size, shares, strict=True)
    )
    grid = torch.stack(torch.meshgrid(along, down, indexing="xy"), -1).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _dilates_first_blocks(settings: Network, backbone: nn.Module) -> bool:
    if settings.contract_dilation is None:  # DeepLabV2 stands on any encoder, and only a ResNet's blocks are known
        return settings.architecture == "deeplabv2" and encoders.is_resnet(backbone)
    return not settings.contract_dilation


def build(settings: Network, classes: int, classifier: Path | None = None) -> Segmenter:
    """A network with its starting weights. `classifier` is needed for `encoder.weights: classifier`."""
    segmenter = Segmenter(settings, classes)
    encoders.prepare_backbone(segmenter.backbone, settings.encoder, classifier)
    return segmenter
