"""COCO's outlines: polygons and run lengths that can be drawn, and what is wrong with others."""

from __future__ import annotations

from math import isfinite
from reprlib import repr
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_masks

SLACK = 2.0
"""Pixels by which an outline may leave its picture; hand-drawn ones touch the edge and are rounded."""


def outline_problem(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong with an annotation's `segmentation` in a picture of this size, or None.

    COCO has polygons (lists of x, y, x, y, … in pixels) or an RLE with `size` and `counts`, which are run lengths down
    the columns or their compressed text. What cannot be right must not reach pycocotools: it reads past the end of
    runs that are too short.
    """
    if isinstance(segmentation, dict):
        return _runs_problem(segmentation, height, width)
    for polygon in segmentation:
        try:
            if not isinstance(polygon, list) or not all(map(isfinite, polygon)) or len(polygon) % 2:
                return "a polygon that is not pairs of numbers; correct it"
        except (TypeError, OverflowError):  # an integer beyond all floats
            return "a polygon that is not pairs of numbers; correct it"
        xs, ys = polygon[::2], polygon[1::2]
        if polygon and (min(polygon) < -SLACK or max(xs) > width + SLACK or max(ys) > height + SLACK):
            return (
                f"its outline runs from ({min(xs):g}, {min(ys):g}) to ({max(xs):g}, {max(ys):g}), outside of the "
                f"{width}×{height} picture; correct the outline or the picture's size"
            )
    return None


def _runs_problem(rle: dict[str, Any], height: int, width: int) -> str | None:
    size = rle.get("size")
    if size != [height, width] or any(type(side) is not int for side in size):
        return f"an RLE of size {repr(size)} in a picture of [{height}, {width}] (height, width); correct it"
    counts = rle.get("counts")
    try:
        runs = run_lengths(counts) if isinstance(counts, str) else counts
        whole = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
        if whole and sum(runs or []) == height * width:
            return None
    except (TypeError, IndexError):
        pass
    return f"an RLE whose runs do not fill the {height * width} pixels of its picture; correct it"


def run_lengths(text: str) -> list[int]:
    """The run lengths of a compressed RLE (pycocotools' `rleFrString`).

    Numbers come in groups of five bits, the lowest first, each as a character from `0` on with 32 for "more follows"
    and 16 in the last one for a negative number. From the fourth on, a number is the difference to the second last.
    """
    runs: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = ord(text[position]) - 48
            if not 0 <= bits < 64:
                raise IndexError(f"{text[position]!r} does not belong in a compressed RLE")
            value |= (bits & 31) << shift
            more, shift, position = bool(bits & 32), shift + 5, position + 1
        value -= (bits & 16) * 2 << (shift - 5)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def encloses(segmentation: Any) -> bool:
    """Whether there is anything to draw: an RLE, or a polygon of three points or more."""
    return isinstance(segmentation, dict) or any(len(polygon) >= 6 for polygon in segmentation)


def within_unit(segmentation: Any) -> bool:
    """Whether all of an annotation are polygons within the first pixel, as all are whose coordinates are fractions."""
    return isinstance(segmentation, list) and all(0 <= number <= 1 for polygon in segmentation for number in polygon)


def drawn(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels of an instance, the union of its polygons. `encloses` holds for it."""
    if isinstance(segmentation, dict):
        rle = segmentation
        if isinstance(rle["counts"], list):
            rle = rle_masks.frPyObjects(rle, height, width)
    else:  # of fewer than three points it would make a box, or nothing
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        rle = rle_masks.merge(rle_masks.frPyObjects(polygons, height, width))
    return rle_masks.decode(rle).astype(bool)
