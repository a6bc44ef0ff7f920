"""PPC: its three contrasts against second implementations that go pixel by pixel, for any number of classes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from two_views import SIDE, gradients, losses, network, pictures

from beco.schema.stage1 import options_of
from beco.stage1.localisers import ppc
from beco.stage1.localisers.ppc import class_prototypes, contrast, intra, middle_ranks, pseudo_labels, rank_within


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the second implementations -------------------------------------------------------------------------------


def nce(pixel: Tensor, label: int, prototypes: Tensor, against: list[int]) -> float:
    similar = [math.exp(float(pixel @ one) / 0.1) for one in prototypes]
    return math.log(sum(similar[c] for c in against) / similar[label])


def slow_contrast(pixels: Tensor, labels: list[int], prototypes: Tensor) -> float:
    every = list(range(len(prototypes)))
    return sum(nce(p, u, prototypes, every) for p, u in zip(pixels, labels, strict=True)) / len(pixels)


def slow_intra(pixels: Tensor, labels: list[int], prototypes: Tensor, chance: Tensor, ranks: tuple[int, int]) -> float:
    """`ranks`: first and last, counted from 1, of the prototypes that are compared with."""
    means = []
    for label in sorted(set(labels)):
        found = []
        for n in (n for n, own in enumerate(labels) if own == label):
            likeness = pixels[n] @ prototypes.T
            order = sorted(range(len(prototypes)), key=lambda c: -float(likeness[c]))
            value = nce(pixels[n], label, prototypes, [label, *order[ranks[0] - 1 : ranks[1]]])
            found.append((float(likeness[label]), float(chance[n]), value))
        count = len(found)
        least = sorted(found)[int(0.1 * count) : max(int(0.6 * count + 1e-9), int(0.1 * count) + 1)]
        drawn = sorted(found, key=lambda one: one[1])[: max(count // 2, 1)]
        means.append(sum(sum(one[2] for one in some) / len(some) for some in (least, drawn)) / 2)
    return sum(means) / len(means)


def slow_prototypes(features: Tensor, scores: Tensor, count: int) -> Tensor:
    rows = []
    for plane in scores.T:
        chosen = sorted(range(len(plane)), key=lambda n: -float(plane[n]))[:count]
        total = torch.stack([features[n] * plane[n] for n in chosen]).sum(0)
        rows.append(total / total.norm() if total.norm() > 0 else total)
    return torch.stack(rows)


# --- the contrasts --------------------------------------------------------------------------------------------


def test_known_values_of_twenty_classes() -> None:
    labels, chance = torch.arange(21).repeat(8), torch.rand(168, generator=torch.Generator().manual_seed(0))
    same = F.normalize(torch.ones(168, 4))
    assert float(contrast(same, labels, same[:21])) == pytest.approx(math.log(21), abs=1e-5)
    assert float(intra(same, labels, same[:21], chance)) == pytest.approx(math.log(11), abs=1e-5)
    own = torch.eye(21)
    assert float(contrast(own[labels], labels, own)) == pytest.approx(9.08e-4, rel=1e-3)
    assert float(intra(own[labels], labels, own, chance)) == pytest.approx(4.54e-4, rel=1e-3)


@pytest.mark.parametrize(("classes", "ranks"), [(1, (2, 2)), (3, (2, 3)), (20, (4, 13)), (80, (13, 51))])
def test_contrasts_are_those_of_a_second_implementation(classes: int, ranks: tuple[int, int]) -> None:
    chosen = middle_ranks(1 + classes)
    assert (chosen.start + 1, chosen.stop) == ranks
    pixels, prototypes = F.normalize(random(60, 16)), F.normalize(random(1 + classes, 16, seed=1))
    labels = (random(60, seed=2).abs() * classes).long().clamp(max=classes)
    chance = torch.rand(60, generator=torch.Generator().manual_seed(3))
    slow = slow_intra(pixels, labels.tolist(), prototypes, chance, ranks)
    assert float(intra(pixels, labels, prototypes, chance)) == pytest.approx(slow, rel=1e-5)
    assert float(contrast(pixels, labels, prototypes)) == pytest.approx(
        slow_contrast(pixels, labels.tolist(), prototypes), rel=1e-5
    )


def test_ranks_within_a_class() -> None:
    labels = torch.tensor([1, 0, 1, 1, 0])
    values = torch.tensor([0.3, 0.9, 0.1, 0.3, 0.2])
    assert rank_within(values, F.one_hot(labels, 3), labels).tolist() == [1, 1, 0, 2, 0]


def test_a_prototype_is_made_of_the_pixels_that_have_most_of_its_class() -> None:
    features, scores = random(40, 6).abs(), random(40, 4, seed=1).clamp(min=0)
    scores[:, 2] = 0
    found = class_prototypes(features, scores, 5)
    assert torch.allclose(found, slow_prototypes(features, scores, 5), atol=1e-6)
    assert not found[2].any() and float(found[3].norm()) == pytest.approx(1)


def test_a_pixels_label_is_a_class_of_its_picture_or_the_background() -> None:
    planes = torch.tensor([0.3, 0.9, 0.1, 0.1, 0.9, 0.3]).view(1, 3, 1, 2)
    assert pseudo_labels(planes, torch.tensor([[1.0, 1, 1]]), 0.2).tolist() == [3, 1]
    assert pseudo_labels(planes, torch.tensor([[1.0, 1, 0]]), 0.2).tolist() == [1, 1]
    assert pseudo_labels(planes, torch.tensor([[0.0, 1, 0]]), 0.2).tolist() == [0, 0]


def test_the_backgrounds_prototype_is_of_background() -> None:
    planes = torch.tensor([0.9, 0.0, 0.6, 0.2, 0.1, 0.0, 0.9, 0.9]).view(1, 2, 1, 4)
    targets = torch.tensor([[1.0, 0]])
    real = network("ppc", classes=2).scores(planes, targets)
    assert torch.allclose(real[0, 0, 0], torch.tensor([0.1, 1.0, 0.4, 0.8])) and torch.equal(real[:, 1:], planes)
    tied = network("ppc", classes=2, tied_background=True).scores(planes, targets)
    assert torch.equal(tied[:, 0], torch.full((1, 1, 4), 0.2)) and torch.equal(tied[:, 1:], planes)
    features = random(4, 6).abs()
    first = class_prototypes(features, tied.flatten(2)[0].T, 2)[0]
    assert torch.allclose(first, F.normalize(features[:2].sum(0), dim=0), atol=1e-6)


def test_a_picture_of_dead_maps_is_no_background() -> None:
    """Its classes' planes are 0 everywhere, and so all of it would be the background that others lack."""
    planes = torch.zeros(3, 2, 1, 4)
    planes[0, 0, 0] = torch.tensor([0.9, 0.1, 0.0, 0.5])
    planes[1, 1] = 0.7  # of a class that it does not show
    targets = torch.tensor([[1.0, 0], [1, 0], [0, 0]])  # the last shows nothing, and is all background
    found = network("ppc", classes=2).scores(planes, targets)[:, 0, 0]
    assert torch.allclose(found, torch.tensor([[0.1, 0.9, 1.0, 0.5], [0.0] * 4, [1.0] * 4]))


