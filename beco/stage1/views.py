"""Class activation maps over scales and flips, kept for the classes that a picture is labelled with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from beco.artifacts import store
from beco.artifacts.files import file_hash
from beco.artifacts.grids import STRIDE, grid
from beco.artifacts.shards import shard_ids
from beco.config import Cam
from beco.datasets.manifest import Manifest
from beco.stage1.localisers.base import Localiser, present
from beco.stage1.maps import CELLS
from beco.stage1.placing import placed
from beco.stage1.train import load
from beco.training.batches import size_batches
from beco.training.trainer import Compute, choose_device


def infer(manifest: Manifest, classifier: Path, settings: Cam, compute: Compute, shard: str, output: Path) -> None:
    """Write the CAMs of one shard of `manifest` (one split) as a store with the layer `cam`.

    Per picture: (K', ⌈h/4⌉, ⌈w/4⌉) float16 in [0, 1] for its K' classes, with the attribute `classes` holding their
    label values (1…K); h, w are the picture's size after `settings.resize`.
    """
    torch.set_num_threads(compute.threads)
    device = choose_device(compute.device)
    network, classes = load(classifier, manifest.classes)
    network = network.eval().to(device).to(memory_format=torch.channels_last)
    ids = shard_ids(manifest.ids, shard)
    attributes = {"cam": settings.model_dump(), "classifier": file_hash(classifier), "classes": classes, **CELLS}
    with store.create(output, **attributes) as writer:
        for chosen, images in size_batches(manifest, ids, settings.resize, settings.batch_size, "CAMs"):
            shown = present(manifest, chosen).to(device)
            maps = multi_scale_maps(network, images.to(device), shown, settings).cpu()
            for image_id, planes in zip(chosen, maps, strict=True):
                values = manifest.present(image_id)
                cam = network.normalised(planes[[value - 1 for value in values]])
                writer.put("cam", image_id, cam.half().numpy(), classes=values)


@torch.inference_mode()
def multi_scale_maps(network: Localiser, images: Tensor, targets: Tensor, settings: Cam) -> Tensor:
    """Sum of a localiser's maps over scales and mirror images: (B, 3, h, w) -> (B, K, ⌈h/4⌉, ⌈w/4⌉) float32.

    `targets` (B, K) float32 in {0, 1}: the classes that the pictures show. Each map is read where its cells lie on the
    picture, of which the last may reach beyond it.
    """
    height, width = images.shape[-2:]
    size, stride = grid(height, width), network.stride
    shown = torch.cat([targets, targets]) if settings.flip else targets
    total = torch.zeros(())
    for scale in settings.scales:
        fed = (max(round(height * scale), 1), max(round(width * scale), 1))
        sides = (stride * height / fed[0] / STRIDE, stride * width / fed[1] / STRIDE)
        scaled = images
        if scale != 1:
            scaled = F.interpolate(images, fed, mode="bilinear", antialias=scale < 1, align_corners=False)
        views = torch.cat([scaled, scaled.flip(-1)]) if settings.flip else scaled
        maps = network.view(views.contiguous(memory_format=torch.channels_last), shown)
        straight, *mirrored = maps.split(len(images))
        total = placed(straight, size, sides) + total.to(maps.device)
        for one in mirrored:
            total = placed(one, size, sides, mirrored=width / STRIDE) + total
    return total
