"""Predictions as the archive that the PASCAL VOC evaluation server takes.

The layout is that of the development kit's guidelines: `results/VOC2012/Segmentation/<challenge>_<set>_cls/<id>.png`,
one palette PNG per picture, its pixels the label values 0-20; the server knows no void in a result. The same
predictions give the same bytes: files in the order of their names, without times and owners.
"""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from typing import Literal

from beco.artifacts.files import whole
from beco.datasets.manifest import Manifest
from beco.datasets.palette import read_index_png
from beco.errors import UserError

HIGHEST = 20
"""The largest label value of VOC."""


def write_archive(
    predictions: Path,
    output: Path,
    image_set: Literal["val", "test"],
    challenge: str = "comp6",
    manifest: Manifest | None = None,
) -> int:
    """Pack `predictions`/*.png into the tar.gz `output`, whole or not at all; returns the number of pictures.

    Args:
        predictions: what `predict` wrote.
        output: the archive.
        image_set: the set of VOC that the pictures are of; it names the folder.
        challenge: `comp6` where more than VOC's own training pictures were learnt from (ImageNet, for one), `comp5`
            otherwise.
        manifest: one split; every picture of it must be there, in its own size, and no other.

    Raises `UserError` for an empty folder, a PNG without a palette, a value above 20 (255 is one), and what the
    manifest rules out.
    """
    files = sorted(predictions.glob("*.png"))
    if not files:
        raise UserError(f"{predictions}: holds no PNGs; run `beco predict-split` first")
    if manifest is not None:
        _check_ids(predictions, {path.stem for path in files}, manifest)
    folder = f"results/VOC2012/Segmentation/{challenge}_{image_set}_cls"
    with (
        whole(output) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in files:
            _check(path, manifest)
            entry = tarfile.TarInfo(f"{folder}/{path.name}")  # its time, owner and group are 0 and empty
            entry.size = path.stat().st_size
            with path.open("rb") as stream:
                archive.addfile(entry, stream)
    return len(files)


def _check_ids(predictions: Path, found: set[str], manifest: Manifest) -> None:
    wanted = set(manifest.ids)
    if lacking := sorted(wanted - found):
        raise UserError(
            f"{predictions}: lacks {len(lacking)} of {len(wanted)} pictures of the split, such as {lacking[0]};"
            " run `beco predict-split` on it again"
        )
    if foreign := sorted(found - wanted):
        raise UserError(
            f"{predictions}: holds {len(foreign)} pictures that the split does not, such as {foreign[0]};"
            " name the split that was predicted"
        )


def _check(path: Path, manifest: Manifest | None) -> None:
    label, size = read_index_png(path, ("P",)), None
    if manifest is not None:
        size = manifest.size(path.stem)
        if label.max() > len(manifest.classes):
            raise UserError(
                f"{path}: holds the value {label.max()}, but the manifest has {len(manifest.classes)} classes; give "
                "the manifest that the networks were trained with"
            )
    if label.max() > HIGHEST:
        raise UserError(
            f"{path}: holds the value {label.max()}, but the server knows 0–{HIGHEST} and no void;"
            " predict with networks trained on VOC's classes"
        )
    if size is not None and label.shape != size:
        raise UserError(
            f"{path}: is {label.shape[1]}×{label.shape[0]}, its picture {size[1]}×{size[0]} (width×height);"
            " predict with prediction.score_at: picture"
        )
