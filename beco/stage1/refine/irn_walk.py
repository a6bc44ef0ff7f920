"""IRN's semantic random walk: class maps flow within boundaries and stop at them (Ahn et al. 2019).

One step multiplies by a transition matrix T. The authors square T eight times and multiply once, with (h·w)² numbers;
here the class maps take the 2^8 steps one by one, which is the same product: T has only the pairs that are less than
`walk_radius` apart, 69 in a row, so it is kept as a sparse matrix and any picture fits.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from beco.artifacts import store, supervision
from beco.artifacts.files import file_hash
from beco.artifacts.grids import cell_sides
from beco.artifacts.shards import shard_ids
from beco.config import Irn
from beco.datasets.manifest import Manifest
from beco.stage1.maps import CELLS, class_maps, open_maps, resize_of
from beco.stage1.placing import placed
from beco.stage1.refine import irn
from beco.stage1.refine.irn import MOST_PIXELS, TOGETHER
from beco.stage1.refine.irn_pairs import pixel_pairs
from beco.training.batches import layout, size_batches
from beco.training.trainer import Compute


def infer(
    manifest: Manifest, cams: Path, network: Path, settings: Irn, compute: Compute, shard: str, output: Path
) -> None:
    """Write the scores of one shard of `manifest` (one split) as a store with the layer `cam`, as `beco cams` does.

    Per picture: (K', ⌈h/4⌉, ⌈w/4⌉) float16 in [0, 1], its class maps after the walk divided by the maximum over all of
    them, with the attribute `classes`; h, w are the picture's size after `settings.resize`.
    """
    torch.set_num_threads(compute.threads)
    device = compute.chosen
    model, classes = irn.load(network, manifest.classes)
    model = model.to(device).to(memory_format=layout(device))
    ids = shard_ids(manifest.ids, shard)
    source = open_maps(cams, manifest, ids, "cams")
    made = resize_of(source)
    attributes = {
        "walk": settings.model_dump(mode="json", include=settings.walk_keys()),
        "irn": file_hash(network),
        "cams": file_hash(cams),
        supervision.KEY: supervision.together(supervision.said_by(source.attributes), supervision.of_network(network)),
        "classes": classes,
        **CELLS,
    }
    with store.create(output, **attributes) as writer:
        batches = size_batches(manifest, ids, settings.resize, TOGETHER, "random walk", most_pixels=MOST_PIXELS)
        for chosen, images in batches:
            edges, _ = model.infer(images.to(device, memory_format=layout(device)))
            maps = [class_maps(source, manifest, image_id) for image_id in chosen]
            planes = [torch.from_numpy(one.astype(np.float32)) for one, _ in maps]
            sides = [
                relative_sides(one.shape[1:], made, edges.shape[1:], settings.resize, manifest.size(image_id))
                for image_id, one in zip(chosen, planes, strict=True)
            ]
            walked = walk(stacked(planes, sides, edges.shape[1:]).to(device), edges, settings).cpu()
            for image_id, scores, (given, values) in zip(chosen, walked, maps, strict=True):
                kept = scores[: len(given)]
                kept = kept / kept.amax().clamp(min=1e-12) if len(kept) else kept
                writer.put("cam", image_id, kept.half().numpy(), classes=values)


def stacked(planes: list[Tensor], sides: list[tuple[float, float]], size: torch.Size) -> Tensor:
    """Class maps (K', h', w') of several pictures as (B, K, *size), bilinear; empty maps fill up to the most K'.

    `sides`: height and width of the cells of each picture's maps in cells of the new ones.
    """
    result = torch.zeros(len(planes), max(map(len, planes)), *size)
    for target, given, side in zip(result, planes, sides, strict=True):
        if len(given):
            target[: len(given)] = placed(given, (size[0], size[1]), side)
    return result


def relative_sides(
    shape: torch.Size, resize: int | None, wanted: torch.Size, fed: int | None, picture: tuple[int, int]
) -> tuple[float, float]:
    """Height and width of the cells of maps of size `shape` in those of size `wanted`, of a picture of some size.

    The former were made with the long side set to `resize`, the latter with `fed`.
    """
    given, new = cell_sides(shape, picture, resize), cell_sides(wanted, picture, fed)
    return given[0] / new[0], given[1] / new[1]


def transition(edges: Tensor, radius: int, beta: float) -> Tensor:
    """Boundaries (B, h, w) in [0, 1] -> one step of the walk, a sparse (B·h·w, B·h·w) float32 matrix of row sums 1.

    Entry (i, j) is a_ij^beta / Σ_k a_ik^beta for pixels i, j of one picture less than `radius` apart, with a_ij = 1 −
    the strongest boundary on the line between them and a_ii = 1 (label synthesis in the paper; affinities are
    symmetric, so these rows are the columns that are summed there). A step replaces each value by a mean over its
    neighbours.
    """
    batch, height, width = edges.shape
    pairs = pixel_pairs(radius, height, width, edges.device)
    pixels = height * width
    weights = (1 - pairs.strongest_on_lines(edges)).clamp(min=0) ** beta * pairs.inside
    _, first = pairs.inside.nonzero(as_tuple=True)
    shift = (pairs.offsets[:, 0] * width + pairs.offsets[:, 1])[:, None].expand_as(pairs.inside)[pairs.inside]
    there = weights[:, pairs.inside].flatten()
    start = pixels * torch.arange(batch, device=edges.device)[:, None]
    one, other = (start + first).flatten(), (start + first + shift).flatten()
    every = torch.arange(batch * pixels, device=edges.device)
    rows, columns = torch.cat([one, other, every]), torch.cat([other, one, every])
    values = torch.cat([there, there, torch.ones_like(every, dtype=there.dtype)])
    sums = torch.zeros(batch * pixels, device=edges.device).index_add_(0, rows, values)
    indices, size = torch.stack([rows, columns]), (len(every), len(every))
    matrix = torch.sparse_coo_tensor(indices, values / sums[rows], size, check_invariants=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR")  # torch calls it a beta; the product has tests here
        return matrix.coalesce().to_sparse_csr()


def walk(planes: Tensor, edges: Tensor, settings: Irn) -> Tensor:
    """Class maps (B, K, h, w) after 2^squarings steps within boundaries (B, h, w): (B, K, h, w) float32.

    The maps start raised to `cam_power` and weighted by 1 − boundary: what lies on a boundary belongs to neither side.
    """
    batch, classes, height, width = planes.shape
    if classes == 0:
        return planes.float()
    step = transition(edges.float(), settings.walk_radius, settings.beta)
    start = planes.float() ** settings.cam_power * (1 - edges[:, None])
    state = start.transpose(0, 1).reshape(classes, -1).T.contiguous()
    for _ in range(2**settings.squarings):
        state = step @ state
    return state.T.reshape(classes, batch, height, width).transpose(0, 1)
