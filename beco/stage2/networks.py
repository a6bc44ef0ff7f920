"""Segmentation networks: DeepLabV3+ (Chen et al. 2018) of segmentation-models-pytorch on a timm encoder."""

from __future__ import annotations

from pathlib import Path

import segmentation_models_pytorch as smp
from torch import Tensor, nn
from torch.nn import functional as F

from beco import encoders
from beco.augment import Normalise
from beco.config import Network
from beco.errors import UserError


class Segmenter(nn.Module):
    """A network that takes pictures of any size and gives logits of the same size."""

    def __init__(self, settings: Network, classes: int) -> None:
        super().__init__()
        encoder = settings.encoder
        self.normalise = Normalise(encoder)
        self.output_stride = settings.output_stride
        try:
            self.network = smp.DeepLabV3Plus(
                encoder_name=f"tu-{encoder.name}",
                encoder_weights="imagenet" if encoder.weights == "imagenet" else None,
                encoder_output_stride=settings.output_stride,
                decoder_channels=settings.decoder_channels,
                decoder_atrous_rates=settings.rates,
                decoder_aspp_dropout=settings.dropout,
                classes=classes + 1,
                upsampling=1,
                **encoder.options,
            )
        except Exception as error:
            if encoder.weights == "imagenet":
                raise encoders.offline_error(encoder.name, error) from error
            raise UserError(f"networks: encoder `{encoder.name}` cannot be built ({error}); check its name") from error

    @property
    def backbone(self) -> nn.Module:
        """timm's feature extractor, which the weights files are for."""
        return self.network.encoder.model

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> logits (B, K+1, H, W) float32."""
        height, width = images.shape[-2:]
        right, bottom = -width % self.output_stride, -height % self.output_stride
        padded = F.pad(self.normalise(images), (0, right, 0, bottom))  # zero is the mean colour here
        logits = self.network(padded).float()
        size = (height + bottom, width + right)
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)[..., :height, :width]


def build(settings: Network, classes: int, classifier: Path | None = None) -> Segmenter:
    """A network with its starting weights. `classifier` is needed for `encoder.weights: classifier`."""
    segmenter = Segmenter(settings, classes)
    encoders.prepare_backbone(segmenter.backbone, settings.encoder, classifier)
    return segmenter
