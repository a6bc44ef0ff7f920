"""Dense CRF (Krähenbühl & Koltun, NIPS 2011) through pydensecrf."""

from __future__ import annotations

import numpy as np

from beco.config import Crf


def refine(image: np.ndarray, label: np.ndarray, labels: int, settings: Crf) -> np.ndarray:
    """Mean-field posterior after believing `label` with probability `settings.gt_prob`.

    `image` (H, W, 3) uint8 RGB, `label` (H, W) integers in 0…labels-1, `labels` >= 2. Returns (labels, H, W) float32
    that sums to 1 over the labels.
    """
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_labels

    height, width = label.shape
    field = densecrf.DenseCRF2D(width, height, labels)
    unary = unary_from_labels(label, labels, gt_prob=settings.gt_prob, zero_unsure=False)
    field.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    field.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    field.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=settings.bilateral_compat,
    )
    posterior = np.array(field.inference(settings.iterations), dtype=np.float32)
    return posterior.reshape(labels, height, width)
