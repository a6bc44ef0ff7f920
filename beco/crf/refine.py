"""Dense CRF (Krähenbühl & Koltun, NIPS 2011): unaries from labels or probabilities, and the choice of who infers."""

from __future__ import annotations

import numpy as np

from beco.config import Crf
from beco.errors import UserError

FLOOR = 1e-5  # below this a probability counts as this much, as in pydensecrf.utils.unary_from_softmax


def refine(image: np.ndarray, label: np.ndarray, labels: int, settings: Crf) -> np.ndarray:
    """Mean-field posterior after believing `label` with probability `settings.gt_prob`.

    `image` (H, W, 3) uint8 RGB, `label` (H, W) integers in 0…labels-1, `labels` >= 2. Returns (labels, H, W) float32
    that sums to 1 over the labels.
    """
    others = (1 - settings.gt_prob) / (labels - 1)
    believed = np.arange(labels)[:, None, None] == label
    return _mean_field(image, -np.log(np.where(believed, settings.gt_prob, others)), settings)


def posterior(image: np.ndarray, probabilities: np.ndarray, settings: Crf) -> np.ndarray:
    """Mean-field posterior whose unary is -log of `probabilities`, which are clipped to 1e-5…1 first.

    `image` (H, W, 3) uint8 RGB, `probabilities` (C, H, W) float32 in [0, 1], which need not sum to 1.
    `settings.gt_prob` plays no part. Returns (C, H, W) float32 that sums to 1 over the classes.
    """
    return _mean_field(image, -np.log(np.clip(probabilities, FLOOR, 1)), settings)


def _mean_field(image: np.ndarray, unary: np.ndarray, settings: Crf) -> np.ndarray:
    """Posterior (C, H, W) float32 under the energies `unary` (C, H, W) by the chosen backend."""
    unary = np.require(unary, np.float32, ["C", "W"])
    if settings.backend == "torch":
        from beco.crf import mean_field as densecrf

        return densecrf.mean_field(image, unary, settings)
    return _pydensecrf(image, unary, settings)


def _pydensecrf(image: np.ndarray, unary: np.ndarray, settings: Crf) -> np.ndarray:
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise UserError(
            "crf.backend: pydensecrf is not installed; set it to torch, or install the package pydensecrf2 "
            "(with a C++ compiler)"
        ) from error
    labels, height, width = unary.shape
    field = DenseCRF2D(width, height, labels)
    field.setUnaryEnergy(unary.reshape(labels, -1))
    field.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    field.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=np.require(image, np.uint8, ["C", "W"]),
        compat=settings.bilateral_compat,
    )
    return np.array(field.inference(settings.iterations), dtype=np.float32).reshape(unary.shape)
