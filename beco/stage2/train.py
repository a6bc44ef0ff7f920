"""Training of stage two, and the file that holds its networks."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from dataclasses import replace as replace_in
from pathlib import Path
from typing import Any

import torch

from beco.artifacts.files import file_hash, whole, write_json
from beco.artifacts.pseudolabels import PseudoLabels
from beco.artifacts.sources import commit, stage_hash
from beco.config import Network, Prediction, Training
from beco.datasets.belonging import open_labels
from beco.datasets.manifest import Manifest, check_meaning
from beco.errors import UserError
from beco.networks import encoders
from beco.networks.segmenter import Segmenter, build
from beco.schema.slots import RECIPES
from beco.stage2 import recipes
from beco.stage2.validate import Validator
from beco.training.augment import LabelledPictures
from beco.training.engine import Output, Plan, fit
from beco.training.pixels import mean_and_std, settled
from beco.training.sampling import mixed_seed
from beco.training.trainer import Compute, describe

log = logging.getLogger("beco")


@dataclass(frozen=True)
class Wanted:
    """Networks to train."""

    recipe: str
    network: Network
    settings: Training
    seed: int = 0
    labels: Path | None = None
    """`labels.h5`; None: the training masks, as an upper bound."""
    classifier: Path | None = None
    """The network of stage one, for encoders that start from it."""
    prediction: Prediction | None = None
    """How they are meant to predict: written into their file; training does not read it."""

    def identity(self) -> dict[str, Any]:
        """What determines the networks, besides the pictures."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "network": self.network.model_dump(mode="json"),
            "recipe": self.recipe,
            "seed": self.seed,
            "labels": file_hash(self.labels) if self.labels else "truth",
            "weights": self._starting_weights(),
        }

    def _starting_weights(self) -> str | None:
        if self.network.encoder.weights == "classifier":
            return file_hash(self.classifier) if self.classifier is not None else "classifier"
        return encoders.weights_hash(self.network.encoder)


def train(
    pictures: Manifest, held_out: Manifest | None, wanted: Wanted, compute: Compute, output: Path, replace: bool
) -> None:
    """Train the networks of one recipe on `pictures`.

    Writes `networks.safetensors`, `training.json` and `history.csv` into `output`. With `settings.validate_every` the
    history has scores on `held_out`, which may else be None, and with `settings.choose: best` the networks of the best
    epoch are kept.
    """
    network = wanted.network.model_copy(update={"encoder": settled(wanted.network.encoder)})
    wanted = replace_in(wanted, network=network)
    settings, recipe, seed = wanted.settings, wanted.recipe, wanted.seed
    reader = _checked_labels(pictures, wanted.labels)
    if wanted.classifier is not None and network.encoder.weights == "classifier":
        encoders.load_network(wanted.classifier, "classifier", pictures.classes)  # before anything is built
    if RECIPES.fact(recipe, "PAIRS") and settings.schedule.batch_size % 2:
        raise UserError("training.schedule.batch_size: pairs are mixed, so it must be even")
    networks = []
    for number in range(RECIPES.fact(recipe, "NETWORKS")):
        torch.manual_seed(mixed_seed(seed, number, 5))
        networks.append(build(network, len(pictures.classes), wanted.classifier))
        if compute.compile:
            networks[-1].compile()
    identity = wanted.identity() | {"manifest": pictures.table.to_csv()}
    metadata = {
        "network": network.model_dump_json(),
        "classes": json.dumps(pictures.classes),
        "count": str(len(networks)),
    }
    if wanted.prediction is not None:
        metadata["prediction"] = wanted.prediction.model_dump_json()
    best = output / "best.safetensors"
    validator = None
    if settings.validate_every:
        if held_out is None:
            raise ValueError("a training that is validated needs pictures for that")
        validator = Validator(networks, held_out, pictures, settings, compute, best, metadata)
        identity["validation"] = validator.pictures.table.to_csv()
    rule = settings.reliable_fraction, settings.crop, settings.reliable_threshold
    task = recipes.make(recipe, networks, settings, len(pictures.classes))
    state = fit(
        task,
        LabelledPictures(pictures, reader, *rule, mean=mean_and_std(network.encoder)[0]),
        Plan(settings.schedule, settings.optimiser, seed),
        Output(output, identity, f"{recipe} seed {seed}", replace),
        compute,
        validator,
    )
    if not state.is_writer:
        return
    if state.history and (words := task.warning(state.history[-1])):
        log.warning("%s seed %d: %s", recipe, seed, words)
    if settings.choose == "best":
        with whole(output / "networks.safetensors") as temporary:
            shutil.copyfile(best, temporary)
    else:
        encoders.save_network(torch.nn.ModuleList(networks), output / "networks.safetensors", metadata)
    write_json(
        output / "training.json",
        {
            **{key: value for key, value in identity.items() if key not in ("manifest", "validation")},
            "steps": state.step,
            "epoch": "last" if settings.choose == "last" else state.best_epoch,
            "seconds": round(state.seconds, 1),
            "device": describe(compute.chosen),
            "commit": commit(),
            "code": stage_hash("beco.stage2.train", RECIPES.module(recipe)),
            "torch": torch.__version__,
        },
    )


def _checked_labels(pictures: Manifest, labels: Path | None) -> PseudoLabels | None:
    """The reader of `labels`, after a look at whether it belongs to these pictures."""
    if labels is None:
        if not pictures.has_masks:
            raise UserError("labels: truth asked for, but the training split has no masks; name a stage-one recipe")
        check_meaning(pictures)
        return None
    return open_labels(labels, pictures)


@dataclass(frozen=True)
class Trained:
    """What the file of a training holds."""

    networks: list[Segmenter]
    """In evaluation mode, on the CPU."""
    classes: list[str]
    """Names of label values 1…K."""
    prediction: Prediction | None
    """How they are meant to predict; None: the file does not say."""


def load(path: Path) -> Trained:
    """What `train` saved. UserError if the file is no such."""
    state, metadata = encoders.load_network(path, "networks")
    with encoders.described(path):
        settings = _settings(json.loads(metadata["network"]))
        settings = settings.model_copy(update={"encoder": settings.encoder.model_copy(update={"weights": None})})
        classes = json.loads(metadata["classes"])
        networks = [build(settings, len(classes)) for _ in range(int(metadata["count"]))]
        encoders.refuse_pooled(path, metadata, networks[0].backbone)
        encoders.load_whole(torch.nn.ModuleList(networks), state, path)
        written = metadata.get("prediction")
        prediction = None if written is None else Prediction.model_validate_json(written)
    return Trained([network.eval() for network in networks], classes, prediction)


def _settings(written: dict[str, Any]) -> Network:
    """The settings in a network's file; one that an older file lacks is what was built then."""
    before = {"contract_dilation": True, "embedding_channels": written["decoder_channels"]}
    return Network.model_validate(before | written)
