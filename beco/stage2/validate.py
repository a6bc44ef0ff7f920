"""Scores on the validation split while a training runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from beco.batches import size_batches
from beco.checkpoint import State
from beco.config import Training
from beco.datasets.manifest import IGNORE, Manifest
from beco.encoders import save_network
from beco.engine import Compute, choose_device
from beco.errors import UserError
from beco.stage2.networks import Segmenter


class Validator:
    """mIoU of the averaged networks on pictures and masks squeezed to the crop's size, as BECO watches its training.

    The number is for curves and for `choose: best`; final scores come from `beco predict` and `beco evaluate`. The
    best networks so far are kept in `best`.
    """

    def __init__(
        self,
        networks: list[Segmenter],
        manifest: Manifest,
        settings: Training,
        compute: Compute,
        best: Path,
        metadata: dict[str, str],
    ) -> None:
        self.networks, self.pictures, self.settings = networks, manifest.with_masks(), settings
        self.compute, self.best, self.metadata = compute, best, metadata
        if not len(self.pictures):
            raise UserError(
                "training.validate_every: the validation split has no masks to score by; leave it out, and choose: last"
            )

    def __call__(self, state: State) -> dict[str, float]:
        """The score of the networks as they are, after the epoch that `state` has just ended; {} between scores."""
        epoch = len(state.history)
        if epoch % int(self.settings.validate_every or 1):
            return {}
        score = self.miou()
        if state.best is None or score > state.best:
            state.best, state.best_epoch = score, epoch
            if self.settings.choose == "best":
                save_network(nn.ModuleList(self.networks), self.best, self.metadata)
        return {"val_miou": score}

    @torch.inference_mode()
    def miou(self) -> float:
        """Mean IoU over the classes that occur in truth or prediction, in [0, 1]."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix  # here: it takes seconds

        device, side = choose_device(self.compute.device), self.settings.crop.size
        classes = len(self.pictures.classes) + 1
        confusion = torch.zeros(classes, classes, dtype=torch.long, device=device)
        for network in self.networks:
            network.eval()
        for ids, images in size_batches(self.pictures, self.pictures.ids, None, 16, "validation"):
            squeezed = nn.functional.interpolate(images.to(device), (side, side), mode="bilinear", antialias=True)
            mean = torch.stack([network(squeezed) for network in self.networks]).mean(0)
            truth = torch.stack([self._mask(image_id, side) for image_id in ids]).to(device)
            confusion += multiclass_confusion_matrix(mean.argmax(1), truth, classes, ignore_index=IGNORE)
        right, union = confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()
        return float((right[union > 0] / union[union > 0]).mean())

    def _mask(self, image_id: str, side: int) -> torch.Tensor:
        mask = torch.from_numpy(self.pictures.mask(image_id).astype(np.int64))
        return nn.functional.interpolate(mask[None, None].float(), (side, side), mode="nearest")[0, 0].long()
