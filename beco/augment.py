"""Weak augmentation, picture by picture in the loader; what networks expect of pixel values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from beco.config import Crop, Encoder
from beco.datasets.manifest import IGNORE, Manifest
from beco.padded import IMAGENET_MEAN, padded_square
from beco.pseudolabels import PseudoLabels, reliable_pixels

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


class LabelledPictures(Dataset[dict[str, Tensor]]):
    """Randomly cropped pictures with pseudo-labels (or, for reference, with the training masks).

    Items are keyed by (index, draw seed) and hold `image` (3, S, S) uint8, `label` (S, S) uint8 with 255 = no
    opinion, and `reliable` (S, S) bool, by `fraction` or `threshold` (see `reliable_pixels`).
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
            pseudo = self.labels.label(image_id)
            trusted = reliable_pixels(pseudo, self.labels.confidence(image_id), self.fraction, self.threshold)
            label, reliable = torch.from_numpy(pseudo), torch.from_numpy(trusted)
        item = _image(self.manifest, image_id), tv_tensors.Mask(torch.stack([label, reliable.to(torch.uint8)]))
        if self._kept is not None:
            self._kept[index] = item
        return item


def _image(manifest: Manifest, image_id: str) -> Any:
    return tv_tensors.Image(torch.from_numpy(manifest.image(image_id)).permute(2, 0, 1))


def weak_transform(crop: Crop, mean: Sequence[float] = IMAGENET_MEAN) -> v2.Transform:
    """Random part of the picture as a square, bilinear for pictures and nearest for masks; random mirror.

    The part is either one of random area and shape, resized (`crop.area`, `crop.ratio`), or a square cut out of the
    picture resized by a random factor (`crop.scales`), padded with gray and void where the picture is too small. With
    `crop.long_side` or `crop.rescale` see `padded_square`, which pads with the encoder's `mean`.
    """
    if crop.long_side is not None or crop.rescale is not None:
        return padded_square(crop, mean)
    if crop.scales is None:
        steps = [v2.RandomResizedCrop(crop.size, scale=crop.area, ratio=crop.ratio, antialias=True)]
    else:
        fill = {tv_tensors.Image: 124, tv_tensors.Mask: IGNORE}
        steps = [_RandomFactor(crop.scales), v2.RandomCrop(crop.size, pad_if_needed=True, fill=fill)]
    return v2.Compose([*steps, v2.RandomHorizontalFlip(crop.flip)])


class _RandomFactor(v2.Transform):
    """Resize by one of some factors, drawn at random."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors = factors

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = self.factors[int(torch.randint(len(self.factors), ()))]
        return {"size": [max(round(side * factor), 1) for side in v2.functional.get_size(flat_inputs[0])]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.resize(inpt, params["size"], antialias=True)


class Normalise(nn.Module):
    """(B, 3, H, W) RGB in [0, 1] to what the encoder expects."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(encoder.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def unit_range(images: Tensor) -> Tensor:
    """uint8 pictures as float32 in [0, 1], channels last in memory."""
    return images.to(torch.float32, memory_format=torch.channels_last) / 255
