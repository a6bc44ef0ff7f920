"""Class activation maps over scales and flips, kept for the classes that a picture is labelled with."""

from __future__ import annotations

from pathlib import Path

import torch

from beco.artifacts import store, supervision
from beco.artifacts.files import file_hash
from beco.artifacts.shards import shard_ids
from beco.config import Cam, read_settings
from beco.datasets.manifest import Manifest
from beco.schema.stage1 import options_of
from beco.stage1.localisers.base import Inputs
from beco.stage1.maps import CELLS
from beco.stage1.train import load
from beco.training.batches import layout, size_batches
from beco.training.trainer import Compute


def infer(
    manifest: Manifest,
    classifier: Path,
    settings: Cam,
    compute: Compute,
    shard: str,
    output: Path,
    inputs: Inputs | None = None,
    options: str | None = None,
) -> None:
    """Write the CAMs of one shard of `manifest` (one split) as a store with the layer `cam`.

    Per picture: (K', ⌈h/4⌉, ⌈w/4⌉) float16 in [0, 1] for its K' classes, with the attribute `classes` holding their
    label values (1…K); h, w are the picture's size after `settings.resize`. `options`, YAML text or the name of a file:
    settings of its method that no training looks at, in place of those that the network says.
    """
    torch.set_num_threads(compute.threads)
    device = compute.chosen
    network, classes = load(classifier, manifest.classes)
    network = network.eval().to(device).to(memory_format=layout(device))
    late = read_settings(options_of(network.method, of_maps=True), options, "--options")
    network.options = {**network.options, **late.model_dump(exclude_unset=True)}
    given = (inputs or Inputs()).checked(network.method, network.options, "MAP_INPUTS")
    network.prepare(manifest, given)
    ids = shard_ids(manifest.ids, shard)
    attributes = {
        "cam": settings.model_dump(),
        "classifier": file_hash(classifier),
        supervision.KEY: supervision.together(given.supervision(), supervision.of_network(classifier)),
        "classes": classes,
        **CELLS,
    }
    with store.create(output, **attributes) as writer:
        for chosen, images in size_batches(manifest, ids, settings.resize, settings.batch_size, "CAMs"):
            shown = torch.from_numpy(manifest.labels(chosen)).to(device)
            maps = network.score(images.to(device), shown, chosen, settings).cpu()
            for image_id, planes in zip(chosen, maps, strict=True):
                values = manifest.present(image_id)
                cam = network.finished(planes, image_id, values)
                writer.put("cam", image_id, cam.half().numpy(), classes=values)
