"""Transformers as feature extractors: ViTs of any kind (DeiT, DINOv2, DINOv3, CLIP's and EVA's image towers) and Swin.

Pictures of any size are continued below and to the right to whole patches, so that every map has ⌈side/patch⌉ cells
that begin at the picture's corner, as those of a convolutional network have.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional as F

from beco.config import Encoder

PLAIN, WINDOWS = ("vision_transformer", "deit", "eva"), ("swin_transformer", "swin_transformer_v2")
"""Modules of timm by what their models are."""
LEVELS = 4  # maps of a plain transformer, after as many equal parts of its blocks


class PlainTransformer(nn.Module):
    """A ViT of timm: (B, 3, H, W) float -> maps (B, C, ⌈H/patch⌉, ⌈W/patch⌉) after each quarter of its blocks.

    Class and register tokens take part in attention and are left out of the maps; every map has the final
    normalisation, as DINOv2's evaluation has it (Oquab et al., TMLR 2024). Position embeddings are resampled to the
    picture's own grid.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        options = {"dynamic_img_size": True, **encoder.options}
        self.body = timm.create_model(encoder.name, pretrained=encoder.weights == "imagenet", num_classes=0, **options)
        body: Any = self.body
        depth, patch = len(body.blocks), body.patch_embed.patch_size
        self.patch = patch[0] if isinstance(patch, tuple) else patch
        levels = min(LEVELS, depth)
        self.indices = [depth * (level + 1) // levels - 1 for level in range(levels)]
        maps = [{"num_chs": body.embed_dim, "reduction": self.patch, "module": f"blocks.{at}"} for at in self.indices]
        self.feature_info = FeatureInfo(maps, tuple(range(levels)))

    def forward(self, images: Tensor) -> list[Tensor]:
        body: Any = self.body
        padded = whole_patches(images, self.patch)
        found: list[Tensor] = body.forward_intermediates(
            padded, indices=self.indices, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return found

    def depths(self) -> dict[int, int]:
        """How many blocks lie behind each parameter, by its id: 0 of the last block and the final normalisation."""
        body: Any = self.body
        count = len(body.blocks)
        found = {id(parameter): count for parameter in body.parameters()}  # embeddings
        for number, block in enumerate(body.blocks):
            found |= {id(parameter): count - 1 - number for parameter in block.parameters()}
        for name in ("norm", "fc_norm"):
            if isinstance(layer := getattr(body, name, None), nn.Module):
                found |= {id(parameter): 0 for parameter in layer.parameters()}
        return found


class WindowTransformer(nn.Module):
    """A Swin of timm: (B, 3, H, W) float -> maps (B, C, ⌈H/s⌉, ⌈W/s⌉) at its strides s, 4 to 32."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        options = {"strict_img_size": False, **encoder.options}
        pretrained = encoder.weights == "imagenet"
        self.body = timm.create_model(encoder.name, pretrained=pretrained, features_only=True, **options)
        self.feature_info = self.body.feature_info

    def forward(self, images: Tensor) -> list[Tensor]:
        info: Any = self.feature_info
        size, strides = images.shape[-2:], info.reduction()
        maps = self.body(whole_patches(images, strides[-1]))
        return [
            one.permute(0, 3, 1, 2)[..., : -(-size[0] // stride), : -(-size[1] // stride)].contiguous()
            for one, stride in zip(maps, strides, strict=True)
        ]

    def depths(self) -> dict[int, int]:
        """How many stages lie behind each parameter, by its id."""
        stages = [layer for name, layer in self.body.named_children() if name.startswith("layers")]
        found = {id(parameter): len(stages) for parameter in self.body.parameters()}
        for number, stage in enumerate(stages):
            found |= {id(parameter): len(stages) - 1 - number for parameter in stage.parameters()}
        return found


def whole_patches(images: Tensor, side: int) -> Tensor:
    """Pictures continued below and to the right with zeros, the mean colour, to whole patches of some side."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % side, 0, -height % side))


def transformer(encoder: Encoder) -> nn.Module | None:
    """The encoder as a transformer, or None if it is none of those that are known here. What timm raises passes."""
    if timm.models.is_model_in_modules(encoder.name, PLAIN):
        return PlainTransformer(encoder)
    return WindowTransformer(encoder) if timm.models.is_model_in_modules(encoder.name, WINDOWS) else None
