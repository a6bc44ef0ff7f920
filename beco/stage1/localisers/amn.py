"""Activation manipulation network (Lee, Kim & Shim, "Threshold Matters in WSSS", CVPR 2022).

A second network learns from pseudo-labels, those that `refine: crf` makes of class activation maps with 255 where its
two runs disagree, to tell background and classes apart pixel by pixel, conditioned on the picture's labels: features
are multiplied, channel by channel, by a linear function of these (label conditioning). Its loss is smoothed
cross-entropy that weighs background and classes half each (balanced), so that the maps of a class come out about as
high in each of its pixels and one threshold fits all pictures. Its maps are softmax planes, each stretched to 0 to 1,
but for the pixels that the pseudo-labels call background, which keep what the softmax says.

Otherwise than in the authors' program: dropout is off when maps are inferred (`dropout_in_maps`); fewer classes than
VOC's 20 are smoothed less (`relative_smoothing`); a batch without a pixel of one kind leaves that half of the loss out
instead of being no number; the plane of the background is not written, which is not used after it. Logits are merged
and planes stretched at stride 4 alone. A rate is constant where `min_lr` equals `lr`; as published `optimiser: {name:
adamw, lr: 5.0e-6, min_lr: 5.0e-6, head_lr_factor: 20, weight_decay: 1.0e-4}`, but with Adam, whose decay is otherwise.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from beco.artifacts.grids import STRIDE, grid
from beco.artifacts.pseudolabels import UNCERTAIN, PseudoLabels
from beco.config import Cam, Crop, Encoder
from beco.datasets.belonging import open_labels
from beco.datasets.manifest import Manifest
from beco.networks.heads import RATES, DeepLabV2
from beco.stage1.localisers.base import Inputs, Localiser
from beco.stage1.merging import multi_scale_maps
from beco.stage1.placing import picked
from beco.training.augment import LabelledPictures
from beco.training.sampling import Draws, mixed_seed

INPUTS = ("labels",)
MAP_INPUTS = ("labels",)
OPTIONS = {
    "smoothing": {
        "default": 0.4,
        "ge": 0,
        "le": 0.5,
        "description": "share of a pixel's target that its label leaves to the other classes and the background",
    },
    "relative_smoothing": {
        "default": True,
        "description": "with fewer than 20 classes, that share is smaller, so that what the label keeps exceeds what "
        "each other one gets as many times as with 20; false (original): it is the same whatever their number",
    },
    "dropout": {"default": 0.1, "ge": 0, "lt": 1, "description": "share of the features dropped in training"},
    "dropout_in_maps": {
        "default": False,
        "of_maps": True,
        "description": "drop them for the maps, too, which is random by picture (original)",
    },
}

PUBLISHED = 20
"""Classes of the data set that the smoothing was published for."""
FEW = 1e-3
"""Divides where no pixel is of a kind; less than the mean number of one pixel over a batch's parts."""


