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

from beco.config import Training
from beco.datasets.manifest import IGNORE
from beco.networks.segmenter import Segmenter
from beco.stage2.boundaries import Opinion, Supervision, mix
from beco.training.augment import unit_range
from beco.training.colour import StrongColour
from beco.training.sampling import Draws

Recipe = Literal["single", "cotraining", "beco"]


class RecipeTask(nn.Module):
    """Turns a batch of pseudo-labelled pictures into the losses of a recipe."""

    def __init__(self, networks: list[Segmenter], recipe: Recipe, settings: Training, classes: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.recipe, self.settings, self.classes = recipe, settings, classes
        self.colour = None if settings.colour == "none" else StrongColour(settings.colour)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        segmenters: Any = self.networks
        encoder = [p for segmenter in segmenters for p in segmenter.backbone.parameters()]
        known = {id(p) for p in encoder}
        return [(encoder, False), ([p for p in self.networks.parameters() if id(p) not in known], True)]

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.recipe != "single":
            return {}
        return {"labelled": (batch["label"] != IGNORE).sum().clamp(min=1).float()}  # there may be no opinion at all

    def forward(self, batch: dict[str, Tensor], step: int, steps: int, draws: Draws) -> dict[str, Tensor]:
        images, label = unit_range(batch["image"]), batch["label"].long()
        if self.recipe == "beco":
            target = self._mixed(images, Opinion(label, batch["reliable"]), step, steps, draws)
        else:
            nothing = torch.zeros_like(batch["reliable"])
            target = Supervision(images, label, batch["reliable"], nothing, nothing)
        views = self.colour(target.images, draws) if self.colour else target.images
        views = views.contiguous(memory_format=torch.channels_last)
        logits = [network(views) for network in self.networks]
        if self.recipe == "single":
            total = F.cross_entropy(logits[0], label, ignore_index=IGNORE, reduction="sum")
            return {"loss": total / batch["labelled"]}
        peer = self.settings.peer_weight if step >= self.settings.peer_start * steps else 0.0
        return cotraining_losses(logits[0], logits[1], target, self.settings, peer)

    def _mixed(self, images: Tensor, offline: Opinion, step: int, steps: int, draws: Draws) -> Supervision:
        """Artificial boundaries; in warm-up without a heavier loss, and by the offline labels.

        By online labels only what is sure is pasted. By offline labels it is the whole of a class, reliable or not, and
        what is pasted stays as reliable as it was (published for the warm-up); with `offline_reliable` it is the
        reliable part, in the warm-up too.
        """
        settings = self.settings.mix
        warm = step < warmup_steps(self.settings, steps)
        if settings.labels == "online" and not warm:
            believed = self._online(images)
            region = believed.reliable
        else:
            believed = offline
            region = offline.reliable if settings.labels == "offline_reliable" else offline.label != IGNORE
        return mix(
            images.contiguous(),  # colour by colour in memory, as pasting and colouring want it
            offline,
            believed,
            region,
            self.classes,
            settings.probability,
            settings.ignore_background,
            0 if warm else settings.band_width,
            draws,
        )

    @torch.no_grad()
    def _online(self, images: Tensor) -> Opinion:
        """What both networks, in evaluation mode, think of the clean pictures: label, and softmax above threshold."""
        self.networks.eval()
        logits = [network(images) for network in self.networks]
        self.networks.train()
        return online_labels(logits, self.settings.mix.online_threshold)


def online_labels(logits: list[Tensor], threshold: float) -> Opinion:
    """Where the mean of logits, each (B, K+1, H, W), is highest, reliable where its softmax exceeds `threshold`.

    The first of the logits is overwritten.
    """
    mean = logits[0]
    for other in logits[1:]:
        mean += other
    probability, label = mean.div_(len(logits)).softmax(1).max(1)
    return Opinion(label, probability > threshold)


def warmup_steps(settings: Training, steps: int) -> float:
    """Steps of the warm-up, of `steps` in all: `warmup_steps`, or else the share `warmup`."""
    return settings.warmup * steps if settings.warmup_steps is None else settings.warmup_steps


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
