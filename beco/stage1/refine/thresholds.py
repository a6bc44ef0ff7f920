"""Background scores of score maps: one for all, or of each picture from its own maps, without looking at any mask.

What score parts an object from the background depends on the network that the maps are of. A constant has to be chosen
on masks; Otsu's and Li's rules look at the histogram of a picture's scores alone. `power` lets the background fade
where a class rises (PSA, Ahn & Kwak, CVPR 2018), by a power that again has to be chosen.
"""

from __future__ import annotations

import warnings

import numpy as np
from skimage import filters

from beco.schema.stage1 import Background

RULES = {"otsu": filters.threshold_otsu, "otsu_pooled": filters.threshold_otsu, "li": filters.threshold_li}
"""Otsu (1979): the split whose parts have the least variance. Li & Lee (1993): the one of least cross-entropy."""


def background_scores(cam: np.ndarray, background: Background) -> np.ndarray:
    """The score that background has against each of the planes (K, H, W) of a picture: (K,) float32.

    `background` is that score itself, or a rule but `power`: `otsu` and `li` take that of each plane, `otsu_pooled`
    that of all planes together. A plane of a single value has it as its score, and so no object.
    """
    if not isinstance(background, str):
        return np.full(len(cam), background, np.float32)
    if background == "otsu_pooled" and len(cam):
        return np.full(len(cam), _split(cam, background), np.float32)
    return np.array([_split(plane, background) for plane in cam], np.float32)


def _split(values: np.ndarray, rule: str) -> float:
    if values.min() == values.max():
        return float(values.max())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # li takes logarithms of means that may be 0
        found = float(RULES[rule](values))
    return found if np.isfinite(found) else float(values.max())


def with_background(cam: np.ndarray, background: Background, by: float = 0.0) -> np.ndarray:
    """Put a plane of the background in front of a picture's scores: (K, H, W) -> (K+1, H, W).

    With a constant score the plane holds it, and with `power` the power `by` of what the best class leaves of 1. With
    the other rules every class is set against its own score: the planes are what exceeds it, and the background's is 0.
    But for `power`, `by` is added to the score.
    """
    if background == "power":
        return np.concatenate([complement(cam) ** np.float32(by), cam])
    if not isinstance(background, str):
        return np.concatenate([np.full_like(cam[:1], background + by, shape=(1, *cam.shape[1:])), cam])
    over = cam - (background_scores(cam, background) + np.float32(by))[:, None, None]
    return np.concatenate([np.zeros_like(cam[:1], shape=(1, *cam.shape[1:])), over])


def complement(cam: np.ndarray) -> np.ndarray:
    """What the best of the scores (K, H, W) leaves of 1, and at least 0: (1, H, W); 1 without a class."""
    return (1 - cam.max(0, initial=0, keepdims=True)).clip(min=0)
