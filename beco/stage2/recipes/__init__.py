"""Recipes: how stage two learns from noisy labels, one file each; see `beco.schema.slots` and `base`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from beco.schema.slots import RECIPES

if TYPE_CHECKING:
    from beco.config import Training
    from beco.networks.segmenter import Segmenter
    from beco.stage2.recipes.base import Recipe

__path__ = [str(folder) for folder in RECIPES.folders]


def make(name: str, networks: list[Segmenter], settings: Training, classes: int) -> Recipe:
    """The recipe of that name, ready to learn; ValueError if there is none."""
    found: Recipe = RECIPES.entry(name)(networks, settings, classes)
    return found
