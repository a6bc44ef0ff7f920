"""Stores of class maps, CAMs and IRN's scores: whether they are of a manifest's pictures, and where their cells lie."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beco.artifacts.grids import STRIDE, fitted_size, grid
from beco.artifacts.store import Store
from beco.datasets.belonging import check_classes, check_ids, check_kind, kind_of
from beco.datasets.manifest import Manifest
from beco.errors import UserError

MADE_BY = {"cams": "cam", "scores": "walk"}
"""The attribute with the settings that class maps were made with."""
CELLS = {"cells": STRIDE}
"""What class maps say of themselves: cells of so many pixels a side, from the picture's corner. Older ones do not."""


def open_maps(path: Path, manifest: Manifest, ids: Iterable[str], kind: str) -> Store:
    """The class maps of the pictures `ids`, which are CAMs (`cams`) or IRN's (`scores`).

    UserError if the file holds something else, or is of other classes or pictures, or of a version whose maps lay
    elsewhere.
    """
    source = Store(path)
    check_kind(source, kind)
    check_classes(source, manifest)
    check_ids(source, "cam", ids)
    if any(source.attributes.get(key) != value for key, value in CELLS.items()):
        raise UserError(
            f"{path}: made by an older version, whose maps lay up to three pixels beside their pictures; remove it and "
            "run its stage again (beco cams, and beco refine with IRN)"
        )
    return source


def class_maps(source: Store, manifest: Manifest, image_id: str) -> tuple[NDArray[np.float16], NDArray[np.integer]]:
    """The maps (K', h, w) of a picture from a store of `open_maps`, and their K' label values.

    UserError if they are not of the picture's size or of its classes in the manifest, or no activations.
    """
    planes, values = activations(source, image_id)
    expected = grid(*fitted_size(*manifest.size(image_id), resize_of(source)))
    if planes.shape[1:] != expected:
        raise UserError(
            f"{source.path}: the maps of {image_id} have the shape {planes.shape}, of its picture they are "
            f"{expected[0]}×{expected[1]} (height×width); they were made from other pictures: run its stage again"
        )
    if len(values) != len(planes) or values.tolist() != manifest.present(image_id):
        raise UserError(
            f"{source.path}: the maps of {image_id} are of the classes {values.tolist()}, its labels in the manifest "
            f"are {manifest.present(image_id)}; it was made from another manifest: run its stage again"
        )
    return planes, values


def activations(source: Store, image_id: str) -> tuple[NDArray[np.float16], NDArray[np.integer]]:
    """The maps (K', h, w) of any picture of a store, and their K' label values; UserError unless all lie in 0 … 1."""
    source.expect("cam", image_id, np.floating, 3)
    planes = source.get("cam", image_id)
    try:
        values = np.asarray(source.attribute("cam", image_id, "classes"))
    except KeyError as error:
        raise UserError(f"{source.path}: the maps of {image_id} name no classes; run its stage again") from error
    if values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):  # of none they are floats
        raise UserError(f"{source.path}: the maps of {image_id} are of the classes {values}; run its stage again")
    if planes.size and not (planes.min() >= 0 and planes.max() <= 1):  # nor if one is NaN
        raise UserError(
            f"{source.path}: the maps of {image_id} hold values from {planes.min()} to {planes.max()}, and not from 0 "
            "to 1; a training that came to nothing leaves such: see its history.csv, then run the stages again"
        )
    return planes, values


def resize_of(source: Store) -> int | None:
    """The long side of the pictures that class maps were made from; None: their own."""
    made_with = source.attributes.get(MADE_BY[kind_of(source) or "cams"], {})
    return made_with.get("resize") if isinstance(made_with, dict) else None
