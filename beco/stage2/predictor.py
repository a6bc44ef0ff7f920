"""A trained network in Python: `beco.load(path).predict(image)`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beco.artifacts.grids import fitted_size
from beco.artifacts.text import readable
from beco.config import Prediction, merged_settings
from beco.datasets.manifest import as_rgb, read_picture
from beco.datasets.palette import DAMAGED
from beco.errors import UserError
from beco.stage2.anywhere import networks_file, settings_of
from beco.stage2.outputs import refined_with_confidence
from beco.stage2.predict import as_bytes, believed, chosen_networks, decided, picture_scores
from beco.stage2.train import load as load_networks
from beco.training.batches import as_fed
from beco.training.trainer import choose_device

Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
Label = NDArray[np.uint8]


class Predictor:
    """The networks of a file, ready to predict as they were meant to; made by `load`.

    `classes` are the names of label values 1…K, in order; 0 is background. `settings` is how it predicts.
    """

    def __init__(self, path: Path, device: str, settings: str | dict[str, Any] | None) -> None:
        trained = load_networks(path)
        self.classes: list[str] = trained.classes
        self.settings: Prediction = merged_settings(Prediction, settings_of(trained, path), settings, "settings")
        self._device = choose_device(device, "device")
        self._networks = chosen_networks(trained, self.settings, self._device)

    @overload
    def predict(self, image: Picture, confidence: Literal[False] = False) -> Label: ...

    @overload
    def predict(self, image: Picture, confidence: Literal[True]) -> tuple[Label, NDArray[np.float32]]: ...

    def predict(self, image: Picture, confidence: bool = False) -> Label | tuple[Label, NDArray[np.float32]]:
        """The label map of one picture, (H, W) uint8 in 0…K, as `beco predict` writes it.

        `image` is a path, a picture of Pillow, or (H, W, 3) uint8 RGB. A file, or what Pillow has opened from one, is
        turned upright as its EXIF orientation says. With `confidence` also the probability of each label, (H, W)
        float32 in [0, 1]: the networks' own, or the CRF's posterior if there is one after them. Raises `UserError` for
        a file that cannot be read, and `ValueError` or `TypeError` for what is no picture.
        """
        picture = _as_array(image)
        size = (picture.shape[0], picture.shape[1])
        fed = fitted_size(*size, self.settings.resize, self.settings.squeeze)
        images = as_fed(picture, fed)[None].to(self._device)
        scored = fed if self.settings.scored_side else size
        score = next(picture_scores(self._networks, images, self.settings, [scored]))
        if self.settings.crf is None:
            label, sure = decided(score, self.settings, confidence)
        else:
            seen = as_bytes(images[0]) if scored == fed else picture
            label, sure = refined_with_confidence(seen, *believed(score, self.settings), self.settings.crf)
        if not confidence:
            return label
        assert sure is not None
        return label, sure


def load(path: str | os.PathLike[str], device: str = "auto", settings: str | dict[str, Any] | None = None) -> Predictor:
    """The networks of a run's folder (`results/…/seed0`) or of a `networks.safetensors`, see `Predictor`.

    `device` is auto, cpu or cuda; `settings` (values, YAML or JSON text, or a file of it) is laid over what the file
    says of how to predict. Raises `UserError` if there are no such networks or settings.
    """
    return Predictor(networks_file(Path(path)), device, settings)


def _as_array(image: Picture) -> NDArray[np.uint8]:
    if isinstance(image, str | os.PathLike):
        return read_picture(Path(image))
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"a picture has pixels, not {image.size[0]}×{image.size[1]} of them")
        return as_rgb(_decoded(image), "the picture")[0]
    if not isinstance(image, np.ndarray):
        raise TypeError(f"a picture is a path, a picture of Pillow or an array, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"a picture is (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    return np.require(image, requirements=["C", "W"])  # torch warns of what cannot be written to


def _decoded(image: Image.Image) -> Image.Image:
    """A copy of a picture of Pillow, which reads a file's pixels when they are first asked for."""
    try:
        return image.copy()
    except DAMAGED as error:
        name = readable(getattr(image, "filename", "") or "the picture")
        raise UserError(f"{name}: cannot be decoded ({error}); copy it again, and keep it open until then") from error
