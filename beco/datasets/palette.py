"""Opening pictures, and index PNGs: one byte per pixel, shown in the colours of PASCAL VOC."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from beco.errors import UserError
from beco.files import unreadable, whole

DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files it cannot decode, depending on the format and on where the damage is."""
PICTURE_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM")
"""Formats that are decoded, whatever a file is called. Not among them: those that start other programs (EPS)."""
MOST_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: a file of a kilobyte can claim a terabyte."""

# Pillow warns of large pictures on its own, at another limit and in three lines.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@contextmanager
def opened(
    path: Path | str, missing: str = "no such picture; copy it there or take it off the list"
) -> Iterator[Image.Image]:
    """A picture to be decoded within the block; its pixels are as stored, see `turn_upright`.

    Raises `UserError` if the file is missing (with those words), too large, or cannot be read or decoded.
    """
    too_large = f"{path}: has more than {MOST_PIXELS // 10**6} million pixels; make it smaller or cut it into tiles"
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise UserError(too_large)
            yield picture
    except FileNotFoundError as error:
        raise UserError(f"{path}: {missing}") from error
    except Image.DecompressionBombError as error:
        raise UserError(too_large) from error
    except DAMAGED as error:
        raise unreadable(path, error, f"truncated or damaged; copy it again ({error})") from error


def turn_upright(picture: Image.Image) -> bool:
    """Turn and mirror a picture in place as its EXIF orientation says, so as a viewer shows it; whether it did."""
    turned = picture.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    ImageOps.exif_transpose(picture, in_place=True)
    return turned


def voc_palette() -> NDArray[np.uint8]:
    """The colour of every label value, (256, 3) uint8.

    PASCAL VOC (`VOClabelcolormap` of the development kit) deals the bits of the label out to the three
    channels in turn: bits 0, 3, 6 to red, 1, 4, 7 to green, 2, 5 to blue, from the highest bit of the
    channel downwards. So neighbouring labels differ in a high bit of some channel.
    """
    values = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= ((values >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours


def write_index_png(path: Path | str, label: NDArray[np.uint8]) -> None:
    """Write an (H, W) uint8 label map as a palette PNG (mode P) that any viewer shows in VOC colours."""
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(f"a label map is (H, W) uint8, not {label.shape} {label.dtype}")
    picture = Image.fromarray(np.ascontiguousarray(label)).convert("L")
    picture.putpalette(voc_palette().tobytes())
    with whole(path) as temporary:
        picture.save(temporary, format="PNG", optimize=False)


def read_index_png(path: Path | str, modes: tuple[str, ...] = ("P", "L")) -> NDArray[np.uint8]:
    """Read an index PNG (palette, or 8-bit grey) as (H, W) uint8 label values.

    Raises `UserError` if the file is missing, damaged, or of none of Pillow's `modes`, such as one that holds colours
    instead of label values.
    """
    with opened(path, "no such mask; copy it there or take its picture off the list") as picture:
        mode = picture.mode
        if mode in modes:
            turn_upright(picture)
            return np.array(picture, dtype=np.uint8)
    if mode == "L":
        raise UserError(f"{path}: is a grey PNG, not one with a palette; write it again, as `beco predict` does")
    what = f"holds colours (mode {mode})" if "RGB" in mode else f"is of mode {mode}"
    raise UserError(f"{path}: {what}, not label values; save masks as palette or 8-bit grey PNG")
