"""Weak augmentation: a random part of the picture, resized; its label stays under it to the centre of each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from beco.config import Crop
from beco.datasets.manifest import IGNORE
from beco.training.pixels import IMAGENET_MEAN


def weak_transform(crop: Crop, mean: Sequence[float] = IMAGENET_MEAN) -> v2.Transform:
    """Random part of the picture as a square, bilinear for pictures and `resized_label` for masks; random mirror.

    Takes a picture (3, H, W) uint8, alone or with a mask (…, H, W) uint8. The part is either one of random area and
    shape, resized (`crop.area`, `crop.ratio`), or a square cut out of the picture resized at random, see `RandomSize`.
    Where that is too small, the mask is void around it; the picture is gray (`crop.scales`) or has the colour `mean`
    (RGB in [0, 1], of the encoder), so that it is 0 once normalised, as IRN pads (`crop.long_side`, `crop.rescale`). In
    8 bits the colour is off by half a level at most, a hundredth of ImageNet's standard deviation.
    """
    mirror = v2.RandomHorizontalFlip(crop.flip)
    if crop.scales is None and crop.long_side is None and crop.rescale is None:
        return v2.Compose([_RandomPart(crop.size, scale=crop.area, ratio=crop.ratio, antialias=True), mirror])
    colour = 124 if crop.scales is not None else tuple(round(255 * value) for value in mean)
    fill = {tv_tensors.Image: colour, tv_tensors.Mask: IGNORE}
    return v2.Compose([RandomSize(crop), v2.RandomCrop(crop.size, pad_if_needed=True, fill=fill), mirror])


class RandomSize(v2.Transform):
    """Resize by one of `crop.scales`, by a factor drawn evenly from `crop.rescale`, or to a long side drawn from the
    whole numbers of `crop.long_side`, ends included.
    """

    def __init__(self, crop: Crop) -> None:
        super().__init__()
        self.crop = crop

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.functional.get_size(flat_inputs[0])
        factor = self._factor(max(height, width))
        return {"size": (max(round(height * factor), 1), max(round(width * factor), 1))}

    def _factor(self, long_side: int) -> float:
        if self.crop.scales is not None:
            return self.crop.scales[int(torch.randint(len(self.crop.scales), ()))]
        if self.crop.long_side is not None:
            least, most = self.crop.long_side
            return int(torch.randint(least, most + 1, ())) / long_side
        assert self.crop.rescale is not None
        low, high = self.crop.rescale
        return low + float(torch.rand(())) * (high - low)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return _resized(inpt, params["size"])


class _RandomPart(v2.RandomResizedCrop):
    """torchvision's, but for how masks are resized."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = self.size
        return _resized(v2.functional.crop(inpt, **params), (height, width))


def _resized(inpt: Any, size: tuple[int, int]) -> Any:
    if isinstance(inpt, tv_tensors.Mask):
        return tv_tensors.wrap(resized_label(inpt.as_subclass(Tensor), size), like=inpt)
    return v2.functional.resize(inpt, list(size), antialias=True)


def resized_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) or (H, W) uint8 to (…, *size): the pixel under the centre of each new one, as PIL resizes labels.

    So labels stay where bilinear resizing without aligned corners leaves the picture. torch's `nearest`, which is
    torchvision's for masks, takes the pixel under the upper left corner: half a new pixel beside it.
    """
    planes = label if label.ndim == 3 else label[None]
    return F.interpolate(planes[None], size, mode="nearest-exact")[0].view(*label.shape[:-2], *size)
