"""Small encoders, and files of weights as others publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from beco.config import Encoder
from beco.errors import UserError
from beco.networks import encoders

TINY = {"channels": [8, 16, 24, 32]}  # all unlike, so that every layer has its downsampling at any stride
MIT = {"embed_dims": [8, 16, 24, 32], "num_heads": [1, 2, 3, 4], "depths": [1, 2, 1, 1]}


def encoder(weights: Path | str | None = None, **settings: Any) -> Encoder:
    chosen = {"name": "resnet10t", "options": TINY, **settings}
    return Encoder.model_validate({**chosen, "weights": None if weights is None else str(weights)})


def full_network(name: str = "resnet10t", **options: Any) -> nn.Module:
    """The whole classifier as others publish it, with weights and statistics unlike fresh ones."""
    network = timm.create_model(name, **({**TINY} if name == "resnet10t" else {}), **options)
    with torch.no_grad():
        for number, (key, value) in enumerate(network.state_dict().items()):
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(number)) + 0.1)
            elif key.endswith("num_batches_tracked"):
                value.fill_(7)
    return network


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def loaded(weights: Path, **settings: Any) -> nn.Module:
    chosen = encoder(weights, **settings)
    backbone = encoders.create_backbone(chosen, 16)
    encoders.prepare_backbone(backbone, chosen)
    return backbone


def refusal(weights: Path | str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        loaded(Path(weights), **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return full_network().state_dict()


# --- what fits ----------------------------------------------------------------------------------------------
