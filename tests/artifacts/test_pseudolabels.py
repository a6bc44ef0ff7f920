"""Confidence and reliable pixels: by hand, against a sort of exact scores, and through every source of labels."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from beco.artifacts.grids import upsampled
from beco.artifacts.pseudolabels import LEVELS, MARGINS, UNCERTAIN, Picture, PseudoLabels, doubt_of, levels_of, put
from beco.artifacts.store import create
from beco.config import Crf, Labels, Training
from beco.crf import refine as crf
from beco.errors import UserError
from beco.exchange.foreign_formats import Scores, settled
from beco.stage1.refine import labels as stage
from beco.stage1.refine.thresholds import with_background

FRACTIONS = [step / 20 for step in range(21)]


def stored(folder: Path, label: np.ndarray, doubt: np.ndarray) -> Picture:
    folder.mkdir(exist_ok=True)
    with create(folder / "labels.h5") as writer:
        put(writer, "a", label, doubt)
    return PseudoLabels(folder / "labels.h5").picture("a")


# --- by hand ------------------------------------------------------------------------------------------------


def test_the_better_half_of_margins_that_lie_close(tmp_path: Path) -> None:
    """What 255 steps of the margin cannot tell: 0.9980, 0.9982 … 0.9998, of which half are the last five."""
    margin = 0.998 + 0.0002 * np.arange(10).reshape(1, 10)
    found = stored(tmp_path, np.full((1, 10), 3, np.uint8), 1 - margin)
    assert found.reliable(0.5).tolist() == [[False] * 5 + [True] * 5]
    assert found.reliable(0.2).tolist() == [[False] * 8 + [True] * 2]


def test_reliable_pixels_by_hand(tmp_path: Path) -> None:
    label = np.array([[0, 0, 0, 0, 0], [2, 2, 2, 255, 255], [1, 7, 7, 7, 7]], np.uint8)
    confidence = np.array([[5, 1, 4, 2, 3], [3, 3, 1, 9, 9], [9, 2, 2, 2, 2]]) / 10
    found = stored(tmp_path, label, 1 - confidence)
    # 0: the best ⌊2.5⌋ = 2 of 5. 2: ⌊1.5⌋ = 1, and the tie with it. 1: ⌊0.5⌋ = 0. 7: 2 of 4, all of them tie.
    expected = [[1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 1, 1]]
    reliable = found.reliable(0.5)
    assert reliable.dtype == bool and reliable.astype(int).tolist() == expected
    assert not found.reliable(0).any()
    assert (found.reliable(1) == (label != UNCERTAIN)).all()


def test_thresholds_on_the_margin(tmp_path: Path) -> None:
    margin = np.array([[0.25, 0.2499, 0.75, 0.9949, 0.9951, 0, 1]])
    found = stored(tmp_path, np.ones((1, 7), np.uint8), 1 - margin)
    for threshold, expected in ((0.25, "1011101"), (0.0, "1111101"), (0.75, "0011101"), (0.995, "0000101")):
        assert "".join("01"[int(value)] for value in found.reliable(0.5, threshold)[0]) == expected, threshold


def test_no_opinion_and_no_confidence_are_never_reliable(tmp_path: Path) -> None:
    found = stored(tmp_path, np.array([[1, 1, 255, 0]], np.uint8), np.array([[1, 0.5, 0, 1]]))
    assert found.reliable(1).tolist() == found.reliable(0.5, 0).tolist() == [[False, True, False, False]]


def test_a_file_of_an_older_version_is_refused(tmp_path: Path) -> None:
    with create(tmp_path / "labels.h5") as writer:
        writer.put("label", "a", np.zeros((1, 2), np.uint8))
        writer.put("confidence", "a", np.full((1, 2), 255, np.uint8))
    old = PseudoLabels(tmp_path / "labels.h5")
    assert not old.label("a").any()  # which is what it was
    for read in (old.check, lambda: old.picture("a")):
        with pytest.raises(UserError, match=r"labels\.h5: made by an older version.* run its stage again"):
            read()


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [("reliable_fraction", 0.33, "0.05; take 0.3 or 0.35"), ("reliable_threshold", 0.333, "0.005; take 0.33 or 0.335"),
     ("reliable_fraction", 0.975, "0.05; take 0.95 or 1")],
)  # fmt: skip
def test_what_cannot_be_told_apart_is_refused(key: str, value: float, near: str) -> None:
    with pytest.raises(ValueError, match=f"are kept in steps of {near}"):
        Training.model_validate({key: value})


@pytest.mark.parametrize("threshold", [0.997, 1.0])
def test_thresholds_end_below_one(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"above 0.995 are not told apart; take 0.995"):
        Training.model_validate({"reliable_threshold": threshold})


def test_steps_are_accepted() -> None:
    for fraction in FRACTIONS:
        assert Training.model_validate(
            {"reliable_fraction": fraction, "reliable_threshold": 0.995 * fraction // 0.005 * 0.005}
        )


# --- what is kept -------------------------------------------------------------------------------------------


def test_the_steps_of_the_margin() -> None:
    assert LEVELS.shape == MARGINS.shape == (256,) and (np.diff(LEVELS) < 0).all() and LEVELS[-1] < 1.1e-8
    assert MARGINS[:200] == pytest.approx(np.arange(200) / 200)


@given(arrays(np.float64, 30, elements=st.floats(0, 1)))
def test_margins_are_rounded_down_by_less_than_a_step(margin: np.ndarray) -> None:
    level = levels_of(1 - margin)
    assert level.dtype == np.uint8
    assert (MARGINS[level] <= margin + 2e-7).all() and (margin - MARGINS[level] < 0.005 + 1e-6).all()
    assert (np.diff(level[np.argsort(margin)].astype(int)) >= 0).all()


def test_what_is_missing_to_certainty_is_known_where_floats_end() -> None:
    """Posteriors whose float32 margins are all 1 and in the wrong order as float64 differences of float32."""
    small = np.array([3e-9, 1e-9, 2e-12], np.float32)
    scores = np.stack([np.float32(1) - small, small, small / 4])
    assert (scores[0] - scores[1] == 1).all()
    assert doubt_of(scores, probabilities=True) == pytest.approx(small * 2.25, rel=1e-5)
    # the same quantity where both can be told
    scores = np.array([[0.7], [0.2], [0.1]])
    assert doubt_of(scores) == pytest.approx([0.5]) == doubt_of(scores, probabilities=True)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.tuples(st.integers(1, 7), st.integers(1, 7)), st.sampled_from(FRACTIONS), st.integers(0, 199))
def test_reliable_pixels_are_the_most_confident_of_their_class(
    data: st.DataObject, shape: tuple[int, int], fraction: float, threshold: int
) -> None:
    label = data.draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 20, 255])))
    few, some = st.sampled_from([0, 0.125, 0.25, 0.5, 1]), st.floats(0, 1)  # few, so that ties are common
    doubt = data.draw(arrays(np.float64, shape, elements=st.one_of(few, some)))
    with tempfile.TemporaryDirectory() as folder:
        found = stored(Path(folder), label, doubt)
    expected = np.zeros(shape, bool)
    for value in (0, 1, 20):  # the definition: pixel by pixel, from a sorted list
        pixels = [at for at in np.ndindex(shape) if label[at] == value]
        number = round(20 * fraction) * len(pixels) // 20
        order = sorted(doubt[at] for at in pixels)
        for at in pixels:
            expected[at] = number > 0 and doubt[at] <= order[number - 1] and doubt[at] < 1
    assert (found.reliable(fraction) == expected).all() and (found.label == label).all()
    known = (label != UNCERTAIN) & (doubt < 1)
    above = known & (doubt <= 1 - threshold / 200 + 1e-7)
    assert (found.reliable(fraction, threshold / 200) == above).all()
    assert (found.confidence()[known] <= 1 - doubt[known] + 2e-7).all()
    assert (found.confidence()[known] > 1 - doubt[known] - 0.0051).all() and not found.confidence()[~known].any()


def test_no_more_than_a_byte_of_steps() -> None:
    """Every rank and every margin at once."""
    doubt = np.linspace(0, 1, 100_000, endpoint=False).reshape(1, -1) ** 2
    with tempfile.TemporaryDirectory() as folder:
        found = stored(Path(folder), np.zeros(doubt.shape, np.uint8), doubt)
    assert (found.reliable(0.35) == (np.arange(100_000) < 35_000)).all()
    assert found.reliable(0.5, 0.75).sum() == 50_001  # the last has a margin of exactly 0.75


# --- through every source: float scores against what comes out ----------------------------------------------

SIZE = (40, 52)


def photograph(rng: np.random.Generator) -> np.ndarray:
    planes = upsampled(rng.random((3, 6, 7)), *SIZE)
    return (255 * planes.transpose(1, 2, 0)).astype(np.uint8)


def cams_of(rng: np.random.Generator, classes: int) -> np.ndarray:
    """(K, h, w) float16 without a plateau of zeros, so that no two margins tie by construction."""
    return rng.random((classes, 10, 13)).astype(np.float16)


def by_cam(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores = with_background(upsampled(cams_of(rng, 2), *SIZE), 0.4)
    label, doubt = stage.from_scores(scores, np.array([2, 5]))
    return label, doubt, exact_margin(scores.astype(np.float64))


def by_walk(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    walked = stage.share_of_maximum(upsampled(cams_of(rng, 2), *SIZE))
    scores = with_background(walked, 0.25)
    label, doubt = stage.from_scores(scores, np.array([2, 5]))
    return label, doubt, exact_margin(scores.astype(np.float64))


def by_crf(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Posteriors that saturate, as on photographs: an appearance kernel of a large weight."""
    recipe = Labels(crf=Crf(bilateral_compat=60, bilateral_sxy=20, bilateral_srgb=30), foreground_threshold=0.5,
                    background_threshold=0.3)  # fmt: skip
    image, cam = photograph(rng), upsampled(cams_of(rng, 2), *SIZE)
    label, doubt = stage.from_crf(image, cam, np.array([2, 5]), recipe)
    mean = np.zeros((3, *SIZE))
    for threshold in (0.5, 0.3):
        mean += crf.refine(image, with_background(cam, threshold).argmax(0), 3, recipe.crf).astype(np.float64) / 2
    ordered = np.sort(mean, axis=0)
    return label, doubt, -(2 * ordered[-2] + ordered[:-2].sum(0))  # the margin less 1, exactly


