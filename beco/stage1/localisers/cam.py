"""Class activation maps: a multi-label classifier with global average pooling (Zhou et al., CVPR 2016), or, on plain
transformers, a soft maximum (see `Localiser.scored`).

As in IRN's program (Ahn et al., CVPR 2019) where the settings are its own, see `batch_norm`, `frozen_stages` and the
optimiser's momentum; there alone the maps of several scales and of the mirror image are summed.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from beco.stage1.localisers.base import Localiser
from beco.training.sampling import Draws

OPTIONS = {
    "pool": {
        "default": "auto",
        "choices": ["auto", "mean", "max", "lse"],
        "description": "what of a class map is its score: the mean (as published), the maximum (as ToCo), the soft "
        "maximum lse, or auto: lse on plain transformers, the mean elsewhere",
    }
}


class ClassActivationMaps(Localiser):
    """Multi-label soft-margin loss on the scores of the class maps."""

    def losses(
        self, images: Tensor, batch: dict[str, Tensor], step: int, steps: int, draws: Draws
    ) -> dict[str, Tensor]:
        return {"loss": F.multilabel_soft_margin_loss(self(images).float(), batch["target"])}
