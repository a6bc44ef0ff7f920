"""Transformers as encoders: their maps, their weights in every naming, their rates, and the road from them to masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from beco.config import Encoder, Network
from beco.config import Optimiser as Settings
from beco.errors import UserError
from beco.networks import encoders, segmenter
from beco.stage1 import localisers
from beco.stage1.refine.irn import IrnNetwork
from beco.training.trainer import make_optimiser

TINY = {"depth": 4, "embed_dim": 24, "num_heads": 2}
WINDOWS = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 6]}
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "vit_tiny_patch16_224": (TINY, 16),
    "vit_small_patch8_224": (TINY, 8),
    "deit3_small_patch16_224": (TINY, 16),
    "vit_small_patch14_dinov2": ({**TINY, "img_size": 70}, 14),
    "vit_small_patch14_reg4_dinov2": ({**TINY, "img_size": 70}, 14),
    "vit_small_patch16_dinov3": (TINY, 16),
    "vit_base_patch16_clip_224": (TINY, 16),
    "eva02_tiny_patch14_224": (TINY, 14),
}
SWINS = {"swin_tiny_patch4_window7_224": WINDOWS, "swinv2_tiny_window8_256": WINDOWS}


def made(name: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    options, stride = KINDS[name]
    return encoders.create_backbone(Encoder(name=name, options={**options, **more}), stride).eval()


# --- maps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(56, 70), (33, 47), (1, 90)])
def test_maps_have_a_cell_for_each_patch_begun(name: str, size: tuple[int, int]) -> None:
    backbone, stride = made(name), KINDS[name][1]
    with torch.no_grad():
        maps = backbone(torch.rand(2, 3, *size))
    assert encoders.feature_strides(backbone) == [stride] * 4 and encoders.feature_channels(backbone) == [24] * 4
    assert [tuple(one.shape) for one in maps] == [(2, 24, -(-size[0] // stride), -(-size[1] // stride))] * 4


@pytest.mark.parametrize("name", SWINS)
def test_windows_give_a_pyramid(name: str) -> None:
    backbone = encoders.create_backbone(Encoder(name=name, options=SWINS[name]), 32).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 97, 65))
    assert [tuple(one.shape[1:]) for one in maps] == [(12, 25, 17), (24, 13, 9), (48, 7, 5), (96, 4, 3)]


@pytest.mark.parametrize("name", KINDS)
def test_the_last_map_is_what_the_library_makes_of_patches(name: str) -> None:
    """The normalised tokens of timm's own forward pass, put back where their patches are, prefix tokens left out."""
    backbone, stride = made(name), KINDS[name][1]
    body: Any = backbone.body
    images = torch.rand(1, 3, 4 * stride, 3 * stride)
    with torch.no_grad():
        found = backbone(images)[-1]
        tokens = body.forward_features(images)[:, body.num_prefix_tokens :]
        tokens = body.norm(tokens) if isinstance(body.norm, nn.Identity) else tokens
    assert torch.allclose(found, tokens.transpose(1, 2).reshape(1, 24, 4, 3), atol=1e-5)


def test_a_picture_is_continued_and_not_moved() -> None:
    """What lies in the picture's first whole patches does not depend on how it is continued, but by attention."""
    backbone = made("vit_tiny_patch16_224")
    body: Any = backbone.body
    images = torch.rand(1, 3, 40, 40)
    whole = torch.zeros(1, 3, 48, 48)
    whole[..., :40, :40] = images
    with torch.no_grad():
        assert torch.equal(backbone(images)[-1], backbone(whole)[-1])
        assert body.patch_embed(whole).shape[1:3] == (3, 3)


