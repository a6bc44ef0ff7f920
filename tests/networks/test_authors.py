"""Weights in the layout of an encoder's authors, by family, of other sizes, and with other tokens than its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from beco.config import Encoder
from beco.errors import UserError
from beco.networks import encoders
from beco.networks.names import plain

State = dict[str, Tensor]
VIT = {"depth": 2, "embed_dim": 24, "num_heads": 2}
SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 6]}
CONVNEXT = {"depths": [1, 2, 1, 1], "dims": [8, 16, 24, 32]}
PVT = {"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 4]}
DAVIT = {"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4]}


def renamed(*changes: tuple[str, Any]) -> Callable[[State], State]:
    """Names changed by regular expressions, one after the other."""

    def change(state: State) -> State:
        found = {}
        for key, value in state.items():
            for old, new in changes:
                key = re.sub(old, new, key)
            found[key] = value
        return found

    return change


EARLIER = (r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample")
HEADS = ((r"head\.norm\.", "norm."), (r"head\.fc\.", "head."))
FACEBOOK = renamed(
    (r"^stem\.", "downsample_layers.0."), (r"stages\.(\d)\.downsample", r"downsample_layers.\1"),
    (r"stages\.(\d)\.blocks", r"stages.\1"), ("conv_dw", "dwconv"), (r"mlp\.grn\.weight", "grn.gamma"),
    (r"mlp\.grn\.bias", "grn.beta"), (r"mlp\.fc", "pwconv"), *HEADS,
)  # fmt: skip


def swin(state: State) -> State:
    """Microsoft's, with what it keeps beside the parameters."""
    buffers = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64),
               "layers.0.blocks.0.attn_mask": torch.zeros(1, 49, 49)}  # fmt: skip
    return renamed(EARLIER, *HEADS[1:])(state) | buffers


def swin2(state: State) -> State:
    return swin(state) | {"layers.0.blocks.0.attn.relative_coords_table": torch.zeros(1, 15, 15, 2)}


def convnext2(state: State) -> State:
    return {key: value.reshape(1, 1, 1, -1) if "grn" in key else value for key, value in FACEBOOK(state).items()}


def dinov3(state: State) -> State:
    changed = renamed(("reg_token", "storage_tokens"), (r"gamma_(\d)", r"ls\1.gamma"))(state)
    bias = torch.zeros(3 * 24)
    other = {"mask_token": bias, "rope_embed.periods": bias, "blocks.0.attn.qkv.bias": bias}
    return changed | other | {"blocks.0.attn.qkv.bias_mask": bias}


PVT_NAMES = renamed(
    (r"^patch_embed", "patch_embed1"), (r"dwconv", "dwconv.dwconv"),
    (r"stages\.(\d)\.downsample", lambda found: f"patch_embed{int(found[1]) + 1}"),
    (r"stages\.(\d)\.blocks", lambda found: f"block{int(found[1]) + 1}"),
    (r"stages\.(\d)\.norm", lambda found: f"norm{int(found[1]) + 1}"),
)  # fmt: skip
DAVIT_NAMES = renamed(
    (r"stem\.conv", "patch_embeds.0.proj"), (r"^stem", "patch_embeds.0"), ("cpe1", "cpe.0"), ("cpe2", "cpe.1"),
    (r"stages\.(\d)\.downsample\.conv", r"patch_embeds.\1.proj"), (r"stages\.(\d)\.downsample", r"patch_embeds.\1"),
    (r"stages\.(\d)\.blocks", r"main_blocks.\1"), (r"head\.norm\.", "norms."), *HEADS[1:],
)  # fmt: skip
POOLFORMER = renamed(
    (r"stem\.conv", "patch_embed.proj"), (r"layer_scale(\d)\.scale", r"layer_scale_\1"),
    (r"stages\.(\d)\.blocks", lambda found: f"network.{2 * int(found[1])}"),
    (r"stages\.(\d)\.downsample\.conv", lambda found: f"network.{2 * int(found[1]) - 1}.proj"), *HEADS,
)  # fmt: skip
FOCALNET = renamed((r"^stem", "patch_embed"), EARLIER, (r"ls(\d)\.gamma", r"gamma_\1"), *HEADS[1:])
TORCHVISION = renamed(
    (r"^stem\.conv", "stem.0"), (r"^stem\.bn", "stem.1"), (r"head\.fc", "fc"),
    (r"^s(\d)\.b(\d+)", lambda found: f"trunk_output.block{found[1]}.block{found[1]}-{int(found[2]) - 1}"),
    (r"conv1\.conv", "f.a.0"), (r"conv1\.bn", "f.a.1"), (r"conv2\.conv", "f.b.0"), (r"conv2\.bn", "f.b.1"),
    (r"conv3\.conv", "f.c.0"), (r"conv3\.bn", "f.c.1"), (r"downsample\.conv", "proj.0"), (r"downsample\.bn", "proj.1"),
)  # fmt: skip


