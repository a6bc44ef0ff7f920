"""Files of weights: every tensor arrives, under any naming, and what does not fit is refused in one line."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_encoders import MIT, encoder, full_network, loaded, refusal, save
from torch import Tensor

from beco.config import Encoder
from beco.errors import UserError
from beco.networks import encoders


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt"])
def test_every_tensor_of_the_file_arrives(tmp_path: Path, state: dict[str, Tensor], name: str) -> None:
    assert "fc.weight" in state  # a head that the backbone lacks
    found = loaded(save(state, tmp_path / name)).state_dict()
    assert set(found) == {key for key in state if not key.startswith("fc.")}
    for key, value in found.items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("name", ["hrnet_w18_small", "ghostnet_050", "rexnet_100"])
def test_a_whole_model_of_timm_with_more_behind_its_features(tmp_path: Path, name: str) -> None:
    """What lies between the last features and the classifier has names of each family's own."""
    state = timm.create_model(name).state_dict()
    body = encoders.create_backbone(Encoder(name=name), 32)
    encoders.prepare_backbone(body, Encoder(name=name, weights=str(save(state, tmp_path / "w.safetensors"))))
    own = getattr(body, "body", body).state_dict()
    by_plain = {key.replace(".", "_"): value for key, value in state.items()}
    assert all(torch.equal(value, by_plain[key.replace(".", "_")]) for key, value in own.items())
    foreign = save({**state, "blocks_of_another.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="has 1 tensors that the encoder lacks, such as blocks_of_another_weight"):
        encoders.prepare_backbone(body, Encoder(name=name, weights=str(foreign)))


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