@pytest.mark.parametrize(
    ("encoder", "stride", "said"),
    [
        ({"name": "vit_small_patch14_dinov2", "options": TINY}, 16, "output_stride: .* cannot be dilated; set 14"),
        ({"name": "vit_tiny_patch16_224", "options": {"depht": 3}}, 16, "encoder.options of .*depht"),
        ({"name": "swin_tiny_patch4_window7_224"}, 16, "cannot be dilated; set 32"),
        ({"name": "cait_xxs24_224"}, 16, "takes pictures of 224×224 alone"),
    ],
)
def test_what_does_not_fit_is_told(encoder: dict[str, Any], stride: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        encoders.create_backbone(Encoder.model_validate(encoder), stride)


# --- weights ------------------------------------------------------------------------------------------------


def clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A vision tower as OpenAI's files have it, beside a text tower."""
    found = {"transformer.resblocks.0.ln_1.weight": torch.ones(3), "logit_scale": torch.ones(())}
    for key, value in state.items():
        if key.startswith("head"):
            continue
        for old, new in (
            ("patch_embed.proj", "conv1"), ("pos_embed", "positional_embedding"), ("cls_token", "class_embedding"),
            ("norm_pre", "ln_pre"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("attn.qkv.", "attn.in_proj_"),
            ("attn.proj", "attn.out_proj"), ("blocks.", "transformer.resblocks."), ("norm1", "ln_1"), ("norm2", "ln_2"),
        ):  # fmt: skip
            key = key.replace(old, new)
        key = key.replace("norm.", "ln_post.") if key.startswith("norm.") else key
        value = value[0] if key == "positional_embedding" else value
        found[f"visual.{key}"] = value.flatten() if key == "class_embedding" else value
    return found


def dinov2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"mask_token": torch.zeros(1, 24)}


def dinov2_registers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """There the class token has a place of its own in the position embedding."""
    state = dict(state)
    place = torch.full((1, 1, 24), 0.3)
    changed = {
        "register_tokens": state.pop("reg_token"),
        "pos_embed": torch.cat([place, state.pop("pos_embed")], 1),
        "cls_token": state.pop("cls_token") - place,
    }
    return dinov2_names(state) | changed


NAMINGS: dict[str, tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = {
    "timm's": ("vit_tiny_patch16_224", dict),
    "timm's, with a head": ("vit_tiny_patch16_224", lambda s: s | {"head.weight": torch.ones(5, 24)}),
    "a wrapped module's": ("vit_tiny_patch16_224", lambda s: {f"module.{k}": v for k, v in s.items()}),
    "DeiT III's": ("deit3_small_patch16_224", lambda s: {"model." + k: v for k, v in s.items()}),
    "DINOv2's": ("vit_small_patch14_dinov2", dinov2_names),
    "DINOv2's with registers": ("vit_small_patch14_reg4_dinov2", dinov2_registers),
    "OpenAI's CLIP": ("vit_base_patch16_clip_224", clip_names),
    "OpenCLIP's": ("vit_base_patch16_clip_224", lambda s: {f"visual.trunk.{k}": v for k, v in s.items()}),
    "EVA's": ("eva02_tiny_patch14_224", lambda s: s | {"rope.freqs_cos": torch.ones(2)}),
    "DINOv3's in timm": ("vit_small_patch16_dinov3", dict),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_weights_are_taken_in_every_naming(naming: str, tmp_path: Path) -> None:
    name, rename = NAMINGS[naming]
    options, stride = KINDS[name]
    torch.manual_seed(1)
    origin: Any = made(name)
    with torch.no_grad():
        for parameter in origin.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # what is drawn alike everywhere would prove nothing
    path = tmp_path / "weights.safetensors"
    state = {key: value.detach().clone() for key, value in origin.body.state_dict().items()}
    save_file({key: value.contiguous() for key, value in rename(state).items()}, path)
    encoder = Encoder(name=name, options=options, weights=str(path))
    other = encoders.create_backbone(encoder, stride).eval()
    images = torch.rand(1, 3, 3 * stride, 4 * stride)
    with torch.no_grad():
        assert not torch.allclose(other(images)[-1], origin(images)[-1], atol=1e-3)
        encoders.prepare_backbone(other, encoder)
        assert torch.allclose(other(images)[-1], origin(images)[-1], atol=1e-5)


def test_position_embeddings_of_another_size_are_resampled(tmp_path: Path) -> None:
    origin: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96, **TINY)
    save_file({k: v.contiguous() for k, v in origin.state_dict().items()}, tmp_path / "w.safetensors")
    encoder = Encoder(name="vit_tiny_patch16_224", options=TINY, weights=str(tmp_path / "w.safetensors"))
    backbone: Any = encoders.create_backbone(encoder, 16)
    encoders.prepare_backbone(backbone, encoder)
    assert backbone.body.pos_embed.shape == (1, 197, 24)
    assert torch.equal(backbone.body.pos_embed[:, 0], origin.pos_embed[:, 0])  # the class token's stays


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    encoder = Encoder(name="vit_tiny_patch16_224", options=TINY, weights=str(tmp_path / "w.safetensors"))
    backbone = encoders.create_backbone(encoder, 16)
    with pytest.raises(UserError, match=r"w\.safetensors: "):
        encoders.prepare_backbone(backbone, encoder)


# --- learning -----------------------------------------------------------------------------------------------


def network(**values: Any) -> segmenter.Segmenter:
    encoder = {"name": "vit_tiny_patch16_224", "options": TINY}
    torch.manual_seed(0)
    settings = Network.model_validate({"architecture": "linear", "encoder": encoder, "decoder_channels": 8, **values})
    return segmenter.build(settings, 2)


class Task(nn.Module):
    """A segmenter's groups as recipes and localisers give them."""

    def __init__(self, one: segmenter.Segmenter) -> None:
        super().__init__()
        self.one = one

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], bool]]:
        return [(list(self.one.backbone.parameters()), False), (list(self.one.decoder.parameters()), True)]

    def depths(self) -> dict[int, int]:
        return encoders.layer_depths(self.one.backbone)


