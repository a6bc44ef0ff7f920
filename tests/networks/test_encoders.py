"""Backbones and their weights: every tensor of the file arrives, and what does not fit is refused in one line."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from beco.config import Encoder
from beco.errors import UserError
from beco.networks import encoders
from beco.stage1 import localisers
from beco.stage1 import train as classifier

TINY = {"channels": [8, 16, 24, 32]}  # all unlike, so that every layer has its downsampling at any stride


def encoder(weights: Path | str | None = None, **settings: Any) -> Encoder:
    chosen = {"name": "resnet10t", "options": TINY, **settings}
    return Encoder.model_validate({**chosen, "weights": None if weights is None else str(weights)})


def full_network(name: str = "resnet10t", **options: Any) -> nn.Module:
    """The whole classifier as others publish it, with weights and statistics unlike fresh ones."""
    network = timm.create_model(name, **({**TINY} if name == "resnet10t" else {}), **options)
    with torch.no_grad():
        for number, (key, value) in enumerate(network.state_dict().items()):
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(number)) + 0.1)
            elif key.endswith("num_batches_tracked"):
                value.fill_(7)
    return network


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def loaded(weights: Path, **settings: Any) -> nn.Module:
    chosen = encoder(weights, **settings)
    backbone = encoders.create_backbone(chosen, 16)
    encoders.prepare_backbone(backbone, chosen)
    return backbone


def refusal(weights: Path | str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        loaded(Path(weights), **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return full_network().state_dict()


# --- what fits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt"])
def test_every_tensor_of_the_file_arrives(tmp_path: Path, state: dict[str, Tensor], name: str) -> None:
    assert "fc.weight" in state  # a head that the backbone lacks
    found = loaded(save(state, tmp_path / name)).state_dict()
    assert set(found) == {key for key in state if not key.startswith("fc.")}
    for key, value in found.items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_table_within_a_table(tmp_path: Path, state: dict[str, Tensor], key: str) -> None:
    torch.save({key: state, "epoch": 3}, tmp_path / "w.pth")
    assert torch.equal(loaded(tmp_path / "w.pth").state_dict()["bn1.running_mean"], state["bn1.running_mean"])


@pytest.mark.parametrize("key", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["module.", "backbone.", "encoder.", "module.backbone.", "model.encoder."])
def test_a_backbone_within_a_larger_network(
    tmp_path: Path, state: dict[str, Tensor], key: str | None, prefix: str
) -> None:
    """Distributed training, classifiers and segmentation networks put names in front, and bring heads along."""
    wrapped = {prefix + name: value for name, value in state.items()}
    if prefix != "module.":
        parent = prefix.removesuffix("backbone.").removesuffix("encoder.")
        wrapped |= {f"{parent}decode_head.conv_seg.weight": torch.zeros(2), f"{parent}head.fc.bias": torch.ones(3)}
    torch.save({key: wrapped, "meta": {"epoch": 100, "lr": [0.1]}} if key else wrapped, tmp_path / "w.pth")
    found = loaded(tmp_path / "w.pth").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.items())


DEEP = {"channels": (8, 12, 16, 20), "stem_width": 8, "layers": (1, 2, 1, 1)}


def mmcls_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names of a ResNetV1d changed to those of mmcls: one stem, and no place for a pooling in stage one."""
    stem = {"conv1.0": "stem.0", "conv1.1": "stem.1", "conv1.3": "stem.3", "conv1.4": "stem.4", "conv1.6": "stem.6"}
    stem |= {"bn1": "stem.7", "layer1.0.downsample.1": "layer1.0.downsample.0"}
    stem |= {"layer1.0.downsample.2": "layer1.0.downsample.1", "fc": "head.fc"}
    found = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        name = f"{stem.get(module, module)}.{leaf}"
        found[name if name.startswith("head.") else f"backbone.{name}"] = value
    return found


@pytest.mark.parametrize("name", ["resnet26d", "resnet18d"])
def test_resnets_of_mmcls(tmp_path: Path, name: str) -> None:
    state = full_network(name, **DEEP).state_dict()
    theirs = mmcls_names(state)
    assert {"backbone.stem.7.running_mean", "backbone.layer2.0.downsample.1.weight", "head.fc.bias"} <= set(theirs)
    if name == "resnet26d":  # bottlenecks widen in stage one as well
        assert theirs["backbone.layer1.0.downsample.0.weight"].ndim == 4
    torch.save({"state_dict": theirs, "meta": {}}, tmp_path / "w.pth")
    found = loaded(tmp_path / "w.pth", name=name, options=DEEP).state_dict()
    assert set(found) == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    # a plain stem is another network
    assert "lacks" in refusal(tmp_path / "w.pth", name=name.rstrip("d"), options={**DEEP, "stem_width": 64})


