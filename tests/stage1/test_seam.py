"""SEAM: its pixel correlation module and its losses, against second implementations that go pixel by pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import MIT, TINY
from torch import Tensor
from torch.nn import functional as F
from two_views import CLASSES, PICTURES, gradients, losses, network, pictures

from beco.errors import UserError
from beco.stage1.correlation import PixelCorrelation, alone, correlated, spread, stretched
from beco.stage1.localisers.seam import emptiness


def unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the second implementations -------------------------------------------------------------------------------


def slow_correlated(planes: Tensor, features: Tensor) -> Tensor:
    out = torch.zeros_like(planes)
    for b in range(len(planes)):
        for j in range(planes.shape[2]):
            weights = [max(float(features[b, :, i] @ features[b, :, j]), 0.0) for i in range(planes.shape[2])]
            for i, weight in enumerate(weights):
                out[b, :, j] += planes[b, :, i] * weight / (sum(weights) + 1e-5)
    return out


def slow_stretched(plane: Tensor) -> Tensor:
    plane = plane.clamp(min=0)
    low, high = float(plane.min()), float(plane.max())
    return ((plane - low - 1e-5) / (high - low + 1e-5)).clamp(min=0)


def slow_largest(planes: Tensor) -> Tensor:
    """Of one picture's planes (1 + K, h, w)."""
    out = planes.clone()
    for y in range(planes.shape[1]):
        for x in range(planes.shape[2]):
            most = float(planes[1:, y, x].max())
            for k in range(1, len(planes)):
                if float(planes[k, y, x]) < most:
                    out[k, y, x] = 0
    return out


def resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(planes[None], size, mode="bilinear", align_corners=True)[0]


def slow_terms(
    views: list[tuple[Tensor, Tensor]], targets: Tensor, size: tuple[int, int], by: tuple[int, int] | None = None
) -> dict[str, float]:
    """The four losses of both views' maps (B, K, h, w) and refined planes (B, 1 + K, h, w), picture by picture; `by`: a
    size of which maps are brought first, as the authors' program does with the picture's.
    """
    found = {"cls": 0.0, "rv": 0.0, "er": 0.0, "ecr": 0.0}
    count, classes = targets.shape
    for b in range(count):
        compared, refined = [], []
        for maps, planes in views:
            for k in range(classes):
                share = torch.sigmoid(maps[b, k].mean())
                right = share if targets[b, k] else 1 - share
                found["cls"] -= float(right.log()) / (count * classes * 2)
            own, fine = (resized(one[b], by) if by else one[b] for one in (maps, planes))
            masked = [
                resized(slow_stretched(plane)[None], size)[0] * shown
                for plane, shown in zip(own, targets[b], strict=True)
            ]
            compared.append(torch.stack([1 - torch.stack(masked).max(0).values, *masked]))
            shown = [1.0, *targets[b].tolist()]
            refined.append(
                torch.stack([resized(slow_stretched(p)[None], size)[0] * s for p, s in zip(fine, shown, strict=True)])
            )
            most = (resized(fine, by or size)[1:] * targets[b][:, None, None]).max(0).values.flatten().sort().values
            quarter = most[: len(most) // 4]
            found["rv"] += float(quarter.clamp(min=0).mean()) / (2 * count)
        found["er"] += float((compared[0][1:] - compared[1][1:]).abs().mean()) / count
        for right, told in ((compared[1], refined[0]), (compared[0], refined[1])):
            wrong = (slow_largest(right) - told).abs().flatten().sort(descending=True).values
            found["ecr"] += float(wrong[: int(0.2 * len(wrong))].mean()) / count
    return found


# --- the module -----------------------------------------------------------------------------------------------


def test_pixels_are_averaged_with_those_that_are_like_them() -> None:
    planes = random(1, 2, 6).abs()
    same = unit(torch.ones(1, 4, 6))
    assert torch.allclose(correlated(planes, same), planes.mean(2, keepdim=True).expand_as(planes), atol=1e-5)
    groups = torch.zeros(1, 4, 6)
    groups[0, 0, :2] = groups[0, 1, 2:] = 1
    means = correlated(planes, groups)
    assert torch.allclose(means[..., :2], planes[..., :2].mean(2, keepdim=True).expand(-1, -1, 2), atol=1e-5)
    assert torch.allclose(means[..., 2:], planes[..., 2:].mean(2, keepdim=True).expand(-1, -1, 4), atol=1e-5)
    constant = correlated(torch.ones(1, 1, 6), unit(random(1, 4, 6)))
    assert float((constant - 1).abs().max()) < 2e-5  # the weights of a pixel sum to 1
    assert torch.equal(correlated(planes, torch.zeros(1, 4, 6)), torch.zeros_like(planes))


@pytest.mark.parametrize("most", [1, 70, 10**6])
def test_the_affinity_is_worked_on_in_pieces(most: int) -> None:
    planes, features = random(2, 3, 11).abs(), unit(random(2, 5, 11, seed=1)).requires_grad_()
    sizes: list[int] = []

    def noted(kept: Tensor) -> Tensor:
        sizes.append(kept.numel())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda kept: kept):
        found = correlated(planes, features, most)
    assert torch.allclose(found, slow_correlated(planes, features.detach()), atol=1e-6)
    assert max(sizes) <= max(most, features.numel())  # beside the inputs nothing larger waits for the backward pass
    (gradient,) = torch.autograd.grad((found * random(2, 3, 11, seed=2)).sum(), features)
    whole = features.detach().clone().requires_grad_()
    weights = (whole.transpose(1, 2) @ whole).relu()
    expected = planes @ (weights / (weights.sum(1, keepdim=True) + 1e-5))
    (right,) = torch.autograd.grad((expected * random(2, 3, 11, seed=2)).sum(), whole)
    assert torch.allclose(gradient, right, atol=1e-6)
    with torch.inference_mode():
        assert torch.allclose(correlated(planes, features, most), found, atol=1e-6)


