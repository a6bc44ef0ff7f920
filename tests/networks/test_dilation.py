"""Where a network of stage two is dilated: the first block of a stage, and factors block by block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import TINY, network
from torch import nn

from beco.config import Network
from beco.errors import UserError
from beco.networks.segmenter import Segmenter


def dilations(found: Segmenter) -> dict[str, list[int]]:
    """Dilation of the 3×3 convolution of every bottleneck, stage by stage; their padding is the same."""
    stages: dict[str, list[int]] = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        convolutions = [block.conv2 for block in getattr(found.backbone, name)]
        assert all(c.dilation == c.padding == (c.dilation[0],) * 2 for c in convolutions)
        stages[name] = [c.dilation[0] for c in convolutions]
    return stages


def test_the_whole_of_the_published_deeplabv2() -> None:
    """Parameters as counted in the official network with six outputs."""
    settings = Network.model_validate(
        {"architecture": "deeplabv2", "encoder": {"name": "resnet101"}, "output_stride": 8, "dropout": 0}
    )
    with torch.device("meta"):
        found = Segmenter(settings, 5)
    assert sum(parameter.numel() for parameter in found.parameters()) == 42_942_552
    assert dilations(found) == {"layer1": [1] * 3, "layer2": [1] * 4, "layer3": [2] * 23, "layer4": [4] * 3}


@pytest.mark.parametrize("architecture", ["deeplabv2", "deeplabv3plus"])
@pytest.mark.parametrize("contract", [None, True, False])
@pytest.mark.parametrize(
    ("stride", "third", "fourth"), [(8, (1, 2, 2), (2, 4, 4)), (16, (1, 1, 1), (1, 2, 2)), (32, (1, 1, 1), (1, 1, 1))]
)
def test_dilation_of_first_blocks(
    architecture: str, contract: bool | None, stride: int, third: tuple[int, ...], fourth: tuple[int, ...]
) -> None:
    """`third` and `fourth`: first, second and last block as timm makes them, the first like the stage before."""
    settings = network(architecture, encoder={"name": "resnet101"}, output_stride=stride, contract_dilation=contract)
    with torch.device("meta"):
        found = dilations(Segmenter(settings, 3))
    own = contract is False or (contract is None and architecture == "deeplabv2")
    for stage, made in (("layer3", third), ("layer4", fourth)):
        first = made[1] if own else made[0]
        assert (found[stage][0], *found[stage][1:2], found[stage][-1]) == (first, *made[1:])


def test_first_blocks_and_multi_grid_together() -> None:
    settings = network(encoder={"name": "resnet101d"}, output_stride=8, contract_dilation=False, multi_grid=(1, 2, 4))
    with torch.device("meta"):
        found = dilations(Segmenter(settings, 20))
    assert found["layer3"] == [2] * 23 and found["layer4"] == [4, 8, 16]


def test_first_blocks_of_what_has_none() -> None:
    mobile = {"name": "mobilenetv3_small_050"}
    with torch.device("meta"):
        Segmenter(network("deeplabv2", encoder=mobile), 3)  # as the library makes it
        with pytest.raises(UserError) as caught:
            Segmenter(network("deeplabv2", encoder=mobile, contract_dilation=False), 3)
    assert str(caught.value).startswith("contract_dilation: `mobilenetv3_small_050` is no ResNet")
    assert "\n" not in str(caught.value)


def last_stage(found: Segmenter) -> list[list[tuple[int, ...]]]:
    blocks: Any = found.backbone.layer4
    return [[m.dilation for m in block.children() if getattr(m, "kernel_size", 0) == (3, 3)] for block in blocks]


@pytest.mark.parametrize(("stride", "base"), [(8, 4), (16, 2), (32, 1)])
def test_multi_grid(stride: int, base: int) -> None:
    settings = network(encoder={"name": "resnet101d"}, output_stride=stride)
    with torch.device("meta"):
        plain = Segmenter(settings, 20)
        found = Segmenter(settings.model_copy(update={"multi_grid": (1, 2, 4)}), 20)
        deepest = found.backbone(torch.empty(1, 3, 224, 160))[-1]
    assert deepest.shape == (1, 2048, 224 // stride, 160 // stride)
    assert last_stage(found) == [[(base * factor,) * 2] for factor in (1, 2, 4)]
    # no other layer is touched, and the weights are the same
    for key, module in plain.backbone.named_modules():
        if isinstance(module, nn.Conv2d) and "layer4" not in key:
            assert found.backbone.get_submodule(key).dilation == module.dilation
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


def test_multi_grid_of_basic_blocks() -> None:
    found = Segmenter(network(multi_grid=(3,)), 3)
    assert last_stage(found) == [[(6, 6), (6, 6)]]


@pytest.mark.parametrize(
    ("encoder", "factors", "message"),
    [
        (TINY, (1, 2, 4), "multi_grid: 3 factors for 1 blocks in the last stage of `resnet10t`; give 1"),
        ({"name": "mobilenetv3_small_050"}, (1, 2, 4), "multi_grid: `mobilenetv3_small_050` is no ResNet"),
        ({"name": "convnext_atto"}, (1, 2), "multi_grid: `convnext_atto` is no ResNet"),
    ],
)
def test_multi_grid_that_does_not_fit(encoder: dict[str, Any], factors: tuple[int, ...], message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError) as caught:
        Segmenter(network(encoder=encoder, multi_grid=factors), 3)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
