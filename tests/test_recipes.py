"""The recipes of stage two: their losses pixel by pixel, what supervises when, and the networks around them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from beco import augment, encoders, store
from beco.augment import LabelledPictures, unit_range
from beco.checkpoint import State
from beco.colour import StrongColour
from beco.config import Crop, Network, Prediction, Shapes, Training
from beco.datasets import manifest as manifests
from beco.datasets import shapes, voc
from beco.datasets.palette import read_index_png
from beco.engine import Compute
from beco.errors import UserError
from beco.pseudolabels import UNCERTAIN, PseudoLabels
from beco.sampling import Draws
from beco.stage2 import predict as prediction
from beco.stage2 import recipes
from beco.stage2 import train as training
from beco.stage2.boundaries import Supervision
from beco.stage2.networks import Segmenter
from beco.stage2.recipes import RecipeTask, cotraining_losses

SMALL = {"encoder": {"name": "resnet10t", "options": {"channels": [8, 16, 24, 32]}}, "decoder_channels": 8}
NETWORK = Network.model_validate({**SMALL, "atrous_rates": [1, 2, 3]})


def supervision(label: Tensor, reliable: Tensor, band: Tensor) -> Supervision:
    return Supervision(torch.zeros(len(label), 3, *label.shape[1:]), label, reliable, band, band)


def draws_for(batch: dict[str, Tensor], seed: int = 0) -> Draws:
    size = len(batch["image"])
    return Draws(seed, size, list(range(size)), torch.device("cpu"))


def run(task: RecipeTask, batch: dict[str, Tensor], step: int, steps: int) -> dict[str, Tensor]:
    """What the training loop does with a batch in one piece."""
    return task(batch | task.totals(batch), step, steps, draws_for(batch))


def two_losses(
    first: Tensor, second: Tensor, target: Supervision, band: float, band_peer: float, peer: float, mean: str = "all"
) -> dict[str, Tensor]:
    mix = {"band_weight": band, "band_weight_peer": band_peer}
    return cotraining_losses(first, second, target, Training.model_validate({"mix": mix, "loss_mean": mean}), peer)


# --- the loss -----------------------------------------------------------------------------------------------


def slow_losses(
    first: Tensor, second: Tensor, target: Supervision, band: float, band_peer: float, peer: float
) -> tuple[float, float, float]:
    """The four terms, one pixel at a time, from the definition of cross-entropy."""
    label_sum = peer_sum = 0.0
    pixels = [tuple(at) for at in torch.ones_like(target.label).nonzero().tolist()]
    for own, other in ((first, second), (second, first)):
        for b, y, x in pixels:
            scores = [math.exp(value) for value in own[b, :, y, x].tolist()]
            logs = [math.log(score / sum(scores)) for score in scores]
            weighs = bool(target.band[b, y, x])
            label = int(target.label[b, y, x])
            if target.reliable[b, y, x]:
                label_sum += 0 if label == UNCERTAIN else -logs[label] * (1 + band * weighs)
            else:
                decision = max(range(len(logs)), key=lambda k: float(other[b, k, y, x]))
                peer_sum += -logs[decision] * (1 + band_peer * weighs)
    count = len(pixels)  # all of them, labelled or not
    return (label_sum + peer * peer_sum) / count, label_sum / count, peer_sum / count


def some_case(seed: int) -> tuple[Tensor, Tensor, Supervision]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(2, 4, 3, 5, generator=generator) * 2 for _ in range(2))
    label = torch.randint(0, 5, (2, 3, 5), generator=generator)
    label[label == 4] = UNCERTAIN
    reliable, band = (torch.rand(2, 3, 5, generator=generator) < 0.5 for _ in range(2))
    return first, second, supervision(label, reliable, band)


@pytest.mark.parametrize("weights", [(0.2, 0.0, 1.0), (0.0, 0.7, 1.0), (0.5, 0.25, 0.3), (0.2, 0.0, 0.0)])
def test_losses_agree_with_a_loop_over_pixels(weights: tuple[float, float, float]) -> None:
    for seed in range(5):
        first, second, target = some_case(seed)
        # the case holds what it is meant to hold: 255 with and without trust, the band on either kind of pixel
        combinations = {(v == UNCERTAIN, r, b) for v, r, b in zip(
            target.label.flatten().tolist(), target.reliable.flatten().tolist(), target.band.flatten().tolist(),
            strict=True)}  # fmt: skip
        assert len(combinations) >= 6
        found = two_losses(first, second, target, *weights)
        expected = slow_losses(first, second, target, *weights)
        assert [float(found[key]) for key in ("loss", "loss_label", "loss_peer")] == pytest.approx(expected, rel=1e-5)
        share = (first.argmax(1) == second.argmax(1)).float().mean()
        assert float(found["share_agreeing"]) == pytest.approx(float(share))


def test_one_pixel_by_hand() -> None:
    """Two classes, logits ln 3 and 0, so the probabilities are 3/4 and 1/4; the second network is unsure."""
    first = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1)
    second = torch.tensor([0.0, 0.1]).view(1, 2, 1, 1)
    yes, no = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1, dtype=torch.bool)
    one = torch.ones(1, 1, 1, dtype=torch.long)
    low, high = math.log(1 + math.exp(0.1)) - 0.1, math.log(1 + math.exp(0.1))
    trusted = two_losses(first, second, supervision(one, yes, yes), 0.2, 9.0, 1.0)
    assert float(trusted["loss"]) == pytest.approx(1.2 * (math.log(4) + low), rel=1e-5)
    peers = two_losses(first, second, supervision(one, no, yes), 9.0, 0.5, 2.0)
    # the first learns the second's decision, 1; the second the first's, 0
    assert float(peers["loss"]) == pytest.approx(2 * 1.5 * (math.log(4) + high), rel=1e-5)


def test_means_over_the_pixels_that_a_term_applies_to() -> None:
    first, second, target = some_case(1)
    target.label[target.label == UNCERTAIN] = 0
    over_all, over_some = (two_losses(first, second, target, 0.2, 0.5, 1.0, mean) for mean in ("all", "labelled"))
    share = float(target.reliable.float().mean())
    assert float(over_some["loss_label"]) == pytest.approx(float(over_all["loss_label"]) / share, rel=1e-5)
    assert float(over_some["loss_peer"]) == pytest.approx(float(over_all["loss_peer"]) / (1 - share), rel=1e-5)


def test_warm_up_counts_shares_or_steps() -> None:
    assert recipes.warmup_steps(Training(warmup=0.25), 80) == 20
    assert recipes.warmup_steps(Training(warmup=0.25, warmup_steps=7), 80) == 7


def test_the_peers_decision_carries_no_gradient() -> None:
    first, second, target = some_case(0)
    nothing = torch.zeros_like(target.reliable)
    gradients = []
    for other in (second, second * 3):  # the same decisions, by other logits
        leaf, peer = first.clone().requires_grad_(), other.clone().requires_grad_()
        losses = two_losses(leaf, peer, supervision(target.label, nothing, nothing), 0.2, 0.0, 1.0)
        losses["loss"].backward()
        gradients.append(leaf.grad)
        # what reaches the peer is the gradient of its own cross-entropy, and nothing beside it
        own = other.clone().requires_grad_()
        F.cross_entropy(own, first.argmax(1)).backward()
        assert torch.allclose(peer.grad, own.grad, atol=1e-7)
    assert torch.equal(gradients[0], gradients[1]) and gradients[0].abs().sum() > 0
    assert not losses["loss_label"].requires_grad and not losses["loss_peer"].requires_grad


# --- what supervises ----------------------------------------------------------------------------------------


class Stub(nn.Module):
    """Logits that are a line in the picture's first channel; has batch statistics to be moved, remembers its calls."""

    def __init__(self, slopes: list[float], offsets: list[float]) -> None:
        super().__init__()
        self.slopes, self.offsets = (nn.Parameter(torch.tensor(v).view(1, -1, 1, 1)) for v in (slopes, offsets))
        self.norm = nn.BatchNorm2d(3)
        self.calls: list[tuple[bool, bool, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append((self.training, torch.is_grad_enabled(), images.clone()))
        self.norm(images)
        return self.line(images)

    def line(self, images: Tensor) -> Tensor:
        return images[:, :1] * self.slopes - self.offsets


def stub_task(recipe: str, **settings: Any) -> tuple[RecipeTask, list[Stub]]:
    chosen = Training.model_validate({"colour": "none", "warmup": 0.25, **settings})
    # classes by brightness; the first changes at 1/3 and 3/5, the mean of both at 1/3 and 3/4
    networks = [Stub([0.0, 6, 16], [0.0, 2, 8]), Stub([1.0, 10, 8], [0.0, 3, 3])][: 1 if recipe == "single" else 2]
    return RecipeTask(networks, recipe, chosen, 2), networks  # type: ignore[arg-type]


def some_batch(size: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(0, 4, (size, 6, 6), generator=generator, dtype=torch.uint8)
    label[label == 3] = UNCERTAIN
    return {
        "image": torch.randint(0, 256, (size, 3, 6, 6), generator=generator, dtype=torch.uint8),
        "label": label,
        "reliable": torch.rand(size, 6, 6, generator=generator) < 0.5,
    }


@pytest.fixture
def mixed_with(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments that `mix` gets, while it works as ever."""
    seen: list[tuple[Any, ...]] = []
    original = recipes.mix
    monkeypatch.setattr(recipes, "mix", lambda *given: (seen.append(given), original(*given))[1])
    return seen


def test_warm_up_uses_offline_labels_and_no_band(mixed_with: list[tuple[Any, ...]]) -> None:
    task, networks = stub_task("beco", mix={"probability": 1, "band_width": 1})
    batch = some_batch()
    losses = run(task, batch, 4, 20)  # the last step of the first quarter
    ((images, offline, online, classes, probability, ignore, width, _),) = mixed_with
    assert torch.equal(images, unit_range(batch["image"]))
    for label, mask in (offline, online):
        assert torch.equal(label, batch["label"].long()) and torch.equal(mask, batch["reliable"])
    assert (classes, probability, ignore, width) == (2, 1, True, 0)
    assert [len(network.calls) for network in networks] == [1, 1]
    assert losses["share_pasted"] > 0  # it mixes already


def test_offline_labels_can_supervise_to_the_end(mixed_with: list[tuple[Any, ...]]) -> None:
    task, networks = stub_task("beco", mix={"probability": 1, "band_width": 1, "labels": "offline"})
    batch = some_batch()
    run(task, batch, 5, 20)  # after the first quarter
    ((_, offline, online, *_, width, _),) = mixed_with
    assert online is offline and width == 1
    assert [len(network.calls) for network in networks] == [1, 1]


def test_after_warm_up_both_networks_decide_together_on_clean_pictures(mixed_with: list[tuple[Any, ...]]) -> None:
    settings = {"probability": 1, "band_width": 2, "online_threshold": 0.6, "ignore_background": False}
    task, networks = stub_task("beco", mix=settings, colour="rgb")
    batch = some_batch()
    clean = unit_range(batch["image"])
    run(task, batch, 5, 20)
    ((_, offline, (label, trusted), _, _, ignore, width, _),) = mixed_with
    assert torch.equal(offline[0], batch["label"].long()) and torch.equal(offline[1], batch["reliable"])
    assert not ignore and width == 2
    probability = (sum(network.line(clean) for network in networks) / 2).softmax(1)
    assert torch.equal(label, probability.argmax(1))
    assert torch.equal(trusted, probability.amax(1) > 0.6) and 0 < trusted.float().mean() < 1
    # the case tells the mean of the logits from one network, and from the mean of the probabilities
    assert not torch.equal(label, networks[0].line(clean).argmax(1))
    assert not torch.allclose(probability, sum(n.line(clean).softmax(1) for n in networks) / 2, atol=1e-2)
    for network in networks:
        online, loss = network.calls
        assert online[:2] == (False, False) and torch.equal(online[2], clean)  # evaluating, without gradient, clean
        assert loss[:2] == (True, True) and not torch.equal(loss[2], clean)
        assert network.training and network.norm.training
        assert network.norm.num_batches_tracked == 1  # only the training pass counted
    assert torch.equal(networks[0].calls[1][2], networks[1].calls[1][2])  # both learn from the same view


def test_the_online_pass_leaves_batch_statistics_alone() -> None:
    task, networks = stub_task("beco")
    task._online(torch.rand(4, 3, 6, 6))
    for network in networks:
        assert not network.norm.running_mean.any() and (network.norm.running_var == 1).all()
        assert network.training


@pytest.mark.parametrize("step", [0, 19])
def test_cotraining_never_mixes(mixed_with: list[tuple[Any, ...]], step: int) -> None:
    task, networks = stub_task("cotraining", mix={"probability": 1, "band_weight": 5})
    batch = some_batch()
    losses = run(task, batch, step, 20)
    assert mixed_with == [] and losses["share_pasted"] == 0
    assert losses["share_reliable"].item() == pytest.approx(batch["reliable"].float().mean().item())
    clean, none = unit_range(batch["image"]), torch.zeros_like(batch["reliable"])
    assert all(len(n.calls) == 1 and torch.equal(n.calls[0][2], clean) for n in networks)
    target = supervision(batch["label"].long(), batch["reliable"], none)
    expected = slow_losses(*(n(clean).detach() for n in networks), target, 0, 0, 1)[0]
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_the_peer_loss_starts_when_it_is_told_to() -> None:
    task, _ = stub_task("cotraining", peer_weight=0.5, peer_start=0.5)
    for step, weight in ((9, 0.0), (10, 0.5)):
        losses = run(task, some_batch(), step, 20)
        expected = losses["loss_label"] + weight * losses["loss_peer"]
        assert losses["loss"].item() == pytest.approx(expected.item()) and losses["loss_peer"] > 0


def test_single_is_plain_cross_entropy() -> None:
    task, (network,) = stub_task("single")
    batch = some_batch(3)  # nothing is mixed, so an odd number will do
    losses = run(task, batch, 10, 20)
    expected = F.cross_entropy(network(unit_range(batch["image"])), batch["label"].long(), ignore_index=255)
    assert losses["loss"].item() == pytest.approx(expected.item()) and (batch["label"] == 255).any()


@pytest.mark.parametrize("recipe", ["single", "cotraining", "beco"])
def test_a_batch_without_any_opinion_does_not_break_the_training(recipe: str) -> None:
    task, networks = stub_task(recipe)
    batch = some_batch()
    batch["label"].fill_(UNCERTAIN)
    batch["reliable"].fill_(False)
    loss = run(task, batch, 0, 20)["loss"]
    loss.backward()
    assert loss.isfinite() and all(n.slopes.grad.isfinite().all() for n in networks)


# --- networks -----------------------------------------------------------------------------------------------


def test_parameters_are_the_encoders_or_the_decoders() -> None:
    networks = [Segmenter(NETWORK, 3) for _ in range(2)]
    (encoder, first), (decoder, second) = RecipeTask(networks, "beco", Training(), 3).parameter_groups()
    assert (first, second) == (False, True)
    assert sorted(map(id, encoder + decoder)) == sorted(id(p) for n in networks for p in n.parameters())
    assert {id(p) for n in networks for p in n.backbone.parameters()} == set(map(id, encoder))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> manifests.Manifest:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=4, val=3))
    path = folder / "set" / "JPEGImages" / "val_00001.jpg"
    Image.open(path).resize((50, 61)).save(path)
    (folder / "set" / "SegmentationClass" / "val_00001.png").unlink()
    Image.new("L", (50, 61)).save(folder / "set" / "SegmentationClass" / "val_00001.png")
    return voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv")


def started(
    pictures: manifests.Manifest, recipe: str, seed: int, output: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> list[dict[str, Tensor]]:
    """The networks as `train` hands them to the training loop, which is left out."""
    kept: list[dict[str, Tensor]] = []

    def fit(task: RecipeTask, *_: Any) -> State:
        kept.extend({key: value.clone() for key, value in n.state_dict().items()} for n in task.networks)
        return State(step=1)

    monkeypatch.setattr(training, "fit", fit)
    network = Network.model_validate({**NETWORK.model_dump(), **more.pop("network", {})})
    settings = Training.model_validate({"schedule": {"steps": 1, "batch_size": 2, **more}})
    training.train(
        pictures,
        "train",
        "val",
        None,
        None,
        network,
        settings,
        recipe,
        seed,
        Compute("cpu"),
        output,
        False,  # type: ignore[arg-type]
    )
    return kept


def test_the_two_networks_share_the_encoder_and_not_the_decoder(
    pictures: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "w.safetensors"
    encoders.save_network(encoders.create_backbone(NETWORK.encoder, 16), weights, {})
    given = {"encoder": {**NETWORK.encoder.model_dump(), "weights": str(weights)}}
    one, other = started(pictures, "beco", 0, tmp_path / "a", monkeypatch, network=given)
    built = Segmenter(NETWORK, 3)
    inside = {id(value) for value in built.backbone.state_dict(keep_vars=True).values()}
    backbone = {key for key, value in built.state_dict(keep_vars=True).items() if id(value) in inside}
    encoder = {key for key in one if key in backbone}
    assert encoder and all(torch.equal(one[key], other[key]) for key in encoder)
    drawn = [key for key in one if key not in encoder and one[key].ndim == 4]
    assert len(drawn) > 8 and not any(torch.equal(one[key], other[key]) for key in drawn)
    # the same seed starts from the same numbers, another one and no recipe's second network from others
    again = started(pictures, "beco", 0, tmp_path / "b", monkeypatch, network=given)
    assert all(torch.equal(a[key], b[key]) for a, b in zip((one, other), again, strict=True) for key in a)
    (single,) = started(pictures, "single", 0, tmp_path / "c", monkeypatch, network=given)
    assert all(torch.equal(single[key], one[key]) for key in one)
    (later,) = started(pictures, "single", 1, tmp_path / "d", monkeypatch, network=given)
    assert not torch.equal(later[drawn[0]], one[drawn[0]])
    # and what was saved is what is loaded
    members, classes = training.load(tmp_path / "a" / "networks.safetensors")
    assert classes == pictures.classes and not any(member.training for member in members)
    for member, state in zip(members, (one, other), strict=True):
        assert all(torch.equal(value, state[key]) for key, value in member.state_dict().items())
    assert json.loads((tmp_path / "a" / "training.json").read_text())["recipe"] == "beco"


def test_pairs_need_an_even_batch(
    pictures: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"batch_size: pairs are mixed, so it must be even"):
        started(pictures, "beco", 0, tmp_path / "a", monkeypatch, batch_size=3)
    assert len(started(pictures, "single", 0, tmp_path / "b", monkeypatch, batch_size=3)) == 1


def test_labels_that_do_not_belong_to_the_pictures(pictures: manifests.Manifest, tmp_path: Path) -> None:
    train = pictures.split("train")
    with store.create(tmp_path / "some.h5", classes=pictures.classes) as writer:
        writer.put("label", train.ids[0], np.zeros((64, 64), np.uint8))
    with pytest.raises(UserError, match=r"some\.h5: has no label for 3 of 4 training pictures, such as train_00001"):
        training._checked_labels(train, tmp_path / "some.h5")
    with store.create(tmp_path / "other.h5", classes=pictures.classes[::-1]) as writer:
        for image_id in train.ids:
            writer.put("label", image_id, np.zeros((64, 64), np.uint8))
    with pytest.raises(UserError, match=r"other\.h5: its classes .* are not the manifest's"):
        training._checked_labels(train, tmp_path / "other.h5")
    bare = manifests.Manifest(train.root, train.table.assign(mask=""), train.classes)
    with pytest.raises(UserError, match="the training split has no masks"):
        training._checked_labels(bare, None)


class Halves:
    """A manifest of one picture whose colours say what its label and its confidence are."""

    ids = ("a",)
    truth = np.repeat(np.array([[0, 1, 255, 2]], np.uint8), 16, 1).repeat(48, 0)
    sure = np.arange(48)[:, None].repeat(64, 1) < 24

    def size(self, image_id: str) -> tuple[int, int]:
        return 48, 64

    def mask(self, image_id: str) -> np.ndarray:
        return self.truth

    def image(self, image_id: str) -> np.ndarray:
        return np.stack([self.truth, np.uint8(200) * self.sure, self.truth], 2)


@pytest.mark.parametrize("truth", [True, False])
def test_label_and_mask_are_cropped_and_mirrored_with_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truth: bool
) -> None:
    with store.create(tmp_path / "labels.h5") as writer:
        writer.put("label", "a", Halves.truth)
        writer.put("confidence", "a", np.where(Halves.sure, 0.9, 0.1).astype(np.float16))
    crop, labels = Crop(size=32, area=(0.3, 0.8)), None if truth else PseudoLabels(tmp_path / "labels.h5")
    dataset = LabelledPictures(Halves(), labels, 0.5, crop)  # type: ignore[arg-type]
    monkeypatch.setattr(augment, "KEEP_BYTES", 0)
    large = LabelledPictures(Halves(), labels, 0.5, crop)  # type: ignore[arg-type]
    mirrored, place = set(), {0: 0, 1: 1, UNCERTAIN: 2, 2: 3}
    for draw in range(12):
        item = dataset[0, draw]
        image, label, reliable = item["image"], item["label"], item["reliable"]
        assert image.shape == (3, 32, 32) and image.dtype == label.dtype == torch.uint8 and reliable.dtype == torch.bool
        planes = torch.stack([label.float(), reliable.float()])[None]
        # away from edges, also from those that the crop has just cut off
        flat = (F.max_pool2d(planes, 5, 1, 2) == -F.max_pool2d(-planes, 5, 1, 2)).all(1)[0]
        flat[:3] = flat[-3:] = flat[:, :3] = flat[:, -3:] = False
        assert flat.float().mean() > 0.3
        assert torch.equal(image[0][flat], label[flat])
        expected = label != UNCERTAIN if truth else (image[1] > 100) & (label != UNCERTAIN)
        assert torch.equal(reliable[flat], expected[flat])
        mirrored.add(place[int(label[0, 0])] > place[int(label[0, -1])])
        # a function of the key alone, whether the picture was kept or read again
        for again in (dataset[0, draw], large[0, draw]):
            assert all(torch.equal(again[key], item[key]) for key in item)
    assert mirrored == {True, False}
    assert not torch.equal(dataset[0, 0]["image"], dataset[0, 1]["image"])


def test_strong_colour_keeps_the_range_and_draws_for_each_picture() -> None:
    images = torch.rand(1, 3, 16, 16).repeat(16, 1, 1, 1)
    found = StrongColour()(images, draws_for({"image": images}))
    assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1
    assert len({tuple(one.flatten()[:6].tolist()) for one in found}) > 12
    assert torch.equal(StrongColour()(images, draws_for({"image": images})), found)


# --- prediction ---------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Logits by hand: one weight per class on the first channel, and a slope from left to right."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.weights = torch.tensor(weights).view(1, -1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        slope = torch.linspace(0.1, 1, images.shape[-1]).view(1, 1, 1, -1)
        return (images[:, :1] + slope) * self.weights


def test_logits_are_averaged_over_networks_flips_and_scales() -> None:
    images = torch.rand(2, 3, 6, 8)
    one, other = Linear([1.0, 2.0, -1.0]), Linear([0.0, 3.0, 5.0])
    sizes = (6, 8)
    mean = prediction.merged_scores([one, other], images, Prediction(), sizes)
    assert torch.allclose(mean, (one(images) + other(images)) / 2, atol=1e-6)
    flipped = prediction.merged_scores([one], images, Prediction(flip=True), sizes)
    assert torch.allclose(flipped, (one(images) + one(images.flip(-1)).flip(-1)) / 2, atol=1e-6)
    mirrored = prediction.merged_scores([one], images.flip(-1), Prediction(flip=True), sizes)
    assert torch.allclose(mirrored.flip(-1), flipped, atol=1e-6)
    double = F.interpolate(images, (12, 16), mode="bilinear", align_corners=False)
    larger = F.interpolate(one(double), sizes, mode="bilinear", align_corners=False)
    scaled = prediction.merged_scores([one], images, Prediction(scales=[1, 2]), sizes)
    assert torch.allclose(scaled, (one(images) + larger) / 2, atol=1e-6)
    assert prediction.merged_scores([one, other], images, Prediction(flip=True, scales=[0.5, 1]), (9, 5)).shape == (
        2, 3, 9, 5,
    )  # fmt: skip


@pytest.mark.parametrize("resize", [None, 32])
def test_predictions_have_the_pictures_own_sizes(
    pictures: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resize: int | None
) -> None:
    val = pictures.split("val")
    weights = (torch.arange(len(val.classes) + 1) - 2.4).pow(2)  # largest for class 6, smallest for class 2
    networks = [Linear(weights.tolist()), Linear((-2 * weights).tolist())]  # the mean is −weights / 2
    seen: list[tuple[int, int]] = []
    for network in networks:
        network.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[-2:])))
    monkeypatch.setattr(prediction, "load", lambda _: (networks, val.classes))
    for members, expected in (("all", 2), ("first", 6)):
        output = tmp_path / members
        settings = Prediction(resize=resize, networks=members, batch_size=2)
        prediction.predict(val, tmp_path / "none", settings, Compute("cpu"), output)
        assert sorted(path.name for path in output.iterdir()) == [f"{name}.png" for name in sorted(val.ids)]
        for image_id in val.ids:
            label = read_index_png(output / f"{image_id}.png")
            assert label.shape == val.size(image_id)
            assert (label == expected).all()
    assert set(seen) == ({(64, 64), (61, 50)} if resize is None else {(32, 32), (32, 26)})
    with pytest.raises(UserError, match="trained for other classes"):
        monkeypatch.setattr(prediction, "load", lambda _: (networks, val.classes[1:]))
        prediction.predict(val, tmp_path / "none", Prediction(), Compute("cpu"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
