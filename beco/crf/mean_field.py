"""Dense CRF in PyTorch: mean field with Gaussian kernels by lattice filtering (Krähenbühl & Koltun, "Efficient
Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011), with the results of pydensecrf.

The two kernels' lattices depend on the picture alone and are built once for all iterations and classes; that of the
smoothness kernel depends only on the picture's size and is remembered.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from beco.config import Crf
from beco.crf import permutohedral
from beco.crf.permutohedral import Lattice

CHUNK_BYTES = 2**28  # of values on points and vertices at a time: more classes than fit in are filtered in parts
REMEMBERED_PIXELS = 2**20  # larger pictures are rare, and their smoothness kernels too large to keep
LARGEST_EXPONENT = 80.0  # exp stays finite in float32, and so do sums of many


def mean_field(image: np.ndarray, unary: np.ndarray, settings: Crf, device: str | torch.device = "cpu") -> np.ndarray:
    """Posterior after `settings.iterations` of mean field (algorithm 1 of the paper), Potts compatibility.

    `image` (H, W, 3) uint8 RGB, `unary` (C, H, W) float32 finite energies. Returns (C, H, W) float32 that sums to 1
    over the classes. On the CPU the same for any number of threads. Raises ValueError where the shapes differ, and
    UserError where the kernels are too narrow to compute.
    """
    classes, height, width = unary.shape
    if image.shape != (height, width, 3):
        raise ValueError(f"a picture of shape {image.shape} with energies of shape {unary.shape}")
    with torch.inference_mode():
        energies = torch.from_numpy(np.require(unary, np.float32, ["C", "W"])).to(device)
        find = smoothness if height * width <= REMEMBERED_PIXELS else smoothness.__wrapped__
        kernels = [
            find(height, width, settings.gaussian_sxy, settings.gaussian_compat, str(device)),
            appearance(torch.from_numpy(np.require(image, np.uint8, ["C", "W"])).to(device), settings),
        ]
        beliefs = infer(energies.view(classes, -1).T.contiguous(), kernels, settings.iterations)
        return beliefs.T.reshape(classes, height, width).cpu().numpy()


@lru_cache(maxsize=4)  # 15 to 30 MB each at 500×375
def smoothness(height: int, width: int, sxy: float, weight: float, device: str) -> Lattice:
    """The kernel of positions alone (the second term of the paper's equation 3), for pictures of this size."""
    with torch.inference_mode():
        return kernel(_positions(height, width, sxy, device), weight)


def appearance(image: Tensor, settings: Crf) -> Lattice:
    """The kernel of positions and colours (the first term of the paper's equation 3): (H, W, 3) uint8."""
    height, width, _ = image.shape
    colours = _divided(image.view(-1, 3).T.float(), settings.bilateral_srgb)
    places = _positions(height, width, settings.bilateral_sxy, image.device)
    return kernel(torch.cat([places, colours]), settings.bilateral_compat)


def _positions(height: int, width: int, sxy: float, device: str | torch.device) -> Tensor:
    """x and y of all pixels in units of `sxy`: (2, H·W) float32."""
    x, y = (_divided(torch.arange(length, device=device).float(), sxy) for length in (width, height))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).view(2, -1)


def _divided(values: Tensor, width: float) -> Tensor:
    """By a tensor: dividing by a number, a GPU multiplies with its reciprocal, which rounds differently."""
    return values / torch.tensor(width, dtype=values.dtype, device=values.device)


def kernel(features: Tensor, weight: float) -> Lattice:
    """`weight` times the Gaussian kernel over (d, N) features, normalised symmetrically (pydensecrf's default).

    Where K is the kernel and n its row sums, this is K divided by the square roots of n of row and column.
    """
    lattice = permutohedral.build(features)
    sums = lattice.filter(features.new_ones(lattice.points, 1)).view(-1)
    norm = (1 / (sums.double() + 1e-20).sqrt()).float()
    return lattice.scaled(norm, norm * weight)


def infer(energies: Tensor, kernels: list[Lattice], iterations: int, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """Mean field from the beliefs of the energies alone: (N, C) float32 -> (N, C) float32 in [0, 1].

    Messages between pixels take at most about `chunk_bytes` at a time, or what one class needs.
    """
    chunk = max(1, chunk_bytes // (4 * max(3 * part.points + 2 * part.vertices for part in kernels)))
    energies = energies - energies.amin(1, keepdim=True)
    beliefs = _softmax(-energies)
    for _ in range(iterations):
        beliefs = _softmax(_messages(kernels, beliefs, chunk).sub_(energies))
    return beliefs


def _messages(kernels: list[Lattice], beliefs: Tensor, chunk: int) -> Tensor:
    """What every pixel hears for each class: the kernels' sum over all beliefs, `chunk` classes at a time."""
    received = torch.empty_like(beliefs)
    for start in range(0, beliefs.shape[1], chunk):
        some = slice(start, start + chunk)
        told = beliefs[:, some].contiguous()
        heard = kernels[0].filter(told)
        for kernel in kernels[1:]:
            heard += kernel.filter(told)
        if heard.shape == beliefs.shape:
            return heard
        received[:, some] = heard
    return received


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the second dimension, in place of `logits`, whose largest value per row is at least 0 or nearly so.

    Messages are not negative and the least energy is 0, hence the condition; so a row's maximum, slow to find, need
    be subtracted only where an exponential could overflow.
    """
    if logits.is_cuda or float(logits.max()) > LARGEST_EXPONENT:
        return logits.softmax(1)
    logits.exp_()
    return logits.div_(logits.sum(1, keepdim=True))