def test_what_is_averaged_is_the_largest_class_of_each_pixel() -> None:
    maps = random(2, CLASSES, 4, 5)
    maps[0, 1] = -1  # nowhere
    found = alone(maps)
    for b in range(2):
        shares = torch.stack([(m.clamp(min=0) - 1e-5).clamp(min=0) / (m.clamp(min=0).max() + 1e-5) for m in maps[b]])
        background = 1 - shares.max(0).values
        assert torch.allclose(found[b], slow_largest(torch.stack([background, *shares])))
    assert not found[0, 2].any()


# --- the losses -----------------------------------------------------------------------------------------------


def two_views(seed: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Random maps of a view of 8 × 7 cells and of one of 4 × 3, and their refined planes."""
    targets = (random(3, CLASSES, seed=seed) > -0.3).float()
    sizes = ((8, 7), (4, 3))
    maps = [random(3, CLASSES, *size, seed=seed + n) for n, size in enumerate(sizes)]
    return [(one, random(3, 1 + CLASSES, *one.shape[2:], seed=seed + 7).abs()) for one in maps], targets


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_losses_are_those_of_a_second_implementation(seed: int) -> None:
    views, targets = two_views(seed)
    made = network("seam")
    one, two = (made.see(pictures()[0], pictures()[1])._replace(maps=maps, refined=fine) for maps, fine in views)
    found = made.terms(one, two, targets, (13, 11), None)
    expected = slow_terms(views, targets, (13, 11))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-6)


def test_by_way_of_the_pictures_size_losses_are_nearly_the_same() -> None:
    """As the authors' program has it, which keeps every map at the size of the picture."""
    smooth = F.interpolate(random(2, CLASSES, 3, 3), (16, 16), mode="bicubic") * 2
    other = F.interpolate(random(2, CLASSES, 3, 3), (5, 5), mode="bicubic") * 2
    views = [(maps, F.pad(maps.abs(), (0, 0, 0, 0, 1, 0), value=0.3)) for maps in (smooth, other)]
    targets = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    direct, around = (slow_terms(views, targets, (38, 38), by) for by in (None, (128, 128)))
    assert direct == pytest.approx(around, rel=0.03, abs=0.005)


def test_an_unchanged_view_has_no_equivariance_loss() -> None:
    found = losses(network("seam", second_view=1.0, dropout=0.0))
    assert float(found["loss_er"]) == 0 and float(found["loss_ecr"]) > 0.01  # the module is no identity
    assert float(losses(network("seam", dropout=0.0))["loss_er"]) > 0


def test_a_quarter_without_score_is_empty_enough() -> None:
    planes = torch.ones(1, 1 + CLASSES, 2, 4)
    planes[0, 1:, 0, :2] = 0
    targets = torch.ones(1, CLASSES)
    assert float(emptiness(planes, targets)) == 0
    planes[0, 2, 0, 0] = 0.5
    assert float(emptiness(planes, targets)) == 0.25
    targets[0, 1] = 0
    assert float(emptiness(planes, targets)) == 0  # no score of a class that is absent


def test_without_its_own_losses_it_is_the_classifier() -> None:
    """Bit for bit, if the second view is the first."""
    plain, bare = network("cam"), network("seam", er=0.0, ecr=0.0, rv=0.0, dropout=0.0, second_view=1.0)
    right, found = losses(plain)["loss"], losses(bare)["loss"]
    assert torch.equal(right, found)
    expected, obtained = gradients(plain, right), gradients(bare, found)
    assert all(torch.equal(gradient, obtained[name]) for name, gradient in expected.items())
    assert not any(obtained[name].any() for name in obtained if name not in expected)


def test_the_module_alone_learns_from_its_losses() -> None:
    """And the rest from the classes and from what the two views' own maps differ."""
    found = {}
    for weight in (0.0, 1.0):
        made = network("seam", ecr=weight, rv=weight)
        found[weight] = gradients(made, losses(made)["loss"])
    without, learnt = found[0.0], found[1.0]
    for name, gradient in learnt.items():
        assert torch.equal(gradient, without[name]) is not name.startswith("correlation."), name
    made = network("seam", er=0.0)
    without = gradients(made, losses(made)["loss"])
    assert not torch.equal(without["head.weight"], learnt["head.weight"])
    assert all(torch.equal(without[key], learnt[key]) for key in learnt if key.startswith("correlation."))


def test_the_module_begins_as_published() -> None:
    """Its last convolution with Xavier's uniform weights times 4."""
    weight = PixelCorrelation(8, 16).joint.weight
    most = 4 * (6 / (weight.shape[0] + weight.shape[1])) ** 0.5
    assert 0.98 * most < float(weight.detach().abs().max()) <= most


def test_parts_of_a_batch_are_the_batch() -> None:
    """Dropout included."""
    made = network("seam")
    whole, halves = losses(made), [losses(made, slots) for slots in ([0, 2], [1, 3])]
    for name, value in whole.items():
        assert torch.allclose(value, (halves[0][name] + halves[1][name]) / 2, atol=1e-6), name


@pytest.mark.parametrize(
    "options",
    [{"second_view": 0.5}, {"er": 2.0}, {"ecr": 2.0}, {"rv": 2.0}, {"dropout": 0.2}, {"known_classes": True}],
)
def test_an_option_changes_the_loss(options: dict[str, float]) -> None:
    assert not torch.equal(losses(network("seam", **options))["loss"], losses(network("seam"))["loss"])


def test_a_map_is_the_modules() -> None:
    images, targets = pictures()
    made = network("seam").eval()
    with torch.inference_mode():
        seen = made.see(images, targets)
        assert torch.equal(made.view(images, targets), seen.refined[:, 1:])
        known = network("seam", known_classes=True).eval().view(images, targets)
    assert not known[targets == 0].any() and seen.refined[:, 1:][targets == 0].any()
    assert float(seen.refined.min()) >= 0 and float(seen.refined.max()) <= 1
    planes = made.normalised(random(2, 5, 6) + 3)
    assert torch.equal(planes.amin((1, 2)), torch.zeros(2))
    assert torch.allclose(planes.amax((1, 2)), torch.ones(2), atol=1e-4)
    assert not stretched(torch.full((1, 2, 2), 3.0)).any()


def test_maps_of_views_of_different_sizes_lie_upon_each_other() -> None:
    line = torch.linspace(0, 1, 9)
    fine, coarse = (spread(row[None, None, None].expand(1, 1, 3, -1), (13, 13)) for row in (line, line[::4]))
    assert torch.allclose(fine, coarse, atol=1e-6)


@pytest.mark.parametrize(
    ("encoder", "stride"),
    [(TINY, 16), (TINY, 32), (MIT, 32), ({"name": "convnext_atto", "options": {"dims": [8, 8, 16, 16]}}, 32)],
    ids=["stride 16", "stride 32", "mit", "convnext"],
)
@pytest.mark.parametrize("method", ["seam", "ppc"])
def test_any_encoder_with_three_maps(method: str, encoder: dict[str, Any], stride: int) -> None:
    made = network(method, encoder=encoder, output_stride=stride)
    found = losses(made)
    assert all(value.isfinite() for value in found.values())
    assert gradients(made, found["loss"]).keys() == {name for name, _ in made.named_parameters()}
    images, targets = pictures()
    assert made.eval().view(images, targets).shape[:2] == (PICTURES, CLASSES)


def test_an_encoder_of_fewer_than_three_maps() -> None:
    encoder = {"name": "resnet10t", "options": {"out_indices": [3, 4]}}
    with pytest.raises(UserError, match=r"`resnet10t` has 2 feature maps, and `seam` needs three"):
        network("seam", encoder=encoder)