def densenet(state: State) -> State:
    """As it was published, before batches were counted."""
    state = {key: value for key, value in state.items() if "num_batches" not in key}
    return renamed((r"(denselayer\d+\.norm|denselayer\d+\.conv)", r"\1."))(state)


FAMILIES: dict[str, tuple[str, dict[str, Any], int, Callable[[State], State]]] = {
    "Swin": ("swin_tiny_patch4_window7_224", SWIN, 32, swin),
    "Swin V2": ("swinv2_tiny_window8_256", SWIN, 32, swin2),
    "DeiT III": ("deit3_small_patch16_224", VIT, 16, renamed((r"ls(\d)\.gamma", r"gamma_\1"))),
    "DINOv3": ("vit_small_patch16_dinov3", VIT, 16, dinov3),
    "ConvNeXt": ("convnext_atto", CONVNEXT, 32, FACEBOOK),
    "ConvNeXt V2": ("convnextv2_atto", CONVNEXT, 16, convnext2),
    "EdgeNeXt": ("edgenext_xx_small", {}, 32, FACEBOOK),
    "PVT v2": ("pvt_v2_b0", PVT, 32, PVT_NAMES),
    "DaViT": ("davit_tiny", DAVIT, 32, DAVIT_NAMES),
    "PoolFormer": ("poolformer_s12", {}, 32, POOLFORMER),
    "FocalNet": ("focalnet_tiny_srf", {}, 32, FOCALNET),
    "RegNet of torchvision": ("regnetx_002", {}, 16, TORCHVISION),
    "DenseNet of torchvision": ("densenet121", {}, 32, densenet),
}


def model(name: str, **options: Any) -> State:
    """The tensors of timm's own model, with a head, none alike."""
    torch.manual_seed(1)
    made = timm.create_model(name, **options)
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value for key, value in made.state_dict().items()
    }


def loaded(name: str, options: dict[str, Any], stride: int, path: Path) -> nn.Module:
    encoder = Encoder(name=name, options=options, weights=str(path))
    backbone = encoders.create_backbone(encoder, stride)
    encoders.prepare_backbone(backbone, encoder)
    return backbone


