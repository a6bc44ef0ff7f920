"""Pictures of one size processed together, for inference; the next ones are read while the network works.

Pictures are never padded to a common size: the image pooling of the ASPP and every border would see the padding, and
the number would depend on which pictures happened to share a batch. So only pictures that are fed at exactly the same
size share one (in VOC, two thirds are 500×375, 375×500 or 500×333), and the rest go in smaller batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from beco.artifacts.files import of_memory
from beco.artifacts.grids import fitted_size
from beco.artifacts.ordered import in_order
from beco.datasets.manifest import Manifest
from beco.errors import UserError

AHEAD = 2  # batches that are read while one is worked on, of whatever pictures; bounds the memory


def layout(device: torch.device) -> torch.memory_format:
    """How pictures of many sizes, and the networks that see them, lie in memory on a device.

    Channels last on a CPU, which is faster there. On a GPU cuDNN makes a plan for every size that is new to it, and
    takes 25 times as long with channels last (EfficientNet-Lite0 on an H200: 1.6 s in place of 0.06 s a size).
    """
    return torch.contiguous_format if device.type == "cuda" else torch.channels_last


def size_batches(
    manifest: Manifest,
    ids: list[str],
    resize: int | None,
    batch_size: int,
    name: str,
    *,
    squeeze: int | None = None,
    most_pixels: int | None = None,
    threads: int = 1,
    skip: Callable[[str, UserError], None] | None = None,
) -> Iterator[tuple[list[str], Tensor]]:
    """Yield (ids, pictures (B, 3, h, w) float32 in [0, 1]) with pictures fed at one size together.

    Args:
        manifest: where the pictures are.
        ids: which of them; each comes once, grouped by fed size, the sizes ascending.
        resize: long side that is fed, pixels; None: the picture's own size.
        batch_size: the most pictures of a batch.
        name: what the progress bar is called.
        squeeze: side of the square that is fed whatever the aspect; None: see `resize`.
        most_pixels: the most pixels B·h·w of a batch, beyond which it has fewer pictures (at least 1); None: any.
        threads: how many pictures are decoded and resized at once, in the background.
        skip: is told of a picture that cannot be read, which is left out of its batch; None: the error is raised.

    Raises `UserError` for a picture that is missing, damaged, or of another size than the manifest says.
    """
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for image_id in ids:
        groups[fitted_size(*manifest.size(image_id), resize, squeeze)].append(image_id)
    plan = [
        (size, members[start : start + count])
        for size, members in sorted(groups.items())
        for count in [_count(size, batch_size, most_pixels)]
        for start in range(0, len(members), count)
    ]
    fed = [(image_id, size) for size, chosen in plan for image_id in chosen]

    def weight(one: tuple[str, tuple[int, int]]) -> float:
        return batch_size / _count(one[1], batch_size, most_pixels)

    pictures = in_order(partial(_picture, manifest), fed, threads, name, AHEAD * batch_size, weight)
    for _, chosen in plan:
        read = dict(zip(chosen, islice(pictures, len(chosen)), strict=True))
        for image_id, found in read.items():
            if isinstance(found, UserError):
                if skip is None:
                    raise found
                skip(image_id, found)
        if good := {image_id: found for image_id, found in read.items() if isinstance(found, Tensor)}:
            yield list(good), torch.stack(list(good.values()))


def _count(size: tuple[int, int], batch_size: int, most_pixels: int | None) -> int:
    return batch_size if most_pixels is None else max(min(batch_size, most_pixels // (size[0] * size[1])), 1)


def _picture(manifest: Manifest, fed: tuple[str, tuple[int, int]]) -> Tensor | UserError:
    """One picture as `as_fed` has it, of an id and a size; or why there is none."""
    image_id, size = fed
    try:
        array = manifest.image(image_id)
    except UserError as error:
        return error
    if array.shape[:2] != manifest.size(image_id):
        return UserError(f"{image_id}: its picture has another size than in the manifest; build the manifest again")
    try:
        return as_fed(array, size)
    except (RuntimeError, MemoryError) as error:
        if not of_memory(error):
            raise
        wide = f"{size[1]}×{size[0]}"
        return UserError(f"{image_id}: {wide} pixels take more memory than there is; feed it smaller (see resize)")


def as_fed(array: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """A picture (H, W, 3) uint8 as it is fed: (3, *size) float32 in [0, 1]; resized alone, whatever its batch."""
    picture = torch.from_numpy(array).permute(2, 0, 1).to(torch.float32) / 255
    if size == array.shape[:2]:
        return picture
    return F.interpolate(picture[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
