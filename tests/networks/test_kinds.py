"""Which models of timm are encoders, which options they take, and what is said of a download where no host answers."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.utils import logging as hub_logging

from beco.config import Encoder
from beco.errors import UserError
from beco.networks import downloads, encoders, kinds

VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
TINY = {"depth": 2, "embed_dim": 24, "num_heads": 2}


def refusal(name: str, stride: int, weights: str | None = None, **options: Any) -> str:
    with torch.device("cpu" if name == "mit_b0" else "meta"), pytest.raises(UserError) as caught:
        encoders.create_backbone(Encoder(name=name, options=options, weights=weights), stride)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("samvit_base_patch16", {"img_size": 64}, "takes pictures of 1024×1024 alone"),
        ("samvit_base_patch16", {}, "takes pictures of 1024×1024 alone"),
        ("vit_tiny_r_s16_p8_224", {"dynamic_img_size": True}, "takes pictures of 224×224 alone"),
        ("vit_relpos_small_patch16_224", {}, "takes pictures of 224×224 alone"),
        ("cait_xxs24_224", {"img_size": 64}, "takes pictures of 224×224 alone"),
        ("naflexvit_base_patch16_gap", {}, "gives maps of one stride, and is no ViT that is known here"),
        ("naflexvit_base_patch16_siglip", {}, "gives maps of one stride, and is no ViT that is known here"),
    ],
)
@pytest.mark.parametrize("stride", [16, 32])
def test_other_transformers_are_refused_with_those_that_work(
    name: str, options: dict[str, Any], said: str, stride: int
) -> None:
    message = refusal(name, stride, **options)
    assert message == f"encoder.name: `{name}` {said}; {kinds.KINDS}"
    assert "vit_small_patch16_224" in message and "output_stride" not in message


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (VIT, {"in_chans": 1}, "in_chans must be 3, as pictures have three; take it out"),
        ("resnet10t", {"in_chans": 1}, "in_chans must be 3, as pictures have three; take it out"),
        (VIT, {"dynamic_img_size": False}, "dynamic_img_size must be true"),
        (SWIN, {"strict_img_size": True}, "strict_img_size must be false"),
        (VIT, {"patch_size": [16, 8]}, "patch_size [16, 8] is not square; give one number"),
        (SWIN, {"patch_size": [4, 2]}, "patch_size [4, 2] is not square; give one number"),
        (VIT, {"features_only": True}, "features_only is no option here; take it out"),
        (VIT, {"num_classes": 3}, "num_classes is no option here; take it out"),
        ("resnet10t", {"checkpoint_path": "w.pth"}, "checkpoint_path is no option here; set encoder.weights"),
        ("resnet10t", {"output_stride": 8}, "output_stride is no option here; set output_stride beside the encoder"),
    ],
)
def test_options_that_would_fail_later(name: str, options: dict[str, Any], said: str) -> None:
    assert refusal(name, 16, **options).startswith(f"encoder.options of `{name}`: {said}")


def test_options_that_say_what_is_so() -> None:
    for options in ({"in_chans": 3, "dynamic_img_size": True}, {"patch_size": [16, 16]}):
        assert encoders.create_backbone(Encoder(name=VIT, options={**TINY, **options}), 16)


@pytest.mark.parametrize("stride", [8, 14, 16, 32])
def test_the_mend_of_a_patch_mends(stride: int) -> None:
    said = (
        "patch_size 10 gives maps of stride 10, which output_stride cannot be; set patch_size and output_stride both "
    )
    assert refusal(VIT, stride, **TINY, patch_size=10).endswith(f"{said}to 8, 14, 16 or 32")
    made = encoders.create_backbone(Encoder(name=VIT, options={**TINY, "patch_size": stride}), stride)
    assert encoders.feature_strides(made)[-1] == stride
    assert "patch_size 8 gives maps of stride 64" in refusal(SWIN, 32, patch_size=8)


@pytest.mark.parametrize(
    "name",
    [
        *("csatv2", "dla46_c", "hrnet_w18_small", "sam2_hiera_tiny", "tresnet_m"),
        # the last cells of a picture would be left out, or stand for too many
        *("convnext_atto", "edgenext_xx_small", "ese_vovnet19b_dw", "mobilevitv2_050"),
    ],
)
def test_models_that_want_whole_cells_take_any_picture(name: str) -> None:
    backbone = copy.deepcopy(encoders.create_backbone(Encoder(name=name), 32)).eval()
    plain = timm.create_model(name, features_only=True).eval()
    plain.load_state_dict(backbone.state_dict())
    strides = encoders.feature_strides(backbone)
    for size in ((60, 60), (61, 47), (64, 128)):
        images = torch.rand(1, 3, *size)
        with torch.no_grad():
            maps = backbone(images)
            assert [tuple(m.shape[-2:]) for m in maps] == [(-(-size[0] // s), -(-size[1] // s)) for s in strides]
            if size == (64, 128):
                assert all(torch.equal(one, other) for one, other in zip(maps, plain(images), strict=True))


def test_models_that_take_any_picture_stay_as_they_are() -> None:
    for name in ("resnet10t", "tf_efficientnet_lite0", "pvt_v2_b0"):  # the last has strides beside its way
        assert not isinstance(encoders.create_backbone(Encoder(name=name), 32), kinds.AnySize)


@pytest.mark.parametrize("name", ["haloregnetz_b", "lambda_resnet26t"])
def test_models_that_fail_with_odd_pictures_are_built_all_the_same(name: str) -> None:
    """They take some sizes, and say so where they are used."""
    assert not isinstance(encoders.create_backbone(Encoder(name=name), 32), kinds.AnySize)


def test_maps_that_begin_within_the_picture_are_refused() -> None:
    assert "`inception_v3` pads nothing at a picture's border, so that its maps lie beside" in refusal(
        "inception_v3", 32
    )


# --- downloads ----------------------------------------------------------------------------------------------


@pytest.fixture
def no_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub at a port that nobody listens to, and nothing downloaded before."""
    address = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.mark.parametrize(("name", "stride"), [(VIT, 16), (SWIN, 32), ("resnet18", 16), ("mit_b0", 32)])
def test_where_no_host_answers_it_is_told_once_and_at_once(
    name: str, stride: int, no_host: None, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.monotonic()
    assert "could not be downloaded (Connect" in refusal(name, stride, "imagenet")
    assert time.monotonic() - begun < 20 and capsys.readouterr() == ("", "") and not caplog.records


def test_what_is_wrong_besides_is_told_first(no_host: None) -> None:
    assert refusal("vgg11", 16, "imagenet") == "output_stride: `vgg11` cannot be dilated; set 32"
    assert "timm has no model `resnet50.no_such_tag`" in refusal("resnet50.no_such_tag", 16, "imagenet")


def test_what_was_downloaded_before_is_not_asked_for(no_host: None, tmp_path: Path) -> None:
    base = tmp_path / f"models--{str(timm.get_pretrained_cfg('resnet18').hf_hub_id).replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("0a")
    (base / "snapshots" / "0a").mkdir(parents=True)
    assert downloads.unreachable("resnet18") is not None
    (base / "snapshots" / "0a" / "model.safetensors").write_bytes(b"x")
    assert downloads.unreachable("resnet18") is None


def test_the_hubs_words_come_back() -> None:
    before = hub_logging.get_verbosity()
    with downloads.quiet():
        assert hub_logging.get_verbosity() == logging.ERROR
    assert hub_logging.get_verbosity() == before