def by_import(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits = (60 * rng.standard_normal((3, *SIZE))).astype(np.float32)
    label, doubt = settled(Scores(logits, [1, 2], "logits"), SIZE, 2, 0.25)
    shifted = np.exp(logits.astype(np.float64) - logits.max(0))
    ordered = np.sort(shifted / shifted.sum(0), axis=0)
    return label, doubt, -(2 * ordered[-2] + ordered[:-2].sum(0))


def by_import_of_large_scores(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score maps of another program, with the background's, that are not within 0 and 1."""
    planes = (6 * rng.random((3, *SIZE))).astype(np.float32)
    label, doubt = settled(Scores(planes, [1, 2], "plane"), SIZE, 2, 0.25)
    return label, doubt, exact_margin(planes.astype(np.float64))


def exact_margin(scores: np.ndarray) -> np.ndarray:
    ordered = np.sort(scores, axis=0)
    return ordered[-1] - ordered[-2]


@pytest.mark.parametrize("source", [by_cam, by_walk, by_crf, by_import, by_import_of_large_scores])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_source_gives_every_share_that_is_asked_for(
    tmp_path: Path, source: Callable[[np.random.Generator], tuple[np.ndarray, ...]], seed: int
) -> None:
    label, doubt, margin = source(np.random.default_rng(seed))
    reader = stored(tmp_path, label, doubt)
    values = [value for value in np.unique(label) if value != UNCERTAIN]
    assert len(values) > 1
    for fraction in FRACTIONS:
        found = reader.reliable(fraction)
        for value in values:
            here, sure = label == value, doubt < 1  # where two classes tie at the top nothing is known
            number = min(int(round(fraction * 20) * here.sum()) // 20, (here & sure).sum())
            threshold = np.sort(margin[here])[::-1][number - 1] if number else np.inf
            assert found[here].sum() == pytest.approx(number, abs=max(1, 0.01 * here.sum()))
            wrong = found[here] != (margin[here] >= threshold) & sure[here]
            assert wrong.mean() <= 0.01, (fraction, value)  # the last digits of float32 apart


def test_the_posteriors_of_the_test_do_saturate() -> None:
    """Otherwise the test above would say nothing: hundreds of float32 margins are exactly 1."""
    _, doubt, margin = by_crf(np.random.default_rng(0))
    assert (np.float32(1) - doubt.astype(np.float32) == 1).mean() > 0.3
    assert np.unique(margin).size > 0.9 * margin.size
