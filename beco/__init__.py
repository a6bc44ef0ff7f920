"""Weakly supervised semantic segmentation from image-level labels, around Boundary-Enhanced Co-Training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from os import PathLike

    from beco.stage2.predictor import Predictor

__version__ = "0.1.0"


def load(path: str | PathLike[str], device: str = "auto", settings: str | dict[str, Any] | None = None) -> Predictor:
    """The networks of a run's folder (`results/…/seed0`) or of a `networks.safetensors`, ready to `predict` pictures.

    `device` is auto, cpu or cuda; `settings` (values, YAML or JSON text, or a file of it) is laid over how the
    networks were meant to predict. Raises `beco.errors.UserError` if there are no such networks or settings.
    """
    from beco.stage2 import predictor  # here: torch takes seconds, and `import beco` none

    return predictor.load(path, device, settings)
