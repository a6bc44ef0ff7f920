"""Weak augmentation as IRN's: the whole picture resized at random, and a square cut out of it, padded where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from beco.config import Crop
from beco.datasets.manifest import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)


def padded_square(crop: Crop, mean: Sequence[float] = IMAGENET_MEAN) -> v2.Transform:
    """Resize by `crop.long_side` or `crop.rescale`, mirror, cut a square of `crop.size`.

    Takes a picture (3, H, W) uint8, alone or with a mask (…, H, W) uint8. A picture smaller than the square lies
    anywhere within it, all places alike. Around it the mask is void, and the picture has the colour `mean` (RGB in
    [0, 1], of the encoder), so that it is 0 once normalised: IRN pads after normalisation. In 8 bits the colour is off
    by half a level at most, a hundredth of ImageNet's standard deviation.
    """
    colour = tuple(round(255 * value) for value in mean)
    fill = {tv_tensors.Image: colour, tv_tensors.Mask: IGNORE}
    square = v2.RandomCrop(crop.size, pad_if_needed=True, fill=fill)
    return v2.Compose([RandomSize(crop), v2.RandomHorizontalFlip(crop.flip), square])


class RandomSize(v2.Transform):
    """Resize as `crop` says, pictures bilinear and antialiased, masks by the pixel nearest to each centre.

    To a long side drawn from the whole numbers of `crop.long_side`, ends included, or by a factor drawn evenly from
    `crop.rescale`.
    """

    def __init__(self, crop: Crop) -> None:
        super().__init__()
        self.crop = crop

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = v2.functional.get_size(flat_inputs[0])
        factor = self._factor(max(size))
        return {"size": [max(round(side * factor), 1) for side in size]}

    def _factor(self, long_side: int) -> float:
        if self.crop.long_side is not None:
            least, most = self.crop.long_side
            return int(torch.randint(least, most + 1, ())) / long_side
        assert self.crop.rescale is not None
        low, high = self.crop.rescale
        return low + float(torch.rand(())) * (high - low)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return v2.functional.resize(inpt, params["size"], antialias=True)
        planes = inpt.as_subclass(torch.Tensor).reshape(1, -1, *inpt.shape[-2:])
        resized = F.interpolate(planes, params["size"], mode="nearest-exact")
        return tv_tensors.wrap(resized.reshape(*inpt.shape[:-2], *params["size"]), like=inpt)
