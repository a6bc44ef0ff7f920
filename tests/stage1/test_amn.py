"""The activation manipulation network: its loss pixel by pixel, its condition, and its maps by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import localiser_inputs
import numpy as np
import pytest
import torch
from small_networks import TINY
from torch import Tensor

from beco.config import Cam, Classifier, Encoder, Shapes
from beco.datasets import manifest as manifests
from beco.datasets import shapes, voc
from beco.stage1 import localisers
from beco.stage1.placing import placed
from beco.training.batches import size_batches
from beco.training.sampling import Draws

DRAWS = Draws(0, 1, [0], torch.device("cpu"))
ENCODER = Encoder.model_validate(TINY)


def network(classes: int = 3, stride: int = 16, **options: Any) -> Any:
    torch.manual_seed(1)
    return localisers.make("amn", ENCODER, stride, classes, options=options)


def losses(net: Any, logits: Tensor, label: Tensor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What the network would lose if it said `logits` (B, K+1, h, w), of labels (B, h, w) of its cells."""
    monkeypatch.setattr(type(net), "logits", lambda self, images, targets: logits)
    monkeypatch.setattr(type(net), "stride", 1)
    batch = {"label": label, "target": torch.zeros(len(label), logits.shape[1] - 1)}
    totals = {key: value.float() for key, value in net.totals(batch).items()}
    found: dict[str, Tensor] = net.losses(torch.zeros(0), batch | totals, 0, 1, DRAWS)
    return found


def by_hand(logits: Tensor, label: Tensor, share: float) -> float:
    """One pixel after the other, of one batch."""
    sums, counts = [0.0, 0.0], [0, 0]
    for number in range(len(logits)):
        for y in range(logits.shape[2]):
            for x in range(logits.shape[3]):
                value = int(label[number, y, x])
                if value == 255:
                    continue
                scores = logits[number, :, y, x].double().numpy()
                probabilities = np.exp(scores) / np.exp(scores).sum()
                target = np.full(len(scores), share / (len(scores) - 1))
                target[value] = 1 - share
                sums[value > 0] -= float((target * np.log(probabilities)).sum())
                counts[value > 0] += 1
    return sum(total / max(count, 1) for total, count in zip(sums, counts, strict=True)) / 2


