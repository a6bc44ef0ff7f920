"""What the tests of foreign pseudo-labels share: files written as other programs do, and what comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beco.artifacts.pseudolabels import PseudoLabels
from beco.datasets import manifest as manifests
from beco.datasets.manifest import Manifest
from beco.datasets.palette import write_index_png
from beco.errors import UserError
from beco.exchange import imports

CLASSES = ["ant", "bee", "cow", "dog"]
SIZE = (2, 3)  # height, width
LABEL = np.array([[0, 2, 2], [4, 255, 0]], np.uint8)


def listed(folder: Path, pictures: dict[str, list[int]], size: tuple[int, int] = SIZE) -> Manifest:
    """A manifest of pictures with their label values; the pictures themselves are nowhere needed."""
    header = ",".join([*manifests.COLUMNS, *CLASSES])
    rows = [
        f"{name},train,{name}.jpg,,{size[1]},{size[0]},{','.join(str(int(k + 1 in present)) for k in range(4))}"
        for name, present in pictures.items()
    ]
    (folder / "manifest.csv").write_text("\n".join([header, *rows]) + "\n")
    return manifests.read(folder / "manifest.csv", folder)


def brought(
    folder: Path, files: dict[str, Any], pictures: dict[str, list[int]], size: tuple[int, int] = SIZE, **options: Any
) -> PseudoLabels:
    """Write the files and import them. Arrays become palette PNGs, dictionaries .npy or .pt, bytes stay as they are."""
    source = folder / "source"
    source.mkdir()
    for name, content in files.items():
        written(source / name, content)
    imports.make(listed(folder, pictures, size), source, folder / "labels.h5", **options)
    return PseudoLabels(folder / "labels.h5")


def written(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Image.Image):
        content.save(path)
    elif path.suffix == ".png":
        write_index_png(path, content)
    elif path.suffix == ".pt":
        torch.save(content, path)
    else:
        np.save(path, content, allow_pickle=True)


def refused(folder: Path, files: dict[str, Any], pictures: dict[str, list[int]], **options: Any) -> str:
    """The one line with which an import is refused; nothing may be left behind."""
    with pytest.raises(UserError) as caught:
        brought(folder, files, pictures, **options)
    assert sorted(path.name for path in folder.iterdir() if path.name != "masks") == ["manifest.csv", "source"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def plane(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(SIZE)


# Two classes, 2 and 4 (from 0: 1 and 3). With the background at 0.25:
SECOND = plane(0.9, 0.1, 0.5, 0.0, 0.25, 1.0)
FOURTH = plane(0.2, 0.2, 0.75, 0.625, 0.0, 0.5)
EXPECTED = np.array([[2, 0, 4], [4, 0, 2]], np.uint8)  # background wins the tie at 0.25
MARGIN = plane(0.65, 0.05, 0.25, 0.375, 0.0, 0.5)
TENSORS = {"keys": torch.tensor([1, 3]), "cam": torch.zeros(2, 1, 1), "high_res": np.stack([SECOND, FOURTH])}


def assert_found(labels: PseudoLabels, label: np.ndarray, confidence: np.ndarray, name: str = "x") -> None:
    found = labels.picture(name).confidence()
    assert labels.label(name).dtype == np.uint8 and found.dtype == np.float32
    assert labels.label(name).tolist() == label.tolist()
    assert found.astype(float) == pytest.approx(confidence.astype(float), abs=1 / 200 + 1e-6)
