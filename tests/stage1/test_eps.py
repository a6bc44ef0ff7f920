"""EPS: its loss against a slow second version and by hand, and what its options change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beco.config import Encoder
from beco.schema.stage1 import options_of
from beco.stage1 import localisers
from beco.stage1.localisers.base import Localiser

SMALL = Encoder(name="resnet10t", options={"channels": [8, 8, 16, 16]})


def eps(classes: int = 3, **options: Any) -> Localiser:
    return localisers.make("eps", SMALL, 16, classes, True, options)


def batch_of(pictures: int, side: int, classes: int, seed: int, padded: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inside = torch.ones(pictures, side, side, dtype=torch.bool)
    if padded:
        inside[0, :, : side // 2] = False
        inside[1:, -20:] = False
    return {
        "image": torch.randint(256, (pictures, 3, side, side), generator=generator, dtype=torch.uint8),
        "target": (torch.rand(pictures, classes, generator=generator) > 0.5).float(),
        "saliency": torch.rand(pictures, side, side, generator=generator) * inside,
        "inside": inside,
    }


def losses(network: Localiser, maps: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of class maps (B, K+1, h, w) that are given."""
    network.maps = lambda images: maps
    return network.losses(torch.zeros(0), batch | network.totals(batch), 0, 1, None)


def slow(maps: Tensor, batch: dict[str, Tensor], options: dict[str, Any]) -> tuple[float, float]:
    """Loss on classes and on saliency, cell by cell."""
    side, cells = batch["saliency"].shape[-1], maps.shape[-1]
    step, classes = side / cells, maps.shape[1] - 1
    on_classes = on_saliency = counted = 0.0
    for picture, planes in enumerate(maps.double().tolist()):
        wanted = batch["target"][picture].tolist()
        for k in range(classes):
            logit = sum(map(sum, planes[k])) / cells**2
            sign = 1 if wanted[k] else -1
            on_classes += math.log(1 + math.exp(-sign * logit)) / classes / len(maps)
        at = [(y, x) for y in range(cells) for x in range(cells)]
        share = {}
        for y, x in at:
            powers = [math.exp(plane[y][x]) for plane in planes]
            share[y, x] = [power / sum(powers) for power in powers]
        place = {(y, x): (int((y + 0.5) * step), int((x + 0.5) * step)) for y, x in at}
        if options["padding"] == "ignored":
            at = [one for one in at if batch["inside"][picture][place[one]]]
        salient = {one: float(batch["saliency"][picture][place[one]]) for one in at}
        valid = []
        for k in range(classes):
            own = [one for one in at if share[one][k] > 0.5]
            among = sum(salient[one] > 0.5 for one in own) / (len(own) + 1e-4 * cells**2)
            valid.append(among > options["salient_share"])
        for one in at:
            present = [k for k in range(classes) if wanted[k]]
            front = sum(share[one][k] for k in present if valid[k])
            back = share[one][classes] + sum(share[one][k] for k in present if not valid[k])
            weight = options["foreground_weight"]
            on_saliency += (weight * front + (1 - weight) * (1 - back) - salient[one]) ** 2
        counted += len(at)
    return on_classes, on_saliency / counted


@pytest.mark.parametrize("padding", ["ignored", "background"])
@pytest.mark.parametrize(("seed", "classes"), [(0, 1), (1, 3), (2, 6)])
def test_its_losses_are_those_of_a_slow_version(padding: str, seed: int, classes: int) -> None:
    given = {"padding": padding, "salient_share": 0.3 + 0.1 * seed, "foreground_weight": 0.2 + 0.3 * seed}
    network, batch = eps(classes, **given), batch_of(3, 64, classes, seed, padded=True)
    maps = 6 * torch.randn(3, classes + 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    found = losses(network, maps, batch)
    on_classes, on_saliency = slow(maps, batch, network.options)
    assert float(found["loss_classes"]) == pytest.approx(on_classes, rel=1e-5)
    assert float(found["loss_saliency"]) == pytest.approx(on_saliency, rel=1e-5)
    assert float(found["loss"]) == pytest.approx(on_classes + on_saliency, rel=1e-5)


def one_hot(planes: list[list[list[float]]]) -> Tensor:
    """Maps whose softmax is these planes of 0 and 1."""
    return 60 * torch.tensor(planes)[None]


LEFT = [[1.0, 1.0, 0.0, 0.0]] * 4
RIGHT = [[0.0, 0.0, 1.0, 1.0]] * 4
ALL, NOWHERE = [[1.0] * 4] * 4, [[0.0] * 4] * 4


def half_salient(classes: int = 2) -> dict[str, Tensor]:
    saliency = torch.tensor(LEFT).repeat_interleave(16, 0).repeat_interleave(16, 1)[None]
    target = torch.zeros(1, classes)
    target[0, 0] = 1
    image, inside = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.ones(1, 64, 64, dtype=torch.bool)
    return {"image": image, "target": target, "saliency": saliency, "inside": inside}


@pytest.mark.parametrize(("limit", "loss"), [(0.4, 0), (0.9997, 0), (0.9999, 0.5)])
def test_a_class_on_the_salient_half(limit: float, loss: float) -> None:
    """Its salient share is 0.9998, because of the 1e-4 below the line; beyond that limit it is background."""
    found = losses(eps(2, salient_share=limit), one_hot([LEFT, NOWHERE, RIGHT]), half_salient())
    assert float(found["loss_saliency"]) == pytest.approx(loss, abs=1e-6)


def test_a_share_at_the_limit_is_not_enough() -> None:
    """One cell of one pixel, so that nothing rounds: its share is 1 / (1 + 1e-4) in the estimate and in the limit."""
    one = torch.ones(1, 1, 1)
    share = float(one.sum() / (one + 1e-4).sum())
    shares, target = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1), torch.tensor([[1.0, 0]])
    for limit, estimate in ((share, 0), (share - 1e-6, 1)):
        assert float(eps(2, salient_share=limit).estimate(shares, target, one, one)) == pytest.approx(
            estimate, abs=1e-6
        )