# --- the localiser --------------------------------------------------------------------------------------------

NONE = {"cross_prototype": 0.0, "cross_label": 0.0, "intra": 0.0}
CONTRASTS = ["cross_prototype", "cross_label", "intra"]


def test_without_its_contrasts_it_is_seam() -> None:
    """The same numbers, with SEAM's second view."""
    right, found = losses(network("seam")), losses(network("ppc", **NONE, second_view=0.3))
    assert right.keys() == found.keys() - {f"loss_{name}" for name in CONTRASTS}
    assert all(torch.equal(value, found[name]) for name, value in right.items())
    assert options_of("seam").model_fields.keys() < options_of("ppc").model_fields.keys()


def test_identical_views_have_one_cross_contrast() -> None:
    found = losses(network("ppc", second_view=1.0, dropout=0.0))
    assert torch.equal(found["loss_cross_prototype"], found["loss_cross_label"])
    assert found["loss_intra"] > 0
    other = losses(network("ppc", second_view=0.5, dropout=0.0))
    assert not torch.equal(other["loss_cross_prototype"], other["loss_cross_label"])


@pytest.mark.parametrize("classes", [1, 3, 13])
def test_its_terms_are_those_of_a_second_implementation(classes: int) -> None:
    """From the projected features and refined maps of two views of one size, so that nothing is resized."""
    made = network("ppc", classes=classes, second_view=1.0)
    images, targets = pictures(classes)
    views = [made.see(images, targets), made.see(images.flip(3), targets)]
    features, labels, prototypes = [], [], []
    for view in views:
        projected = torch.einsum("dc,bchw->bhwd", made.projection.weight[:, :, 0, 0], view.last).clamp(min=0)
        flat, planes = projected.flatten(0, 2).detach(), []
        for plane in view.refined[:, 1:].flatten(0, 1).detach():
            planes.append(((plane - plane.min() - 1e-5) / (plane.max() - plane.min() + 1e-5)).clamp(min=0))
        grid = torch.stack(planes).view(view.refined[:, 1:].shape)
        shown = grid * targets[:, :, None, None]
        labels.append(
            [
                max(range(1 + classes), key=lambda c: 0.2 if c == 0 else float(shown[b, c - 1, y, x]))
                for b in range(len(shown))
                for y in range(shown.shape[2])
                for x in range(shown.shape[3])
            ]
        )
        background = 1 - shown.max(1, keepdim=True).values
        for own, target, planes_of_it in zip(background, targets, shown, strict=True):
            if target.any() and not planes_of_it.any():
                own.zero_()
        scores = torch.cat([background, grid], 1).permute(0, 2, 3, 1).flatten(0, 2)
        prototypes.append(slow_prototypes(flat, scores, shown.shape[2] * shown.shape[3] // 8))
        features.append(flat / flat.norm(dim=1, keepdim=True))

    class Fixed:
        def uniform(self, *shape: int) -> Tensor:
            return torch.rand(len(images), *shape, generator=torch.Generator().manual_seed(len(shape)))

    chance = Fixed().uniform(*shown.shape[2:]).flatten()
    found: dict[str, Any] = made.terms(*views, targets, (SIDE, SIDE), Fixed())
    ranks = middle_ranks(1 + classes)
    expected = {
        "cross_prototype": [slow_contrast(features[n], labels[n], prototypes[1 - n]) for n in (0, 1)],
        "cross_label": [slow_contrast(features[n], labels[1 - n], prototypes[n]) for n in (0, 1)],
        "intra": [
            slow_intra(features[n], labels[n], prototypes[n], chance, (ranks.start + 1, ranks.stop)) for n in (0, 1)
        ],
    }
    for name, values in expected.items():
        assert float(found[name].detach()) == pytest.approx(sum(values) / 2, rel=1e-4, abs=1e-6), name


def test_contrasts_reach_the_backbone_and_no_refinement() -> None:
    alone = network("ppc", **NONE)
    without = gradients(alone, losses(alone)["loss"])
    made = network("ppc")
    learnt = gradients(made, losses(made)["loss"])
    assert learnt["projection.weight"].any() and not without["projection.weight"].any()
    changed = {name.split(".")[0] for name in learnt if not torch.equal(learnt[name], without[name])}
    assert changed == {"backbone", "projection"}


def test_prototypes_are_taken_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def watched(*given: Any) -> Tensor:
        asked.append([one.requires_grad for one in given[:2]])
        return class_prototypes(*given)

    monkeypatch.setattr(ppc, "class_prototypes", watched)
    assert losses(network("ppc"))["loss"].requires_grad
    assert asked == [[False, False]] * 2


@pytest.mark.parametrize(
    "options",
    [
        {"second_view": 0.5},
        {"cross_prototype": 0.5},
        {"cross_label": 0.5},
        {"intra": 0.5},
        {"background": 0.5},
        {"tied_background": True},
        {"dropout": 0.1},
    ],
)
def test_an_option_changes_the_loss(options: dict[str, float]) -> None:
    assert not torch.equal(losses(network("ppc", **options))["loss"], losses(network("ppc"))["loss"])
