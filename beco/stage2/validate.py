"""Scores on the validation split while a training runs, and how far its online labels can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from beco.config import Training
from beco.datasets.manifest import IGNORE, Manifest
from beco.errors import UserError
from beco.networks.encoders import save_network
from beco.networks.segmenter import Segmenter
from beco.stage2.recipes.base import online_labels
from beco.training.batches import size_batches
from beco.training.checkpoint import State
from beco.training.crops import resized_label
from beco.training.trainer import Compute


class Validator:
    """mIoU of the averaged networks on pictures and masks squeezed to the crop's size, as BECO watches its training.

    The number is for curves and for `choose: best`; final scores come from `beco predict` and `beco evaluate`. The
    best networks so far are kept in `best`. With `watch_labels`, some pictures of `learnt`, the training split, tell
    how many online labels are trusted and how many of these are right.
    """

    def __init__(
        self,
        networks: list[Segmenter],
        manifest: Manifest,
        learnt: Manifest,
        settings: Training,
        compute: Compute,
        best: Path,
        metadata: dict[str, str],
    ) -> None:
        self.networks, self.pictures, self.settings = networks, manifest.with_masks(), settings
        self.learnt = learnt.with_masks()
        self.compute, self.best, self.metadata = compute, best, metadata
        if not len(self.pictures):
            raise UserError(
                "training.validate_every: the validation split has no masks to score by; leave it out, and choose: last"
            )
        side = settings.crop.size
        if all((self._mask(self.pictures, name, side) == IGNORE).all() for name in self.pictures.ids):  # most: one look
            raise UserError(
                "training.validate_every: the masks of the validation split hold 255 (no opinion) alone, so there is "
                "nothing to score by; mend them, or leave it out, and choose: last"
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
        return {"val_miou": score, **self.online()}

    @torch.inference_mode()
    def miou(self) -> float:
        """Mean IoU over the classes that occur in truth or prediction, in [0, 1]: `metrics.MEAN_RULE`.

        A class that is predicted and never true counts with 0, as in the final scores.
        """
        from torchmetrics.functional.classification import multiclass_confusion_matrix  # here: it takes seconds

        classes = len(self.pictures.classes) + 1
        confusion = torch.zeros(classes, classes, dtype=torch.long, device=self.compute.chosen)
        for logits, truth in self._squeezed(self.pictures, self.pictures.ids):
            confusion += multiclass_confusion_matrix(logits.argmax(1), truth, classes, ignore_index=IGNORE)
        right, union = confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()
        return float((right[union > 0] / union[union > 0]).mean())

    @torch.inference_mode()
    def online(self) -> dict[str, float]:
        """How far online labels could be trusted on `watch_labels` training pictures, evenly taken; {} without masks.

        `online_trusted`: the share of pixels with a softmax above `mix.online_threshold`; `online_trusted_objects`: the
        same of the pixels of true objects; `online_right`: the share of trusted pixels that are right. Void pixels do
        not count. Nothing learns from it.
        """
        ids = self.learnt.ids
        ids = ids[:: max(-(-len(ids) // (self.settings.watch_labels or 1)), 1)] if self.settings.watch_labels else []
        pixels = torch.zeros(5, dtype=torch.long)  # known ones and those of objects; trusted ones of both; right ones
        for logits, truth in self._squeezed(self.learnt, ids):
            label, sure = online_labels([logits], self.settings.mix.online_threshold)
            known = truth != IGNORE
            objects, trusted = known & (truth > 0), known & sure
            found = known, objects, trusted, trusted & objects, trusted & (label == truth)
            pixels += torch.stack([mask.sum() for mask in found]).cpu()
        known, objects, trusted, of_objects, right = pixels.tolist()
        if not known:
            return {}
        return {
            "online_trusted": trusted / known,
            "online_trusted_objects": of_objects / max(objects, 1),
            "online_right": right / max(trusted, 1),
        }

    def _squeezed(self, manifest: Manifest, ids: list[str]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of squeezed pictures: the networks' mean logits (B, K+1, S, S), and the truth (B, S, S) int64."""
        device, side = self.compute.chosen, self.settings.crop.size
        for network in self.networks:
            network.eval()
        for names, images in size_batches(manifest, ids, None, 16, "validation", squeeze=side):
            squeezed = images.to(device)
            truth = torch.stack([self._mask(manifest, name, side) for name in names]).to(device)
            yield torch.stack([network(squeezed) for network in self.networks]).mean(0), truth

    def _mask(self, manifest: Manifest, image_id: str, side: int) -> Tensor:
        return resized_label(torch.from_numpy(manifest.mask(image_id)), (side, side)).long()
