"""Pictures of one size processed together, for inference."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from beco.datasets.manifest import Manifest


def fitted_size(height: int, width: int, resize: int | None) -> tuple[int, int]:
    """Height and width with the long side set to `resize`; unchanged for None."""
    if resize is None:
        return height, width
    factor = resize / max(height, width)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def size_batches(
    manifest: Manifest, ids: list[str], resize: int | None, batch_size: int, name: str
) -> Iterator[tuple[list[str], Tensor]]:
    """Yield (ids, pictures (B, 3, h, w) float32 in [0, 1]) with pictures of one original size together."""
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for image_id in ids:
        groups[manifest.size(image_id)].append(image_id)
    with tqdm(total=len(ids), desc=name, unit="picture", disable=not sys.stderr.isatty(), leave=False) as bar:
        for (height, width), members in sorted(groups.items()):
            size = fitted_size(height, width, resize)
            for start in range(0, len(members), batch_size):
                chosen = members[start : start + batch_size]
                images = torch.stack([torch.from_numpy(manifest.image(i)).permute(2, 0, 1) for i in chosen])
                batch = images.to(torch.float32) / 255
                if size != (height, width):
                    batch = F.interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)
                yield chosen, batch
                bar.update(len(chosen))
