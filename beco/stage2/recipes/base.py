"""What recipes share: the step from a batch to losses, of which a recipe fills in the target and the losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from beco.config import Training
from beco.networks.encoders import layer_depths
from beco.networks.segmenter import Segmenter
from beco.stage2.boundaries import Opinion, Supervision
from beco.training.augment import unit_range
from beco.training.colour import StrongColour
from beco.training.sampling import Draws

Piece = Callable[[], object]


class Recipe(nn.Module, ABC):
    """Turns a batch of pseudo-labelled pictures into losses.

    A batch holds `image` (B, 3, H, W) uint8, `label` (B, H, W) uint8 with 255 = no opinion, `reliable` (B, H, W) bool,
    and what `totals` adds. A recipe is a subclass in a file of its own beside this one; it writes `losses`, and
    `target` where pictures are not learnt from as they are. The constants at the top of its file say how many networks
    it trains and what else is to be known of it, see `beco.schema.slots.RECIPES`.
    """

    def __init__(self, networks: list[Segmenter], settings: Training, classes: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.settings, self.classes = settings, classes
        self.colour = None if settings.colour == "none" else StrongColour(settings.colour)

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        """What learns of the encoders, and all others, which are said to be heads."""
        segmenters: Any = self.networks
        encoder = [p for segmenter in segmenters for p in segmenter.backbone.parameters()]
        known = {id(p) for p in encoder}
        learning = [p for p in encoder if p.requires_grad]
        return [(learning, False), ([p for p in self.networks.parameters() if id(p) not in known], True)]

    def depths(self) -> dict[int, int]:
        """How many layers lie behind each parameter of the encoders, by its id."""
        segmenters: Any = self.networks
        return {key: depth for one in segmenters for key, depth in layer_depths(one.backbone).items()}

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars of the whole batch that the losses of its parts are divided by, summed over all processes."""
        return {}

    def warning(self, epoch: Mapping[str, float]) -> str:
        """What the means of the last epoch's scalars should make one think of; empty if nothing."""
        return ""

    @classmethod
    def online_steps(cls, settings: Training, steps: int) -> float:
        """In how many of a training's steps the networks are asked for labels before they learn."""
        return 0.0

    def target(self, images: Tensor, given: Opinion, step: int, steps: int, draws: Draws) -> Supervision:
        """What a batch (`images` (B, 3, H, W) float in [0, 1] with the opinion of its pseudo-labels) is trained on."""
        nothing = torch.zeros_like(given.reliable)
        return Supervision(images, given.label, given.reliable, nothing, nothing)

    @abstractmethod
    def losses(
        self, logits: list[Tensor], target: Supervision, batch: dict[str, Tensor], step: int, steps: int
    ) -> dict[str, Tensor]:
        """Scalars by name, of which `loss` is learnt from; `logits` are (B, K+1, H, W), one for each network."""

    def forward(self, batch: dict[str, Tensor], step: int, steps: int, draws: Draws) -> dict[str, Tensor]:
        given = Opinion(batch["label"].long(), batch["reliable"])
        target = self.target(unit_range(batch["image"]), given, step, steps, draws)
        views = self.colour(target.images, draws) if self.colour else target.images
        views = views.contiguous(memory_format=torch.channels_last)
        return self.losses([network(views) for network in self.networks], target, batch, step, steps)

    def pieces(
        self, batch: dict[str, Tensor], target: Supervision, logits: list[Tensor], draws: Callable[[], Draws]
    ) -> dict[str, Piece]:
        """What a step does beside the passes of its networks, piece by piece, for `beco benchmark`."""
        leaves = [one.clone().requires_grad_() for one in logits]
        batch = batch | self.totals(batch)
        return {"loss": lambda: torch.autograd.grad(self.losses(leaves, target, batch, 1, 1)["loss"], leaves)}


def online_labels(logits: list[Tensor], threshold: float) -> Opinion:
    """Where the mean of logits, each (B, K+1, H, W), is highest, reliable where its softmax exceeds `threshold`.

    The first of the logits is overwritten.
    """
    mean = logits[0]
    for other in logits[1:]:
        mean += other
    probability, label = mean.div_(len(logits)).softmax(1).max(1)
    return Opinion(label, probability > threshold)
