"""Segmentation networks of stage two: a backbone of `beco.encoders` and a decoder of `beco.stage2.heads`."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from beco import encoders
from beco.augment import Normalise
from beco.config import Network
from beco.errors import UserError
from beco.stage2.heads import create_head


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
        self.backbone = encoders.create_backbone(encoder, settings.output_stride)
        if _dilates_first_blocks(settings, self.backbone):
            encoders.dilate_first_blocks(self.backbone, encoder.name)
        if settings.multi_grid:
            encoders.set_multi_grid(self.backbone, settings.multi_grid, encoder.name)
        strides = encoders.feature_strides(self.backbone)
        if strides[-1] != settings.output_stride:
            raise UserError(
                f"output_stride: the features of `{encoder.name}` end at stride {strides[-1]}, not "
                f"{settings.output_stride}; choose that stride or another encoder"
            )
        self.decoder = create_head(settings, encoders.feature_channels(self.backbone), strides, classes + 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> logits (B, K+1, H, W) float32."""
        height, width = images.shape[-2:]
        right, bottom = -width % self.output_stride, -height % self.output_stride
        padded = F.pad(self.normalise(images), (0, right, 0, bottom))  # zero is the mean colour here
        logits = self.decoder(self.backbone(padded)).float()
        size = (height + bottom, width + right)
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)[..., :height, :width]


def _dilates_first_blocks(settings: Network, backbone: nn.Module) -> bool:
    if settings.contract_dilation is None:  # DeepLabV2 stands on any encoder, and only a ResNet's blocks are known
        return settings.architecture == "deeplabv2" and encoders.is_resnet(backbone)
    return not settings.contract_dilation


def build(settings: Network, classes: int, classifier: Path | None = None) -> Segmenter:
    """A network with its starting weights. `classifier` is needed for `encoder.weights: classifier`."""
    segmenter = Segmenter(settings, classes)
    encoders.prepare_backbone(segmenter.backbone, settings.encoder, classifier)
    return segmenter
