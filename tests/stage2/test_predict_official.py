"""Inference as the official test has it: squeezed pictures, at which size they are scored, and the CRF behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from configurations import changed, refusal
from handmade import SIZES, Blocks, Brightness, noisy, predicted
from torch import nn
from torch.nn import functional as F

from beco.config import InferenceCrf, Prediction
from beco.datasets.manifest import Manifest
from beco.datasets.palette import write_index_png
from beco.errors import UserError
from beco.evaluation.scores.evaluate import evaluate_predictions, squeezed
from beco.stage2 import outputs
from beco.stage2 import predict as prediction


@pytest.fixture
def pictures(tmp_path: Path) -> Manifest:
    return noisy(tmp_path)


# --- squeezing ----------------------------------------------------------------------------------------------


def test_what_is_fed_and_where_it_is_scored() -> None:
    assert (Prediction().score_at, Prediction().scored_side) == ("picture", None)
    assert Prediction(squeeze=512).scored_side is None  # the official test: the picture's own size
    assert Prediction(squeeze=512, score_at="square").scored_side == 512  # validation in training
    for settings in ({}, {"resize": 512}):
        message = refusal(changed("prediction", {**settings, "score_at": "square"}))
        assert "prediction" in message and "score_at: square needs a square; set squeeze" in message
    assert "score_at" in refusal(changed("prediction.score_at", "fed"))


def test_the_truth_is_squeezed_by_hand() -> None:
    truth = np.arange(24, dtype=np.uint8).reshape(4, 6)
    # New centres lie at 1/4 and 3/4: rows 1 and 3 of 4, columns 1 and 4 of 6 (centre 1.5 and 4.5, cut down).
    assert squeezed(truth, 2).tolist() == [[7, 10], [19, 22]]
    # to 12 × 12: each row three times, each column twice
    assert squeezed(truth, 12).tolist() == truth.repeat(3, axis=0).repeat(2, axis=1).tolist()


def test_squeezed_predictions_are_measured_on_squeezed_masks(
    pictures: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    square = {"squeeze": 32, "score_at": "square"}
    found = predicted(pictures, monkeypatch, [Brightness([0.0, 0.1, -1.0])], tmp_path / "out", **square)
    assert {label.shape for label in found.values()} == {(32, 32)}
    for image_id in pictures.ids:
        write_index_png(tmp_path / "true" / f"{image_id}.png", squeezed(pictures.mask(image_id), 32))
    for protocol in (square, {"squeeze": 32}):  # the latter as metrics.json had it before `score_at`
        assert evaluate_predictions(pictures, tmp_path / "true", tmp_path / "scores", protocol)["miou"] == 1.0
    for protocol in ({"squeeze": None}, {"squeeze": 32, "score_at": "picture"}):
        with pytest.raises(UserError, match="prediction is 32×32 and mask"):
            evaluate_predictions(pictures, tmp_path / "out", tmp_path / "scores", protocol)


def plainly(
    image: np.ndarray, networks: list[Blocks], scales: list[float], flip: bool, size: tuple[int, int]
) -> np.ndarray:
    """The official test of one picture, pixel by pixel: (3, side, side) as squeezed to (C, *size) softmax.

    Of each view the logits at stride 4 go to `size` in one step and are averaged there; the softmax is taken of that.
    """
    total = np.zeros(())
    for scale in scales:
        fed = round(image.shape[-1] * scale)
        at_scale = prediction._scaled(torch.from_numpy(image)[None], scale)[0].numpy()
        views = [(network, mirrored) for network in networks for mirrored in ([False, True] if flip else [False])]
        for network, mirrored in views:
            seen = at_scale[:, :, ::-1].copy() if mirrored else at_scale
            coarse = network.coarse(torch.from_numpy(seen)[None])[0].double().numpy()
            found = np.empty((len(coarse), *size))
            for y in range(size[0]):
                for x in range(size[1]):
                    row, column = ((i + 0.5) / n * fed / 4 - 0.5 for i, n in zip((y, x), size, strict=True))
                    found[:, y, x] = between(coarse, row, column)
            total = total + (found[:, :, ::-1] if mirrored else found) / len(views) / len(scales)
    return np.exp(total) / np.exp(total).sum(0)


def between(maps: np.ndarray, row: float, column: float) -> np.ndarray:
    """Bilinear value of (C, h, w) at centres counted from 0; beyond the outermost the nearest."""
    corners = []
    for place, count in ((row, maps.shape[1]), (column, maps.shape[2])):
        place = min(max(place, 0), count - 1)
        low = min(int(place), count - 2)
        corners.append((low, place - low))
    (top, down), (left, right) = corners
    upper = maps[:, top, left] * (1 - right) + maps[:, top, left + 1] * right
    lower = maps[:, top + 1, left] * (1 - right) + maps[:, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


@pytest.mark.parametrize(
    ("side", "scales", "flip"), [(32, [1.0], False), (36, [1.0], True), (40, [0.5, 1.0, 1.5], True)]
)
def test_the_official_test_pixel_by_pixel(
    pictures: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, side: int, scales: list[float], flip: bool
) -> None:
    """Squeezed input, logits to the picture's own size in one step, softmax, CRF on the picture as it is, argmax."""
    seen: dict[bytes, np.ndarray] = {}

    def posterior(image: np.ndarray, probabilities: np.ndarray, settings: InferenceCrf) -> np.ndarray:
        seen[image.tobytes()] = probabilities
        return probabilities

    monkeypatch.setattr(outputs, "posterior", posterior)
    rng = np.random.default_rng(side)
    networks = [Blocks(rng.normal(0, 4, (3, 3)).astype(np.float32).tolist()) for _ in range(2)]
    how = {"squeeze": side, "scales": scales, "flip": flip}
    bare = predicted(pictures, monkeypatch, networks, tmp_path / "bare", **how)
    after = predicted(pictures, monkeypatch, networks, tmp_path / "crf", crf={"backend": "torch"}, **how)
    for image_id in ("p0", "p5", "p8"):  # 12 × 16, 16 × 12, 9 × 21
        own = torch.from_numpy(pictures.image(image_id)).permute(2, 0, 1)[None] / 255
        fed = F.interpolate(own, (side, side), mode="bilinear", antialias=True, align_corners=False)[0]
        expected = plainly(fed.numpy(), networks, scales, flip, pictures.size(image_id))
        probabilities = seen[pictures.image(image_id).tobytes()]
        assert probabilities.shape == expected.shape == (3, *pictures.size(image_id))
        assert np.abs(probabilities - expected).max() < 2e-5
        assert bare[image_id].tolist() == after[image_id].tolist() == expected.argmax(0).tolist()
    truth = {"squeeze": side, "score_at": "picture"}
    result = evaluate_predictions(pictures, tmp_path / "bare", tmp_path / "scores", truth)
    pixels = sum(height * width for height, width in SIZES)
    assert sum(result["truth_pixels"].values()) == pixels  # the masks as they are, not squares


