"""RIB: reducing the information bottleneck (Lee et al., NeurIPS 2021).

Nothing is trained beforehand. For every single picture a fresh copy of a trained classifier is fine-tuned for a few
steps without the final sigmoid, on the picture's own views and on crops of other pictures that show none of its
classes, and the maps of all steps are summed. The score of a class is the mean of its map where that is low, so that
regions which say little so far come to say more. The maps before the first step and after the last are among those
summed.

Otherwise than in the original code: the new mean is of all classes, there of the first 20 only, which on COCO is a
quarter of them (the option `pooled_classes`); the limit on scores is on their mean over the views, so that it means the
same whatever the views; and nothing of a step that ends the fine-tuning is added, there its maps at scale 1 are. Which
cells count as covered where a picture shows several classes is our reading: those where any of them is high.
"""

from __future__ import annotations

import copy
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from beco.artifacts.files import text_hash
from beco.config import Cam, Crop, Encoder
from beco.datasets.manifest import Manifest
from beco.errors import UserError
from beco.networks import encoders
from beco.networks.frozen import freeze
from beco.stage1.localisers.base import Inputs, Localiser
from beco.stage1.merging import multi_scale_maps, scaled
from beco.training.augment import ClassifierPictures, unit_range
from beco.training.sampling import Draws, mixed_seed

INPUTS = ("start",)
TRAINS = False
OPTIONS = {
    "steps": {"default": 10, "ge": 0, "description": "of fine-tuning for each picture, at most"},
    "tau": {
        "default": 0.4,
        "gt": 0,
        "description": "cells below this share of their map's maximum count in a class's score (0.5 for COCO)",
    },
    "pooled_classes": {
        "default": 0,
        "ge": 0,
        "description": "0: the score is that of all classes; n: of the first n, of others the mean of the whole map "
        "(original code: 20, also for the 80 of COCO)",
    },
    "lr": {"default": 8e-6, "ge": 0, "description": "learning rate of the backbone, falling to 0 (5e-6 for COCO)"},
    "head_lr_factor": {"default": 10.0, "gt": 0, "description": "learning rate of the class maps, relative to it"},
    "momentum": {"default": 0.0, "ge": 0, "lt": 1, "description": "of SGD (original code: 1e-4, by a slip)"},
    "weight_decay": {"default": 1e-4, "ge": 0, "description": "of SGD"},
    "frozen_stages": {
        "default": 2,
        "ge": -1,
        "description": "of the backbone learn nothing, as the classifier's; 0: the stem alone; -1: all learns",
    },
    "most_score": {
        "default": 100.0,
        "gt": 0,
        "tried": 1e9,
        "description": "fine-tuning ends where the scores of the picture's classes sum to more, a view (original code: "
        "600 over 6 views; 1000 for COCO)",
    },
    "most_covered": {
        "default": 0.7,
        "gt": 0,
        "tried": 1e9,
        "description": "and where a larger share of the picture is covered (0.8 for COCO)",
    },
    "covered_from": {"default": 0.3, "ge": 0, "description": "share of a map's maximum from which a cell is covered"},
    "others": {
        "default": 20,
        "ge": 0,
        "description": "crops of other pictures in each step; several of each, where fewer share no class with it",
    },
    "crop_size": {"default": 512, "ge": 32, "description": "side of these crops, pixels"},
    "least_side": {"default": 320, "ge": 32, "description": "least long side of the pictures that are cropped, pixels"},
    "most_side": {"default": 640, "ge": 32, "description": "greatest long side of the same, pixels"},
    "seed": {"default": 0, "ge": 0, "description": "of the draws of other pictures"},
}
TOGETHER = 4
"""Crops that go through the network at once; whatever it is, they make the same step."""
POWER = 0.9
"""Of the learning rate's fall, as in the original code."""


