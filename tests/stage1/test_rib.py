"""RIB: its score and fine-tuning against slow second versions and by hand, and what its options change."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import localiser_inputs
import numpy as np
import pytest
import torch
from torch import Tensor

from beco.artifacts.store import Store
from beco.config import Cam, Classifier, Encoder
from beco.datasets import manifest as manifests
from beco.datasets import shapes, voc
from beco.datasets.manifest import Manifest
from beco.errors import UserError
from beco.networks.frozen import freeze
from beco.schema import Shapes
from beco.schema.stage1 import options_of
from beco.stage1 import localisers, train, views
from beco.stage1.localisers.base import Inputs, Localiser
from beco.stage1.merging import multi_scale_maps
from beco.training.trainer import Compute

SMALL = Encoder(name="resnet10t", options={"channels": [8, 8, 16, 16]})
ONE = Cam(scales=[1], flip=False)
CHEAP = localiser_inputs.CHEAP["rib"] | {"most_score": 1e9, "most_covered": 1e9}


def rib(classes: int = 3, **options: Any) -> Localiser:
    torch.manual_seed(0)
    return localisers.make("rib", SMALL, 16, classes, True, options).eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=8, val=1, size=48))
    return voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv").split("train")


def prepared(pictures: Manifest, **options: Any) -> Localiser:
    network = rib(6, **CHEAP | options)
    network.prepare(pictures, Inputs())
    return network


def scores(network: Localiser, pictures: Manifest, settings: Cam, ids: list[str] | None = None) -> dict[str, Tensor]:
    """What is summed for each picture, one after the other."""
    found = {}
    for image_id in ids or pictures.ids:
        image = torch.from_numpy(pictures.image(image_id)).permute(2, 0, 1)[None].float() / 255
        found[image_id] = network.score(image, torch.from_numpy(pictures.labels([image_id])), [image_id], settings)
    return found


# --- the score of a class -----------------------------------------------------------------------------------


def slow(maps: Tensor, tau: float, first: int) -> list[list[float]]:
    """Cell by cell; `first`: 0, or how many classes have it."""
    found = []
    for planes in maps.double().tolist():
        row = []
        for k, plane in enumerate(planes):
            cells = [value for line in plane for value in line]
            most = max(cells)
            counted = [value for value in cells if most > 0 and value / most < tau]
            row.append(sum(counted if not first or k < first else cells) / len(cells))
        found.append(row)
    return found


@pytest.mark.parametrize(("tau", "first"), [(0.4, 0), (0.4, 2), (0.05, 0), (1.5, 0)])
def test_the_score_is_that_of_a_slow_version(tau: float, first: int) -> None:
    maps = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(1))
    maps[0, 0] = -maps[0, 0].abs()  # nowhere positive
    found = rib(5, tau=tau, pooled_classes=first).scores(maps)
    assert torch.allclose(found.double(), torch.tensor(slow(maps, tau, first), dtype=torch.float64), atol=1e-6)


def test_the_score_by_hand() -> None:
    maps = torch.tensor([[[[4.0, 1.0], [1.0, -2.0]]]])
    assert rib(1).scores(maps).tolist() == [[0.0]] and float(maps.mean()) == 1
    assert rib(1, tau=1.5).scores(maps).tolist() == [[1.0]]  # then it is the mean


def test_its_gradient_is_the_same_at_any_score() -> None:
    """-1 / cells of a map on those that count, of the classes shown; a sigmoid's would vanish."""
    for height in (1.0, 1000.0):
        maps = (height * torch.tensor([[[[4.0, 1.0], [1.0, -2.0]], [[4.0, 1.0], [1.0, 1.0]]]])).requires_grad_()
        network = rib(2)
        network.maps = lambda images, maps=maps: maps
        loss = network.losses(torch.zeros(0), {"target": torch.tensor([[1.0, 0.0]])}, 0, 1, None)["loss"]
        (gradient,) = torch.autograd.grad(loss, maps)
        assert gradient.tolist() == [[[[0, -0.25], [-0.25, -0.25]], [[0, 0], [0, 0]]]]