def refusal(*given: Any) -> str:
    with pytest.raises(UserError) as caught:
        loaded(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrap", ["", "module.backbone."])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_in_its_authors_names(
    family: str, wrap: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, options, stride, change = FAMILIES[family]
    origin = model(name, **options)
    state = change(origin)
    assert state.keys() != origin.keys()
    torch.save({"model": {f"{wrap}{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    backbone = loaded(name, options, stride, tmp_path / "w.pth")
    wanted = {plain(key): value for key, value in origin.items()}
    found = getattr(backbone, "body", backbone).state_dict()
    assert found and all(
        torch.equal(value, wanted[plain(key)]) for key, value in found.items() if "num_batches" not in key
    )
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{"window_size": 8}, {"img_size": 256}, {}])
def test_windows_of_another_size_are_resampled(options: dict[str, Any], tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    origin = model(name, **SWIN)
    torch.save({"model": swin(origin)}, tmp_path / "w.pth")
    found: Any = loaded(name, {**SWIN, **options}, 32, tmp_path / "w.pth")
    table = found.body.state_dict()["layers_0.blocks.0.attn.relative_position_bias_table"]
    assert table.shape[0] == (225 if "window_size" in options else 169) and bool((table > 0).any())


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda s: {f"module.{key}": value for key, value in s.items()},
        lambda s: {"state_dict": {f"backbone.{key}": value for key, value in s.items()}},
        lambda s: {"teacher": {f"module.backbone._orig_mod.{key}": value for key, value in s.items()}},
    ],
)
def test_pictures_of_another_size_behind_any_wrapper(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    origin = model(name, **VIT, img_size=384)
    torch.save(wrap(origin), tmp_path / "w.pth")
    found: Any = loaded(name, VIT, 16, tmp_path / "w.pth")
    assert found.body.pos_embed.shape == (1, 197, 24)
    assert torch.equal(found.body.pos_embed[:, 0], origin["pos_embed"][:, 0])


REGISTERS, BARE = "vit_small_patch14_reg4_dinov2", "vit_small_patch14_dinov2"
DEIT, DISTILLED = "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"


@pytest.mark.parametrize("wrap", ["", "module."])
@pytest.mark.parametrize(
    ("origin", "name", "said"),
    [
        (REGISTERS, BARE, "1 class token and 4 register tokens, `{}` 1 class token; set encoder.name to `{}`"),
        (BARE, REGISTERS, "1 class token, `{}` 1 class token and 4 register tokens; set encoder.name to `{}`"),
        (DISTILLED, DEIT, "1 class token and 1 distillation token, `{}` 1 class token; set encoder.name to `{}`"),
        (DISTILLED, "vit_tiny_patch16_224", "`{}` 1 class token; choose the encoder that it was made for"),
    ],
)  # fmt: skip
def test_other_tokens_are_told_with_the_model_that_has_them(
    origin: str, name: str, said: str, wrap: str, tmp_path: Path
) -> None:
    options = {**VIT, "img_size": 70} if "patch14" in origin else VIT
    stride = 14 if "patch14" in origin else 16
    torch.save({f"{wrap}{key}": value for key, value in model(origin, **options).items()}, tmp_path / "w.pth")
    assert said.format(name, origin) in refusal(name, options, stride, tmp_path / "w.pth")
    if "set encoder.name" in said:  # the mend mends
        assert loaded(origin, options, stride, tmp_path / "w.pth")


@pytest.mark.parametrize(("name", "stride"), [("deit3_small_patch16_224", 16), ("eva02_tiny_patch14_224", 14)])
def test_another_transformers_file_is_told_without_a_block_to_drop(name: str, stride: int, tmp_path: Path) -> None:
    torch.save(model("vit_tiny_patch16_224", **VIT), tmp_path / "w.pth")
    message = refusal(name, VIT, stride, tmp_path / "w.pth")
    assert "choose the encoder that it was made for" in message and "drop" not in message
    torch.save(model("vit_tiny_patch16_224", **VIT) | {"other": torch.ones(2)}, tmp_path / "w.pth")
    message = refusal("vit_tiny_patch16_224", VIT, 16, tmp_path / "w.pth")
    assert "has 1 tensors that the encoder lacks" in message and "drop" not in message


def test_a_filter_draws_nothing(tmp_path: Path) -> None:
    """What is drawn after the weights is what is drawn without a file."""
    torch.save(model("convnext_atto", **CONVNEXT), tmp_path / "w.pth")
    encoder = Encoder(name="convnext_atto", options=CONVNEXT, weights=str(tmp_path / "w.pth"))
    backbone = encoders.create_backbone(encoder, 32)
    torch.manual_seed(3)
    encoders.prepare_backbone(backbone, encoder)
    found = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(2))
