"""The gallery's layers: what they hold, how they look to the colour-blind, and the room that they take."""

from __future__ import annotations

import base64
import io
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.color import rgb2lab
from skimage.segmentation import slic

from beco.artifacts.pseudolabels import put
from beco.artifacts.store import create
from beco.datasets.manifest import Manifest
from beco.datasets.palette import voc_palette, write_index_png
from beco.evaluation.report import gallery
from beco.evaluation.report.layers import ERRORS, SAFE, detail, error_index, heat_layer, label_layer
from beco.evaluation.report.report import write_report
from beco.evaluation.scores.evaluate import evaluate_predictions
from beco.evaluation.scores.quality import evaluate_labels
from beco.evaluation.tables.tables import LabelSource, MapSource, Results, Run


def test_kinds_of_error() -> None:
    prediction, truth = np.array([[0, 0, 1, 2, 255, 1]], np.uint8), np.array([[0, 1, 0, 1, 1, 255]], np.uint8)
    assert error_index(prediction, truth).tolist() == [[0, 1, 2, 3, 1, 4]]


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 22, 256]))
def test_a_layer_holds_the_label_map_and_its_errors(seed: int, values: int) -> None:
    chance = np.random.default_rng(seed)
    label, truth = chance.integers(0, values, (2, 9, 13)).astype(np.uint8)
    truth[0] = 255
    layer = label_layer("key", "caption", "alt", label, truth)
    index = np.array(decoded(layer.uri))
    assert (np.array(layer.classes.split(), int)[index] == label).all()
    assert (np.array(layer.errors.split(), int)[index] == error_index(label, truth)).all()
    painted = np.array(decoded(layer.uri).convert("RGBA"))
    assert (painted[label == 0][:, 3] == 0).all()
    opinion = (label != 0) & (label != 255)
    assert (painted[opinion] == np.insert(voc_palette(), 3, 255, axis=1)[label[opinion]]).all()


def test_a_map_with_more_pairs_than_a_palette_holds_keeps_its_labels() -> None:
    label, truth = np.arange(256, dtype=np.uint8).repeat(2).reshape(2, 256), np.zeros((2, 256), np.uint8)
    truth[:, 1::2] = 1
    layer = label_layer("key", "caption", "alt", label, truth)
    assert layer.errors == "" and (np.array(layer.classes.split(), int)[np.array(decoded(layer.uri))] == label).all()


def test_a_heat_map_stays_as_small_as_it_is() -> None:
    layer = heat_layer("key", "caption", "alt", np.linspace(0, 1, 12).reshape(3, 4))
    index = np.array(decoded(layer.uri))
    assert index.ravel().tolist() == [round(31 * step / 11) for step in range(12)] and layer.classes == ""
    assert decoded(heat_layer("key", "caption", "alt", np.zeros((30, 96))).uri).size == (48, 15)


def lab(colours: list[str], deficiency: np.ndarray) -> np.ndarray:
    """CIELAB of colours as someone sees them; the matrix acts on linear RGB."""
    values = np.array([[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in colours])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) @ deficiency.T
    linear = linear.clip(0, 1)
    seen = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(seen[None])[0]


def closest(colours: list[str], deficiency: np.ndarray) -> float:
    seen = lab(colours, deficiency)
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


# Machado, Oliveira & Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009),
# severity 1.
PROTAN = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]])
DEUTAN = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])


@pytest.mark.parametrize("deficiency", [np.eye(3), PROTAN, DEUTAN], ids=["trichromat", "protan", "deutan"])
def test_colours_stay_apart_for_the_colour_blind(deficiency: np.ndarray) -> None:
    assert closest(SAFE, deficiency) > 15
    kinds = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue, _ in ERRORS.values()]
    assert closest(kinds, deficiency) > 15
    own = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in voc_palette()[1:8]]
    assert closest(own, PROTAN) < closest(SAFE, PROTAN)  # what VOC's own would give


def photograph(name: str) -> np.ndarray:
    """A photograph at the size that VOC's have, (375, 500, 3) uint8."""
    return np.array(Image.fromarray(getattr(skimage.data, name)()).resize((500, 375)))


def objects_in(picture: np.ndarray, seed: int) -> np.ndarray:
    """Objects of five classes that follow the picture's own contours, about as many as VOC's pictures hold."""
    regions = slic(picture[::2, ::2], n_segments=18, compactness=8, start_label=0)
    classes = np.random.default_rng(seed).choice([0, 0, 0, 1, 2, 3, 4, 5], regions.max() + 1).astype(np.uint8)
    small = Image.fromarray(classes[regions])
    return np.array(small.resize(picture.shape[1::-1], Image.Resampling.NEAREST))


def smooth(seed: int, size: tuple[int, int]) -> np.ndarray:
    """A map, 0 … 1, as smooth as a network's."""
    coarse = Image.fromarray(np.random.default_rng(seed).random((9, 12)).astype(np.float32))
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.BILINEAR)).astype(np.float16)


def test_1449_pictures_of_each_split_stay_within_50_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["coffee", "astronaut", "chelsea", "rocket"]
    rows = []
    for number, name in enumerate(names * 2):
        split = "train" if number < len(names) else "val"
        picture = photograph(name)
        Image.fromarray(picture).save(tmp_path / f"{split}_{name}.png")
        write_index_png(tmp_path / f"{split}_{name}_mask.png", objects_in(picture, number))
        rows.append({"image_id": f"{split}_{name}", "split": split, "image": f"{split}_{name}.png", "width": 500,
                     "mask": f"{split}_{name}_mask.png", "height": 375, **dict.fromkeys("abcde", 1)})  # fmt: skip
    manifest = Manifest(tmp_path, pd.DataFrame(rows).set_index("image_id"), list("abcde"))
    val, train = manifest.split("val"), manifest.split("train")
    runs, sources = [], []
    for seed in range(4):
        runs.append(Run(f"experiment{seed}", 0, "labels0", tmp_path / f"experiment{seed}"))
        sources.append(LabelSource(f"labels{seed}", tmp_path / f"labels{seed}"))
        for image_id in val.ids:
            label = objects_in(val.image(image_id), 100 + seed)
            write_index_png(runs[-1].folder / "predictions" / f"{image_id}.png", label)
        evaluate_predictions(val, runs[-1].folder / "predictions", runs[-1].folder, {})
        with create(sources[-1].folder / "labels.h5", settings={}, classes=manifest.classes) as writer:
            for image_id in train.ids:
                put(writer, image_id, objects_in(train.image(image_id), 200 + seed), 1 - smooth(seed, (375, 500)))
        evaluate_labels(train, sources[-1].folder / "labels.h5", sources[-1].quality)
    with create(tmp_path / "cams.h5", settings={}, classes=manifest.classes) as writer:
        for image_id in train.ids:
            writer.put("cam", image_id, np.stack([smooth(1, (94, 125)), smooth(2, (94, 125))]), classes=[1, 2])
    monkeypatch.setattr(gallery, "detail", lambda pictures, layers: detail(1449, layers))
    sizes = []
    for shown in (1, len(names)):
        results = Results(runs, sources, [MapSource("cam", tmp_path)])
        write_report(manifest, results, shown, tmp_path / "page.html")
        sizes.append((tmp_path / "page.html").stat().st_size)
    assert (tmp_path / "page.html").read_text().count("<article") == 2 * len(names)
    more = (sizes[1] - sizes[0]) / (len(names) - 1)
    assert sizes[0] + 1448 * more < 50e6