@pytest.mark.parametrize("case", range(20))
def test_the_loss_is_that_of_each_pixel(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(case)
    classes, batch = case % 4 + 1, case % 3 + 1
    values = torch.tensor([*range(classes + 1), 255], dtype=torch.uint8)
    values = values[[[1], [0], [-1]][case - 17]] if case > 16 else values  # of one kind alone
    label = values[torch.randint(len(values), (batch, 3, 4), generator=generator)]
    logits = 3 * torch.randn(batch, classes + 1, 3, 4, generator=generator)
    share = (0.0, 0.1, 0.4, 0.5)[case // 4 % 4]
    found = losses(network(classes, smoothing=share, relative_smoothing=False), logits, label, monkeypatch)
    assert found["loss"].item() == pytest.approx(by_hand(logits, label, share), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("classes", "floor"), [(20, 1.8713), (3, 1.1125), (80, 2.4258)])
def test_the_least_loss_is_what_the_smoothed_target_does_not_know(
    classes: int, floor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reached where the label's logit is ahead by the logarithm of its share over another's."""
    net = network(classes, relative_smoothing=False)
    label = torch.tensor([0, 1, classes, 255], dtype=torch.uint8).view(1, 2, 2)
    known = torch.where(label == 255, 0, label).long()
    gap = math.log(0.6 * classes / 0.4)
    logits = gap * torch.nn.functional.one_hot(known, classes + 1).permute(0, 3, 1, 2).float()
    best = losses(net, logits, label, monkeypatch)["loss"].item()
    assert best == pytest.approx(floor, abs=1e-4)
    assert all(losses(net, factor * logits, label, monkeypatch)["loss"].item() > best for factor in (0.9, 1.1))
    even = losses(net, torch.zeros_like(logits), label, monkeypatch)["loss"].item()
    assert even == pytest.approx(math.log(classes + 1), rel=1e-5)


def test_each_kind_of_pixel_weighs_half_and_unknown_ones_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    net, label = network(), torch.tensor([[[0, 1, 2, 255]]], dtype=torch.uint8)
    logits = torch.randn(1, 4, 1, 4, requires_grad=True)
    loss = losses(net, logits, label, monkeypatch)["loss"]
    more = [torch.cat([tensor, *[tensor[..., :1]] * 5], -1) for tensor in (logits, label)]
    assert losses(net, more[0], more[1], monkeypatch)["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad.abs().sum(1) > 0).tolist() == [[[True, True, True, False]]]


@pytest.mark.parametrize(("classes", "ratio"), [(1, 30), (3, 30), (19, 30), (20, 30), (80, 120)])
def test_few_classes_are_smoothed_by_the_same_ratio(classes: int, ratio: float) -> None:
    share = network(classes).smoothing
    assert (1 - share) / (share / classes) == pytest.approx(ratio)
    assert network(classes, relative_smoothing=False).smoothing == 0.4
    assert network(classes, smoothing=0).smoothing == 0


def drawn(batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "image": torch.rand(batch, 3, 64, 64, generator=generator),
        "label": torch.randint(0, 4, (batch, 64, 64), generator=generator, dtype=torch.uint8),
        "target": (torch.rand(batch, 3, generator=generator) < 0.5).float(),
    }


def test_without_a_condition_labels_change_nothing() -> None:
    net, batch = network().eval(), drawn(2)
    opposite = 1 - batch["target"]
    assert not torch.allclose(net.logits(batch["image"], batch["target"]), net.logits(batch["image"], opposite))
    torch.nn.init.zeros_(net.condition.weight)
    torch.nn.init.ones_(net.condition.bias)
    plain = net.decoder(net.backbone(net.normalise(batch["image"])))
    for targets in (batch["target"], opposite):
        torch.testing.assert_close(net.logits(batch["image"], targets), plain)


def test_a_batch_in_parts_has_the_loss_of_the_whole() -> None:
    net, batch = network().eval(), drawn(4)
    batch["label"][:2] = torch.where(batch["label"][:2] > 1, 255, batch["label"][:2])  # so that the parts differ
    totals = {key: value.float() for key, value in net.totals(batch).items()}
    whole = net.losses(batch["image"], batch | totals, 0, 1, DRAWS)
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        own = {key: value[part] for key, value in batch.items()} | {key: value / 2 for key, value in totals.items()}
        halves.append(net.losses(own["image"], own, 0, 1, DRAWS))
    for key, value in whole.items():
        assert value.item() == pytest.approx((halves[0][key] + halves[1][key]).item() / 2, rel=1e-5)


# --- maps -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> manifests.Manifest:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=4, val=1))
    return voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv").split("train")


def prepared(pictures: manifests.Manifest, folder: Path, **options: Any) -> Any:
    net = network(len(pictures.classes), **options).eval()
    with torch.no_grad():  # so that the softmax is far from even
        for branch in net.decoder.branches:
            branch.weight *= 30
    net.prepare(pictures, localiser_inputs.made("amn", pictures, Classifier(), folder, "MAP_INPUTS"))
    return net


def maps_of(net: Any, pictures: manifests.Manifest, batch: int = 8, resize: int | None = None) -> dict[str, Tensor]:
    settings, found = Cam(scales=[1, 0.5], resize=resize), {}
    for ids, images in size_batches(pictures, pictures.ids, resize, batch, "maps"):
        for image_id, planes in zip(
            ids, net.score(images, torch.from_numpy(pictures.labels(ids)), ids, settings), strict=True
        ):
            found[image_id] = net.finished(planes, image_id, pictures.present(image_id))
    return found


@pytest.mark.parametrize("resize", [None, 96])
@torch.no_grad()
def test_maps_are_stretched_but_for_what_the_labels_call_background(
    pictures: manifests.Manifest, tmp_path: Path, resize: int | None
) -> None:
    net = prepared(pictures, tmp_path)
    for image_id, found in maps_of(net, pictures, resize=resize).items():
        ((_, image),) = size_batches(pictures, [image_id], resize, 1, "maps")
        height, width = image.shape[-2:]
        size, label = (math.ceil(height / 4), math.ceil(width / 4)), net._seeds.store.get("label", image_id)
        total = torch.zeros(len(pictures.classes) + 1, *size)
        for scale in (1, 0.5):
            fed = round(height * scale), round(width * scale)
            view = torch.nn.functional.interpolate(image, fed, mode="bilinear", antialias=True)
            sides = 4 * height / fed[0], 4 * width / fed[1]
            for seen, mirrored in ((view, None), (view.flip(-1), width / 4)):
                logits = net.logits(seen, torch.from_numpy(pictures.labels([image_id])))[0]
                total += placed(logits, size, sides, mirrored) / 4
        values = pictures.present(image_id)
        planes, kinds = total.softmax(0)[values], set()
        for plane, made in zip(planes, found, strict=True):
            for y, x in np.ndindex(*size):
                seed = label[
                    min(int((y + 0.5) * 4 * label.shape[0] / height), label.shape[0] - 1),
                    min(int((x + 0.5) * 4 * label.shape[1] / width), label.shape[1] - 1),
                ]
                kinds.add(seed == 0)
                wanted = plane[y, x] if seed == 0 else (plane[y, x] - plane.min()) / (plane.max() - plane.min())
                assert made[y, x].item() == pytest.approx(wanted.item(), abs=1e-4)
        assert kinds == {True, False}


def test_dropout_in_maps_is_a_draw_of_each_picture(pictures: manifests.Manifest, tmp_path: Path) -> None:
    steady = prepared(pictures, tmp_path)
    once, twice = maps_of(steady, pictures), maps_of(steady, pictures)
    assert all(torch.equal(once[image_id], twice[image_id]) for image_id in pictures.ids)
    net = prepared(pictures, tmp_path / "drawn", dropout_in_maps=True)
    state = torch.get_rng_state()
    alone, among = maps_of(net, pictures, 1), maps_of(net, pictures)
    assert torch.equal(state, torch.get_rng_state())
    for image_id in pictures.ids:
        torch.testing.assert_close(alone[image_id], among[image_id], atol=1e-4, rtol=0)
        assert (alone[image_id] - once[image_id]).abs().max() > 0.01


def test_items_are_pictures_with_both_kinds_of_labels(pictures: manifests.Manifest, tmp_path: Path) -> None:
    net, settings = network(dropout=0), Classifier.model_validate({"crop": {"size": 32}})
    inputs = localiser_inputs.made("amn", pictures, settings, tmp_path)
    items = net.pictures(pictures, settings.crop, ENCODER.mean, inputs)
    for index, image_id in enumerate(pictures.ids):
        item = items[index, 7]
        assert item["label"].shape == item["image"].shape[1:] == (32, 32)
        assert (item["target"].nonzero()[:, 0] + 1).tolist() == pictures.present(image_id)
        assert set(item["label"].unique().tolist()) <= {0, *pictures.present(image_id), 255}


def test_it_begins_as_published() -> None:
    """The classifiers' weights with a standard deviation of 0.01: logits begin near 0, whatever the labels."""
    weights = [layer.weight for layer in network().decoder.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert weights and all(float(one.detach().std()) == pytest.approx(0.01, rel=0.1) for one in weights)


def test_dropout_is_of_training() -> None:
    batch = drawn(1)
    for share, differs in ((0.0, False), (0.5, True)):
        net = network(dropout=share)
        net.backbone.eval()
        first, second = (net.logits(batch["image"], batch["target"]) for _ in range(2))
        assert torch.equal(first, second) != differs
