"""From CAMs to `labels.h5`: pseudo-label and confidence of every training picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from beco.artifacts import store, supervision
from beco.artifacts.files import file_hash
from beco.artifacts.grids import upsampled
from beco.artifacts.pseudolabels import UNCERTAIN, doubt_of, put
from beco.artifacts.shards import shard_ids
from beco.artifacts.store import Store
from beco.config import Labels
from beco.crf import refine as crf
from beco.datasets.manifest import Manifest
from beco.stage1.maps import class_maps, open_maps, resize_of
from beco.stage1.refine.thresholds import with_background


def make(manifest: Manifest, cams: Path, settings: Labels, shard: str, output: Path) -> None:
    """Write the pseudo-labels of one shard of `manifest` (one split) as `pseudolabels.put` stores them.

    With refine: irn, `cams` are the scores that `beco refine` makes; UserError if the one is given for the other, or
    for maps of other classes or pictures.
    """
    ids = shard_ids(manifest.ids, shard)
    source = open_maps(cams, manifest, ids, maps_kind(settings))
    attributes = {
        "labels": settings.model_dump(mode="json", include=settings.label_keys()),
        "cams": file_hash(cams),
        supervision.KEY: supervision.said_by(source.attributes),
        "classes": manifest.classes,
    }
    with store.create(output, **attributes) as writer:
        for image_id in tqdm(ids, desc="pseudo-labels", unit="picture", disable=not sys.stderr.isatty(), leave=False):
            cam, values = class_scores(manifest, source, settings, image_id)
            if settings.refine == "crf":
                label, doubt = from_crf(manifest.image(image_id), cam, values, settings)
            else:
                label, doubt = from_scores(with_background(cam, *settings.one_score()), values)
            put(writer, image_id, label, doubt)


def maps_kind(settings: Labels) -> str:
    """What the recipe starts from, a key of `artifacts.KINDS`: CAMs, or for IRN its scores."""
    return "scores" if settings.refine == "irn" else "cams"


def class_scores(manifest: Manifest, maps: Store, settings: Labels, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores (K, H, W) float32 of a picture's classes at its own size, and their K label values."""
    planes, values = class_maps(maps, manifest, image_id)
    scores = upsampled(planes, *manifest.size(image_id), resize_of(maps))
    if settings.refine == "irn":
        scores = share_of_maximum(scores)
    return scores, values


def share_of_maximum(scores: np.ndarray) -> np.ndarray:
    """Divide (K, H, W) scores by the maximum over all classes and pixels, as IRN does; no scores stay no scores."""
    return scores / max(float(scores.max(initial=0)), 1e-12)


def from_scores(scores: np.ndarray, values: np.ndarray, probabilities: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Label by the best of (K+1, H, W) scores, and what is missing to a margin of 1 over the second best.

    `values` are the label values of planes 1…K; `probabilities` says that the planes sum to 1. Returns (H, W) uint8
    and (H, W) float64, see `doubt_of`: the margin is the confidence, as BECO has it. Of equal scores the
    lower plane wins, so background wins over a class.
    """
    return np.array([0, *values], np.uint8)[scores.argmax(0)], doubt_of(scores, probabilities)


def from_crf(image: np.ndarray, cam: np.ndarray, values: np.ndarray, settings: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Two CRF runs with a high and a low background score; what they agree on is the label (IRN, Ahn et al. 2019;
    with powers, of which the lower one is the high score, PSA, Ahn & Kwak 2018).

    A class is believed where the run with the high background score finds it, background where both runs find it,
    and nothing (255) elsewhere. Confidence is the margin between the two best classes of the mean of both
    posteriors, given as `from_scores` does, and none where nothing is believed. A picture without classes is background
    throughout.
    """
    if len(cam) == 0:
        return np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2])
    posteriors = [crf_posterior(image, with_background(cam, *score), settings) for score in settings.two_scores()]
    foreground, background = (posterior.argmax(0) for posterior in posteriors)
    doubt = doubt_of((posteriors[0] + posteriors[1]) / 2, probabilities=True)
    label = np.array([0, *values], np.uint8)[foreground]
    unknown = (foreground == 0) & (background != 0)
    label[unknown] = UNCERTAIN
    doubt[unknown] = 1
    return label, doubt


def crf_posterior(image: np.ndarray, scores: np.ndarray, settings: Labels) -> np.ndarray:
    """Posterior (K+1, H, W) float32 of one CRF run from the scores (K+1, H, W) of background and classes, which with
    unary: scores are in [0, 1].
    """
    if settings.unary == "scores":
        return crf.posterior(image, scores, settings.crf)
    return crf.refine(image, scores.argmax(0), len(scores), settings.crf)
