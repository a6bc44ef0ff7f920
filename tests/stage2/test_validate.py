"""Scores during a training, and the choice of the best epoch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from beco.config import Network, Shapes, Training
from beco.datasets import manifest as manifests
from beco.datasets import shapes, voc
from beco.errors import UserError
from beco.networks.encoders import load_network
from beco.stage2 import train as training
from beco.stage2.validate import Validator
from beco.training.checkpoint import State
from beco.training.trainer import Compute

NETWORK = Network.model_validate(
    {
        "encoder": {"name": "resnet10t", "options": {"channels": [8, 8, 16, 16]}},
        **{"decoder_channels": 8, "atrous_rates": [1, 2, 3]},
    }
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> manifests.Manifest:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=8, val=4))
    return voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv")


class Fixed(nn.Module):
    """Logits that favour one class everywhere."""

    def __init__(self, favoured: int, strength: float) -> None:
        super().__init__()
        self.favoured, self.strength = favoured, nn.Parameter(torch.tensor(strength))

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), len(shapes.CLASSES) + 1, *images.shape[-2:])
        logits[:, self.favoured] = self.strength.detach()
        return logits


def settings(**more: Any) -> Training:
    schedule = {"epochs": 4, "batch_size": 4}
    return Training.model_validate({"crop": {"size": 64}, "schedule": schedule, "validate_every": 1, **more})


def validator(pictures: manifests.Manifest, networks: list[Any], best: Path, **more: Any) -> Validator:
    metadata = {"classes": json.dumps(pictures.classes), "count": str(len(networks))}
    parts = pictures.split("val"), pictures.split("train")
    return Validator(networks, *parts, settings(**more), Compute("cpu"), best, metadata)


def test_the_score_is_the_mean_iou_of_the_averaged_networks(pictures: manifests.Manifest, tmp_path: Path) -> None:
    val = pictures.split("val")
    truth = np.stack([val.mask(name) for name in val.ids])
    truth = truth[truth != 255]
    share = (truth == 0).mean()  # everything called background: its IoU is its share, the other classes' is 0
    expected = share / len(np.unique(truth))
    # the second network is surer of background than the first of class 3
    found = validator(pictures, [Fixed(3, 1.0), Fixed(0, 2.0)], tmp_path / "best").miou()
    assert found == pytest.approx(expected, rel=1e-5)


def test_truth_is_squeezed_at_the_centres_of_pixels(
    pictures: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = np.broadcast_to(np.arange(24, dtype=np.uint8), (24, 24))
    monkeypatch.setattr(manifests.Manifest, "mask", lambda *_: ramp.copy())
    check = validator(pictures, [Fixed(0, 1.0)], tmp_path / "best", crop={"size": 32})
    for _, truth in check._squeezed(check.pictures, check.pictures.ids):
        assert truth.dtype == torch.int64 and truth.shape[1:] == (32, 32)
        assert truth[0, 7, :9].tolist() == [0, 1, 1, 2, 3, 4, 4, 5, 6]


def test_the_best_networks_are_kept(pictures: manifests.Manifest, tmp_path: Path) -> None:
    network = Fixed(0, 1.0)
    check = validator(pictures, [network], tmp_path / "best", choose="best", validate_every=2)
    state = State(history=[{}])
    assert check(state) == {}  # not in the first epoch of two
    good = check(State(history=[{}, {}]))["val_miou"]
    state = State(history=[{}] * 2)
    check(state)
    assert (state.best, state.best_epoch) == (good, 2)
    network.favoured = 4
    state.history = [{}] * 4
    assert check(state)["val_miou"] < good
    assert (state.best, state.best_epoch) == (good, 2)
    assert (tmp_path / "best").exists()


def test_without_masks_there_is_nothing_to_choose_by(pictures: manifests.Manifest, tmp_path: Path) -> None:
    bare = replace(pictures, table=pictures.table.assign(mask=""))
    with pytest.raises(UserError, match=r"training\.validate_every: .*no masks"):
        validator(bare, [Fixed(0, 1.0)], tmp_path / "best")


def test_trust_in_online_labels_by_hand(pictures: manifests.Manifest, tmp_path: Path) -> None:
    train = pictures.split("train")
    truth = np.stack([train.mask(name) for name in train.ids])
    share = (truth[truth != 255] == 0).mean()
    # softmax of the favoured class: e^s / (e^s + K), here 0.9
    sure = Fixed(0, float(np.log(9 * len(shapes.CLASSES))))
    found = validator(pictures, [sure], tmp_path / "best", watch_labels=8, mix={"online_threshold": 0.89}).online()
    assert found == {"online_trusted": 1.0, "online_trusted_objects": 1.0, "online_right": pytest.approx(share)}
    found = validator(pictures, [sure], tmp_path / "best", watch_labels=8, mix={"online_threshold": 0.91}).online()
    assert found == {"online_trusted": 0.0, "online_trusted_objects": 0.0, "online_right": 0.0}


class Sees(nn.Module):
    """Sure of the left half of each picture, where it sees background, and not of the right one."""

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), len(shapes.CLASSES) + 1, *images.shape[-2:])
        logits[:, 0, :, : images.shape[-1] // 2] = 9.0
        return logits


def test_trust_in_objects_is_told_apart(pictures: manifests.Manifest, tmp_path: Path) -> None:
    train = pictures.split("train")
    truth = np.stack([train.mask(name) for name in train.ids])
    left, known = truth[:, :, : truth.shape[2] // 2], truth != 255
    found = validator(pictures, [Sees()], tmp_path / "best", watch_labels=8).online()
    objects = (truth > 0) & known
    assert found["online_trusted"] == pytest.approx((left != 255).sum() / known.sum())
    assert found["online_trusted_objects"] == pytest.approx(((left > 0) & (left != 255)).sum() / objects.sum())
    assert found["online_right"] == pytest.approx((left == 0).sum() / (left != 255).sum())


@pytest.mark.parametrize(("asked", "looked_at"), [(8, 8), (5, 4), (4, 4), (1, 1), (100, 8)])
def test_as_many_pictures_are_watched_as_asked_for_at_most(
    pictures: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, looked_at: int
) -> None:
    seen: list[str] = []
    inner = Validator._squeezed
    monkeypatch.setattr(Validator, "_squeezed", lambda self, at, ids: (seen.extend(ids), inner(self, at, ids))[1])
    validator(pictures, [Fixed(0, 1.0)], tmp_path / "best", watch_labels=asked).online()
    assert len(set(seen)) == len(seen) == looked_at and set(seen) <= set(pictures.split("train").ids)


def test_pictures_without_masks_are_not_watched(pictures: manifests.Manifest, tmp_path: Path) -> None:
    bare = replace(
        pictures, table=pictures.table.assign(mask=pictures.table["mask"].where(pictures.table["split"] == "val", ""))
    )
    check = validator(bare, [Fixed(0, 1.0)], tmp_path / "best", watch_labels=8)
    assert set(check(State(history=[{}]))) == {"val_miou"}


def test_watching_needs_a_time_to_look() -> None:
    with pytest.raises(ValueError, match="watch_labels looks when scores are taken; set validate_every"):
        settings(validate_every=None, watch_labels=3)


def wanted(chosen: Training) -> training.Wanted:
    return training.Wanted("beco", NETWORK, chosen)


def test_watching_changes_nothing(
    pictures: manifests.Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def trained(name: str, **more: Any) -> tuple[dict[str, Tensor], pd.DataFrame]:
        chosen = settings(**more)
        folder, compute = tmp_path / name, Compute("cpu")
        training.train(
            pictures.split("train"),
            pictures.split("val"),
            wanted(chosen),
            compute,
            folder,
            False,
        )
        return load_network(folder / "networks.safetensors")[0], pd.read_csv(folder / "history.csv")

    plain, watched = trained("plain", validate_every=None), trained("watched", validate_every=2, watch_labels=8)
    assert all(torch.equal(value, watched[0][key]) for key, value in plain[0].items())
    assert "online_right" not in plain[1]
    assert watched[1]["online_right"].notna().tolist() == [False, True, False, True]
    assert watched[1][["online_trusted", "online_right"]].dropna().stack().between(0, 1).all()
    # networks this young are sure of nothing, which is told without masks
    assert plain[1]["share_left_out"].iloc[-1] > 0.1 and "beco seed 0: online labels trust no pixel" in caplog.text


@pytest.mark.parametrize("choose", ["last", "best"])
def test_a_training_with_scores(pictures: manifests.Manifest, tmp_path: Path, choose: str) -> None:
    chosen, compute = settings(choose=choose), Compute("cpu")
    training.train(
        pictures.split("train"),
        pictures.split("val"),
        wanted(chosen),
        compute,
        tmp_path,
        False,
    )
    scores = pd.read_csv(tmp_path / "history.csv")["val_miou"]
    assert len(scores) == 4 and scores.between(0, 1).all() and scores.nunique() > 1
    written = json.loads((tmp_path / "training.json").read_text())
    assert written["epoch"] == ("last" if choose == "last" else int(scores.idxmax()) + 1)
    state, _ = load_network(tmp_path / "networks.safetensors")
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["module"]
    same = all(torch.equal(value, last[f"networks.{key}"]) for key, value in state.items())
    assert same == (choose == "last" or written["epoch"] == 4)
