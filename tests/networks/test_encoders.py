"""Backbones: where their maps are, what cannot be built is refused in one line, and own files of networks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from small_encoders import MIT, TINY, encoder, loaded, refusal, save
from torch import Tensor, nn

from beco.config import Encoder
from beco.errors import UserError
from beco.networks import downloads, encoders
from beco.stage1 import localisers
from beco.stage1 import train as classifier


def test_a_dropped_block_becomes_the_identity_and_the_rest_loads(tmp_path: Path, state: dict[str, Tensor]) -> None:
    # two blocks in the last layer; the file is of the network with one
    deeper = {"name": "resnet10t", "options": {**TINY, "layers": (1, 1, 1, 2)}}
    path = save(state, tmp_path / "w.safetensors")
    assert "lacks" in refusal(path, **deeper)
    found = loaded(path, **deeper, drop=["layer4.1"])
    assert isinstance(found.layer4[1], nn.Identity)
    assert torch.equal(found.state_dict()["layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])
    plain = loaded(path)
    picture = torch.rand(2, 3, 32, 32)
    for one, other in zip(found.eval()(picture), plain.eval()(picture), strict=True):
        assert torch.equal(one, other)


def test_weights_null_leaves_the_random_ones() -> None:
    torch.manual_seed(0)
    backbone = encoders.create_backbone(encoder(), 8)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    encoders.prepare_backbone(backbone, encoder())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options"), [("mit_b0", MIT), ("pvt_v2_b0", {}), ("convnext_atto", {}), ("mobilenetv3_small_050", {})]
)
def test_maps_are_where_strides_and_channels_say(name: str, options: dict[str, Any]) -> None:
    backbone = encoders.create_backbone(encoder(name=name, options=options), 32).eval()
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, 64, 96))
    assert encoders.feature_strides(backbone)[-4:] == [4, 8, 16, 32]
    found = [feature.shape[1:] for feature in features]
    strides, channels = encoders.feature_strides(backbone), encoders.feature_channels(backbone)
    assert found == [(c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_the_deepest_features_have_the_stride_and_channels_that_were_asked_for(stride: int) -> None:
    backbone = encoders.create_backbone(encoder(), stride)
    features = backbone(torch.rand(1, 3, 64, 96))
    assert features[-1].shape == (1, 32, 64 // stride, 96 // stride)
    assert encoders.feature_channels(backbone) == [feature.shape[1] for feature in features]


@pytest.mark.parametrize(("name", "options"), [("resnet10t", TINY), ("resnet26d", {}), ("resnet18", {})])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_shortcuts_move_nothing(name: str, options: dict[str, Any], stride: int) -> None:
    """One cell in, the same cell out; where the stage halves the map, the cell that holds it."""
    backbone: Any = encoders.create_backbone(encoder(name=name, options=options), stride).eval()
    for layer, before in (("layer2", 4), ("layer3", 8), ("layer4", 16)):
        shortcut = getattr(backbone, layer)[0].downsample
        channels = next(m for m in shortcut.modules() if isinstance(m, nn.Conv2d)).in_channels
        halves = before < stride
        cell = torch.zeros(1, channels, 8, 8)
        cell[:, :, 4, 2] = 1
        found = shortcut(cell) - shortcut(torch.zeros_like(cell))
        assert found.abs().sum(1)[0].nonzero().tolist() == [[2, 1] if halves else [4, 2]]


def network_from_before(folder: Path, settings: Encoder) -> Path:
    """A classifier as older versions wrote it, without a word about its shortcuts."""
    network = localisers.make("cam", settings, 8, 2)
    metadata = {"encoder": settings.model_dump_json(), "output_stride": "8", "classes": '["a", "b"]'}
    encoders.save_network(network, folder / "new.safetensors", metadata)
    assert classifier.load(folder / "new.safetensors")
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, folder / "old.safetensors", metadata)
    return folder / "old.safetensors"


def test_networks_from_before_their_shortcuts_were_mended_are_refused(tmp_path: Path) -> None:
    """Tensors would fit, and the maps would lie where they were not learnt."""
    settings = encoder(options=TINY)
    old = network_from_before(tmp_path, settings)
    started = encoders.create_backbone(settings, 8)
    for read in (
        lambda: classifier.load(old),
        lambda: encoders.prepare_backbone(started, settings.model_copy(update={"weights": "classifier"}), old),
    ):
        with pytest.raises(UserError, match=r"old.safetensors: made by an older version.*; train it again"):
            read()


def test_networks_from_before_that_had_no_such_shortcuts_are_read(tmp_path: Path) -> None:
    assert classifier.load(network_from_before(tmp_path, encoder(name="resnet18", options={})))


def test_own_files_round_trip(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    encoders.save_network(network, tmp_path / "n.safetensors", {"classes": '["é"]'})
    found, metadata = encoders.load_network(tmp_path / "n.safetensors")
    assert metadata == {"classes": '["é"]', "shortcuts": "unpooled"}
    assert set(found) == set(network.state_dict())
    assert all(torch.equal(value, found[key]) for key, value in network.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["n.safetensors"]


def test_the_classifiers_backbone_as_weights(tmp_path: Path) -> None:
    source = nn.Module()
    source.backbone = encoders.create_backbone(encoder(), 16)
    source.head = nn.Conv2d(32, 3, 1)
    encoders.save_network(source, tmp_path / "classifier.safetensors", {"classes": "[]"})
    target = encoders.create_backbone(encoder("classifier"), 16)
    with pytest.raises(UserError, match="needs --classifier"):
        encoders.prepare_backbone(target, encoder("classifier"))
    encoders.prepare_backbone(target, encoder("classifier"), tmp_path / "classifier.safetensors")
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


# --- what does not ------------------------------------------------------------------------------------------


def test_an_unknown_model_and_block_and_option() -> None:
    for name in ("resnet1000", "resnet50.no_such_tag"):
        assert f"encoder.name: timm has no model `{name}`" in refusal("none.pth", name=name, options={})
    message = refusal("none.pth", drop=["layer9.0"])
    assert "encoder.drop: `resnet10t` has no block `layer9.0`" in message and "layer4" in message
    for name in ("resnet10t", "mit_b0"):
        with pytest.raises(UserError, match=rf"encoder.options of `{name}`.*chanels") as caught:
            encoders.create_backbone(encoder(name=name, options={"chanels": [8, 8, 8, 8]}), 32)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "stride", "message"),
    [
        ("mit_b0", 16, "output_stride: `mit_b0` cannot be dilated; set 32"),
        ("pvt_v2_b0", 16, "output_stride: `pvt_v2_b0` cannot be dilated; set 32"),
        ("resnet10t", 4, "encoder `resnet10t`: AssertionError; check encoder.options and output_stride"),
        ("vgg11", 16, "output_stride: `vgg11` cannot be dilated; set 32"),
        ("hrnet_w18_small", 8, "output_stride: `hrnet_w18_small` cannot be dilated; set 32"),
        ("dla46_c", 16, "output_stride: `dla46_c` cannot be dilated; set 32"),
        ("ghostnet_050", 16, "output_stride: `ghostnet_050` cannot be dilated; set 32"),
        ("cait_xxs24_224", 16, "takes pictures of 224×224 alone; choose a convolutional one"),
        ("mambaout_femto", 32, "are no channels-first maps"),
    ],
)
def test_encoders_that_cannot_do_it(name: str, stride: int, message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=re.escape(message)) as caught:
        encoders.create_backbone(encoder(name=name, options={}), stride)
    assert "\n" not in str(caught.value)


def test_a_transformer_without_blocks() -> None:
    given = encoder(name="vit_tiny_patch16_224", options={"depth": 0, "embed_dim": 48, "num_heads": 3})
    with pytest.raises(UserError, match=r"encoder\.options of `vit_tiny_patch16_224`: leave no block"):
        encoders.create_backbone(given, 16)


def test_the_mend_of_an_encoder_without_dilation_works() -> None:
    with torch.device("meta"):
        for name in ("vgg11", "dla46_c"):
            assert encoders.feature_strides(encoders.create_backbone(encoder(name=name, options={}), 32))[-1] == 32


def test_an_encoder_without_dilation_is_not_told_as_a_missing_download(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"), pytest.raises(UserError, match="output_stride: `vgg11` cannot be dilated; set 32"):
        encoders.create_backbone(Encoder(name="vgg11", weights="imagenet"), 16)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet50", "model.safetensors of timm's `resnet50.a1_in1k`"),
        ("resnet101d.ra2_in1k", "model.safetensors of timm's `resnet101d.ra2_in1k`"),
        ("mit_b2", "mit_b2.pth of SegFormer's authors"),
    ],
)
def test_no_network_no_imagenet(monkeypatch: pytest.MonkeyPatch, name: str, file: str) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(downloads, "unreachable", lambda _: None)
    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(smp.encoders, "hf_hub_download", offline)
    options = MIT if name == "mit_b2" else {}
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        encoders.create_backbone(Encoder(name=name, weights="imagenet", options=options), 32)
    message = str(caught.value)
    assert message.startswith(
        f"encoder.weights: ImageNet weights of `{name}` could not be downloaded (ConnectionError)"
    )
    assert file in message and "set encoder.weights to its path" in message and "\n" not in message


def test_imagenet_without_published_weights() -> None:
    with pytest.raises(UserError, match="timm has no ImageNet weights of `cspresnet50d`; name a file or set null"):
        encoders.create_backbone(Encoder(name="cspresnet50d", weights="imagenet"), 32)


@pytest.mark.parametrize("content", [None, b"", b"\x10\0\0\0\0\0\0\0{"])
def test_own_files_missing_or_damaged(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "n.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="no such file; run" if content is None else "not readable as safetensors"):
        encoders.load_network(path)
