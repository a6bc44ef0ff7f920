"""Whether an artifact is what a command asks for and belongs to its manifest; looked at wherever one is handed over.

Stores are told apart by their layers and attributes, see `beco.artifacts.store`. What is wrong is a `UserError` of one
line.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beco.artifacts.pseudolabels import UNCERTAIN, PseudoLabels
from beco.artifacts.store import Store
from beco.datasets.manifest import Manifest
from beco.errors import UserError

KINDS = {
    "cams": "the CAMs of beco cams",
    "scores": "the scores of beco refine (refine: irn)",
    "labels": "the pseudo-labels of beco labels or beco import-labels",
}


def kind_of(source: Store) -> str | None:
    """A key of `KINDS`, or None for anything else."""
    layers = source.layers
    if "label" in layers:
        return "labels"
    if "cam" not in layers:
        return None
    return "scores" if "walk" in source.attributes else "cams"


def check_kind(source: Store, *wanted: str) -> None:
    """UserError unless a store is of one of the kinds `wanted`; one without pictures may be of any."""
    found = kind_of(source)
    if found not in wanted and source.layers:
        holds = f"holds {KINDS[found]}" if found else f"holds {', '.join(source.layers)}"
        raise UserError(f"{source.path}: {holds}; give {' or '.join(KINDS[kind] for kind in wanted)}")


def check_classes(source: Store, manifest: Manifest) -> None:
    """UserError unless a store was made for the manifest's classes, in their order."""
    classes = source.attributes.get("classes")
    if classes != manifest.classes:
        raise UserError(
            f"{source.path}: its classes {classes} are not the manifest's; make it again from this manifest"
        )


def check_ids(source: Store, layer: str, ids: Iterable[str]) -> None:
    """UserError unless a store has this layer of every picture."""
    if lacking := sorted(set(ids) - set(source.ids(layer))):
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(
            f"{source.path}: no {layer} for {lacking[0]}{more}; it was made from another manifest: run its stage again"
        )


# --- pseudo-labels ------------------------------------------------------------------------------------------


def open_labels(path: Path, manifest: Manifest) -> PseudoLabels:
    """The pseudo-labels of every picture of `manifest`; UserError if they are others', or of an older version."""
    reader = PseudoLabels(path)
    check_kind(reader.store, "labels")
    check_classes(reader.store, manifest)
    check_ids(reader.store, "label", manifest.ids)
    check_ids(reader.store, "confidence", manifest.ids)
    reader.check()
    for image_id in manifest.ids:
        _check_size(path, image_id, reader.size(image_id), manifest.size(image_id))
        _check_values(path, image_id, reader.highest(image_id), manifest)
    return reader


def check_label(path: Path, image_id: str, label: NDArray[np.uint8], manifest: Manifest) -> None:
    """UserError unless a label map has its picture's size and values of the manifest's classes (or 255)."""
    _check_size(path, image_id, label.shape, manifest.size(image_id))
    _check_values(path, image_id, int(label[label != UNCERTAIN].max(initial=0)), manifest)


def _check_values(path: Path, image_id: str, highest: int, manifest: Manifest) -> None:
    if highest > len(manifest.classes):
        raise UserError(
            f"{path}: {image_id}: holds the value {highest}, but there are {len(manifest.classes)} classes; give the "
            "manifest that it was made with"
        )


def _check_size(path: Path, image_id: str, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if found != size:
        shown = "×".join(map(str, reversed(found)))
        raise UserError(
            f"{path}: {image_id} is {shown}, its picture {size[1]}×{size[0]} (width×height); it was made from other "
            "pictures: run its stage again"
        )
