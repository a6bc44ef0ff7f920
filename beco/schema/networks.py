"""Backbones and segmentation networks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from beco.schema.base import Count, Fraction, Place, Positive, Section


class Encoder(Section):
    """A timm backbone and the weights it starts from."""

    name: str = Field("resnet50", description="timm model name")
    weights: Place | None = Field(
        None,
        description="imagenet (an installed package's, or the library's own download; see `beco weights`) | "
        "a .safetensors/.pth/.pt file | classifier (stage two only) | null = random",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="passed to the timm constructor, such as pad_type: same"
    )
    drop: list[str] = Field(
        default_factory=list,
        description="blocks replaced by the identity, such as blocks.4.1, if weights lack them",
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="subtracted from RGB in [0, 1]; null: the model's own (ResNets: ImageNet's)"
    )
    std: tuple[Positive, Positive, Positive] | None = Field(
        None, description="divides after the mean is subtracted; null: the model's own"
    )


class Network(Section):
    """A segmentation network of stage two."""

    architecture: Literal["deeplabv2", "deeplabv3plus", "segformer", "linear", "dpt"] = Field(
        "deeplabv3plus",
        description="decoder; segformer wants an encoder mit_b0 … mit_b5 or a Swin, dpt a plain transformer",
    )
    encoder: Encoder = Field(default_factory=Encoder, description="backbone")
    frozen: bool = Field(False, description="the encoder learns nothing and stays in inference mode")
    output_stride: Literal[8, 14, 16, 32] = Field(
        16, description="stride of the deepest features; segformer: 32; of a plain transformer its patch"
    )
    contract_dilation: bool | None = Field(
        None,
        description="the first block of a dilated stage (ResNet): true: as the stage before, false: as the stage's "
        "others; null: false for deeplabv2 as published, else true; no effect at stride 32",
    )
    multi_grid: tuple[Count, ...] | None = Field(
        None, description="factors of the last stage's dilation, block by block; published for ResNet-101: [1, 2, 4]"
    )
    decoder_channels: Count = Field(256, description="width of ASPP and decoder; of the fused stages (segformer)")
    embedding_channels: Count = Field(
        768, description="width of each stage's features before they are fused; published for MiT-B2: 768 (segformer)"
    )
    low_level_channels: Count = Field(48, description="width of the early features in the decoder (deeplabv3plus)")
    decoder_convolutions: Literal[1, 2] = Field(
        1, description="separable convolutions of the decoder; BECO has one, mmsegmentation two (deeplabv3plus)"
    )
    atrous_rates: tuple[Count, ...] | None = Field(
        None,
        min_length=1,
        description="dilations of the ASPP branches; null: 6, 12, 18 (deeplabv3plus) or 6, 12, 18, 24 (deeplabv2)",
    )
    dropout: Fraction = Field(0.1, description="dropout after ASPP, or before the classifier (segformer)")

    @model_validator(mode="after")
    def _segformer_keeps_its_stride(self) -> Network:
        if self.architecture == "segformer" and (self.output_stride != 32 or self.multi_grid):
            raise ValueError("segformer has no dilated stages; set output_stride to 32 and leave multi_grid out")
        return self
