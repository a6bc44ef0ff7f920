"""The bound of a training step: bare passes of its networks, what they count in FLOPs, and the device's own rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from beco.benchmark.clock import fastest
from beco.datasets.manifest import IGNORE

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # a second to import, and the plan and the check need none

CONVOLUTION = (16, 256, 64)  # pictures, channels in and out, side of the map: 3×3, stride 1


def passes(
    fabric: Fabric, networks: nn.ModuleList, parts: list[tuple[Tensor, Tensor]], online: bool
) -> Callable[[], None]:
    """What any implementation of a step has to compute, on resident tensors, as a function to be called.

    For each part, pictures (B, 3, H, W) float in [0, 1] and labels (B, H, W) int64: with `online`, the networks in
    evaluation mode without gradient; then in training mode, one plain cross-entropy each, and the backward pass, under
    the training's autocast. Gradients are dropped at the end; nothing is optimised.
    """

    def run() -> None:
        for images, target in parts:
            with fabric.autocast():
                if online:
                    evaluated(networks, images)
                losses = [F.cross_entropy(network(images), target, ignore_index=IGNORE) for network in networks]
            (torch.stack(losses).sum() / len(parts)).backward()
        for parameter in networks.parameters():
            parameter.grad = None

    return run


@torch.no_grad()
def evaluated(networks: nn.ModuleList, images: Tensor) -> list[Tensor]:
    """Logits of all networks in evaluation mode, without gradient; in training mode again afterwards."""
    networks.eval()
    logits = [network(images) for network in networks]
    networks.train()
    return logits


def forward_flops(build: Callable[[], nn.Module], height: int, width: int) -> int:
    """FLOPs (a multiplication and an addition are two) of one picture of `height` × `width` through a network.

    Counted on tensors without content; the network is emptied of its own, since not every encoder can be built so.
    """
    network = build().to("meta").eval()
    images = torch.empty(1, 3, height, width, device="meta")
    return count(lambda: network(images))


def frozen_flops(build: Callable[[], nn.Module], height: int, width: int) -> int:
    """Those of them that belong to parts of the network in which nothing learns, as `requires_grad` says."""
    network = build().to("meta").eval()
    images = torch.empty(1, 3, height, width, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(images)
    found = counter.get_flop_counts()
    name = type(network).__name__
    return sum(sum(found[f"{name}.{part}"].values()) for part in _frozen(network) if f"{name}.{part}" in found)


def _frozen(module: nn.Module, name: str = "") -> list[str]:
    """Names of the largest parts that have parameters of which none learns."""
    parameters = list(module.parameters())
    if parameters and name and not any(parameter.requires_grad for parameter in parameters):
        return [name]
    children = module.named_children()
    return [part for leaf, child in children for part in _frozen(child, f"{name}.{leaf}" if name else leaf)]


def count(run: Callable[[], Any]) -> int:
    """FLOPs of the convolutions and matrix products that `run` computes."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run()
    return counter.get_total_flops()


def convolution_rate(fabric: Fabric, rounds: int) -> float:
    """TFLOP/s of a large 3×3 convolution, forward, channels last, at the precision of the training."""
    pictures, channels, side = CONVOLUTION
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=fabric.device)
    images = torch.randn(pictures, channels, side, side, device=fabric.device)
    with fabric.autocast():
        kind = layer(images[:1]).dtype
    layer = layer.to(kind).to(memory_format=torch.channels_last)
    images = images.to(kind).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def run() -> None:
        layer(images)

    return count(run) / fastest(run, rounds) / 1e12
