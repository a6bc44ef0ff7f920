"""Opening pictures, and index PNGs: one byte per pixel, shown in the colours of PASCAL VOC."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, features

from beco.artifacts.files import refusal, unreadable, whole
from beco.artifacts.firstbytes import UNKNOWN, endless, told
from beco.datasets import paths
from beco.datasets.paths import SUFFIXES
from beco.errors import UserError

DAMAGED = (OSError, SyntaxError, ValueError, RuntimeError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files it cannot decode, depending on the format and on where the damage is."""
AVIF = ("AVIF",) if features.check("avif") else ()  # Pillow has it since 11.3, and not everywhere
PICTURE_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM", "ICO", *AVIF)
"""Formats that are decoded, whatever a file is called. Not among them: those that start other programs (EPS)."""
BY_SUFFIX = {".tga": "TGA"}
"""Formats that are decoded where a file's name says so, since nothing in the file does."""
LOSSY = ("JPEG", "MPO")
UNREAD_KIND = ("unsupported", "not supported", "not available", "not implemented")
"""Words of Pillow for a kind of a format that it does not read."""
MOST_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: a file of a kilobyte can claim a terabyte."""

# Pillow warns of large pictures on its own, at another limit and in three lines.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@contextmanager
def opened(
    path: Path | str,
    missing: str = "no such picture; copy it there or take it off the list",
    alike: Collection[str] = SUFFIXES,
    what: str = "a picture",
) -> Iterator[Image.Image]:
    """A picture to be decoded within the block; its pixels are as stored, see `turn_upright`.

    Raises `UserError` if the file is missing (with those words, or naming one beside it of another case or one of the
    suffixes `alike`), too large, something else than `what` (see `firstbytes.told`), or cannot be read or decoded.
    """
    if endless(Path(path)):
        raise UserError(f"{path}: is a pipe, a device or such, and no file; copy {what} into a file")
    too_large = f"{path}: has more than {MOST_PIXELS // 10**6} million pixels; make it smaller or cut it into tiles"
    try:
        with Image.open(path, formats=formats_of(path)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise UserError(too_large)
            yield picture
    except FileNotFoundError as error:
        raise UserError(f"{path}: {told(path, what) or paths.missing(Path(path), missing, alike)}") from error
    except Image.DecompressionBombError as error:
        raise UserError(too_large) from error
    except (AttributeError, TypeError) as error:  # where a file system says EAGAIN, Python gives None in place of bytes
        if refusal(path, error) is None:
            raise
        raise unreadable(path, error, _broken(error)) from error
    except DAMAGED as error:
        own = () if formats_of(path) == PICTURE_FORMATS else (UNKNOWN,)
        raise unreadable(path, error, _broken(error), what, own) from error


def formats_of(path: Path | str) -> tuple[str, ...]:
    """The formats that a file is decoded as: `PICTURE_FORMATS`, and one that only its name can tell."""
    suffix = Path(path).suffix.lower()
    return (*PICTURE_FORMATS, BY_SUFFIX[suffix]) if suffix in BY_SUFFIX else PICTURE_FORMATS


def _broken(error: Exception) -> str:
    """Why Pillow has raised one of `DAMAGED` for a file of a format that is read: its kind, or damage."""
    if any(words in str(error).lower() for words in UNREAD_KIND):
        return f"is of a kind that is not read ({error}); convert it to PNG or JPEG"
    return f"truncated or damaged; copy it again ({error})"


def turn_upright(picture: Image.Image) -> bool:
    """Turn and mirror a picture in place as its EXIF orientation says, so as a viewer shows it; whether it did."""
    turned = picture.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    ImageOps.exif_transpose(picture, in_place=True)
    return turned


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(height, width) of a picture once `turn_upright` has turned it; its pixels are mostly not needed for that."""
    lies = picture.getexif().get(ExifTags.Base.Orientation) in range(5, 9)
    return (picture.width, picture.height) if lies else (picture.height, picture.width)


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
    return read_with_palette(path, modes)[0]


def read_with_palette(
    path: Path | str, modes: tuple[str, ...] = ("P", "L")
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """As `read_index_png`, and the palette, (n, 3) uint8 RGB, or None of a grey PNG. JPEGs, which blur, are refused."""
    missing = "no such mask; copy it there or take its picture off the list"
    with opened(path, missing, (".png",), "a mask") as picture:
        mode, form = picture.mode, picture.format
        if mode in modes and form not in LOSSY:
            palette = picture.getpalette("RGB")
            turn_upright(picture)
            colours = None if palette is None else np.array(palette, dtype=np.uint8).reshape(-1, 3)
            return np.array(picture, dtype=np.uint8), colours
    if form in LOSSY:
        raise UserError(f"{path}: is a JPEG, which changes label values; save masks as palette or 8-bit grey PNG")
    if mode == "L":
        raise UserError(f"{path}: is a grey PNG, not one with a palette; write it again, as `beco predict` does")
    what = f"holds colours (mode {mode})" if "RGB" in mode else f"is of mode {mode}"
    raise UserError(f"{path}: {what}, not label values; save masks as palette or 8-bit grey PNG")
