"""What of a class map is a classifier's score: the mean, or on plain transformers a soft maximum."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_networks import MIT, TINY

from beco.config import Encoder, validate_config
from beco.errors import UserError
from beco.stage1 import localisers

VIT = {
    "name": "vit_tiny_patch16_224",
    "options": {"patch_size": 8, "img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2},
}


@pytest.mark.parametrize(
    ("encoder", "pool", "rule"),
    [
        (TINY, None, "mean"), (TINY, "mean", "mean"), (TINY, "max", "max"), (TINY, "lse", "lse"), (MIT, "auto", "mean"),
        (VIT, None, "lse"), (VIT, "auto", "lse"), (VIT, "max", "max"), (VIT, "mean", "mean"),
    ],
)  # fmt: skip
def test_scores_of_class_maps(encoder: dict[str, Any], pool: str | None, rule: str) -> None:
    torch.manual_seed(0)
    options = {} if pool is None else {"pool": pool}
    stride = 32 if encoder is MIT else 8
    network = localisers.make("cam", Encoder.model_validate(encoder), stride, 3, True, options).eval()
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        maps, scores = network.maps(images), network(images)
    slow = {
        "mean": lambda told: sum(told) / len(told),
        "max": max,
        "lse": lambda told: math.log(sum(math.exp(5 * value) for value in told) / len(told)) / 5,
    }
    for picture, planes in enumerate(maps):
        for plane, values in enumerate(planes):
            expected = slow[rule]([float(value) for value in values.flatten()])
            assert scores[picture, plane].item() == pytest.approx(expected, abs=1e-5)


def test_another_pool_is_refused() -> None:
    config = {
        "sources": {"cam": {"options": {"pool": "median"}}},
        "labels": {"crf": {}},
        "networks": {"default": {}},
        "experiments": {"one": {"recipe": "single"}},
    }
    with pytest.raises(UserError, match=r"sources\.cam.*pool") as caught:
        validate_config(config)
    assert "\n" not in str(caught.value)
