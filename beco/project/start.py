"""The machine and the backbone that a new project starts with: its weights, its stride, and what decoder it wants."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from beco.config import Encoder, read_settings
from beco.errors import UserError
from beco.networks.encoders import create_backbone, feature_strides, prepare_backbone
from beco.networks.kinds import MIX_TRANSFORMERS
from beco.networks.packages import PACKAGES, package_of, shipped, weights_file
from beco.networks.strides import STRIDES, OwnStride

SMALL = Encoder(name="resnet10t", options={"channels": [32, 64, 128, 256]})
"""The embedded default's encoder: 1.2 M parameters, which a few thousand steps can train from nothing."""
SHIPPED = next(iter(PACKAGES))
"""The encoder that a project starts with where a package ships its weights: EfficientNet-Lite0."""


@dataclass(frozen=True)
class Machine:
    """What the project will run on, if it is this machine."""

    cores: int
    gpu_gib: float | None
    """Memory of the first GPU; None without one."""
    half: str = "bf16"
    """16-bit precision that its processor has."""


@dataclass(frozen=True)
class Start:
    """The backbone, and where its weights come from."""

    encoder: Encoder
    output_stride: int
    own_stride: bool = False
    """Whether the maps end there by themselves, and no dilation changes it."""
    coarse: bool = False
    """Whether it has no maps at stride 4, as plain transformers have none, which the decoder of DeepLabV3+ wants."""
    layered: bool = False
    """Whether it is a transformer (ViT, Swin) whose layers can learn at rates of their own."""

    @property
    def pretrained(self) -> bool:
        """Whether it starts from weights."""
        return self.encoder.weights is not None

    @property
    def transformer(self) -> bool:
        """Whether it is one, with layers or without, and learns at a transformer's rates."""
        return self.layered or self.encoder.name in MIX_TRANSFORMERS

    @property
    def light(self) -> bool:
        """Whether it is one of the encoders whose weights come with a package, which were measured on photographs."""
        return self.pretrained and package_of(self.encoder.name) is not None

    @property
    def packaged(self) -> bool:
        """Whether its weights are those of an installed package."""
        return self.encoder.weights == "imagenet" and weights_file(self.encoder) is not None


def machine() -> Machine:
    """This machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not torch.cuda.is_available():
        return Machine(cores, None)
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Machine(cores, memory, "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")


def start(encoder: str | None, weights: str | None, on: Machine, small: bool, from_scratch: bool = False) -> Start:
    """The backbone asked for, or a default; UserError if there is none of that name or the file does not fit it.

    `encoder` is a name of timm's, or an encoder's settings as `{name: …}`. Where neither it nor weights are given it is
    the one whose ImageNet weights an installed package ships, as with `weights: imagenet` alone; without one, or
    `from_scratch`, the small network of the embedded default. With weights alone that no package ships it is ResNet-50
    on a GPU, ResNet-18 without one. Nothing is downloaded here.
    """
    if from_scratch and weights is not None:
        raise UserError("--from-scratch: leaves out the weights that --weights names; give one of the two")
    if encoder is not None and encoder.lstrip().startswith("{"):
        chosen = read_settings(Encoder, encoder, "--encoder")
    elif encoder is not None:
        chosen = Encoder(name=encoder)
    elif weights is not None and (weights != "imagenet" or shipped(SHIPPED) is None):
        chosen = Encoder(name="resnet50" if on.gpu_gib else "resnet18")
    else:
        chosen = SMALL if from_scratch or shipped(SHIPPED) is None else Encoder(name=SHIPPED)
    if from_scratch:
        chosen = chosen.model_copy(update={"weights": None})
    elif weights is None and "weights" not in chosen.model_fields_set and shipped(chosen.name):
        weights = "imagenet"
    if weights is not None:
        chosen = chosen.model_copy(update={"weights": weights})
    if chosen.weights not in (None, "imagenet", "classifier"):  # paths of the file that is written are absolute
        chosen = chosen.model_copy(update={"weights": str(Path(str(chosen.weights)).absolute())})
    bare = chosen.model_copy(update={"weights": None})
    fine = small and (chosen.weights is None or package_of(chosen.name) is not None)
    stride, own = 8 if fine else 16, False
    try:
        backbone = create_backbone(bare, stride)
    except OwnStride as error:
        if error.stride not in STRIDES:
            raise
        stride, own = error.stride, True
        backbone = create_backbone(bare, stride)
    if weights_file(chosen) is not None:
        prepare_backbone(backbone, chosen)
    layered = callable(getattr(backbone, "depths", None))
    return Start(chosen, stride, own or layered, 4 not in feature_strides(backbone), layered)