# --- the CRF ------------------------------------------------------------------------------------------------


def test_what_the_official_code_shows_its_crf() -> None:
    picture = np.array([[[0, 116, 255], [123, 117, 104], [124, 0, 103]]], dtype=np.uint8)
    # less (122.675, 116.669, 104.008): −122.675, −0.669, 150.992; 0.325, 0.331, −0.008; 1.325, −116.669, −1.008
    assert outputs.wrapped_picture(picture).tolist() == [[[256 - 122, 0, 150], [0, 0, 0], [1, 256 - 116, 255]]]
    # as the official code gives it on equal input
    published = np.array([[[124, 118, 105], [0, 0, 0]]], dtype=np.uint8)
    assert outputs.wrapped_picture(published).tolist() == [[[1, 1, 0], [134, 140, 152]]]


def test_classes_left_out_are_never_the_largest_somewhere() -> None:
    probabilities = torch.tensor([[0.40, 0.05], [0.30, 0.30], [0.25, 0.34], [0.05, 0.31]])[:, None]
    assert prediction.kept_classes(probabilities, 0).tolist() == [0, 1, 2, 3]
    assert prediction.kept_classes(probabilities, 0.30).tolist() == [0, 2, 3]
    assert prediction.kept_classes(probabilities, 0.9).tolist() == [0, 2]  # the largest of either pixel


