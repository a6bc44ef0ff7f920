"""EDAM: its loss against a slow second version and by hand, the pairs it learns from, and its maps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import TINY
from torch import Tensor

from beco.artifacts.store import Store
from beco.config import Cam, Classifier, ClassifierOptimiser, Crop, Encoder, Shapes
from beco.datasets import shapes, voc
from beco.datasets.manifest import Manifest
from beco.datasets.saliency import Saliency
from beco.errors import UserError
from beco.schema.stage1 import options_of, read_options
from beco.stage1 import localisers, train, views
from beco.stage1.localisers import edam
from beco.stage1.localisers.base import Inputs
from beco.training.sampling import Draws
from beco.training.trainer import Compute, make_optimiser

BRIEF = {"steps": 1, "batch_size": 4}
DRAWS = Draws(0, 1, [0], torch.device("cpu"))


def network(classes: int = 3, **options: Any) -> Any:
    """With weights that leave nothing at a value which could hide a mistake."""
    torch.manual_seed(1)
    given = {"width": 8, "dropout": 0.0, **options}
    net = localisers.make("edam", Encoder.model_validate(TINY), 16, classes, options=given).eval()
    with torch.no_grad():
        for parameter in [net.picture, *net.blocks.parameters(), *net.answer.parameters()]:
            parameter += 0.3 * torch.randn_like(parameter)
    return net


def drawn(pairs: int, classes: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(2, pairs, classes, generator=generator) < 0.5).float()
    image = torch.rand(pairs, 3, 48, 2 * 32, generator=generator)
    return {"image": image, "target": labels[0], "other_target": labels[1]}


def loss(net: Any, batch: dict[str, Tensor]) -> Tensor:
    found: Tensor = net.losses(batch["image"], batch, 0, 1, DRAWS)["loss"]
    return found


# --- the loss ---------------------------------------------------------------------------------------------------


def normed(tokens: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    middle = tokens - tokens.mean(1, keepdims=True)
    return middle / np.sqrt((middle**2).mean(1, keepdims=True) + 1e-5) * weight + bias


def block(tokens: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
    """One class's block on (N, width), head by head and row by row."""
    count, width = tokens.shape
    half = width // 2
    given = normed(tokens, values["first.weight"], values["first.bias"]) @ values["attend.weight"]
    given = given + values["attend.bias"]
    joined = np.zeros_like(tokens)
    for head in (0, half):
        query, key, value = (given[:, start + head : start + head + half] for start in (0, width, 2 * width))
        for row in range(count):
            powers = np.exp(key @ query[row] / math.sqrt(half))
            joined[row, head : head + half] = powers @ value / powers.sum()
    tokens = tokens + joined @ values["join.weight"] + values["join.bias"]
    hidden = normed(tokens, values["second.weight"], values["second.bias"]) @ values["widen.weight"]
    hidden = hidden + values["widen.bias"]
    curved = hidden / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    return tokens + curved @ values["narrow.weight"] + values["narrow.bias"]


@torch.no_grad()
def by_hand(net: Any, batch: dict[str, Tensor]) -> float:
    """The loss in float64, one pair and one class after the other."""
    double = {key: value.double().numpy() for key, value in net.state_dict().items()}
    classes = batch["target"].shape[1]
    total = 0.0
    for pair, image in enumerate(batch["image"]):
        sides = image[None, :, :, :32], image[None, :, :, 32:]
        last = [net.backbone(net.normalise(side))[-1] for side in sides]
        masks, features = [], []
        for one in last:
            responses = net.head(one)[0].double().numpy()
            masks.append(np.abs(responses) / np.sqrt((responses**2).sum(0)))
            features.append(np.tensordot(double["reduce.weight"][:, :, 0, 0], one[0].double().numpy(), 1))
        width = len(features[0])
        cells = features[0][0].size
        place = np.zeros((cells, width))
        for cell in range(cells):
            for channel in range(width):
                angle = cell / 10000 ** ((channel - channel % 2) / width)
                place[cell, channel] = math.cos(angle) if channel % 2 else math.sin(angle)
        for k in range(classes):
            values = {key.removeprefix("blocks."): value[k] for key, value in double.items() if "blocks." in key}
            rows = [
                ((features[side] + double["reduce.bias"][:, None, None]) * masks[side][k]).reshape(width, -1).T
                + place
                + double["picture"][side]
                for side in (0, 1)
            ]
            seen = block(np.concatenate(rows), values)
            for side, key in enumerate(("target", "other_target")):
                pooled = seen[side * cells : (side + 1) * cells].mean(0)
                logit = float(pooled @ double["answer.weight"][k][:, 0] + double["answer.bias"][k, 0, 0])
                sign = 1 if batch[key][pair, k] else -1
                total += math.log(1 + math.exp(-sign * logit))
    return total / (2 * classes * len(batch["image"]))