class Rib(Localiser):
    """A classifier that is fine-tuned anew for the maps of every picture."""

    def __init__(
        self, encoder: Encoder, output_stride: int, classes: int, dilate: bool, options: dict[str, Any]
    ) -> None:
        super().__init__(encoder, output_stride, classes, dilate, options)
        if options["least_side"] > options["most_side"]:
            raise UserError(
                f"options of `{self.method}`: least_side: {options['least_side']} exceeds most_side, "
                f"{options['most_side']}; change one of them"
            )

    def begin(self, inputs: Inputs) -> None:
        assert inputs.start is not None  # see `Inputs.checked`
        state, _ = encoders.load_network(inputs.start, "classifier")
        try:
            encoders.load_whole(self, state, inputs.start)
        except (RuntimeError, UserError) as error:
            raise UserError(
                f"{inputs.start}: not a network of this source's classifier settings and classes; give both sources "
                "the same classifier, and start from one that has a map for each class (cam)"
            ) from error
        self.fresh()

    def losses(
        self, images: Tensor, batch: dict[str, Tensor], step: int, steps: int, draws: Draws
    ) -> dict[str, Tensor]:
        """Nothing is learnt before the maps; this is what fine-tuning for them lowers, a sum over pictures."""
        return {"loss": self.loss(self.maps(images).float(), batch["target"])}

    def loss(self, maps: Tensor, targets: Tensor) -> Tensor:
        """Minus the sum of the scores of the classes shown, so that its gradient is the same at any score."""
        return -(self.scores(maps) * targets).sum()

    def scores(self, maps: Tensor) -> Tensor:
        """Class maps (B, K, h, w) float32 -> scores (B, K): the mean over all cells of a map that is 0 but where it is
        below `tau` of its maximum (the paper's GNDRP); of a map without a positive cell 0.
        """
        most = maps.detach().amax((2, 3), keepdim=True)
        low = (maps.detach() < self.options["tau"] * most) & (most > 0)
        pooled = (maps * low).mean((2, 3))
        first = self.options["pooled_classes"]
        return torch.cat([pooled[:, :first], maps[:, first:].mean((2, 3))], 1) if first else pooled

    def fresh(self) -> Rib:
        """A copy to be fine-tuned; `UserError` if its backbone has no such stages."""
        network, stages = copy.deepcopy(self).eval(), self.options["frozen_stages"]
        network.requires_grad_(True)  # what the classifier's own `frozen_stages` kept still is this option's to say
        try:
            if stages >= 0:
                freeze(network.backbone, stages, "the encoder")
        except UserError as error:
            raise UserError(f"options of `{self.method}`: {error} (here -1)") from error
        return network

    # --- for each picture -----------------------------------------------------------------------------------

    def prepare(self, manifest: Manifest, inputs: Inputs) -> None:
        network = self.fresh()
        others = _OtherPictures(manifest, self.options, self.normalise.mean.flatten().tolist())
        self.bench = (network, others)  # in a tuple, so that the network is no part of this one

    def score(self, images: Tensor, targets: Tensor, ids: list[str], settings: Cam) -> Tensor:
        parts = zip(images.split(1), targets.split(1), ids, strict=True)
        return torch.cat([self._of_one(image, target, name, settings) for image, target, name in parts])

    def _of_one(self, image: Tensor, target: Tensor, image_id: str, settings: Cam) -> Tensor:
        """The maps of one picture (1, 3, h, w), summed over views and steps."""
        network, others = self.bench
        steps = self.options["steps"] if target.any() else 0  # no class, no map
        network.load_state_dict(self.state_dict())
        optimiser = network.optimiser()
        total = torch.zeros((), device=image.device)
        for step in range(steps + 1):
            optimiser.zero_grad(set_to_none=True)
            score, covered = network.own_views(image, target, settings, step < steps)
            within = abs(score) <= self.options["most_score"]  # no number is not
            if step and (not within or covered > self.options["most_covered"]):
                break
            total = total + multi_scale_maps(network, image, target, settings)
            if step == steps:
                break
            for crops, shown in others.batches(image_id, step):
                maps = network.maps(unit_range(crops.to(image.device)))
                network.loss(maps.float(), shown.to(image.device)).backward()
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * (1 - step / steps) ** POWER
            optimiser.step()
        return total

    def optimiser(self) -> torch.optim.SGD:
        """A new one, for what learns."""
        lr, (backbone, _), (head, _) = self.options["lr"], *self.parameter_groups()
        groups = [(backbone, lr), (head, lr * self.options["head_lr_factor"])]
        return torch.optim.SGD(
            [{"params": one, "lr": rate, "initial_lr": rate} for one, rate in groups if one],
            momentum=self.options["momentum"],
            weight_decay=self.options["weight_decay"],
        )

    def own_views(self, image: Tensor, target: Tensor, settings: Cam, learn: bool) -> tuple[float, float]:
        """Go through the views that are learnt from, those of scale 1 and more (all, if none is), one scale at a time.

        Returns the sum of the classes' scores, the mean over views; and the share of cells where a map of the view
        nearest to scale 1 is high. With `learn` the gradients of the loss are added to what learns.
        """
        scales = [scale for scale in settings.scales if scale >= 1] or settings.scales
        nearest, sums, covered = min(scales, key=lambda scale: abs(scale - 1)), [], 0.0
        for scale in scales:
            views = scaled(image, scale, settings.flip)
            with torch.set_grad_enabled(learn):
                maps = self.maps(views).float()
                scores = self.scores(maps) * target
                if learn:
                    (-scores.sum()).backward()
            sums += scores.detach().sum(1).tolist()
            if scale == nearest:
                covered = self.covered(maps.detach(), target)
        return sum(sums) / len(sums), covered

    def covered(self, maps: Tensor, target: Tensor) -> float:
        """The share of cells where a map (V, K, h, w) of the classes `target` (1, K) is high, summed over views."""
        straight, *mirrored = maps.relu().split(1)
        own = sum((one.flip(-1) for one in mirrored), straight)[:, target[0] > 0]
        if not own.shape[1]:
            return 0.0
        shares = own / own.amax((2, 3), keepdim=True).clamp(min=1e-5)
        return float((shares > self.options["covered_from"]).any(1).float().mean())


