"""Batch normalisation whose statistics span all processes of a training."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed import get_world_size
from torch.distributed.nn.functional import all_reduce


def synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with every batch normalisation synchronised over the processes; names of parameters stay.

    On a GPU it is torch's own SyncBatchNorm, which exists for GPUs only; on a CPU ours.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(module)
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = _Synchronised
        elif type(child) is BatchNormAct2d:
            child.__class__ = _SynchronisedAct
    return module


class _Synchronised(nn.BatchNorm2d):
    """Mean and variance over the pictures of all processes, which hold equally many."""

    def forward(self, input: Tensor) -> Tensor:
        return _normalised(self, input) if self.training else super().forward(input)


class _SynchronisedAct(BatchNormAct2d):
    """The same for timm's normalisation with an activation behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(_normalised(self, x))) if self.training else super().forward(x)


def _normalised(layer: Any, images: Tensor) -> Tensor:
    world = get_world_size()
    values = images.float()
    moments = torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))])
    mean, square = all_reduce(moments) / world
    variance = (square - mean.square()).clamp(min=0)  # float32 can make it negative where all values are alike
    with torch.no_grad():
        count = world * values.numel() / values.shape[1]
        layer.num_batches_tracked.add_(1)
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(variance * count / (count - 1), layer.momentum)
    scale = layer.weight * (variance + layer.eps).rsqrt()
    shift = layer.bias - mean * scale
    return (values * scale[:, None, None] + shift[:, None, None]).to(images.dtype)
