"""What a label map is shown with: how sure it is, and its colours over the picture. Without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beco.artifacts.files import whole
from beco.datasets.palette import voc_palette

SHARE = 0.5
"""Of the colour of a label in an overlay; the rest is the picture's."""
QUALITY = 90
LONGEST = 65_500
"""Pixels of a side that libjpeg writes."""


def overlaid(picture: NDArray[np.uint8], label: NDArray[np.uint8]) -> Image.Image:
    """A picture (H, W, 3) uint8 under the half-transparent colours of its label map (H, W); background is bare."""
    bare = Image.fromarray(picture)
    mixed = Image.blend(bare, Image.fromarray(voc_palette()[label]), SHARE)
    return Image.composite(mixed, bare, Image.fromarray(label > 0))


def write_overlay(path: Path, picture: NDArray[np.uint8], label: NDArray[np.uint8]) -> None:
    """Write `overlaid` as a JPEG, whole or not at all; what no JPEG can hold is made smaller."""
    shown = overlaid(picture, label)
    shown.thumbnail((LONGEST, LONGEST))
    with whole(path) as temporary:
        shown.save(temporary, format="JPEG", quality=QUALITY)


def write_confidence(path: Path, confidence: NDArray[np.float32]) -> None:
    """Write probabilities (H, W) in [0, 1] as a grey PNG of 8 bits, 255 for 1, whole or not at all."""
    grey = (np.clip(confidence, 0, 1) * 255).round().astype(np.uint8)
    with whole(path) as temporary:
        Image.fromarray(grey).save(temporary, format="PNG")
