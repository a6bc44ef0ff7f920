"""One network, cross-entropy on every labelled pixel: what co-training is compared with."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from beco.datasets.manifest import IGNORE
from beco.stage2.boundaries import Supervision
from beco.stage2.recipes.base import Recipe

NETWORKS = 1
UNUSED = ("training.reliable", "training.warmup", "training.loss_mean", "training.peer", "training.mix")


class Single(Recipe):
    """Cross-entropy, a mean over the labelled pixels of the whole batch."""

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"labelled": (batch["label"] != IGNORE).sum().clamp(min=1).float()}  # there may be no opinion at all

    def losses(
        self, logits: list[Tensor], target: Supervision, batch: dict[str, Tensor], step: int, steps: int
    ) -> dict[str, Tensor]:
        total = F.cross_entropy(logits[0], target.label, ignore_index=IGNORE, reduction="sum")
        return {"loss": total / batch["labelled"]}