# --- the maps of a picture ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 3])
def test_without_a_learning_rate_it_is_the_classifiers_map(pictures: Manifest, steps: int) -> None:
    network, settings = prepared(pictures, lr=0.0, steps=steps), Cam(scales=[1, 0.5], flip=True)
    image_id = pictures.ids[0]
    image = torch.from_numpy(pictures.image(image_id)).permute(2, 0, 1)[None].float() / 255
    plain = multi_scale_maps(network, image, torch.from_numpy(pictures.labels([image_id])), settings)
    found = scores(network, pictures, settings, [image_id])[image_id]
    assert plain.any() and torch.allclose(found, (steps + 1) * plain, rtol=1e-5, atol=1e-6)
    alone = network.normalised(found[0]) - network.normalised(plain[0])
    assert alone.abs().max() < 1e-3  # up to the 1e-5 below the line


def by_hand(network: Localiser, pictures: Manifest, image_id: str, options: dict[str, Any]) -> Tensor:
    """Fine-tuning written anew, on the picture alone: gradients by autograd, the step of SGD with weight decay."""
    network, shown = copy.deepcopy(network).eval(), torch.from_numpy(pictures.labels([image_id]))[0]
    image = torch.from_numpy(pictures.image(image_id)).permute(2, 0, 1)[None].float() / 255
    learning = {
        name: one
        for name, one in network.named_parameters()
        if not name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1", "backbone.layer2"))
    }
    total = torch.zeros(())
    for step in range(options["steps"] + 1):
        rows = torch.cat([image, image.flip(-1)])
        with torch.no_grad():
            total = total + multi_scale_maps(network, image, shown[None], Cam(scales=[1], flip=True))
        gained = torch.zeros(())
        for planes in network.maps(rows):
            for k in shown.nonzero().flatten().tolist():
                plane = planes[k]
                counted = plane[(plane < options["tau"] * plane.max()) & (plane.max() > 0)]
                gained = gained + counted.sum() / plane.numel()
        slopes = torch.autograd.grad(gained, list(learning.values()), allow_unused=True)
        with torch.no_grad():
            for (name, one), slope in zip(learning.items(), slopes, strict=True):
                rate = options["lr"] * (10 if name.startswith("head") else 1) * (1 - step / options["steps"]) ** 0.9
                one += rate * ((0 if slope is None else slope) - 1e-4 * one)
    return total


def test_its_steps_are_those_of_a_second_version(pictures: Manifest) -> None:
    options = {"steps": 3, "others": 0, "lr": 1e-2, "tau": 0.6}
    network = prepared(pictures, **options)
    for image_id in pictures.ids[:2]:
        expected = by_hand(network, pictures, image_id, options)
        found = scores(network, pictures, Cam(scales=[1], flip=True), [image_id])[image_id]
        still = scores(prepared(pictures, **options | {"lr": 0.0}), pictures, Cam(scales=[1], flip=True), [image_id])
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, still[image_id], rtol=1e-2)  # it has learnt something


def test_a_linear_head_gains_at_every_step() -> None:
    network = rib(2)
    features, target = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 0.0]])
    optimiser = torch.optim.SGD(network.head.parameters(), 1e-3)
    found = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = network.loss(network.head(features), target)
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    assert found == sorted(found, reverse=True) and len(set(found)) == 4


def test_each_picture_starts_anew_and_its_draws_are_its_own(pictures: Manifest) -> None:
    """Whatever comes before, and whatever else is in the list; the network itself stays as it is."""
    network = prepared(pictures)
    before = copy.deepcopy(network.state_dict())
    one, two = scores(network, pictures, ONE), scores(network, pictures, ONE, pictures.ids[::-1])
    assert all(torch.equal(one[name], two[name]) for name in pictures.ids)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any("bench" in key for key in before)
    another = scores(prepared(pictures, seed=1), pictures, ONE)
    assert any(not torch.equal(one[name], another[name]) for name in pictures.ids)


