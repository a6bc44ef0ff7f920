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
from beco.networks import encoders
from beco.stage1.localisers import classifier as classifiers
from beco.stage1.maps import CELLS
from beco.stage1.placing import placed
from beco.training.batches import size_batches
from beco.training.engine import Compute, choose_device


def infer(manifest: Manifest, classifier: Path, settings: Cam, compute: Compute, shard: str, output: Path) -> None:
    """Write the CAMs of one shard of `manifest` (one split) as a store with the layer `cam`.

    Per picture: (K', ⌈h/4⌉, ⌈w/4⌉) float16 in [0, 1] for its K' classes, with the attribute `classes` holding their
    label values (1…K); h, w are the picture's size after `settings.resize`.
    """
    torch.set_num_threads(compute.threads)
    device = choose_device(compute.device)
    network, classes = classifiers.load(classifier, manifest.classes)
    network = network.eval().to(device).to(memory_format=torch.channels_last)
    ids = shard_ids(manifest.ids, shard)
    attributes = {"cam": settings.model_dump(), "classifier": file_hash(classifier), "classes": classes, **CELLS}
    with store.create(output, **attributes) as writer:
        for chosen, images in size_batches(manifest, ids, settings.resize, settings.batch_size, "CAMs"):
            maps = multi_scale_maps(network, images.to(device), settings).cpu()
            for image_id, planes in zip(chosen, maps, strict=True):
                present = manifest.present(image_id)
                cam = normalise(planes[[value - 1 for value in present]])
                writer.put("cam", image_id, cam.half().numpy(), classes=present)


@torch.inference_mode()
def multi_scale_maps(network: classifiers.CamNetwork, images: Tensor, settings: Cam) -> Tensor:
    """Sum of ReLU class maps over scales and mirror images: (B, 3, h, w) -> (B, K, ⌈h/4⌉, ⌈w/4⌉) float32.

    Each is read where its cells lie on the picture, of which the last may reach beyond it.
    """
    height, width = images.shape[-2:]
    size, stride = grid(height, width), encoders.feature_strides(network.backbone)[-1]
    total = torch.zeros(())
    for scale in settings.scales:
        fed = (max(round(height * scale), 1), max(round(width * scale), 1))
        sides = (stride * height / fed[0] / STRIDE, stride * width / fed[1] / STRIDE)
        scaled = images
        if scale != 1:
            scaled = F.interpolate(images, fed, mode="bilinear", antialias=scale < 1, align_corners=False)
        views = torch.cat([scaled, scaled.flip(-1)]) if settings.flip else scaled
        maps = network.maps(views.contiguous(memory_format=torch.channels_last)).float().relu()
        straight, *mirrored = maps.split(len(images))
        total = placed(straight, size, sides) + total.to(maps.device)
        for one in mirrored:
            total = placed(one, size, sides, mirrored=width / STRIDE) + total
    return total


def normalise(planes: Tensor) -> Tensor:
    """Divide each plane of (K, h, w) by its maximum (plus 1e-5, as IRN does), giving values in [0, 1)."""
    return planes / (planes.amax((1, 2), keepdim=True) + 1e-5)
