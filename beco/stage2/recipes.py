"""Three recipes for learning from noisy labels, on one code path.

- `single`: one network, cross-entropy on every labelled pixel.
- `cotraining`: two networks; reliable pixels are learnt from the pseudo-label, the others from the peer's decision.
- `beco`: co-training on pictures with artificial boundaries, whose loss weighs more along the cut.

(Rong et al., Boundary-Enhanced Co-Training, CVPR 2023.)
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beco.augment import StrongColour, unit_range
from beco.config import Training
from beco.datasets.manifest import IGNORE
from beco.stage2.boundaries import Supervision, mix
from beco.stage2.networks import Segmenter

Recipe = Literal["single", "cotraining", "beco"]


class RecipeTask(nn.Module):
    """Turns a batch of pseudo-labelled pictures into the losses of a recipe."""

    def __init__(self, networks: list[Segmenter], recipe: Recipe, settings: Training, classes: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.recipe, self.settings, self.classes = recipe, settings, classes
        self.colour = StrongColour() if settings.colour != "none" else nn.Identity()

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        segmenters: Any = self.networks
        encoder = [p for segmenter in segmenters for p in segmenter.network.encoder.parameters()]
        known = {id(p) for p in encoder}
        return [(encoder, False), ([p for p in self.networks.parameters() if id(p) not in known], True)]

    def forward(self, batch: dict[str, Tensor], step: int, steps: int) -> dict[str, Tensor]:
        images, label = unit_range(batch["image"]), batch["label"].long()
        reliable = batch["reliable"]
        if self.recipe == "single":
            nothing = torch.zeros_like(reliable)
            target = Supervision(images, label, reliable, nothing, nothing)
        else:
            target = self._supervision(images, label, reliable, step, steps)
        views = self.colour(target.images).contiguous(memory_format=torch.channels_last)
        logits = [network(views) for network in self.networks]
        if self.recipe == "single":
            labelled = (label != IGNORE).sum().clamp(min=1)  # a batch may hold no opinion at all
            return {"loss": F.cross_entropy(logits[0], label, ignore_index=IGNORE, reduction="sum") / labelled}
        peer = self.settings.peer_weight if step >= self.settings.peer_start * steps else 0.0
        losses = cotraining_losses(
            logits[0],
            logits[1],
            target,
            self.settings.mix.band_weight,
            self.settings.mix.band_weight_peer,
            peer,
        )
        losses["share_reliable"] = target.reliable.float().mean()
        losses["share_pasted"] = target.pasted.float().mean()
        return losses

    def _supervision(self, images: Tensor, label: Tensor, reliable: Tensor, step: int, steps: int) -> Supervision:
        """Labels, masks and artificial boundaries of this step; `cotraining` is `beco` that never mixes."""
        settings = self.settings.mix
        warm = step < self.settings.warmup * steps
        offline = (label, reliable)
        if self.recipe == "cotraining":
            nothing = torch.zeros_like(reliable)
            return Supervision(images, label, reliable, nothing, nothing)
        online = offline if warm else self._online(images)
        return mix(
            images,
            offline,
            online,
            self.classes,
            settings.probability,
            settings.ignore_background,
            0 if warm else settings.band_width,
        )

    @torch.no_grad()
    def _online(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What both networks, in evaluation mode, think of the clean pictures: label, and softmax above threshold."""
        self.networks.eval()
        mean = sum(network(images) for network in self.networks) / len(self.networks)
        self.networks.train()
        probability, label = mean.softmax(1).max(1)
        return label, probability > self.settings.mix.online_threshold


def cotraining_losses(
    first: Tensor,
    second: Tensor,
    target: Supervision,
    band_weight: float,
    band_weight_peer: float,
    peer_weight: float,
) -> dict[str, Tensor]:
    """The four terms of co-training: each network against the labels, each against the other's decision.

    `first`, `second`: logits (B, K+1, H, W). With Y the label, M the reliable pixels, B the band, P the peer's argmax
    (no gradient), each network adds mean(CE(p, Y) · M · (1 + band_weight · B)) and peer_weight ·
    mean(CE(p, P) · (1 − M) · (1 + band_weight_peer · B)); means run over all pixels of the batch, labelled or not.
    """
    reliable, band = target.reliable.float(), target.band.float()
    to_label = reliable * (1 + band_weight * band)
    to_peer = (1 - reliable) * (1 + band_weight_peer * band)
    label_terms = [
        (F.cross_entropy(logits, target.label, ignore_index=IGNORE, reduction="none") * to_label).mean()
        for logits in (first, second)
    ]
    decisions = first.argmax(1), second.argmax(1)
    peer_terms = [
        (F.cross_entropy(logits, decision, reduction="none") * to_peer).mean()
        for logits, decision in ((first, decisions[1]), (second, decisions[0]))
    ]
    label_loss, peer_loss = label_terms[0] + label_terms[1], peer_terms[0] + peer_terms[1]
    return {
        "loss": label_loss + peer_weight * peer_loss,
        "loss_label": label_loss.detach(),
        "loss_peer": peer_loss.detach(),
        "share_agreeing": (decisions[0] == decisions[1]).float().mean(),
    }