def test_others_share_no_class_with_the_picture(pictures: Manifest) -> None:
    network = prepared(pictures, others=50)
    others, drawn = network.bench[1], {}
    for image_id in pictures.ids:
        own = torch.from_numpy(pictures.labels([image_id]))[0]
        for step in range(2):
            parts = others.batches(image_id, step)
            shown = torch.cat([targets for _, targets in parts]) if parts else torch.zeros(0, 6)
            assert not (shown @ own).any()
            disjoint = int((torch.from_numpy(pictures.labels(pictures.ids)) @ own == 0).sum())
            assert len(shown) == (50 if disjoint else 0)  # by turns, where there are fewer than asked for
            crops = drawn[image_id, step] = torch.cat([crops for crops, _ in parts]) if parts else shown
            if disjoint:
                assert torch.equal(shown[:disjoint], shown[disjoint : 2 * disjoint])
                assert not torch.equal(crops[0], crops[disjoint])  # cut anew
    again = others.batches(pictures.ids[0], 1)
    assert torch.equal(torch.cat([crops for crops, _ in again]), drawn[pictures.ids[0], 1])
    assert any(not torch.equal(drawn[name, 0], drawn[name, 1]) for name in pictures.ids)


def test_what_is_no_number_counts_for_nothing(pictures: Manifest) -> None:
    """A learning rate that is far too high leaves the classifier's map."""
    chosen = pictures.ids[:1]
    wild, none = (prepared(pictures, **more, others=0) for more in ({"lr": 1e30}, {"steps": 0}))
    found, plain = (scores(network, pictures, ONE, chosen)[chosen[0]] for network in (wild, none))
    assert plain.any() and torch.equal(found, plain)


def test_a_limit_ends_it_and_the_step_counts_for_nothing(pictures: Manifest) -> None:
    given = {"lr": 1e-3, "others": 0, "steps": 4, "tau": 1.5}
    first = scores(prepared(pictures, **given | {"steps": 0}), pictures, ONE)
    active = [name for name in pictures.ids if first[name][0, [k - 1 for k in pictures.present(name)]].any()]
    assert active
    for limit, ends in ((1e-9, True), (1e9, False)):
        for key in ("most_score", "most_covered"):
            found = scores(prepared(pictures, **given | {key: limit}), pictures, ONE, active)
            assert all(torch.equal(found[name], first[name]) is ends for name in active)


def test_limits_by_hand() -> None:
    """Scores are a mean over views, of which those below scale 1 count for nothing; covered is where any class is."""
    network, image = rib(3), torch.zeros(1, 3, 32, 32)
    planes = torch.tensor([[[10.0, 1.0], [1.0, -1.0]], [[1.0, 9.0], [1.0, 1.0]], [[9.0, 9.0], [9.0, 9.0]]])
    seen = []

    def maps(rows: Tensor) -> Tensor:
        seen.append(rows.shape[-1])
        straight = planes.expand(1, 3, 2, 2) * (rows.shape[-1] / 32)
        return torch.cat([straight, straight.flip(-1)])[: len(rows)]

    network.maps = maps
    shown = torch.tensor([[1.0, 1.0, 0.0]])
    score, covered = network.own_views(image, shown, Cam(scales=[1, 0.5, 2], flip=True), False)
    assert seen == [32, 64] and score == pytest.approx((0.25 + 0.75) * 1.5) and covered == 0.5
    assert network.own_views(image, shown, Cam(scales=[0.5], flip=False), False)[0] == pytest.approx(0.5)
    assert network.own_views(image, 0 * shown, ONE, False) == (0.0, 0.0)