@pytest.mark.parametrize(("limit", "estimate"), [(0.4, 1), (0.6, 0)])
def test_a_class_everywhere_is_half_salient(limit: float, estimate: float) -> None:
    found = losses(eps(2, salient_share=limit), one_hot([ALL, NOWHERE, NOWHERE]), half_salient())
    assert float(found["loss_saliency"]) == pytest.approx(0.5, abs=1e-6)  # wrong on one half either way
    network, batch = eps(2, salient_share=limit), half_salient()
    cells = torch.tensor(LEFT)[None]
    shares = one_hot([ALL, NOWHERE, NOWHERE]).softmax(1)
    told = network.estimate(shares, batch["target"], cells, torch.ones_like(cells))
    assert torch.allclose(told, torch.full((1, 4, 4), float(estimate)), atol=1e-6)


def test_what_the_weights_weigh() -> None:
    """An absent class is in neither sum: it lifts only the part that is not background."""
    cells, target = torch.zeros(1, 2, 2), torch.tensor([[1.0, 0.0]])
    shares = torch.tensor([0.2, 0.3, 0.5]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    counted = torch.ones_like(cells)
    for weight, expected in ((1.0, 0.0), (0.0, 0.3), (0.5, 0.15)):
        told = eps(2, foreground_weight=weight).estimate(shares, target, cells, counted)
        assert torch.allclose(told, torch.full_like(cells, expected))
    uniform = torch.full((1, 3, 2, 2), 1 / 3)
    told = eps(2).estimate(uniform, target, cells, counted)
    assert torch.allclose(told, torch.full_like(cells, 1 / 6))  # while no cell is surely of a class


def test_with_every_class_shown_and_salient_the_weight_says_nothing() -> None:
    shares = one_hot([LEFT, RIGHT, NOWHERE]).softmax(1) * 0.6 + torch.tensor([0.2, 0.2, 0.0]).view(1, 3, 1, 1)
    everything, target = torch.ones(1, 4, 4), torch.ones(1, 2)
    told = [
        eps(2, foreground_weight=weight).estimate(shares, target, everything, everything) for weight in (0.0, 0.3, 1.0)
    ]
    assert torch.allclose(told[0], told[1]) and torch.allclose(told[0], told[2])
    assert torch.allclose(told[0], shares[:, :2].sum(1))


def test_absent_classes_may_change_places() -> None:
    batch = batch_of(1, 64, 4, 5) | {"target": torch.tensor([[1.0, 0.0, 0.0, 0.0]])}
    maps = 5 * torch.randn(1, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    one, two = (losses(eps(4), given, batch)["loss"] for given in (maps, maps[:, [0, 3, 1, 2, 4]]))
    assert torch.allclose(one, two)


def test_beyond_a_picture_nothing_is_learnt_unless_asked_for() -> None:
    batch = batch_of(2, 64, 3, 7, padded=True)
    maps = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    maps.requires_grad_()
    reached = {}
    for padding in ("ignored", "background"):
        network = eps(3, padding=padding)
        found = losses(network, maps, batch)
        without = F.multilabel_soft_margin_loss(maps[:, :-1].mean((2, 3)), batch["target"])
        (gradient,) = torch.autograd.grad(found["loss"] - without, maps)
        reached[padding] = gradient.abs().sum(1) > 0
    assert not reached["ignored"][0, :, :2].any() and reached["ignored"][0, :, 2:].all()
    assert reached["background"].all()


def test_a_batch_in_parts_is_one_batch() -> None:
    """Parts of a padded batch hold different numbers of cells that count; the denominator is the whole batch's."""
    batch, network = batch_of(4, 64, 3, 9, padded=True), eps(3)
    maps = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    whole = losses(network, maps, batch)["loss"]
    totals = {key: value / 2 for key, value in network.totals(batch).items()}
    parts = []
    for half in (slice(0, 2), slice(2, 4)):
        network.maps = lambda images, part=maps[half]: part
        part = {key: value[half] for key, value in batch.items()} | totals
        parts.append(network.losses(torch.zeros(0), part, 0, 1, None)["loss"])
    assert torch.allclose(sum(parts) / 2, whole)


def test_its_map_is_a_share_and_its_background_is_no_class() -> None:
    network = eps(3).eval()
    images = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        view, logits = network.view(images, torch.ones(2, 3)), network(images)
        maps = network.maps(images)
    assert maps.shape == (2, 4, 4, 3) and view.shape == (2, 3, 4, 3) and logits.shape == (2, 3)
    assert torch.allclose(view.sum(1), 1 - maps.softmax(1)[:, -1], atol=1e-6)
    assert torch.allclose(logits, maps.mean((2, 3))[:, :3])


def test_the_defaults_are_those_published_for_voc() -> None:
    found = options_of("eps")().model_dump()
    assert (found["salient_share"], found["foreground_weight"], found["saliency_weight"]) == (0.4, 0.5, 1.0)