class ActivationManipulation(Localiser):
    """DeepLabV2's dilated classifiers on the deepest features, which the picture's labels scale."""

    classifies = False
    _seeds: PseudoLabels | None = None

    def __init__(
        self, encoder: Encoder, output_stride: int, classes: int, dilate: bool, options: dict[str, Any]
    ) -> None:
        super().__init__(encoder, output_stride, classes, dilate, options)
        width = self.head.in_channels
        del self.head  # a map of a class is not a linear function of the features here
        self.condition = nn.Linear(classes, width)
        self.decoder = DeepLabV2(width, RATES["deeplabv2"], classes + 1)
        for layer in self.decoder.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)

    @property
    def smoothing(self) -> float:
        """Share of the target that is not the label's: q = 1 − ε of the label, ε/K of each other of K + 1 planes.

        A label's q over another's is K (1 − ε) / ε. That of `PUBLISHED` classes is kept where there are fewer.
        """
        share, classes = self.options["smoothing"], self.condition.in_features
        if not self.options["relative_smoothing"] or classes >= PUBLISHED:
            return share
        return classes * share / (classes * share + PUBLISHED * (1 - share))

    # --- learning -------------------------------------------------------------------------------------------

    def pictures(self, manifest: Manifest, crop: Crop, mean: Any, inputs: Inputs) -> Dataset[dict[str, Tensor]]:
        """Items have `label` (S, S) uint8, 255 = no opinion, besides `image` and `target`."""
        assert inputs.labels
        return _Conditioned(manifest, open_labels(inputs.labels, manifest), crop, mean)

    def totals(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """How many cells are background, and how many are of a class."""
        label = self._cells(batch["label"])
        background, unknown = (label == 0).sum(), (label == UNCERTAIN).sum()
        return {"of_background": background, "of_classes": label.numel() - background - unknown}

    def losses(
        self, images: Tensor, batch: dict[str, Tensor], step: int, steps: int, draws: Draws
    ) -> dict[str, Tensor]:
        label = self._cells(batch["label"])
        logits = self.logits(images, batch["target"]).float()
        planes = logits.shape[1]
        # torch spreads its share over all planes, the label's among them
        share = self.smoothing * planes / (planes - 1)
        each = F.cross_entropy(logits, label.long(), ignore_index=UNCERTAIN, reduction="none", label_smoothing=share)
        background = (each * (label == 0)).sum() / batch["of_background"].clamp(min=FEW)
        classes = (each * (label != 0)).sum() / batch["of_classes"].clamp(min=FEW)
        return {"loss": (background + classes) / 2, "background": background, "classes": classes}

    def _cells(self, label: Tensor) -> Tensor:
        """Labels (B, H, W) at the size of the logits."""
        return picked(label, grid(label.shape[1], label.shape[2], self.stride), (self.stride, self.stride))

    # --- what it says of pictures ---------------------------------------------------------------------------

    def prepare(self, manifest: Manifest, inputs: Inputs) -> None:
        """Open the pseudo-labels, of the same pictures."""
        assert inputs.labels
        self._seeds = open_labels(inputs.labels, manifest)

    def maps(self, images: Tensor) -> Tensor:
        """None without labels, see `logits`: NotImplementedError."""
        raise NotImplementedError("its maps depend on the labels of pictures; call logits")

    def logits(self, images: Tensor, targets: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] and labels (B, K) float32 in {0, 1} -> (B, K+1, ⌈H/stride⌉, ⌈W/stride⌉); plane 0
        is the background's.
        """
        features = self.backbone(self.normalise(images))[-1] * self.condition(targets)[:, :, None, None]
        dropping = self.training or self.options["dropout_in_maps"]
        return self.decoder([F.dropout(features, self.options["dropout"], dropping)])

    def view(self, images: Tensor, targets: Tensor) -> Tensor:
        """The logits, background first: (B, K+1, ⌈H/stride⌉, ⌈W/stride⌉) float32."""
        return self.logits(images, targets).float()

    @torch.inference_mode()
    def score(self, images: Tensor, targets: Tensor, ids: list[str], settings: Cam) -> Tensor:
        """Softmax of the mean of all views' logits: (B, K+1, ⌈h/4⌉, ⌈w/4⌉); plane 0 is 1 where the pseudo-label is
        background and 0 elsewhere, in place of the background's own.
        """
        if self.options["dropout_in_maps"]:
            parts = [
                self._drawn(images[[place]], targets[[place]], image_id, settings) for place, image_id in enumerate(ids)
            ]
            total = torch.cat(parts)
        else:
            total = multi_scale_maps(self, images, targets, settings)
        planes = (total / (len(settings.scales) * (1 + settings.flip))).softmax(1)
        for one, image_id in zip(planes, ids, strict=True):
            one[0] = self._seed_background(image_id, (images.shape[-2], images.shape[-1]))
        return planes

    def _drawn(self, image: Tensor, target: Tensor, image_id: str, settings: Cam) -> Tensor:
        """One picture's sum of views whose dropout follows from its id alone, whatever batch or shard it is in."""
        with torch.random.fork_rng([image.device] if image.is_cuda else []):
            torch.manual_seed(mixed_seed(0, zlib.crc32(image_id.encode()), 7))
            return multi_scale_maps(self, image, target, settings)

    def _seed_background(self, image_id: str, fed: tuple[int, int]) -> Tensor:
        """Where the pseudo-label is background, on the cells of the picture as it was fed: (⌈h/4⌉, ⌈w/4⌉) bool."""
        assert self._seeds is not None, "prepare comes first"
        label = torch.from_numpy(self._seeds.store.get("label", image_id))
        size = grid(*fed)
        tall, wide = (STRIDE * pixels / side for pixels, side in zip(label.shape, fed, strict=True))
        return picked(label, size, (tall, wide)) == 0

    def finished(self, planes: Tensor, image_id: str, values: list[int]) -> Tensor:
        """Each class's plane stretched to 0 to 1, as it is where the pseudo-label is background."""
        chosen = planes[values]
        low, high = chosen.amin((1, 2), keepdim=True), chosen.amax((1, 2), keepdim=True)
        return torch.where(planes[0] == 1, chosen, (chosen - low) / (high - low).clamp(min=1e-12))


class _Conditioned(LabelledPictures):
    """Pictures with their pseudo-labels, and with the labels of the picture."""

    def __init__(self, manifest: Manifest, labels: PseudoLabels, crop: Crop, mean: Any) -> None:
        super().__init__(manifest, labels, 1, crop, mean=mean)
        self.targets = torch.from_numpy(manifest.labels())

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return super().__getitem__(key) | {"target": self.targets[key[0]]}
