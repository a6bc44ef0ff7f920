"""Background scores from a picture's own maps, against slow second versions."""

from __future__ import annotations

import numpy as np
import pytest

from beco.config import Labels, validate_config
from beco.errors import UserError
from beco.stage1.refine import labels
from beco.stage1.refine.thresholds import background_scores, with_background

VALUES = np.array([3, 7], np.uint8)


def planes_of(seed: int, classes: int = 2, size: tuple[int, int] = (19, 23)) -> np.ndarray:
    """Maps of two kinds of pixel, as different by class as activation maps are."""
    rng = np.random.default_rng(seed)
    inside = rng.random((classes, *size)) < rng.uniform(0.1, 0.6, (classes, 1, 1))
    low, high = rng.beta(2, 9, inside.shape), rng.beta(6, 3, inside.shape)
    found = np.where(inside, high, low).astype(np.float32)
    return found / found.max((1, 2), keepdims=True)


def slow_otsu(values: np.ndarray) -> float:
    """The middle of the histogram bin after which the two parts have the least variance within, found by trying all."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    best, found = np.inf, 0.0
    for split in range(1, 256):
        within = 0.0
        for part in (slice(0, split), slice(split, None)):
            weight = counts[part].sum()
            if weight:
                mean = (counts[part] * centres[part]).sum() / weight
                within += (counts[part] * (centres[part] - mean) ** 2).sum()
        if within < best - 1e-12:
            best, found = within, centres[split - 1]
    return float(found)


@pytest.mark.parametrize("seed", range(12))
def test_otsu_is_the_split_of_least_variance(seed: int) -> None:
    cam = planes_of(seed)
    step = 1 / 256
    assert background_scores(cam, "otsu") == pytest.approx([slow_otsu(plane) for plane in cam], abs=1.5 * step)
    assert background_scores(cam, "otsu_pooled") == pytest.approx([slow_otsu(cam)] * 2, abs=1.5 * step)
    assert background_scores(cam, 0.25).tolist() == [0.25, 0.25]


@pytest.mark.parametrize("seed", range(6))
def test_li_has_the_least_cross_entropy(seed: int) -> None:
    """Of all splits tried, none has a lower cross-entropy (Li & Lee 1993, equation 9) by more than a trifle."""
    plane = planes_of(seed, 1)[0]

    def entropy(split: float) -> float:
        parts = plane[plane <= split], plane[plane > split]
        return -sum(float(part.sum()) * np.log(float(part.mean())) for part in parts if len(part))

    found = float(background_scores(plane[None], "li")[0])
    lowest = min(entropy(split) for split in np.linspace(0.02, 0.98, 97))
    assert entropy(found) <= lowest + 0.01 * abs(lowest)


@pytest.mark.parametrize("rule", ["otsu", "otsu_pooled", "li", 0.3])
def test_a_pixel_is_of_the_class_that_exceeds_its_score_most(rule: str | float) -> None:
    cam = planes_of(3)
    scores = background_scores(cam, rule)  # type: ignore[arg-type]
    label, _ = labels.from_scores(with_background(cam, rule), VALUES)  # type: ignore[arg-type]
    for y in range(cam.shape[1]):
        for x in range(cam.shape[2]):
            over = [float(cam[k, y, x]) - float(scores[k]) for k in range(2)]
            if max(over) > 1e-6:
                assert label[y, x] == VALUES[int(np.argmax(over))]
            elif max(over) < -1e-6:
                assert label[y, x] == 0


def test_with_a_constant_it_is_the_constant_plane() -> None:
    cam = planes_of(4)
    found = with_background(cam, 0.4)
    assert found.shape == (3, 19, 23) and (found[0] == np.float32(0.4)).all() and (found[1:] == cam).all()
    assert with_background(cam, 0.4, 0.1)[0, 0, 0] == np.float32(0.5)


@pytest.mark.parametrize("rule", ["otsu", "otsu_pooled", "li"])
def test_planes_without_two_kinds_of_pixel(rule: str) -> None:
    flat = np.stack([np.zeros((4, 5), np.float32), np.full((4, 5), 0.7, np.float32)])
    for cam in (flat[:1], flat[1:]):
        label, _ = labels.from_scores(with_background(cam, rule), VALUES[:1])  # type: ignore[arg-type]
        assert not label.any()
    none = np.zeros((0, 4, 5), np.float32)
    assert with_background(none, rule).shape == (1, 4, 5)  # type: ignore[arg-type]
    sparse = np.zeros((1, 8, 8), np.float32)
    sparse[0, 2, 3] = 1
    label, _ = labels.from_scores(with_background(sparse, rule), VALUES[:1])  # type: ignore[arg-type]
    assert label[2, 3] == 3 and label.sum() == 3


def test_the_two_runs_of_the_crf_lie_about_the_score() -> None:
    recipe = Labels(background="otsu", foreground_margin=0.2, background_margin=0.05)
    assert recipe.two_scores() == (("otsu", 0.2), ("otsu", -0.05))
    assert Labels().two_scores() == ((0.30, 0.0), (0.05, 0.0))
    cam = planes_of(5)
    high, low = (with_background(cam, *score).argmax(0) > 0 for score in recipe.two_scores())
    plain = with_background(cam, "otsu").argmax(0) > 0
    assert high.sum() < plain.sum() < low.sum() and not (high & ~plain).any() and not (plain & ~low).any()


@pytest.mark.parametrize("setting", ["background", "foreground_margin", "background_margin"])
def test_each_setting_changes_the_labels_of_the_crf(setting: str) -> None:
    rng = np.random.default_rng(6)
    image = rng.integers(0, 255, (24, 26, 3), dtype=np.uint8)
    cam = np.kron(planes_of(7, 2, (6, 7)), np.ones((1, 4, 4), np.float32))[:, :24, :26]
    recipe = Labels(background="otsu")
    other = recipe.model_copy(update={setting: "otsu_pooled" if setting == "background" else 0.3})
    made = [labels.from_crf(image, cam, VALUES, one)[0] for one in (recipe, other)]
    assert (made[0] != made[1]).any()
    assert setting in recipe.label_keys()


def test_constants_and_rules_have_their_own_settings() -> None:
    fixed = {"refine", "foreground_threshold", "background_threshold", "crf"}
    assert Labels().label_keys() == fixed
    assert Labels(background="li").label_keys() == {
        "refine", "background", "foreground_margin", "background_margin", "crf"}  # fmt: skip
    assert Labels(background="power").label_keys() == {
        "refine", "background", "foreground_power", "background_power", "crf"}  # fmt: skip
    assert Labels(refine="none", background="power").label_keys() == {"refine", "background", "power"}
    Labels(background="otsu", foreground_threshold=0.1, background_threshold=0.2)  # not looked at


@pytest.mark.parametrize("wrong", ["otzu", 1.5, None])
def test_what_is_neither_a_score_nor_a_rule(wrong: object) -> None:
    values = {"networks": {"default": {}}, "experiments": {"one": {"recipe": "single", "labels": "crf"}}}
    with pytest.raises(UserError) as caught:
        validate_config(values | {"labels": {"crf": {"background": wrong}}})
    assert "labels.crf.background" in str(caught.value) and "\n" not in str(caught.value)


def test_imported_labels_take_a_score() -> None:
    with pytest.raises(ValueError, match="background: otsu is for our own score maps"):
        Labels.model_validate({"refine": "import", "source": {"path": "x"}, "background": "otsu"})
