"""A background that fades by a power, and a CRF that starts from scores, as PSA and those after it have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from beco.artifacts.pseudolabels import UNCERTAIN
from beco.config import Crf, Labels, validate_config
from beco.crf import refine as crf
from beco.errors import UserError
from beco.stage1.refine import labels
from beco.stage1.refine.thresholds import with_background

VALUES = np.array([3, 7], np.uint8)
CASES = range(5)


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (22, 26, 3), and scores of two classes, of which each is high somewhere."""
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(0, 255, (6, 7, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))[:22, :26]
    cam = np.kron(rng.beta(0.7, 0.9, (2, 6, 7)).astype(np.float32), np.ones((1, 4, 4), np.float32))[:, :22, :26]
    return image, cam + rng.uniform(0, 1e-3, cam.shape).astype(np.float32) * (1 - cam)


def slow_planes(cam: np.ndarray, power: float) -> np.ndarray:
    """Background, one pixel after the other, and classes."""
    found = np.zeros((len(cam) + 1, *cam.shape[1:]))
    for y in range(cam.shape[1]):
        for x in range(cam.shape[2]):
            best = max(float(value) for value in cam[:, y, x])
            found[:, y, x] = [(1 - best) ** power, *cam[:, y, x]]
    return found


# --- the power ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.parametrize("power", [1.0, 4.0, 6.5, 24.0])
def test_the_background_is_a_power_of_what_the_best_class_leaves(seed: int, power: float) -> None:
    _, cam = case(seed)
    found = with_background(cam, "power", power)
    assert found.dtype == np.float32 and found == pytest.approx(slow_planes(cam, power), abs=1e-6)
    recipe = Labels(refine="none", background="power", power=power)
    label, _ = labels.from_scores(with_background(cam, *recipe.one_score()), VALUES)
    assert (label == np.array([0, *VALUES])[slow_planes(cam, power).argmax(0)]).all()


def test_scores_beyond_one_by_rounding_leave_nothing_and_no_classes_leave_all() -> None:
    over = np.full((1, 2, 2), np.nextafter(np.float32(1), np.float32(2)))
    assert not with_background(over, "power", 6.5)[0].any()
    assert (with_background(np.zeros((0, 2, 2), np.float32), "power", 4) == 1).all()


def test_one_power_with_the_walk_or_none_and_two_with_the_crf() -> None:
    assert Labels(refine="irn", background="power", power=2).one_score() == ("power", 2)
    assert Labels(refine="none", background=0.4).one_score() == (0.4, 0)
    assert Labels(background="power").two_scores() == (("power", 4), ("power", 24))


# --- the CRF ------------------------------------------------------------------------------------------------


def agreed(posteriors: list[np.ndarray]) -> np.ndarray:
    """PSA's rule by hand: a class by the low power, background by the high one, and else nothing."""
    low, high = (posterior.argmax(0) for posterior in posteriors)
    found = np.full(low.shape, UNCERTAIN)
    for place in np.ndindex(low.shape):
        if low[place]:
            found[place] = VALUES[low[place] - 1]
        elif not high[place]:
            found[place] = 0
    return found


@pytest.mark.parametrize("seed", CASES)
def test_the_crf_starts_from_scores(seed: int) -> None:
    """Where its kernels weigh nothing the posterior is what the planes say, clipped and brought to a sum of 1."""
    image, cam = case(seed)
    weightless = {"gaussian_compat": 1e-9, "bilateral_compat": 1e-9, "iterations": 1}
    recipe = Labels.model_validate({"background": "power", "unary": "scores", "crf": weightless})
    expected = []
    for power in (4, 24):
        planes = slow_planes(cam, power).clip(1e-5, 1)
        expected.append(planes / planes.sum(0))
        found = labels.crf_posterior(image, with_background(cam, "power", power), recipe)
        assert found == pytest.approx(expected[-1], abs=1e-5)
    label, doubt = labels.from_crf(image, cam, VALUES, recipe)
    assert (label == agreed(expected)).all() and {0, 3, 7, UNCERTAIN} >= set(np.unique(label).tolist())
    best = np.sort((expected[0] + expected[1]) / 2, axis=0)
    known = label != UNCERTAIN
    assert doubt[known] == pytest.approx((1 - best[-1] + best[-2])[known], abs=1e-4) and (doubt[~known] == 1).all()


