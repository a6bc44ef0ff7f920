"""Saliency maps of a dataset's pictures: how much each pixel is part of what strikes the eye, of whatever class.

A program that learnt from masks of salient objects made them, or, of the embedded dataset, the truth; so a method that
learns from them has more than image-level labels, and what is written names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beco.artifacts.files import file_hash, read_json, text_hash
from beco.artifacts.ordered import allowed_threads, in_order
from beco.artifacts.supervision import SALIENCY, TRUE_OBJECTS
from beco.datasets.manifest import IGNORE, Manifest, read_picture, refuse
from beco.datasets.matching import pictures_of
from beco.datasets.palette import opened
from beco.errors import UserError

DRAWN = "shapes"
"""In place of a folder: the true objects of the embedded dataset."""
OBJECTS = "true objects of shapes"
OUTLINE = 128
"""The saliency of outlines there, of which the masks say nothing: about half of their pixels are an object's."""
LOOKED_AT = 24
"""Maps that are looked at for whether they are of 0 to 255."""
DARK = 25
"""Where none of them has more, they are not."""
COLOURED = 8
"""How far the three colours of a pixel may be apart in a grey picture, as JPEGs of greys have it."""
GREY = ("1", "L", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Pillow's modes without colours."""
SIZED = tuple[Path, tuple[int, int]]


@dataclass(frozen=True)
class Saliency:
    """The saliency maps of some pictures."""

    files: dict[str, Path] | None
    """The map of each by its id; None: the true objects, of a dataset that is drawn."""

    def plane(self, manifest: Manifest, image_id: str) -> NDArray[np.uint8]:
        """The map of a picture, (H, W) uint8 from 0 to 255 (salient); of colours the mean of the three.

        UserError if its file is gone, damaged or of another size by now.
        """
        if self.files is None:
            mask = manifest.mask(image_id)
            return np.where(mask == IGNORE, OUTLINE, np.where(mask != 0, 255, 0)).astype(np.uint8)
        path = self.files[image_id]
        plane = read_picture(path).mean(axis=2).round().astype(np.uint8)
        if plane.shape != manifest.size(image_id):
            raise UserError(_other_size(path, plane.shape[::-1], manifest.size(image_id)[::-1]))
        return plane

    def supervision(self) -> list[str]:
        """What somebody had to draw for it."""
        return [TRUE_OBJECTS if self.files is None else SALIENCY]

    def identity(self) -> str:
        """What it is known by, in words or as a hash of the files."""
        if self.files is None:
            return OBJECTS
        return text_hash([[name, file_hash(path)] for name, path in sorted(self.files.items())])


def given(place: Path, manifest: Manifest, listed: Path) -> Saliency:
    """The saliency maps of the pictures of `manifest` (one split) in the folder `place`, or `DRAWN`.

    `listed`: the file of the manifest, beside which stands what dataset it is of. UserError if the objects of another
    dataset than the embedded one are asked for, whose masks no training may see.
    """
    if str(place) != DRAWN:
        return in_folder(place, manifest)
    beside = listed.with_suffix(".json")
    told = read_json(beside) if beside.is_file() else None
    known = told.get("dataset") if isinstance(told, dict) else None
    if not isinstance(known, dict) or known.get("format") != DRAWN:
        raise UserError(
            f"--saliency: `{DRAWN}` stands for the true objects of the embedded dataset, which {listed} is not of; "
            f"give a folder of saliency maps (./{DRAWN} if it is called so)"
        )
    return Saliency(None)


def in_folder(folder: Path, manifest: Manifest) -> Saliency:
    """The maps in `folder` of the pictures of `manifest`.

    UserError naming all that lack one, or a grey one of their size without holes; and if none of some is brighter than
    `DARK` of 255.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; set dataset.saliency to the one of the saliency maps")
    problems, files = [], {}
    for name, paths in pictures_of(folder, manifest.ids).items():
        if len(paths) == 1:
            files[name] = paths[0]
        else:
            two = " and ".join(path.name for path in paths[:2])
            words = f"{two} are both of picture {name}; keep one" if paths else f"no saliency map of picture {name}"
            problems.append(f"{folder}: {words if paths else f'{words}; put it there, such as {name}.png'}")
    sized = [(path, manifest.size(name)) for name, path in files.items()]
    problems += [line for line in in_order(_misfit, sized, allowed_threads(), "looking at saliency maps") if line]
    refuse(problems, f"{folder}")
    found = Saliency(files)
    _refuse_dark(folder, found, manifest)
    return found


def _refuse_dark(folder: Path, found: Saliency, manifest: Manifest) -> None:
    """UserError where maps are of 0 and 1, or of 0 to 255 within 16 bits, of which the high byte is read."""
    looked = manifest.ids[:: max(len(manifest.ids) // LOOKED_AT, 1)]
    most = max((int(found.plane(manifest, image_id).max()) for image_id in looked), default=255)
    if most <= DARK:
        raise UserError(
            f"{folder}: none of {len(looked)} saliency maps looked at is brighter than {most} of 255; save them with "
            "8 bits and 255 where an object is"
        )


def _misfit(sized: SIZED) -> str:
    """What is wrong with a file that should hold a map of (height, width); "" if nothing is.

    Its header is read, and more of one that may hold colours or holes.
    """
    path, size = sized
    try:
        with opened(path, what="a saliency map") as picture:
            found = picture.size
            if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
                return f"{path}: is transparent in places, which says nothing of saliency; save it without transparency"
            grey, fits = picture.mode in GREY, found == size[::-1]
        if grey and fits:
            return ""
        pixels = read_picture(path)
        if int(np.ptp(pixels, axis=2).max()) > COLOURED:
            return f"{path}: holds colours, as a mask of classes does, and no greys of a saliency map; give such"
        if not fits and pixels.shape[:2] != size:  # an EXIF orientation may turn it
            return _other_size(path, found, size[::-1])
    except UserError as error:
        return str(error)
    return ""


def _other_size(path: Path, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Both sizes as (width, height)."""
    return (
        f"{path}: is {found[0]}×{found[1]}, its picture {wanted[0]}×{wanted[1]} (width×height); make the saliency map "
        "of that picture, or resize it"
    )
