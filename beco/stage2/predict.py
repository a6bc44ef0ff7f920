"""Inference: pictures to label maps at the pictures' own sizes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from beco.batches import size_batches
from beco.config import Prediction
from beco.datasets.manifest import Manifest
from beco.datasets.palette import write_index_png
from beco.engine import Compute, choose_device
from beco.errors import UserError
from beco.files import whole
from beco.stage2.networks import Segmenter
from beco.stage2.train import load


def predict(manifest: Manifest, networks: Path, settings: Prediction, compute: Compute, output: Path) -> None:
    """Write a palette PNG per picture of `manifest` (one split) into the folder `output`."""
    torch.set_num_threads(compute.threads)
    device = choose_device(compute.device)
    members, classes = load(networks)
    if classes != manifest.classes:
        raise UserError(f"{networks}: trained for other classes than the manifest's; train again")
    chosen = members[:1] if settings.networks == "first" else members
    chosen = [network.to(device).to(memory_format=torch.channels_last) for network in chosen]
    with whole(output) as folder:
        folder.mkdir()
        for ids, images in size_batches(manifest, manifest.ids, settings.resize, settings.batch_size, "prediction"):
            logits = mean_logits(chosen, images.to(device), settings, manifest.size(ids[0]))
            for image_id, label in zip(ids, logits.argmax(1).to(torch.uint8).cpu().numpy(), strict=True):
                write_index_png(folder / f"{image_id}.png", label)


@torch.inference_mode()
def mean_logits(networks: list[Segmenter], images: Tensor, settings: Prediction, size: tuple[int, int]) -> Tensor:
    """Logits averaged over networks, scales and flips: (B, 3, h, w) in [0, 1] -> (B, K+1, *size) float32."""
    height, width = images.shape[-2:]
    total = torch.zeros((), device=images.device)
    for scale in settings.scales:
        scaled = images
        if scale != 1:
            target = (max(round(height * scale), 1), max(round(width * scale), 1))
            scaled = F.interpolate(images, target, mode="bilinear", antialias=scale < 1, align_corners=False)
        scaled = scaled.contiguous(memory_format=torch.channels_last)
        for network in networks:
            logits = network(scaled)
            if settings.flip:
                logits = (logits + network(scaled.flip(-1)).flip(-1)) / 2
            total = total + F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return total / (len(settings.scales) * len(networks))
