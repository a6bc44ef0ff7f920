"""Co-training: reliable pixels are learnt from the pseudo-label, the others from the peer's decision.

Rong et al., Boundary-Enhanced Co-Training (CVPR 2023), without its artificial boundaries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from beco.config import Training
from beco.datasets.manifest import IGNORE
from beco.stage2.boundaries import Supervision
from beco.stage2.recipes.base import Recipe

NETWORKS = 2
PAIRS = True
UNUSED = ("training.warmup", "training.mix")


class CoTraining(Recipe):
    """Two networks, each against the labels and against the other's decision."""

    def losses(
        self, logits: list[Tensor], target: Supervision, batch: dict[str, Tensor], step: int, steps: int
    ) -> dict[str, Tensor]:
        peer = self.settings.peer_weight if step >= self.settings.peer_start * steps else 0.0
        return cotraining_losses(logits[0], logits[1], target, self.settings, peer)


def cotraining_losses(
    first: Tensor, second: Tensor, target: Supervision, settings: Training, peer_weight: float
) -> dict[str, Tensor]:
    """The four terms of co-training: each network against the labels, each against the other's decision.

    `first`, `second`: logits (B, K+1, H, W). With Y the label, M the reliable pixels, B the band, P the peer's argmax
    (no gradient), each network adds mean(CE(p, Y) · M · (1 + band_weight · B)) and peer_weight ·
    mean(CE(p, P) · (1 − M) · (1 + band_weight_peer · B)). Means run over all pixels of the batch, labelled or not
    (`loss_mean: all`, the official code), or over the pixels of M and of 1 − M (`labelled`).
    Beside the losses: shares of reliable and pasted pixels, and of pixels on which the two networks agree.
    """
    reliable, band = target.reliable.float(), target.band.float()
    opinion = reliable * (target.label != IGNORE)
    unreliable = 1 - reliable
    to_label = torch.addcmul(opinion, opinion, band, value=settings.mix.band_weight)
    to_peer = torch.addcmul(unreliable, unreliable, band, value=settings.mix.band_weight_peer)
    if settings.loss_mean == "labelled":
        to_label = to_label / opinion.mean().clamp(min=1 / opinion.numel())
        to_peer = to_peer / unreliable.mean().clamp(min=1 / opinion.numel())
    with torch.no_grad():
        decisions = first.max(1).indices, second.max(1).indices
    # a pixel learns from one of the two, so that one cross-entropy serves both terms
    losses = sum(
        F.cross_entropy(logits, torch.where(target.reliable, target.label, peer), ignore_index=IGNORE, reduction="none")
        for logits, peer in ((first, decisions[1]), (second, decisions[0]))
    )
    label_loss, peer_loss = (losses * to_label).mean(), (losses * to_peer).mean()
    return {
        "loss": label_loss + peer_weight * peer_loss,
        "loss_label": label_loss.detach(),
        "loss_peer": peer_loss.detach(),
        "share_agreeing": (decisions[0] == decisions[1]).float().mean(),
        "share_reliable": reliable.mean(),
        "share_pasted": target.pasted.float().mean(),
    }
