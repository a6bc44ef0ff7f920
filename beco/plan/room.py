"""Memory of a job and disk space of the results, from above; shared by `beco plan` and `beco check`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from beco.config import Config, Optimiser, Schedule
from beco.errors import UserError
from beco.plan import networks
from beco.plan.networks import FLOAT, Spec
from beco.schema.slots import RECIPES

GIB = 2**30
PROCESS = 2 * GIB
"""What one job takes before it has seen a picture: Python, torch, a small network."""
STAYS = 0.6
"""Share of the activations of a network that inference holds at its peak; 0.45 and 0.55 were measured on a CPU."""


# --- memory: bytes beyond those of the process ----------------------------------------------------------------


def training(spec: Spec, size: int, batch: int, schedule: Schedule, optimiser: Optimiser, many: int = 1) -> int:
    """`many` networks that learn together on `batch` pictures of `size`² at a time.

    Weights, gradients, and one moment (SGD) or two (AdamW); what the forward passes keep, half of it under autocast;
    and of a segmenter logits, their softmax and its gradient.
    """
    kept = networks.saved_bytes(spec, size, size) * (1 if schedule.precision == "32" else 0.5)
    if spec.kind == "irn":
        kept += STAYS * networks.saved_bytes(replace(spec, kind="classifier"), size, size)  # its frozen backbone
    logits = 3 * FLOAT * (spec.classes + 1) * size * size if spec.kind == "segmenter" else 0
    copies = 3 if optimiser.name == "sgd" else 4
    return int(many * (copies * FLOAT * networks.parameters(spec) + batch * (kept + logits)))


def largest_training(config: Config, classes: int) -> int:
    """The most that a training of the configuration takes; networks that cannot be built are told of elsewhere."""
    most = 0
    for experiment in config.experiments.values():
        settings = experiment.training
        batch = settings.schedule.batch_size // settings.schedule.accumulate
        spec = networks.segmenter(config.networks[experiment.network], classes)
        many = RECIPES.fact(experiment.recipe, "NETWORKS")
        with suppress(UserError):
            most = max(most, training(spec, settings.crop.size, batch, settings.schedule, settings.optimiser, many))
    return most


def inference(spec: Spec, size: tuple[int, int], batch: int) -> int:
    """A network's weights, and `STAYS` of what it would keep if it learnt."""
    kept = networks.saved_bytes(spec, *size)
    if spec.kind == "irn":
        kept += networks.saved_bytes(replace(spec, kind="classifier"), *size)
    return int(FLOAT * networks.parameters(spec) + batch * STAYS * kept)


def scores(pixels: int, channels: int) -> int:
    """Three maps of scores at a picture's size, (K+1, H, W) float32.

    Prediction holds one network's, their sum, and the resized one at once.
    """
    return 3 * FLOAT * pixels * channels


def crf(pixels: int, labels: float) -> int:
    """The CRF's own maps (energies, posterior, messages of two kernels) and the lattice: an entry a pixel and corner.

    A pixel has six corners in the five dimensions of the appearance kernel: an index, a weight, and for each label a
    value, should no two pixels share a corner.
    """
    return int(FLOAT * pixels * (5 * labels + 6 * (2 + labels)))


def walk(spec: Spec, size: tuple[int, int], batch: int, neighbours: int) -> int:
    """IRN on pictures and their mirror images, or the sparse matrix as it is made: indices, values, sorted again."""
    entries = batch * size[0] * size[1] // 16 * neighbours
    return max(inference(spec, size, 2 * batch), 5 * 8 * entries)


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
    its classes (float16 CAMs at stride 4, at the picture's own size); per pixel of a predicted picture 1 for each run;
    per pixel that is drawn 1; and for every network 4 times its float32 parameters (weights, and in the checkpoint
    weights and two moments). Networks that cannot be built are told of elsewhere.
    """
    runs = [(experiment, seed) for experiment in config.experiments.values() for seed in experiment.seeds]
    trained = [networks.classifier(config.classifier, classes)]
    for experiment, _ in runs:
        network = networks.segmenter(config.networks[experiment.network], classes)
        trained += [network] * (RECIPES.fact(experiment.recipe, "NETWORKS"))
    held = 0
    for spec in trained:
        with suppress(UserError):
            held += 4 * FLOAT * networks.parameters(spec)
    stage_one = 2 * len(config.labels) * sums.train + 2 / 16 * sums.shown
    return int(held + stage_one + sums.drawn + sums.predicted * len(runs))