class _OtherPictures:
    """Crops of the pictures of a split that share no class with one of them."""

    def __init__(self, manifest: Manifest, options: dict[str, Any], mean: list[float]) -> None:
        sides = (options["least_side"], options["most_side"])
        crop = Crop.model_validate({"size": options["crop_size"], "long_side": sides})
        self.pictures, self.options = ClassifierPictures(manifest, crop, mean), options
        self.index = {name: number for number, name in enumerate(manifest.ids)}
        self.shown = torch.from_numpy(manifest.labels())

    def batches(self, image_id: str, step: int) -> list[tuple[Tensor, Tensor]]:
        """The crops of a step, a few at a time: (B, 3, S, S) uint8 and their classes (B, K) float32.

        They follow from the seed, the picture and the step alone. Where there are fewer pictures than crops they come
        again by turns, cut anew, so that a step weighs its own views and others alike and costs the same in any split.
        """
        strangers = (self.shown @ self.shown[self.index[image_id]] == 0).nonzero().flatten()
        start = mixed_seed(self.options["seed"], int(text_hash(image_id)[:12], 16), step)
        order = torch.randperm(len(strangers), generator=torch.Generator().manual_seed(start))
        chosen = list(islice(cycle(strangers[order].tolist()), self.options["others"]))
        items = [self.pictures[one, mixed_seed(start, place, 1)] for place, one in enumerate(chosen)]
        return [
            (torch.stack([item["image"] for item in part]), torch.stack([item["target"] for item in part]))
            for part in (items[first : first + TOGETHER] for first in range(0, len(items), TOGETHER))
        ]
