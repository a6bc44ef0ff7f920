"""Training of stage one's networks: a localiser learns from image-level labels, and is scored as a classifier."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from dataclasses import replace as replace_in
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beco.artifacts import supervision
from beco.artifacts.files import whole, write_json
from beco.config import Classifier as Settings
from beco.config import Encoder
from beco.datasets.manifest import Manifest
from beco.networks import encoders
from beco.networks.frozen import freeze
from beco.schema.slots import LOCALISERS
from beco.stage1 import localisers
from beco.stage1.localisers.base import Inputs, Localiser
from beco.training.augment import unit_range
from beco.training.batches import layout, size_batches
from beco.training.checkpoint import State
from beco.training.colour import StrongColour
from beco.training.engine import Output, Plan, fit
from beco.training.pixels import mean_and_std, settled
from beco.training.sampling import Draws, mixed_seed
from beco.training.trainer import Compute

log = logging.getLogger("beco")

MOST_NAMED = 5


class LocaliserTask(nn.Module):
    """A localiser's losses on weakly augmented pictures."""

    def __init__(self, network: Localiser, colour: bool) -> None:
        super().__init__()
        self.network = network
        self.colour = StrongColour() if colour else None

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        """See `Localiser`."""
        return self.network.parameter_groups()

    def depths(self) -> dict[int, int]:
        """See `Localiser`."""
        return self.network.depths()

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Localiser`."""
        return self.network.totals(batch)

    def forward(self, batch: dict[str, Tensor], step: int, steps: int, draws: Draws) -> dict[str, Tensor]:
        images = unit_range(batch["image"])
        images = self.colour(images, draws) if self.colour else images
        return self.network.losses(images, batch, step, steps, draws)


def build(method: str, settings: Settings, classes: int, options: dict[str, Any]) -> Localiser:
    """A localiser with its starting weights, ready to train: only what the settings let learn does."""
    network = localisers.make(method, settings.encoder, settings.output_stride, classes, settings.dilate, options)
    encoders.prepare_backbone(network.backbone, settings.encoder)
    network.fixed_statistics = settings.batch_norm == "fixed"
    if settings.frozen_stages is not None:
        freeze(network.backbone, settings.frozen_stages, settings.encoder.name)
    return network.train()


@dataclass(frozen=True)
class Wanted:
    """A localiser to train."""

    settings: Settings
    method: str = "cam"
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the method's own, complete."""
    inputs: Inputs = field(default_factory=Inputs)

    def identity(self) -> dict[str, Any]:
        """What determines the network, besides the pictures."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "method": self.method,
            "options": self.options,
            "inputs": self.inputs.hashes(),
            "weights": encoders.weights_hash(self.settings.encoder),
        }

    def metadata(self, classes: list[str]) -> dict[str, str]:
        """What stands beside the weights in the network's file, by which `load` makes it again."""
        return {
            "encoder": self.settings.encoder.model_dump_json(),
            "output_stride": str(self.settings.output_stride),
            "dilate": json.dumps(self.settings.dilate),
            "classes": json.dumps(classes),
            "method": self.method,
            "options": json.dumps(self.options),
            supervision.KEY: json.dumps(self.inputs.supervision()),
        }


def train(
    pictures: Manifest, held_out: Manifest, wanted: Wanted, compute: Compute, output: Path, replace: bool
) -> None:
    """Train on `pictures`; write `classifier.safetensors`, `classifier.json` and `history.csv` into `output`.

    What cannot be scored afterwards is told before: UserError for a split without pictures, a warning for classes
    without average precision (`unscored`).
    """
    settings = wanted.settings.model_copy(update={"encoder": settled(wanted.settings.encoder)})
    wanted = replace_in(wanted, settings=settings)
    if words := unscored(held_out):
        log.warning("%s", words)
    torch.manual_seed(mixed_seed(settings.seed, 0, 4))
    network = build(wanted.method, settings, len(pictures.classes), wanted.options)
    if wanted.inputs.start:
        encoders.load_network(wanted.inputs.start, "classifier", pictures.classes)  # refuses one of other classes
    network.begin(wanted.inputs)
    identity = wanted.identity() | {"manifest": pictures.table.to_csv()}
    if LOCALISERS.fact(wanted.method, "TRAINS"):
        state = fit(
            LocaliserTask(network, settings.colour),
            network.pictures(pictures, settings.crop, mean_and_std(settings.encoder)[0], wanted.inputs),
            Plan(settings.schedule, settings.optimiser, settings.seed),
            Output(output, identity, "classifier", replace),
            compute,
        )
    else:
        state = untrained(output)
    if not state.is_writer:
        return
    scores = evaluate(network, held_out, settings, compute) if network.classifies else {"map": None, "ap": {}}
    told = "unknown" if scores["map"] is None else f"{scores['map']:.3f}"
    split = ", ".join(dict.fromkeys(held_out.table["split"]))
    log.info("classifier: mAP %s on %s", told, split)
    encoders.save_network(network, output / "classifier.safetensors", wanted.metadata(pictures.classes))
    write_json(
        output / "classifier.json",
        {
            **scores,
            "split": split,
            "steps": state.step,
            "seconds": state.seconds,
            supervision.KEY: wanted.inputs.supervision(),
            **{key: identity[key] for key in ("method", "options", "inputs", "settings")},
        },
    )


def untrained(output: Path) -> State:
    """The state after a training of no step, with its history."""
    with whole(output / "history.csv") as temporary:
        temporary.write_text("epoch,step,loss\n", encoding="utf-8")
    state = State()
    state.is_writer = True
    return state


@torch.inference_mode()
def evaluate(network: Localiser, manifest: Manifest, settings: Settings, compute: Compute) -> dict[str, Any]:
    """Average precision of every class over a split, at the size `settings.resize`, and their mean.

    A class without a positive has none (None) and is left out of the mean, which is None where no class has one.
    """
    device = compute.chosen
    network = network.eval().to(device).to(memory_format=layout(device))
    logits: dict[str, Tensor] = {}
    for ids, images in size_batches(manifest, manifest.ids, settings.resize, 16, "classifier mAP"):
        logits.update(zip(ids, network(images.to(device)).float().cpu(), strict=True))
    scores = torch.stack([logits[image_id] for image_id in manifest.ids])
    targets = torch.from_numpy(manifest.labels()).long()
    precision = average_precision(scores, targets)
    known = [value for value in precision if value is not None]
    mean = float(torch.tensor(known).mean()) if known else None
    return {"map": mean, "ap": dict(zip(manifest.classes, precision, strict=True))}


def average_precision(scores: Tensor, targets: Tensor) -> list[float | None]:
    """Average precision of each class: scores (N, K) float32 and targets (N, K) int64 of 0 and 1; None without a 1."""
    from torchmetrics.functional.classification import binary_average_precision  # here: it takes seconds

    return [
        float(binary_average_precision(score.sigmoid(), target)) if target.any() else None
        for score, target in zip(scores.T, targets.T, strict=True)
    ]


def unscored(manifest: Manifest) -> str:
    """What to say of the classes that no picture of a split shows, the split in `manifest`; "" if there are none."""
    split = ", ".join(dict.fromkeys(manifest.table["split"]))
    counts = manifest.labels().sum(0).tolist()
    unseen = [name for name, count in zip(manifest.classes, counts, strict=True) if not count]
    if not unseen:
        return ""
    names = ", ".join(unseen[:MOST_NAMED]) + (f" and {len(unseen) - MOST_NAMED} more" * (len(unseen) > MOST_NAMED))
    what = "no average precision of theirs" if any(counts) else "no average precision at all"
    return f"no picture of {split} shows {names}: there will be {what}; add such pictures to it to have one"


def load(path: Path, classes: list[str] | None = None) -> tuple[Localiser, list[str]]:
    """The network that `train` saved and the class names of its planes; older files are dilated CAMs and do not say so.

    UserError if the file is something else, or if `classes` are given and are not its own.
    """
    state, metadata = encoders.load_network(path, "classifier", classes)
    with encoders.described(path):
        encoder = Encoder.model_validate_json(metadata["encoder"]).model_copy(update={"weights": None})
        own = json.loads(metadata["classes"])
        dilate = json.loads(metadata.get("dilate", "true"))
        method = LOCALISERS.given(metadata.get("method", "cam"), str(path))
        options = json.loads(metadata.get("options", "{}"))
        network = localisers.make(method, encoder, int(metadata["output_stride"]), len(own), dilate, options)
        encoders.prepare_backbone(network.backbone, encoder)
        encoders.refuse_pooled(path, metadata, network.backbone)
        encoders.load_whole(network, state, path)
    return network, own