@pytest.mark.parametrize("case", range(6))
def test_the_loss_is_that_of_a_slow_version(case: int) -> None:
    classes = case % 3 + 1
    net, batch = network(classes, width=(4, 8)[case % 2]), drawn(case % 2 + 1, classes, case)
    assert loss(net, batch).item() == pytest.approx(by_hand(net, batch), rel=2e-5)


def test_a_few_classes_at_a_time_are_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients; 24 cells to a class here."""
    net, batch, found = network(5), drawn(2, 5, 0), []
    for together in (edam.TOGETHER, 48, 1):
        monkeypatch.setattr(edam, "TOGETHER", together)
        value = loss(net, batch)
        found.append([value, *torch.autograd.grad(value, list(net.parameters()))])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_batch_in_parts_has_the_loss_of_the_whole() -> None:
    """A pair is one item, so that parts tear none asunder."""
    net, batch = network(), drawn(4, 3, 1)
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    assert sum(loss(net, half).item() for half in halves) / 2 == pytest.approx(loss(net, batch).item(), rel=1e-5)


def test_every_class_is_learnt_from_and_everything_learns() -> None:
    net, batch = network(), drawn(2, 3, 2)
    batch["target"][:] = batch["other_target"][:] = 0
    loss(net, batch).backward()
    reached = {name for name, one in net.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0}
    own = {name for name, _ in net.named_parameters() if not name.startswith("backbone.")}
    assert own < reached  # and of the backbone, whose residual branches begin with a factor of 0
    assert net.blocks.attend.weight.grad.abs().flatten(1).sum(1).gt(0).all()


def test_dropout_is_for_training_alone() -> None:
    batch = drawn(2, 3, 3)
    for share, alike in ((0.0, True), (0.4, False)):
        net = network(dropout=share)
        still = loss(net, batch)
        assert loss(net, batch) == still
        net.blocks.train()  # not batch norm, which makes a difference of its own
        assert bool(loss(net, batch) == still) is alike


# --- masks, classes and pictures --------------------------------------------------------------------------------


@torch.no_grad()
def test_the_squares_of_a_cell_add_up_to_one() -> None:
    net, images = network(), torch.rand(2, 3, 48, 32)
    masks, features = net.see(images)
    assert masks.shape == (2, 4, 3, 2) and features.shape == (2, 8, 3, 2)
    assert masks.min() >= 0
    torch.testing.assert_close((masks**2).sum(1), torch.ones(2, 3, 2))
    torch.nn.init.constant_(net.head.weight, -0.1)  # a strongly negative response counts as much as a positive
    torch.testing.assert_close(net.see(images)[0], torch.full((2, 4, 3, 2), 0.5))


@torch.no_grad()
def test_what_it_says_of_a_picture_is_its_masks_without_the_background() -> None:
    net, images, shown = network(), torch.rand(2, 3, 40, 72), torch.ones(2, 3)
    assert torch.equal(net.view(images, shown), net.maps(images)[:, :3])
    before = net.view(images, shown)
    torch.nn.init.zeros_(net.blocks.narrow.weight)
    assert torch.equal(net.view(images, shown), before)  # no transformer
    planes = net.finished(before[0], "any", [1, 3])
    torch.testing.assert_close(
        planes, before[0, [0, 2]] / before[0, [0, 2]].amax((1, 2), keepdim=True), rtol=1e-3, atol=0
    )


@torch.no_grad()
def test_the_same_picture_twice_has_one_answer() -> None:
    net, image = network(), torch.rand(1, 3, 48, 32)
    masks, features = (maps[:, None].expand(-1, 2, -1, -1, -1) for maps in net.see(image))
    first, second = net.answers(features, masks)[0]
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(net(image)[0], (first + second) / 2)
    net.picture[1] = net.picture[0]
    first, second = net.answers(features, masks)[0]
    torch.testing.assert_close(first, second)


@torch.no_grad()
def test_pictures_speak_through_attention_alone() -> None:
    net, images = network(), torch.rand(2, 3, 48, 32)
    masks, features = (maps[None] for maps in net.see(images))
    other = features.clone()
    other[:, 1] += torch.rand_like(other[:, 1])
    assert (net.answers(features, masks)[:, 0] - net.answers(other, masks)[:, 0]).abs().max() > 1e-4
    torch.nn.init.zeros_(net.blocks.join.weight)
    one, two = net.answers(features, masks), net.answers(other, masks)
    assert torch.equal(one[:, 0], two[:, 0]) and (one[:, 1] - two[:, 1]).abs().max() > 1e-4


@torch.no_grad()
def test_a_class_is_answered_by_its_own_mask() -> None:
    net, images = network(), torch.rand(2, 3, 48, 32)
    masks, features = (maps[None] for maps in net.see(images))
    before = net.answers(features, masks)
    for k, changed in ((1, [1]), (3, [])):  # the last is the background's, of which nothing is asked
        other = masks.clone()
        other[:, :, k] = 1 - other[:, :, k]
        after = net.answers(features, other)
        assert ((after - before).abs().amax((0, 1)) > 1e-4).nonzero().flatten().tolist() == changed


def test_positions_differ_and_do_not_depend_on_how_many_there_are() -> None:
    few, many = edam.positions(12, 8), edam.positions(200, 8)
    assert torch.equal(few, many[:12])
    apart = (many[:, None] - many).norm(dim=2) + 9 * torch.eye(200)
    assert apart.min() > 0.1


def test_blocks_and_embeddings_have_the_encoders_rate() -> None:
    net, settings = network(), ClassifierOptimiser()
    slow, fast = make_optimiser(net, settings).param_groups
    assert slow["factor"] == 1 and fast["factor"] == settings.head_lr_factor != 1
    wanted = {id(one) for layer in (net.head, net.reduce, net.answer) for one in layer.parameters()}
    assert {id(one) for one in fast["params"]} == wanted
    assert len(slow["params"]) + len(fast["params"]) == len(list(net.parameters()))


def test_the_defaults_are_those_published() -> None:
    found = options_of("edam")().model_dump()
    assert (found["width"], found["dropout"]) == (128, 0.1)
    with pytest.raises(ValueError, match=r"options\.width: .*multiple of 4"):
        read_options("edam", {"width": 6})


# --- pairs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=12, val=1))
    return voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv").split("train")


def pairs_of(pictures: Manifest) -> Any:
    crop, net = Crop.model_validate({"size": 32}), network(len(pictures.classes))
    return net.pictures(pictures, crop, (0.5, 0.5, 0.5), Inputs())


def test_the_two_of_a_pair_share_a_class(pictures: Manifest) -> None:
    pairs, met = pairs_of(pictures), set()
    for index in range(len(pairs)):
        for draw in range(40):
            item, other = pairs[index, draw], pairs.partner(index, draw)
            met.add((index, other))
            assert item["image"].shape == (3, 32, 64) and item["image"].dtype == torch.uint8
            assert item["target"].tolist() == pairs.targets[index].tolist()
            assert item["other_target"].tolist() == pairs.targets[other].tolist()
            assert (item["target"] * item["other_target"]).sum() > 0 and other != index
    sharing = (pairs.targets @ pairs.targets.T > 0) & ~np.eye(len(pairs), dtype=bool)
    assert met <= set(zip(*map(list, sharing.nonzero()), strict=True)) and len(met) > sharing.sum() / 2


def test_a_pair_follows_from_the_picture_and_the_draw(pictures: Manifest) -> None:
    one, two = pairs_of(pictures), pairs_of(pictures)
    for index, draw in ((0, 1), (3, 2), (3, 3)):
        first = one[index, draw]
        torch.rand(5)  # whatever else is drawn
        again = two[index, draw]
        assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(one[3, 2]["image"], one[3, 3]["image"])


def test_a_class_is_drawn_before_a_picture() -> None:
    """Of two classes each gives half of the partners, though the one is shown by 9 others and the other by 1."""
    pairs = edam._Pairs.__new__(edam._Pairs)
    pairs.targets = np.zeros((12, 2), np.float32)
    pairs.targets[0] = 1
    pairs.targets[1:10, 0] = pairs.targets[10, 1] = 1
    found = [pairs.partner(0, draw) for draw in range(400)]
    assert 160 < found.count(10) < 240 and set(found) == set(range(1, 11))
    assert {pairs.partner(10, draw) for draw in range(20)} == {0}


def test_a_picture_that_shares_nothing_is_shown_with_itself(pictures: Manifest) -> None:
    pairs = pairs_of(pictures)
    pairs.targets = np.zeros_like(pairs.targets)
    pairs.targets[2, 1] = 1
    for index in (2, 5):  # the only one of its class, and one without classes
        assert pairs.partner(index, 7) == index
        item = pairs[index, 7]
        assert torch.equal(item["target"], item["other_target"])
        left, right = item["image"].split(32, 2)
        assert not torch.equal(left, right)  # two crops


# --- saliency ---------------------------------------------------------------------------------------------------


def test_fusion_by_hand() -> None:
    planes = torch.tensor([[[0.8, 0.1], [0.4, 0.9]], [[0.2, 0.3], [0.4, 0.0]]])
    share = torch.tensor([[1.0, 1.0], [0.25, 0.0]])
    expected = torch.tensor([[[1.0, 1 / 3], [0.25, 0.0]], [[0.25, 1.0], [0.25, 0.0]]])
    torch.testing.assert_close(edam.fused(planes, share), expected)
    faint = torch.tensor([[[9e-7, 2e-6], [0.0, 1.0]]])
    torch.testing.assert_close(edam.fused(faint, torch.ones(2, 2)), torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]))


def test_a_cell_is_salient_by_its_pixels() -> None:
    """Of a cell that reaches beyond the picture the edge is repeated; at another size it is the same part of it."""
    salient = torch.zeros(6, 8, dtype=torch.bool)
    salient[:2, :4] = salient[5, 4:] = True
    expected = torch.tensor([[0.5, 0.0], [0.0, 0.75]])
    torch.testing.assert_close(edam.salient_share(salient, (6, 8)), expected)
    twice = edam.salient_share(salient.repeat_interleave(2, 0).repeat_interleave(2, 1), (6, 8))
    torch.testing.assert_close(twice, expected, rtol=0, atol=0.1)


@pytest.mark.parametrize(("theta", "theta_of", "salient"), [(0.2, 255, [52, 255]), (0.2, 100, [21, 51, 52, 255])])
def test_which_values_are_salient(theta: float, theta_of: int, salient: list[int], pictures: Manifest) -> None:
    values = np.array([[0, 20, 21], [51, 52, 255]], np.uint8)

    class Drawn:
        plane = staticmethod(lambda manifest, image_id: values)

    net = network(theta=theta, theta_of=theta_of)
    net.prepare(pictures, Inputs(saliency=Drawn()))  # type: ignore[arg-type]
    assert values[net.salient_pixels("any").numpy()].tolist() == salient


def test_fused_maps_are_of_the_objects_alone(pictures: Manifest, tmp_path: Path) -> None:
    """Through training and inference; and what is given that is not wanted, or wanted and not given, is refused."""
    settings = Classifier.model_validate({"encoder": TINY, "crop": {"size": 32}, "schedule": BRIEF})
    found, saliency = {}, Inputs(saliency=Saliency(None))
    for choice, inputs in (("none", Inputs()), ("fuse", saliency)):
        options = options_of("edam").model_validate({"width": 8, "saliency": choice}).model_dump()
        wanted, folder = train.Wanted(settings, "edam", options, inputs), tmp_path / choice
        assert inputs.checked("edam", options) is inputs is inputs.checked("edam", options, "MAP_INPUTS")
        train.train(pictures, pictures, wanted, Compute("cpu"), folder, False)
        given = pictures, folder / "classifier.safetensors", Cam(scales=[1]), Compute("cpu"), "1-of-1"
        with pytest.raises(UserError, match=r"--saliency: `edam` (needs it|does not use it)"):
            views.infer(*given, folder / "cams.h5", Inputs() if choice == "fuse" else saliency)
        views.infer(*given, folder / "cams.h5", inputs)
        found[choice] = Store(folder / "cams.h5")
    for image_id in pictures.ids:
        objects = torch.from_numpy(pictures.mask(image_id) != 0)
        share = edam.salient_share(objects, (objects.shape[0], objects.shape[1])).numpy()
        before, after = (found[one].get("cam", image_id).astype(np.float32) for one in ("none", "fuse"))
        assert (share == 0).any() and (share == 1).any()
        np.testing.assert_allclose(after.max(0), share, atol=1e-3)
        assert (after.argmax(0) == before.argmax(0))[share > 0].mean() > 0.95  # but for ties in 16 bits
        assert (before.max(0)[share == 0] > 0).any()
