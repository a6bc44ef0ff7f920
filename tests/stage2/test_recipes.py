"""The recipes of stage two: their losses pixel by pixel, and what supervises when."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beco.artifacts.pseudolabels import UNCERTAIN
from beco.config import Training
from beco.stage2 import recipes
from beco.stage2.boundaries import Supervision
from beco.stage2.recipes import beco as beco_recipe
from beco.stage2.recipes.base import Recipe
from beco.stage2.recipes.cotraining import cotraining_losses
from beco.training.augment import unit_range
from beco.training.sampling import Draws


def supervision(label: Tensor, reliable: Tensor, band: Tensor) -> Supervision:
    return Supervision(torch.zeros(len(label), 3, *label.shape[1:]), label, reliable, band, band)


def draws_for(batch: dict[str, Tensor], seed: int = 0) -> Draws:
    size = len(batch["image"])
    return Draws(seed, size, list(range(size)), torch.device("cpu"))


def run(task: Recipe, batch: dict[str, Tensor], step: int, steps: int) -> dict[str, Tensor]:
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
    assert beco_recipe.warmup_steps(Training(warmup=0.25), 80) == 20
    assert beco_recipe.warmup_steps(Training(warmup=0.25, warmup_steps=7), 80) == 7


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


def stub_task(recipe: str, **settings: Any) -> tuple[Recipe, list[Stub]]:
    chosen = Training.model_validate({"colour": "none", "warmup": 0.25, **settings})
    # classes by brightness; the first changes at 1/3 and 3/5, the mean of both at 1/3 and 3/4
    networks = [Stub([0.0, 6, 16], [0.0, 2, 8]), Stub([1.0, 10, 8], [0.0, 3, 3])][: 1 if recipe == "single" else 2]
    return recipes.make(recipe, networks, chosen, 2), networks  # type: ignore[arg-type]


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
    original = beco_recipe.mix
    monkeypatch.setattr(beco_recipe, "mix", lambda *given: (seen.append(given), original(*given))[1])
    return seen


def test_warm_up_uses_offline_labels_and_no_band(mixed_with: list[tuple[Any, ...]]) -> None:
    task, networks = stub_task("beco", mix={"probability": 1, "band_width": 1})
    batch = some_batch()
    losses = run(task, batch, 4, 20)  # the last step of the first quarter
    ((images, offline, believed, region, how, _),) = mixed_with
    assert torch.equal(images, unit_range(batch["image"])) and torch.equal(region, batch["label"] != UNCERTAIN)
    for label, mask in (offline, believed):
        assert torch.equal(label, batch["label"].long()) and torch.equal(mask, batch["reliable"])
    assert how == (2, 1, True, 0)
    assert [len(network.calls) for network in networks] == [1, 1]
    assert losses["share_pasted"] > 0  # it mixes already


@pytest.mark.parametrize("labels", ["offline", "offline_reliable"])
def test_offline_labels_can_supervise_to_the_end(mixed_with: list[tuple[Any, ...]], labels: str) -> None:
    task, networks = stub_task("beco", mix={"probability": 1, "band_width": 1, "labels": labels})
    batch = some_batch()
    run(task, batch, 5, 20)  # after the first quarter
    ((_, offline, believed, region, how, _),) = mixed_with
    assert believed is offline and how.band_width == 1
    whole, reliable = batch["label"] != UNCERTAIN, batch["reliable"]
    assert torch.equal(region, whole if labels == "offline" else reliable) and not torch.equal(whole, reliable)
    assert [len(network.calls) for network in networks] == [1, 1]


def test_after_warm_up_both_networks_decide_together_on_clean_pictures(mixed_with: list[tuple[Any, ...]]) -> None:
    settings = {"probability": 1, "band_width": 2, "online_threshold": 0.6, "ignore_background": False}
    task, networks = stub_task("beco", mix=settings, colour="rgb")
    batch = some_batch()
    clean = unit_range(batch["image"])
    run(task, batch, 5, 20)
    ((_, offline, (label, trusted), region, how, _),) = mixed_with
    assert region is trusted
    assert torch.equal(offline[0], batch["label"].long()) and torch.equal(offline[1], batch["reliable"])
    assert not how.ignore_background and how.band_width == 2
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


def test_what_online_labels_leave_out_is_told_after_warm_up() -> None:
    task, _ = stub_task("beco", mix={"online_threshold": 0.72})
    batch = some_batch()
    batch["label"][3] = 0  # a picture without an object counts with nothing
    assert run(task, batch, 4, 20)["share_left_out"] == 0
    told = run(task, batch, 5, 20)["share_left_out"].item()
    online = task.online(unit_range(batch["image"]))
    shares = []
    for picture in range(4):
        shown = {1, 2} & set(batch["label"][picture].flatten().tolist())
        trusted = set(online.label[picture][online.reliable[picture]].tolist())
        shares.append(len(shown - trusted) / max(len(shown), 1))
    assert told == pytest.approx(sum(shares) / 4) and 0 < told < 1
    offline, _ = stub_task("beco", mix={"labels": "offline"})
    assert "share_left_out" not in run(offline, batch, 5, 20)
    assert "no pixel of 62% of the classes" in task.warning({"share_left_out": 0.62})
    assert not task.warning({"share_left_out": 0.05}) and not offline.warning({"loss": 9.0})


def test_the_online_pass_leaves_batch_statistics_alone() -> None:
    task, networks = stub_task("beco")
    task.online(torch.rand(4, 3, 6, 6))
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
