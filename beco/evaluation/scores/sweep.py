"""The sweep of the background score: how good pseudo-labels are for each of several values, without keeping any."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from beco.artifacts.files import write_csv
from beco.artifacts.ordered import in_order
from beco.artifacts.store import Store
from beco.config import Labels
from beco.datasets.manifest import Manifest
from beco.errors import UserError
from beco.evaluation.scores.evaluate import refuse_contradictions
from beco.evaluation.scores.metrics import Counts, Scorer, count, foreground_mean
from beco.stage1.maps import open_maps
from beco.stage1.refine import labels as stage
from beco.stage1.refine.thresholds import with_background


def sweep(
    manifest: Manifest, cams: Path, settings: Labels, backgrounds: Sequence[float], output: Path, threads: int = 1
) -> pd.DataFrame:
    """mIoU, boundary IoU, and mean precision and recall of the classes for each background score, as a CSV file.

    `cams` are class maps: those of `beco cams`, or with refine: irn the scores of `beco refine`. With refine: crf one
    CRF run for each score starts from the labels that this score gives, without the two thresholds that leave pixels
    without an opinion; so every pixel has a label here. Pictures without a mask are left out. Raises `UserError` if
    there is none with a mask, or if `cams` is not what the recipe starts from.
    """
    measured = manifest.with_masks()
    if not len(measured):
        raise UserError(f"{output}: none of the pictures has a mask to measure against; leave the sweep out")
    source = open_maps(cams, measured, measured.ids, stage.maps_kind(settings))
    scorers = [Scorer(len(manifest.classes) + 1) for _ in backgrounds]
    work = partial(_one, measured, source, settings, backgrounds)
    for image_id, found in zip(measured.ids, in_order(work, measured.ids, threads, "sweep"), strict=True):
        for scorer, counts in zip(scorers, found, strict=True):
            scorer.merge(image_id, counts)
    refuse_contradictions(measured, scorers[0])
    frame = pd.DataFrame([_row(background, scorer) for background, scorer in zip(backgrounds, scorers, strict=True)])
    write_csv(frame, output)
    return frame


def _one(
    manifest: Manifest, source: Store, settings: Labels, backgrounds: Sequence[float], image_id: str
) -> list[Counts]:
    """Counts of one picture for each background score."""
    truth, classes = manifest.mask(image_id), len(manifest.classes) + 1
    cam, values = stage.class_scores(manifest, source, settings, image_id)
    image = manifest.image(image_id) if settings.refine == "crf" and len(cam) else None
    found = []
    for background in backgrounds:
        scores = with_background(cam, background)
        if image is not None:
            scores = stage.crf_posterior(image, scores, settings)
        found.append(count(np.array([0, *values], np.uint8)[scores.argmax(0)], truth, classes, image_id))
    return found


def _row(background: float, scorer: Scorer) -> dict[str, float | None]:
    result = scorer.result()
    return {
        "background": background,
        "miou": result["miou"],
        "boundary_iou": result["boundary_iou"],
        "pixel_accuracy": result["pixel_accuracy"],
        "precision": foreground_mean(result["precision"]),
        "recall": foreground_mean(result["recall"]),
    }
