"""Boundary-enhanced co-training: co-training on pictures with artificial boundaries, whose loss weighs more there.

Rong et al., Boundary-Enhanced Co-Training (CVPR 2023), sections 3.2 and 3.3, and their code where it says more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from beco.config import Training
from beco.datasets.manifest import IGNORE
from beco.stage2.boundaries import Mixing, Opinion, Supervision, left_out, mix
from beco.stage2.recipes.base import Piece, online_labels
from beco.stage2.recipes.cotraining import CoTraining
from beco.training.sampling import Draws

NETWORKS = 2
PAIRS = True

FORGOTTEN = 0.1
"""Share of classes left out by online labels at the end of a training, above which it says so."""


class BoundaryEnhanced(CoTraining):
    """Co-training on mixed pictures."""

    @classmethod
    def online_steps(cls, settings: Training, steps: int) -> float:
        return max(steps - warmup_steps(settings, steps), 0) if settings.mix.labels == "online" else 0.0

    def target(self, images: Tensor, given: Opinion, step: int, steps: int, draws: Draws) -> Supervision:
        """Artificial boundaries; in warm-up without a heavier loss, and by the offline labels.

        By online labels only what is sure is pasted. By offline labels it is the whole of a class, reliable or not, and
        what is pasted stays as reliable as it was (published for the warm-up); with `offline_reliable` it is the
        reliable part, in the warm-up too.
        """
        settings = self.settings.mix
        warm = step < warmup_steps(self.settings, steps)
        if settings.labels == "online" and not warm:
            believed = self.online(images)
            region = believed.reliable
        else:
            believed = given
            region = given.reliable if settings.labels == "offline_reliable" else given.label != IGNORE
        # colour by colour in memory, as pasting and colouring want it
        found = self._mix(images.contiguous(), given, believed, region, 0 if warm else settings.band_width, draws)
        return found if believed is given else replace(found, left_out=left_out(given.label, believed, self.classes))

    def losses(
        self, logits: list[Tensor], target: Supervision, batch: dict[str, Tensor], step: int, steps: int
    ) -> dict[str, Tensor]:
        """Those of co-training, and with online labels the share of classes that these leave out (0 in the warm-up)."""
        found = super().losses(logits, target, batch, step, steps)
        if self.settings.mix.labels == "online":
            none = torch.zeros_like(found["share_pasted"])
            found["share_left_out"] = none if target.left_out is None else target.left_out
        return found

    def _mix(
        self, images: Tensor, given: Opinion, believed: Opinion, region: Tensor, width: int, draws: Draws
    ) -> Supervision:
        settings = self.settings.mix
        how = Mixing(self.classes, settings.probability, settings.ignore_background, width)
        return mix(images, given, believed, region, how, draws)

    @torch.no_grad()
    def online(self, images: Tensor) -> Opinion:
        """What both networks, in evaluation mode, think of the clean pictures: label, and softmax above threshold."""
        self.networks.eval()
        logits = [network(images) for network in self.networks]
        self.networks.train()
        return online_labels(logits, self.settings.mix.online_threshold)

    def warning(self, epoch: Mapping[str, float]) -> str:
        share = epoch.get("share_left_out", 0.0)
        if share <= FORGOTTEN:
            return ""
        return (
            f"online labels trust no pixel of {share:.0%} of the classes that pictures show, which are forgotten so; "
            "lengthen training.warmup, or set training.mix.labels: offline"
        )

    def pieces(
        self, batch: dict[str, Tensor], target: Supervision, logits: list[Tensor], draws: Callable[[], Draws]
    ) -> dict[str, Piece]:
        settings, given = self.settings.mix, Opinion(batch["label"].long(), batch["reliable"])
        asked: dict[str, Piece] = {}
        if settings.labels == "online":
            asked["online_labels"] = torch.no_grad()(lambda: online_labels(logits, settings.online_threshold))

        def mixing() -> Supervision:
            images = target.images.contiguous()
            return self._mix(images, given, given, given.reliable, settings.band_width, draws())

        return {**asked, "mixing": mixing, **super().pieces(batch, mixing(), logits, draws)}


def warmup_steps(settings: Training, steps: int) -> float:
    """Steps of the warm-up, of `steps` in all: `warmup_steps`, or else the share `warmup`."""
    return settings.warmup * steps if settings.warmup_steps is None else settings.warmup_steps