def test_each_block_learns_at_a_share_of_the_next_ones_rate() -> None:
    one = network()
    groups = make_optimiser(Task(one), Settings(layer_decay=0.5, head_lr_factor=10)).param_groups
    factor = {id(p): group["factor"] for group in groups for p in group["params"]}
    body: Any = one.backbone.body
    expected = [(body.blocks[3], 1), (body.norm, 1), (body.blocks[1], 0.25), (body.blocks[0], 0.125),
                (body.patch_embed, 0.0625), (one.decoder, 10)]  # fmt: skip
    for module, share in expected:
        assert {factor[id(p)] for p in module.parameters()} == {share}
    assert factor[id(body.pos_embed)] == factor[id(body.cls_token)] == 0.0625
    assert sum(len(group["params"]) for group in groups) == len(list(one.parameters()))
    alike = make_optimiser(Task(one), Settings(head_lr_factor=10)).param_groups
    assert [group["factor"] for group in alike] == [1, 10]


def test_layers_are_a_transformers() -> None:
    settings = Network.model_validate({"encoder": {"name": "resnet10t"}, "decoder_channels": 8, "atrous_rates": [1]})
    with pytest.raises(UserError, match=r"layer_decay: only a ViT or a Swin"):
        make_optimiser(Task(segmenter.build(settings, 2)), Settings(layer_decay=0.7))


def test_a_frozen_encoder_stays_as_it_is() -> None:
    encoder = {"name": "resnet10t", "options": {"channels": [8, 8, 8, 8]}}  # with batch norm, whose statistics move
    for settings in ({}, {"architecture": "deeplabv3plus", "encoder": encoder, "atrous_rates": [1]}):
        free, frozen = (network(**settings, frozen=value).train() for value in (False, True))
        for one in (free, frozen):
            before = {key: value.clone() for key, value in one.backbone.state_dict().items()}
            optimiser = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
            one(torch.rand(2, 3, 48, 48)).square().mean().backward()
            optimiser.step()
            same = all(torch.equal(before[key], value) for key, value in one.backbone.state_dict().items())
            assert same == (one is frozen)
            assert all(p.grad is not None and bool(p.grad.any()) for p in one.decoder.classifier.parameters())


@pytest.mark.parametrize(
    ("architecture", "name", "options", "stride"),
    [
        ("linear", "vit_small_patch14_dinov2", {**TINY, "img_size": 70}, 14),
        ("dpt", "vit_small_patch14_dinov2", {**TINY, "img_size": 70}, 14),
        ("dpt", "vit_tiny_patch16_224", TINY, 16),
        ("deeplabv2", "vit_tiny_patch16_224", TINY, 16),
        ("segformer", "swin_tiny_patch4_window7_224", WINDOWS, 32),
        ("deeplabv3plus", "swin_tiny_patch4_window7_224", WINDOWS, 32),
        ("linear", "resnet10t", {"channels": [8, 8, 8, 8]}, 16),
    ],
)
def test_networks_of_any_picture_size(architecture: str, name: str, options: dict[str, Any], stride: int) -> None:
    values = {"encoder": {"name": name, "options": options}, "output_stride": stride, "embedding_channels": 8}
    one = network(**values, architecture=architecture, atrous_rates=[1, 2])
    for size in ((30, 45), (64, 64)):
        logits = one(torch.rand(2, 3, *size))
        assert logits.shape == (2, 3, *size) and logits.requires_grad
    logits.mean().backward()
    assert all(p.grad is not None for p in one.decoder.parameters())


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_dpt_wants_a_plain_transformer(name: str) -> None:
    options, stride = (WINDOWS, 32) if "swin" in name else ({}, 16)
    with pytest.raises(UserError, match=r"dpt wants a plain transformer.*strides"):
        network(architecture="dpt", encoder={"name": name, "options": options}, output_stride=stride)


def test_what_wants_early_maps_says_so() -> None:
    with pytest.raises(UserError, match="deeplabv3plus needs features at stride 4"):
        network(architecture="deeplabv3plus")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_a_localiser_and_irn_stand_on_one(name: str) -> None:
    options, stride = KINDS[name]
    encoder = Encoder(name=name, options=options)
    one = localisers.make("cam", encoder, stride, 3)
    images = torch.rand(2, 3, 50, 37)
    assert one.maps(images).shape == (2, 3, -(-50 // stride), -(-37 // stride)) and one.stride == stride
    assert one(images).shape == (2, 3) and set(one.depths().values()) == {0, 1, 2, 3, 4}
    irn = IrnNetwork(encoder, stride).eval()
    edges, displacement = irn(images)
    assert irn.infer(images)[0].shape == (2, 13, 10)
    assert edges.shape == (2, 13, 10) and displacement.shape == (2, 2, 13, 10)