MIT = {"embed_dims": [8, 16, 24, 32], "num_heads": [1, 2, 3, 4], "depths": [1, 2, 1, 1]}


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_weights_of_segformers_encoder(tmp_path: Path, prefix: str) -> None:
    settings = {"name": "mit_b2", "options": MIT}
    torch.manual_seed(5)
    source = encoders.create_backbone(encoder(**settings), 32).state_dict()
    # as its authors name them
    assert {"patch_embed1.proj.weight", "block2.1.attn.kv.bias", "block3.0.mlp.dwconv.dwconv.weight"} <= set(source)
    torch.save({f"{prefix}{key}": value for key, value in source.items()} | {"head.weight": torch.zeros(9, 32)},
               tmp_path / "mit_b2.pth")  # fmt: skip
    chosen = encoder(tmp_path / "mit_b2.pth", **settings)
    backbone = encoders.create_backbone(chosen, 32)
    assert not torch.equal(backbone.state_dict()["block1.0.attn.q.weight"], source["block1.0.attn.q.weight"])
    encoders.prepare_backbone(backbone, chosen)
    assert all(torch.equal(value, source[key]) for key, value in backbone.state_dict().items())
    with pytest.raises(UserError, match=r"mit_b2\.pth: lacks 20 tensors of the encoder, such as block1\.1\."):
        encoders.prepare_backbone(
            encoders.create_backbone(encoder(name="mit_b2", options={**MIT, "depths": [2, 2, 1, 1]}), 32), chosen
        )


def test_files_without_counters_of_batches(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Exports from other frameworks lack them; the count plays no part in inference."""
    rest = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    found = loaded(save(rest, tmp_path / "w.safetensors")).state_dict()
    assert torch.equal(found["bn1.running_var"], state["bn1.running_var"])


def test_flattened_names_give_what_the_whole_network_computes(tmp_path: Path) -> None:
    # stages.0 of the file is stages_0 of timm's feature extractor
    network = timm.create_model("convnext_atto", num_classes=0, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)).eval()
    settings = {"name": "convnext_atto", "options": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}}
    torch.manual_seed(3)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn(value.shape) / 4)
    path = save(network.state_dict(), tmp_path / "w.safetensors")
    chosen = encoder(path, **settings)
    backbone = encoders.create_backbone(chosen, 32).eval()
    assert any(key.startswith("stages_0") for key in backbone.state_dict())
    encoders.prepare_backbone(backbone, chosen)
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        deepest = network.stages(network.stem(picture))
        assert torch.equal(backbone(picture)[-1], deepest) and deepest.std() > 0


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


def test_a_missing_tensor(tmp_path: Path, state: dict[str, Tensor]) -> None:
    less = {key: value for key, value in state.items() if key != "layer2.0.bn1.running_var"}
    message = refusal(save(less, tmp_path / "w.pth"))
    assert "w.pth: lacks 1 tensors of the encoder, such as layer2.0.bn1.running_var" in message


def test_a_tensor_of_another_shape(tmp_path: Path, state: dict[str, Tensor]) -> None:
    key = "layer3.0.conv1.weight"
    message = refusal(save({**state, key: state[key][:, :3]}, tmp_path / "w.safetensors"))
    assert f"does not fit the encoder ({key} is (24, 3, 3, 3), the network's (24, 16, 3, 3))" in message


@pytest.mark.parametrize("key", ["layer4.1.conv1.weight", "conv2.weight", "layer1.0.se.fc.weight"])
def test_a_tensor_too_many(tmp_path: Path, state: dict[str, Tensor], key: str) -> None:
    message = refusal(save({**state, key: torch.zeros(2)}, tmp_path / "w.safetensors"))
    assert "has 1 tensors that the encoder lacks" in message and key.replace(".", "_") in message


def test_heads_of_other_families_are_passed_over(tmp_path: Path, state: dict[str, Tensor]) -> None:
    heads = [
        "classifier.weight",
        "head.fc.bias",
        "conv_head.weight",
        "bn2.running_mean",
        "last_linear.bias",
        "norm.bias",
    ]
    found = loaded(save({**state, **{key: torch.zeros(2) for key in heads}}, tmp_path / "w.pth"))
    assert torch.equal(found.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


def test_names_that_differ_by_dots_alone(tmp_path: Path, state: dict[str, Tensor]) -> None:
    message = refusal(save({**state, "bn1_weight": torch.zeros(8)}, tmp_path / "w.pth"))
    assert "differ by dots alone" in message


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("share", [None, 0, 0.5, "text"])
def test_a_missing_or_damaged_file(
    tmp_path: Path, state: dict[str, Tensor], name: str, share: float | str | None
) -> None:
    path = tmp_path / name
    if share is None:
        assert f"{name}: no such weights file; put it there or change encoder.weights" in refusal(path)
        return
    content = b"not weights\n" * 9
    if isinstance(share, int | float):
        content = save(state, path).read_bytes()
        content = content[: int(share * len(content))]
    path.write_bytes(content)
    said = {0: "is empty (0 bytes)", "text": "is a text, not a weights file"}.get(share, "not a readable weights file")
    assert f"{name}: {said}" in refusal(path)


class Bomb:
    """A pickle that would make a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    path, trap = tmp_path / "w.pth", tmp_path / "trap"
    content = {**state, "extra": Bomb(trap)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    assert "w.pth: not a readable weights file" in refusal(path)
    assert not trap.exists()
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert trap.exists()  # it was armed


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": 1}, torch.zeros(3)])
def test_a_file_without_a_table_of_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert "w.pth: holds no table of tensors" in refusal(tmp_path / "w.pth")


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
