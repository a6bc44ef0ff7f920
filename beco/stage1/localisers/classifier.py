"""The multi-label classifier of stage one: a backbone, one 1×1 convolution per class, global average pooling."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beco.artifacts.files import write_json
from beco.config import Classifier as Settings
from beco.config import Encoder
from beco.datasets.manifest import Manifest
from beco.networks import encoders
from beco.networks.frozen import fix_statistics, freeze
from beco.training.augment import ClassifierPictures, Normalise, unit_range
from beco.training.batches import size_batches
from beco.training.colour import StrongColour
from beco.training.engine import Compute, choose_device, fit
from beco.training.pixels import mean_and_std, settled
from beco.training.sampling import Draws, mixed_seed

log = logging.getLogger("beco")

MOST_NAMED = 5


class CamNetwork(nn.Module):
    """Backbone at a given output stride with a class map per class.

    The head is a 1×1 convolution without bias, so that the average of a class map is the class's logit and the map
    itself is the class activation map (Zhou et al. 2016, section 2; in this form since Ahn et al. 2019).
    """

    def __init__(self, encoder: Encoder, output_stride: int, classes: int, dilate: bool = True) -> None:
        super().__init__()
        self.fixed_statistics = False
        """Whether the backbone's batch norm stays in evaluation mode in training, too."""
        self.normalise = Normalise(encoder)
        self.backbone = encoders.create_backbone(encoder, output_stride, dilate)
        width = encoders.feature_channels(self.backbone)[-1]
        self.head = nn.Conv2d(width, classes, 1, bias=False)

    def train(self, mode: bool = True) -> CamNetwork:
        """Set the mode, but for batch norm whose statistics are fixed."""
        super().train(mode)
        if self.fixed_statistics:
            fix_statistics(self.backbone)
        return self

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> class maps (B, K, ⌈H/stride⌉, ⌈W/stride⌉), before the ReLU."""
        return self.head(self.backbone(self.normalise(images))[-1])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> logits (B, K)."""
        return self.maps(images).mean((2, 3))


def build(settings: Settings, classes: int) -> CamNetwork:
    """A classifier with its starting weights, ready to train: only what the settings let learn does."""
    network = CamNetwork(settings.encoder, settings.output_stride, classes, settings.dilate)
    encoders.prepare_backbone(network.backbone, settings.encoder)
    network.fixed_statistics = settings.batch_norm == "fixed"
    if settings.frozen_stages is not None:
        freeze(network.backbone, settings.frozen_stages, settings.encoder.name)
    return network.train()


class ClassifierTask(nn.Module):
    """Multi-label soft-margin loss on weakly augmented pictures."""

    def __init__(self, network: CamNetwork, colour: bool) -> None:
        super().__init__()
        self.network = network
        self.colour = StrongColour() if colour else None

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        """What learns; frozen parameters are left out, lest weight decay moves them."""
        return [
            ([parameter for parameter in self.network.backbone.parameters() if parameter.requires_grad], False),
            (list(self.network.head.parameters()), True),
        ]

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def forward(self, batch: dict[str, Tensor], step: int, steps: int, draws: Draws) -> dict[str, Tensor]:
        images = unit_range(batch["image"])
        logits = self.network(self.colour(images, draws) if self.colour else images)
        return {"loss": F.multilabel_soft_margin_loss(logits.float(), batch["target"])}


def train(
    manifest: Manifest,
    train_split: str,
    val_split: str,
    settings: Settings,
    compute: Compute,
    output: Path,
    replace: bool,
) -> None:
    """Train the classifier; write `classifier.safetensors`, `classifier.json` and `history.csv` into `output`.

    What cannot be scored afterwards is told before: UserError for a split without pictures, a warning for classes
    without average precision (`unscored`).
    """
    settings = settings.model_copy(update={"encoder": settled(settings.encoder)})
    pictures, held_out = manifest.split(train_split), manifest.split(val_split)
    if words := unscored(held_out):
        log.warning("%s", words)
    torch.manual_seed(mixed_seed(settings.seed, 0, 4))
    network = build(settings, len(manifest.classes))
    identity = {
        "settings": settings.model_dump(mode="json"),
        "manifest": pictures.table.to_csv(),
        "weights": encoders.weights_hash(settings.encoder),
    }
    state = fit(
        ClassifierTask(network, settings.colour),
        ClassifierPictures(pictures, settings.crop, mean_and_std(settings.encoder)[0]),
        settings.schedule,
        settings.optimiser,
        settings.seed,
        output,
        identity,
        compute,
        "classifier",
        replace,
    )
    if not state.is_writer:
        return
    scores = evaluate(network, held_out, settings, compute)
    told = "unknown" if scores["map"] is None else f"{scores['map']:.3f}"
    log.info("classifier: mAP %s on %s", told, val_split)
    metadata = {
        "encoder": settings.encoder.model_dump_json(),
        "output_stride": str(settings.output_stride),
        "dilate": json.dumps(settings.dilate),
        "classes": json.dumps(manifest.classes),
    }
    encoders.save_network(network, output / "classifier.safetensors", metadata)
    write_json(
        output / "classifier.json",
        {
            **scores,
            "split": val_split,
            "steps": state.step,
            "seconds": state.seconds,
            "settings": identity["settings"],
        },
    )


@torch.inference_mode()
def evaluate(network: CamNetwork, manifest: Manifest, settings: Settings, compute: Compute) -> dict[str, Any]:
    """Average precision of every class over a split, at the size `settings.resize`, and their mean.

    A class without a positive has none (None) and is left out of the mean, which is None where no class has one.
    """
    device = choose_device(compute.device)
    network = network.eval().to(device)
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


def load(path: Path, classes: list[str] | None = None) -> tuple[CamNetwork, list[str]]:
    """The network that `train` saved and the class names of its planes; older files do not say that it is dilated.

    UserError if the file is something else, or if `classes` are given and are not its own.
    """
    state, metadata = encoders.load_network(path, "classifier", classes)
    with encoders.described(path):
        encoder = Encoder.model_validate_json(metadata["encoder"]).model_copy(update={"weights": None})
        own = json.loads(metadata["classes"])
        dilate = json.loads(metadata.get("dilate", "true"))
        network = CamNetwork(encoder, int(metadata["output_stride"]), len(own), dilate)
        encoders.prepare_backbone(network.backbone, encoder)
        encoders.refuse_pooled(path, metadata, network.backbone)
        encoders.load_whole(network, state, path)
    return network, own
