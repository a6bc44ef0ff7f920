"""Localisers: how stage one comes from image-level labels to score maps, one file each; see `beco.schema.slots` and
`base`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beco.schema.slots import LOCALISERS
from beco.schema.stage1 import read_options

if TYPE_CHECKING:
    from beco.config import Encoder
    from beco.stage1.localisers.base import Localiser

__path__ = [str(folder) for folder in LOCALISERS.folders]


def make(
    name: str,
    encoder: Encoder,
    output_stride: int,
    classes: int,
    dilate: bool = True,
    options: dict[str, Any] | None = None,
) -> Localiser:
    """The localiser of that name with random weights; ValueError if there is none, or for `options` that it lacks."""
    complete = read_options(name, options or {})
    found: Localiser = LOCALISERS.entry(name)(encoder, output_stride, classes, dilate, complete)
    return found