def test_the_crf_sees_softmax_picture_and_kept_classes(
    pictures: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[bytes, np.ndarray] = {}

    def posterior(image: np.ndarray, probabilities: np.ndarray, settings: InferenceCrf) -> np.ndarray:
        assert image.dtype == np.uint8 and probabilities.dtype == np.float32
        assert image.shape[:2] == probabilities.shape[1:]
        seen[image.tobytes()] = probabilities
        return probabilities[::-1]  # turns the labels around, so that its effect shows

    monkeypatch.setattr(outputs, "posterior", posterior)
    networks: list[nn.Module] = [Brightness([1.0, 1.0, -200.0])]
    crf = {"backend": "torch", "minimum_mass": 0.51}  # in this process, where the stub is
    found = predicted(pictures, monkeypatch, networks, tmp_path / "own", crf=crf)
    for image_id in pictures.ids:
        red = pictures.image(image_id)[..., 0]
        assert set(np.unique(found[image_id])) == {0}  # 0 and 1 tie below the mass, and 0 counts as the largest
        assert found[image_id].shape == red.shape
    assert not seen  # a single class needs no CRF
    found = predicted(pictures, monkeypatch, networks, tmp_path / "all", crf={"backend": "torch"})
    assert set(seen) == {pictures.image(image_id).tobytes() for image_id in pictures.ids}
    one = pictures.ids[0]
    probabilities = seen[pictures.image(one).tobytes()]
    assert probabilities.shape == (3, *pictures.size(one))
    assert probabilities.sum(0) == pytest.approx(np.ones(pictures.size(one)), abs=1e-6)
    assert (found[one] == (pictures.image(one)[..., 0] > 0)).all()  # the later of the two, as the stub turns them
    square = {"squeeze": 32, "score_at": "square"}
    for settings, shape in ((square, (32, 32)), ({"resize": 40}, pictures.size(one))):
        seen.clear()
        output = tmp_path / str(shape)
        labels = predicted(pictures, monkeypatch, networks, output, crf={"backend": "torch"}, **settings)
        assert labels[one].shape == shape


def test_pydensecrf_in_processes(pictures: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    networks: list[nn.Module] = [Brightness([0.0, 1.0, -1.0]), Brightness([1.0, 0.0, 1.0])]
    crf = InferenceCrf(iterations=2)
    found = [
        predicted(pictures, monkeypatch, networks, tmp_path / f"{n}", n, crf=crf.model_dump(), batch_size=8 // n)
        for n in (1, 2)
    ]
    for image_id in pictures.ids:
        image = torch.from_numpy(pictures.image(image_id)).permute(2, 0, 1)[None] / 255
        scores = prediction.merged_scores(networks, image, Prediction(), pictures.size(image_id)).softmax(1)[0]
        expected = outputs.refined(pictures.image(image_id), scores.numpy(), np.arange(3, dtype=np.uint8), crf)
        assert found[0][image_id].tolist() == found[1][image_id].tolist() == expected.tolist()


def test_an_error_of_the_pool_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"), outputs.Outputs(tmp_path, None, 2) as pool:
        pool.write("a", np.zeros((2, 2), np.uint8))
        pool.write("b", np.zeros((2, 2), np.int64))  # type: ignore[arg-type]
    assert (tmp_path / "a.png").exists()