def test_equal_powers_are_one_run() -> None:
    """As CLIP-ES has it: the background is 1 minus the best class, and every pixel has an opinion."""
    image, cam = case(CASES[0])
    recipe = Labels.model_validate(
        {"background": "power", "unary": "scores", "foreground_power": 1, "background_power": 1}
    )
    label, _ = labels.from_crf(image, cam, VALUES, recipe)
    best = labels.crf_posterior(image, with_background(cam, "power", 1), recipe).argmax(0)
    assert (label == np.array([0, *VALUES])[best]).all()


@pytest.mark.parametrize("backend", ["torch", "pydensecrf"])
@pytest.mark.parametrize("background", ["power", 0.15])
def test_from_scores_it_is_pydensecrf_by_hand(backend: str, background: str | float) -> None:
    densecrf, utils = pytest.importorskip("pydensecrf.densecrf"), pytest.importorskip("pydensecrf.utils")
    recipe = Labels.model_validate({"background": background, "unary": "scores", "crf": {"backend": backend}})
    for seed in CASES:
        image, cam = case(seed)
        posteriors = []
        for first, score in zip((4, 24), (0.30, 0.05), strict=True):
            planes = slow_planes(cam, first)
            planes[0] = planes[0] if background == "power" else score
            field = densecrf.DenseCRF2D(26, 22, 3)
            field.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(planes.astype(np.float32))))
            field.addPairwiseGaussian(sxy=3, compat=3)
            field.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(image), compat=10)
            posteriors.append(np.array(field.inference(10)).reshape(3, 22, 26))
        label, _ = labels.from_crf(image, cam, VALUES, recipe)
        assert (label == agreed(posteriors)).mean() > 0.99


def test_scores_have_their_own_kernels() -> None:
    sizes = ["iterations", "gaussian_sxy", "gaussian_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat"]

    def of(**values: Any) -> list[float]:
        return [getattr(Labels.model_validate(values).crf, key) for key in sizes]

    assert of() == of(unary="labels") == [10, 3, 3, 50, 5, 10]
    assert of(unary="scores") == [10, 3, 3, 80, 13, 10]
    assert of(unary="scores", crf={"bilateral_sxy": 50.0}) == [10, 3, 3, 50, 13, 10]
    recipe = Labels.model_validate({"unary": "scores", "crf": {"bilateral_srgb": 5}})
    assert Labels.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    "change", [{"foreground_power": 20.0}, {"background_power": 4.5}, {"unary": "scores"}, {"background": 0.15}]
)
def test_each_setting_changes_the_labels_of_the_crf(change: dict[str, Any]) -> None:
    recipe = {"background": "power", "crf": {"bilateral_sxy": 80, "bilateral_srgb": 13}}
    image, cam = case(1)
    one, other = (Labels.model_validate(values) for values in (recipe, recipe | change))
    assert (labels.from_crf(image, cam, VALUES, one)[0] != labels.from_crf(image, cam, VALUES, other)[0]).any()
    assert one.model_dump_json(include=one.label_keys()) != other.model_dump_json(include=other.label_keys())


@pytest.mark.parametrize("refine", ["none", "irn"])
def test_the_power_changes_labels_without_a_crf(refine: str) -> None:
    cam = case(2)[1]
    one, other = (Labels(refine=refine, background="power", power=power) for power in (1, 12))  # type: ignore[arg-type]
    first, second = (
        labels.from_scores(with_background(cam, *recipe.one_score()), VALUES)[0] for recipe in (one, other)
    )
    assert (first == 0).sum() > (second == 0).sum() and one.label_keys() == {"refine", "background", "power"}