def test_what_is_frozen_learns_nothing(pictures: Manifest) -> None:
    network = prepared(pictures)
    fine = network.bench[0]
    learning = {name for name, one in fine.named_parameters() if one.requires_grad}
    assert {name.split(".")[1] for name in learning if name.startswith("backbone")} == {"layer3", "layer4"}
    assert all(one.requires_grad for one in network.parameters())
    assert all(one.requires_grad for one in prepared(pictures, frozen_stages=-1).bench[0].parameters())
    classifier = prepared(pictures, frozen_stages=2)
    freeze(classifier.backbone, 2, "it")  # as a classifier's own `frozen_stages` does
    freeze(classifier.backbone, 1, "it")
    assert not next(iter(classifier.backbone.parameters())).requires_grad
    classifier.options["frozen_stages"] = -1
    assert all(one.requires_grad for one in classifier.fresh().parameters())
    with pytest.raises(UserError, match="options of `rib`: frozen_stages: 9, but"):
        prepared(pictures, frozen_stages=9)


# --- as a source --------------------------------------------------------------------------------------------


def test_a_run_from_a_trained_classifier(pictures: Manifest, tmp_path: Path) -> None:
    """What it is started from is what it is kept as; all steps but the first differ from that classifier's maps."""
    settings = Classifier.model_validate({"encoder": SMALL.model_dump(), "schedule": {"steps": 1, "batch_size": 4}})
    start = localiser_inputs.start(pictures, settings, tmp_path)
    options = options_of("rib").model_validate(CHEAP | {"steps": 0}).model_dump()
    found = {}
    for name, own in (("still", options), ("rib", options | {"steps": 2, "lr": 0.1})):
        wanted = train.Wanted(settings, "rib", own, Inputs(start=start))
        train.train(pictures, pictures, wanted, Compute("cpu"), tmp_path / name, False)
        network = tmp_path / name / "classifier.safetensors"
        views.infer(pictures, network, ONE, Compute("cpu"), "1-of-1", tmp_path / f"{name}.h5")
        found[name] = Store(tmp_path / f"{name}.h5")
    views.infer(pictures, start, ONE, Compute("cpu"), "1-of-1", tmp_path / "cam.h5")
    cam = Store(tmp_path / "cam.h5")
    for name in pictures.ids:
        assert np.array_equal(cam.get("cam", name), found["still"].get("cam", name))
    assert any(not np.array_equal(cam.get("cam", name), found["rib"].get("cam", name)) for name in pictures.ids)


def test_a_start_that_is_of_something_else(pictures: Manifest, tmp_path: Path) -> None:
    settings = Classifier.model_validate({"encoder": SMALL.model_dump(), "schedule": {"steps": 1, "batch_size": 4}})
    start = localiser_inputs.start(pictures, settings, tmp_path)
    other = Encoder(name="resnet10t", options={"channels": [8, 8, 16, 24]})
    wider = Classifier.model_validate({**settings.model_dump(), "encoder": other.model_dump()})
    wanted = train.Wanted(wider, "rib", options_of("rib")().model_dump(), Inputs(start=start))
    with pytest.raises(UserError, match=r"classifier\.safetensors: not a network of this source's") as caught:
        train.train(pictures, pictures, wanted, Compute("cpu"), tmp_path / "other", False)
    assert "\n" not in str(caught.value)
    table = pictures.table.rename(columns={"starhound": "another"})
    renamed = manifests.Manifest(pictures.root, table, ["another", *pictures.classes[1:]])
    with pytest.raises(UserError, match="trained for other classes"):
        train.train(
            renamed,
            renamed,
            train.Wanted(settings, "rib", wanted.options, wanted.inputs),
            Compute("cpu"),
            tmp_path,
            False,
        )


def test_the_defaults_are_those_published_for_voc() -> None:
    found = options_of("rib")().model_dump()
    assert (found["steps"], found["tau"], found["lr"], found["others"]) == (10, 0.4, 8e-6, 20)
    assert (6 * found["most_score"], found["most_covered"], found["pooled_classes"]) == (600, 0.7, 0)
