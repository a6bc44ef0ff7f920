"""Training of stage two, and the file that holds its networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from beco.artifacts.files import file_hash, whole, write_json
from beco.artifacts.pseudolabels import PseudoLabels
from beco.artifacts.sources import commit, stage_hash
from beco.config import Network, Training
from beco.datasets.belonging import open_labels
from beco.datasets.manifest import Manifest, check_meaning
from beco.errors import UserError
from beco.networks import encoders
from beco.networks.segmenter import Segmenter, build
from beco.schema.slots import RECIPES
from beco.stage2 import recipes
from beco.stage2.validate import Validator
from beco.training.augment import LabelledPictures
from beco.training.engine import Compute, choose_device, describe, fit
from beco.training.pixels import mean_and_std, settled
from beco.training.sampling import mixed_seed


def train(
    manifest: Manifest,
    split: str,
    val_split: str,
    labels: Path | None,
    classifier: Path | None,
    network: Network,
    settings: Training,
    recipe: str,
    seed: int,
    compute: Compute,
    output: Path,
    replace: bool,
) -> None:
    """Train the networks of one recipe on `labels` (None: the training masks, as an upper bound).

    Writes `networks.safetensors`, `training.json` and `history.csv` into `output`. With `settings.validate_every` the
    history has scores on `val_split`, and with `settings.choose: best` the networks of the best epoch are kept.
    """
    network = network.model_copy(update={"encoder": settled(network.encoder)})
    pictures = manifest.split(split)
    reader = _checked_labels(pictures, labels)
    if classifier is not None and network.encoder.weights == "classifier":
        encoders.load_network(classifier, "classifier", manifest.classes)  # before anything is built
    if RECIPES.fact(recipe, "PAIRS") and settings.schedule.batch_size % 2:
        raise UserError("training.schedule.batch_size: pairs are mixed, so it must be even")
    networks = []
    for number in range(RECIPES.fact(recipe, "NETWORKS")):
        torch.manual_seed(mixed_seed(seed, number, 5))
        networks.append(build(network, len(manifest.classes), classifier))
        if compute.compile:
            networks[-1].compile()
    identity = {
        "settings": settings.model_dump(mode="json"),
        "network": network.model_dump(mode="json"),
        "recipe": recipe,
        "seed": seed,
        "labels": file_hash(labels) if labels else "truth",
        "manifest": pictures.table.to_csv(),
        "weights": _starting_weights(network, classifier),
    }
    metadata = {
        "network": network.model_dump_json(),
        "classes": json.dumps(manifest.classes),
        "count": str(len(networks)),
    }
    best = output / "best.safetensors"
    validator = None
    if settings.validate_every:
        validator = Validator(networks, manifest.split(val_split), pictures, settings, compute, best, metadata)
        identity["validation"] = validator.pictures.table.to_csv()
    rule = settings.reliable_fraction, settings.crop, settings.reliable_threshold
    state = fit(
        recipes.make(recipe, networks, settings, len(manifest.classes)),
        LabelledPictures(pictures, reader, *rule, mean=mean_and_std(network.encoder)[0]),
        settings.schedule,
        settings.optimiser,
        seed,
        output,
        identity,
        compute,
        f"{recipe} seed {seed}",
        replace,
        validator,
    )
    if not state.is_writer:
        return
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
            "device": describe(choose_device(compute.device)),
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


def _starting_weights(network: Network, classifier: Path | None) -> str | None:
    if network.encoder.weights == "classifier":
        return file_hash(classifier) if classifier is not None else "classifier"
    return encoders.weights_hash(network.encoder)


def load(path: Path) -> tuple[list[Segmenter], list[str]]:
    """The networks that `train` saved, in evaluation mode, and their class names. UserError if the file is no such."""
    state, metadata = encoders.load_network(path, "networks")
    with encoders.described(path):
        settings = _settings(json.loads(metadata["network"]))
        settings = settings.model_copy(update={"encoder": settings.encoder.model_copy(update={"weights": None})})
        classes = json.loads(metadata["classes"])
        networks = [build(settings, len(classes)) for _ in range(int(metadata["count"]))]
        encoders.refuse_pooled(path, metadata, networks[0].backbone)
        encoders.load_whole(torch.nn.ModuleList(networks), state, path)
    return [network.eval() for network in networks], classes


def _settings(written: dict[str, Any]) -> Network:
    """The settings in a network's file; one that an older file lacks is what was built then."""
    before = {"contract_dilation": True, "embedding_channels": written["decoder_channels"]}
    return Network.model_validate(before | written)