# --- what was before ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", CASES)
def test_labels_of_recipes_without_these_settings_are_what_they_were(seed: int) -> None:
    image, cam = case(seed)
    posteriors = []
    for score in (0.30, 0.05):
        planes = np.concatenate([np.full((1, *cam.shape[1:]), score, np.float32), cam])
        posteriors.append(crf.refine(image, planes.argmax(0), 3, Crf()))
    label, doubt = labels.from_crf(image, cam, VALUES, Labels())
    assert np.array_equal(label, agreed(posteriors))
    mean = np.sort((posteriors[0] + posteriors[1]) / 2, axis=0)
    known = label != UNCERTAIN
    assert doubt[known] == pytest.approx((1 - mean[-1] + mean[-2])[known], abs=1e-5)


def test_what_labels_are_known_by_is_what_it_was() -> None:
    """Settings of recipes and walks are parameters of jobs: new ones that play no part must not change them."""
    kept = {key: getattr(Crf(), key) for key in Crf.model_fields}
    assert set(kept) == {
        "backend", "iterations", "gt_prob", "gaussian_sxy", "gaussian_compat", "bilateral_sxy", "bilateral_srgb",
        "bilateral_compat"}  # fmt: skip
    found = Labels()
    thresholds = {"refine": "crf", "foreground_threshold": 0.3, "background_threshold": 0.05, "crf": kept}
    assert found.model_dump(include=found.label_keys()) == thresholds
    walk = found.irn.model_dump(include=found.irn.walk_keys())
    assert walk == {"walk_radius": 5, "beta": 10.0, "squarings": 8, "resize": None}


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"unary": "scores", "background": "otsu"}, "unary: scores needs the background's score"),
        ({"unary": "scores", "refine": "none"}, "unary: without effect but for refine: crf or irn"),
        ({"unary": "scores", "crf": {"gt_prob": 0.8}}, "crf.gt_prob: without effect with unary: scores"),
        ({"unary": "softmax"}, "labels.crf.unary"),
        ({"unary": "scores", "crf": 3}, "labels.crf.crf"),
        ({"background": "power", "power": 4}, "power: without effect but for background: power with refine: none or"),
        ({"refine": "none", "power": 4}, "power: without effect but for background: power"),
        ({"foreground_power": 2}, "foreground_power: without effect but for background: power"),
        ({"refine": "none", "background": "power", "background_power": 8}, "background_power: without effect but"),
        ({"background": "power", "foreground_power": 25}, "background_power must not be below foreground_power"),
        ({"background": "power", "foreground_power": 0}, "labels.crf.foreground_power"),
        ({"background": 0.4}, "background: without effect but for refine: none, irn or import, or as a rule"),
        ({"irn": {"cam_power": 1.3}}, "irn.cam_power: without effect but for refine: irn"),
        ({"refine": "import", "source": {"path": "x"}, "background": "power"}, "background: power is for our own"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(recipe: dict[str, Any], said: str) -> None:
    values = {"networks": {"default": {}}, "experiments": {"one": {"recipe": "single", "labels": "crf"}}}
    with pytest.raises(UserError) as caught:
        validate_config(values | {"labels": {"crf": recipe}})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_walk_is_shared_by_recipes_whose_pairs_are_alike() -> None:
    """Those of a constant and of a power, and of labels and of scores, are not, in whichever order they come."""
    kernels = {"bilateral_sxy": 80, "bilateral_srgb": 13}
    recipes = {
        "power": {"background": "power"},
        "constant": {},
        "otsu": {"background": "otsu"},
        "scores": {"unary": "scores"},
        "labels": {"crf": kernels},
        "more": {"background": "power", "power": 3},
        "raised": {"irn": {"cam_power": 1.3}},
    }
    for order in (1, -1):
        config = validate_config(
            {
                "labels": {name: {"refine": "irn", **recipes[name]} for name in list(recipes)[::order]},
                "networks": {"default": {}},
                "experiments": {"one": {"recipe": "single", "labels": "power"}},
            }
        )
        owners = {name: config.scores_of(name) for name in recipes}
        assert owners["power"] == owners["more"] and len(set(owners.values())) == len(recipes) - 1
