"""Pictures with their labels, cropped at random in the loader; what networks expect of pixel values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors

from beco.artifacts.pseudolabels import PseudoLabels
from beco.config import Crop, Encoder
from beco.datasets.belonging import check_label
from beco.datasets.manifest import IGNORE, Manifest
from beco.datasets.saliency import Saliency
from beco.training.crops import weak_transform
from beco.training.pixels import IMAGENET_MEAN, mean_and_std

KEEP_BYTES = 2**28  # a loader keeps decoded pictures and labels of a split up to this size


class ClassifierPictures(Dataset[dict[str, Tensor]]):
    """Randomly cropped pictures with their image-level labels.

    Items are keyed by (index, draw seed) and hold `image` (3, S, S) uint8 and `target` (K,) float32 in {0, 1}.
    """

    def __init__(self, manifest: Manifest, crop: Crop, mean: Sequence[float] = IMAGENET_MEAN) -> None:
        self.manifest, self.ids, self.targets = manifest, manifest.ids, manifest.labels()
        self.transform = weak_transform(crop, mean)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        index, draw = key
        torch.default_generator.manual_seed(draw)  # torchvision draws from the global generator
        image = self.transform(_image(self.manifest, self.ids[index]))
        return {"image": image.as_subclass(Tensor), "target": torch.from_numpy(self.targets[index])}


class SalientPictures(ClassifierPictures):
    """The same with saliency maps.

    Items hold `saliency` (S, S) float32 in [0, 1] and `inside` (S, S) bool, false where the crop reaches beyond the
    picture, too.
    """

    def __init__(
        self, manifest: Manifest, saliency: Saliency, crop: Crop, mean: Sequence[float] = IMAGENET_MEAN
    ) -> None:
        super().__init__(manifest, crop, mean)
        self.saliency = saliency

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        index, draw = key
        image_id = self.ids[index]
        plane = torch.from_numpy(self.saliency.plane(self.manifest, image_id))
        torch.default_generator.manual_seed(draw)
        image, planes = self.transform(
            _image(self.manifest, image_id), tv_tensors.Mask(torch.stack([plane, torch.ones_like(plane)]))
        )
        saliency, inside = planes.as_subclass(Tensor)  # beyond the picture both are 255
        return {
            "image": image.as_subclass(Tensor),
            "target": torch.from_numpy(self.targets[index]),
            "saliency": torch.where(inside == 1, saliency, 0).float() / 255,
            "inside": inside == 1,
        }


class LabelledPictures(Dataset[dict[str, Tensor]]):
    """Randomly cropped pictures with pseudo-labels (or, for reference, with the training masks).

    Items are keyed by (index, draw seed) and hold `image` (3, S, S) uint8, `label` (S, S) uint8 with 255 = no
    opinion, and `reliable` (S, S) bool, by `fraction` or `threshold` (see `Picture.reliable`).
    """

    def __init__(
        self,
        manifest: Manifest,
        labels: PseudoLabels | None,
        fraction: float,
        crop: Crop,
        threshold: float | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
    ) -> None:
        self.manifest, self.ids, self.labels = manifest, manifest.ids, labels
        self.fraction, self.threshold = fraction, threshold
        self.transform = weak_transform(crop, mean)
        bytes_needed = 5 * sum(height * width for height, width in map(manifest.size, self.ids))
        self._kept: dict[int, tuple[Any, Any]] | None = {} if bytes_needed <= KEEP_BYTES else None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        index, draw = key
        image, planes = self._read(index)
        torch.default_generator.manual_seed(draw)
        image, planes = self.transform(image, planes)
        planes = planes.as_subclass(Tensor)
        return {"image": image.as_subclass(Tensor), "label": planes[0], "reliable": planes[1] == 1}

    def _read(self, index: int) -> tuple[Any, Any]:
        """The whole picture, and its label and reliable pixels as two planes."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        image_id = self.ids[index]
        if self.labels is None:
            label = torch.from_numpy(self.manifest.mask(image_id))
            reliable = label != IGNORE
        else:
            pseudo = self.labels.picture(image_id)
            check_label(self.labels.store.path, image_id, pseudo.label, self.manifest)
            label = torch.from_numpy(pseudo.label)
            reliable = torch.from_numpy(pseudo.reliable(self.fraction, self.threshold))
        item = _image(self.manifest, image_id), tv_tensors.Mask(torch.stack([label, reliable.to(torch.uint8)]))
        if self._kept is not None:
            self._kept[index] = item
        return item


def _image(manifest: Manifest, image_id: str) -> Any:
    return tv_tensors.Image(torch.from_numpy(manifest.image(image_id)).permute(2, 0, 1))


class Normalise(nn.Module):
    """(B, 3, H, W) RGB in [0, 1] to what the encoder expects."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        mean, std = mean_and_std(encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def unit_range(images: Tensor) -> Tensor:
    """uint8 pictures as float32 in [0, 1], channels last in memory."""
    return images.to(torch.float32, memory_format=torch.channels_last) / 255
