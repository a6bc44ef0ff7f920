"""Training of the inter-pixel relation network on the pairs of pixels that confident labels speak of."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from beco.artifacts import supervision
from beco.artifacts.files import file_hash, write_json
from beco.artifacts.grids import STRIDE, grid
from beco.config import Irn
from beco.datasets.belonging import open_labels
from beco.datasets.manifest import Manifest
from beco.networks import encoders
from beco.stage1.placing import picked
from beco.stage1.refine import irn
from beco.stage1.refine.irn import MOST_PIXELS, TOGETHER, IrnNetwork
from beco.stage1.refine.irn_pairs import losses, pixel_pairs
from beco.training.augment import LabelledPictures, unit_range
from beco.training.batches import layout, size_batches
from beco.training.engine import Output, Plan, fit
from beco.training.pixels import mean_and_std
from beco.training.sampling import Draws, mixed_seed
from beco.training.trainer import Compute


class IrnTask(nn.Module):
    """IRN's objective on weakly augmented pictures; both branches' losses halved, as in the authors' program."""

    def __init__(self, network: IrnNetwork, radius: int) -> None:
        super().__init__()
        self.network, self.radius = network, radius

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        """The displacement branch counts as the head, with its own learning rate; so it does with the authors."""
        return [
            (list(self.network.boundary.parameters()), False),
            (list(self.network.displacement.parameters()), True),
        ]

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """How many pairs of each kind the whole batch has; at least 1, since they divide."""
        label = coarse(batch["label"])
        kinds = pixel_pairs(self.radius, *label.shape[1:], label.device).kinds(label)
        return {name: mask.sum().clamp(min=1).float() for name, mask in kinds._asdict().items()}

    def forward(self, batch: dict[str, Tensor], step: int, steps: int, draws: Draws) -> dict[str, Tensor]:
        edges, field = self.network(unit_range(batch["image"]))
        label = coarse(batch["label"])
        pairs = pixel_pairs(self.radius, *label.shape[1:], label.device)
        terms = losses(edges.float(), field.float(), label, pairs, batch)
        return {"loss": sum(terms.values(), torch.zeros((), device=edges.device)) / 2, **terms}


def coarse(label: Tensor) -> Tensor:
    """Labels (B, H, W) uint8 at a quarter of the size, rounded up: the pixel at each cell's centre, or the last."""
    return picked(label, grid(*label.shape[1:]), (STRIDE, STRIDE))


def train(
    manifest: Manifest,
    classifier: Path,
    labels: Path,
    settings: Irn,
    compute: Compute,
    output: Path,
    replace: bool,
) -> None:
    """Train on the pictures of `manifest` (one split); write `irn.safetensors`, `irn.json` and `history.csv`.

    `labels` has a confident label of every picture, 255 where there is none: what `beco labels` makes with refine:
    crf. `classifier` says which encoder the backbone is and, with `settings.start` classifier, has its weights.
    UserError if the classifier knows other classes, or a picture has no label.
    """
    pairs = open_labels(labels, manifest)
    torch.manual_seed(mixed_seed(settings.seed, 0, 4))
    network, metadata = irn.starting_from(classifier, settings.start, manifest.classes)
    identity = {
        "settings": settings.model_dump(mode="json", include=settings.training_keys()),
        "manifest": manifest.table.to_csv(),
        "start": {key: metadata[key] for key in irn.STARTED_FROM},
        "labels": file_hash(labels),
    }
    state = fit(
        IrnTask(network, settings.radius),
        LabelledPictures(manifest, pairs, 1.0, settings.crop, mean=mean_and_std(irn.encoder_of(metadata))[0]),
        Plan(settings.schedule, settings.optimiser, settings.seed),
        Output(output, identity, "irn", replace),
        compute,
    )
    if not state.is_writer:
        return
    network.mean_displacement.copy_(mean_displacement(network, manifest, compute))
    made_from = supervision.together(supervision.said_by(metadata), supervision.said_by(pairs.store.attributes))
    metadata[supervision.KEY] = json.dumps(made_from)
    encoders.save_network(network, output / "irn.safetensors", metadata)
    last = {key: value for key, value in state.history[-1].items() if key in ("loss", "alike", "differ")}
    write_json(
        output / "irn.json",
        {
            **last,
            "steps": state.step,
            "seconds": state.seconds,
            "settings": identity["settings"],
            "weights": metadata["weights"],
        },
    )


@torch.inference_mode()
def mean_displacement(network: IrnNetwork, manifest: Manifest, compute: Compute) -> Tensor:
    """Mean over pictures, each at its own size, of its mean displacement: (2,) float32 on the CPU."""
    device = compute.chosen
    network = network.eval().to(device).to(memory_format=layout(device))
    total = torch.zeros(2)
    batches = size_batches(manifest, manifest.ids, None, TOGETHER, "mean displacement", most_pixels=MOST_PIXELS)
    for _, images in batches:
        total += network(images.to(device))[1].float().mean((2, 3)).sum(0).cpu()
    return total / len(manifest)
