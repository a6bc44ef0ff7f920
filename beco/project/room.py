"""Memory of the largest training and disk space of the results, from above, before anything is tried: for `check`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from beco.config import Classifier, Config, Encoder, Network, Optimiser, Schedule
from beco.errors import UserError
from beco.networks.segmenter import build as build_segmenter
from beco.schema.slots import RECIPES
from beco.stage1 import train as localisers

GIB = 2**30
FLOAT = 4  # bytes
PROCESS = 2 * GIB
"""What one job takes before it has seen a picture: Python, torch, a small network."""


# --- networks on paper ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """A network of a configuration; as text, so that equal ones are one."""

    settings: str
    """JSON of `Network`, or of what `Classifier` says of its network."""
    classes: int
    is_segmenter: bool = True

    def build(self) -> nn.Module:
        """The network with random weights, on the CPU. UserError as in the stages."""
        if self.is_segmenter:
            network = Network.model_validate_json(self.settings)
            return build_segmenter(network.model_copy(update={"encoder": _bare(network.encoder)}), self.classes)
        settings = Classifier.model_validate_json(self.settings)
        bare = settings.model_copy(update={"encoder": _bare(settings.encoder)})
        return localisers.build("cam", bare, self.classes, {})


def segmenter(settings: Network, classes: int) -> Spec:
    """One network of stage two."""
    return Spec(settings.model_dump_json(), classes)


def classifier(settings: Classifier, classes: int) -> Spec:
    """The classifier of a source; what a localiser has beside it is little."""
    keys = {"encoder", "output_stride", "dilate", "frozen_stages", "batch_norm"}
    return Spec(settings.model_dump_json(include=keys), classes, False)


def _bare(encoder: Encoder) -> Encoder:
    return encoder.model_copy(update={"weights": None})


@cache
def parameters(spec: Spec) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in _on_paper(spec).parameters())


@cache
def saved_bytes(spec: Spec, height: int, width: int) -> int:
    """Bytes of float32 that the forward pass of one picture keeps for the backward pass, but for the parameters."""
    network = _on_paper(spec).train()
    known = {_storage(one) for one in (*network.parameters(), *network.buffers())}
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        if (name := _storage(tensor)) not in known:
            known.add(name)
            total += tensor.untyped_storage().nbytes()
        return tensor

    images = torch.empty(2, 3, height, width, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = network(images)  # held until the end: a storage that was freed would lend its name to another
    del found
    return total // 2


@cache
def _on_paper(spec: Spec) -> nn.Module:
    """The network without the content of its tensors."""
    try:
        with torch.device("meta"):
            return spec.build()
    except RuntimeError:  # some encoders read a tensor while they are built
        return spec.build().to("meta")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


# --- memory: bytes beyond those of the process ----------------------------------------------------------------


def training(spec: Spec, size: int, batch: int, schedule: Schedule, optimiser: Optimiser, many: int = 1) -> int:
    """`many` networks that learn together on `batch` pictures of `size`² at a time.

    Weights, gradients, and one moment (SGD) or two (AdamW); what the forward passes keep, half of it under autocast;
    and logits, their softmax and its gradient.
    """
    kept = saved_bytes(spec, size, size) * (1 if schedule.precision == "32" else 0.5)
    logits = 3 * FLOAT * (spec.classes + 1) * size * size
    copies = 3 if optimiser.name == "sgd" else 4
    return int(many * (copies * FLOAT * parameters(spec) + batch * (kept + logits)))


def largest_training(config: Config, classes: int) -> int:
    """The most that a training of the configuration takes; networks that cannot be built are told of elsewhere."""
    most = 0
    for experiment in config.experiments.values():
        settings = experiment.training
        batch = settings.schedule.batch_size // settings.schedule.accumulate
        spec = segmenter(config.networks[experiment.network].alone, classes)
        many = RECIPES.fact(experiment.recipe, "NETWORKS")
        with suppress(UserError):
            most = max(most, training(spec, settings.crop.size, batch, settings.schedule, settings.optimiser, many))
    return most


def scores(pixels: int, channels: int) -> int:
    """Three maps of scores at a picture's size, (K+1, H, W) float32.

    Prediction holds one network's, their sum, and the resized one at once.
    """
    return 3 * FLOAT * pixels * channels


# --- disk -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """Pixels of a dataset, summed over pictures."""

    train: float
    """Of the training pictures."""
    shown: float
    """Of the training pictures, each as many times as it has classes."""
    predicted: float
    """Of the predictions: their pictures', or of the squares that they are scored on."""
    drawn: float = 0
    """Of the pictures that are drawn into the results."""


def disk(config: Config, sums: Sums, classes: int) -> int:
    """Bytes of the results, from above, since compression is not counted.

    Per pixel of a training picture 2 for each recipe of labels (label and confidence), and 2/16 for each of
    its classes (float16 CAMs at stride 4, at the picture's own size); per pixel of a predicted picture 1 for each run,
    and 1 more where one network is predicted beside the average; per pixel that is drawn 1;
    and for every network 4 times its float32 parameters (weights, and in the checkpoint weights and two moments).
    Networks that cannot be built are told of elsewhere.
    """
    runs = [(experiment, seed) for experiment in config.experiments.values() for seed in experiment.seeds]
    written = sum(len(one.seeds) * (1 + config.has_first(name)) for name, one in config.experiments.items())
    trained = [classifier(settings, classes) for settings in config.classifiers().values()]
    for experiment, _ in runs:
        network = segmenter(config.networks[experiment.network].alone, classes)
        trained += [network] * (RECIPES.fact(experiment.recipe, "NETWORKS"))
    held = 0
    for spec in trained:
        with suppress(UserError):
            held += 4 * FLOAT * parameters(spec)
    stage_one = 2 * len(config.labels) * sums.train + 2 / 16 * sums.shown
    return int(held + stage_one + sums.drawn + sums.predicted * written)
