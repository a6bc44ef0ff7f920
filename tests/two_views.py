"""Small localisers of two views, and pictures for them, for the tests of SEAM and of what is built on it."""

from __future__ import annotations

from typing import Any

import torch
from small_networks import TINY
from torch import Tensor

from beco.config import Classifier
from beco.schema.stage1 import options_of
from beco.stage1 import train
from beco.training.sampling import Draws

CLASSES, PICTURES, SIDE = 3, 4, 48


def network(
    method: str, classes: int = CLASSES, encoder: dict[str, Any] = TINY, output_stride: int = 8, **options: Any
) -> Any:
    """A localiser whose batch norm keeps its statistics, so that a picture alone is what it is among others."""
    torch.manual_seed(1)
    settings = Classifier.model_validate({"encoder": encoder, "output_stride": output_stride, "batch_norm": "fixed"})
    return train.build(method, settings, classes, options_of(method).model_validate(options).model_dump())


def pictures(classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Blotches (B, 3, S, S) and labels (B, K), of which every picture has one at least."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(PICTURES, 3, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    targets = (torch.rand(PICTURES, classes, generator=generator) < 0.5).float()
    targets[:, 0] = (targets.sum(1) == 0).float() + targets[:, 0] * (targets.sum(1) > 0)
    return images, targets


def losses(network: Any, slots: list[int] | None = None, classes: int = CLASSES) -> dict[str, Tensor]:
    """Of some of the pictures as part of a batch of all."""
    chosen = slots or list(range(PICTURES))
    images, targets = pictures(classes)
    draws = Draws(5, PICTURES, chosen, torch.device("cpu"))
    found: dict[str, Tensor] = network.losses(images[chosen], {"target": targets[chosen]}, 0, 10, draws)
    return found


def gradients(network: Any, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
