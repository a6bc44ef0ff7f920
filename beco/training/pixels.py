"""Which pixel values a backbone expects: what its encoder's settings say, or else the model's own configuration."""

from __future__ import annotations

import timm

from beco.config import Encoder

Colour = tuple[float, float, float]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)


def mean_and_std(encoder: Encoder) -> tuple[Colour, Colour]:
    """What is subtracted from RGB in [0, 1], and what the rest is divided by.

    Where the settings leave one out it is timm's `pretrained_cfg` that says it, by the encoder's name: ImageNet's for
    ResNets, 0.5 for what was trained on pixels in [-1, 1]. Models that timm has no configuration of get ImageNet's.
    """
    if encoder.mean is not None and encoder.std is not None:
        return encoder.mean, encoder.std
    try:
        known = timm.get_pretrained_cfg(encoder.name)
    except RuntimeError:  # of an unknown tag, which is told where the model is built
        known = None
    own = (IMAGENET_MEAN, IMAGENET_STD) if known is None else (known.mean, known.std)
    return encoder.mean or _three(own[0]), encoder.std or _three(own[1])


def settled(encoder: Encoder) -> Encoder:
    """The same encoder with mean and std spelt out, so that a saved network does not depend on timm's table."""
    mean, std = mean_and_std(encoder)
    return encoder.model_copy(update={"mean": mean, "std": std})


def _three(values: tuple[float, ...]) -> Colour:
    red, green, blue = (values * 3)[:3]  # a model of gray pictures names one value
    return red, green, blue
