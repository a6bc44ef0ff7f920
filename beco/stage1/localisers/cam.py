"""Class activation maps: a multi-label classifier with global average pooling (Zhou et al., CVPR 2016).

As in IRN's program (Ahn et al., CVPR 2019) where the settings are its own, see `batch_norm`, `frozen_stages` and the
optimiser's momentum; there alone the maps of several scales and of the mirror image are summed.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from beco.stage1.localisers.base import Localiser
from beco.training.sampling import Draws


class ClassActivationMaps(Localiser):
    """Multi-label soft-margin loss on the average of each class map."""

    def losses(
        self, images: Tensor, batch: dict[str, Tensor], step: int, steps: int, draws: Draws
    ) -> dict[str, Tensor]:
        return {"loss": F.multilabel_soft_margin_loss(self(images).float(), batch["target"])}
