"""Backbones from timm (and MiT), and the weights they start from; for the classifier and the segmentation networks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders.mix_transformer import MixVisionTransformerEncoder
from timm.layers import AvgPool2dSame, Conv2dSame
from timm.models import FeatureInfo
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from beco.artifacts.files import file_hash, unreadable, whole
from beco.config import Encoder
from beco.errors import UserError
from beco.networks import authors, downloads, kinds, tokens
from beco.networks.packages import weights_file
from beco.networks.weights import (
    as_present,
    load_weights,
    one_line,
    read_safetensors,
    read_weights,
    refuse_unsound,
    write_safetensors,
)

UNPOOLED = "unpooled"


class MixTransformer(MixVisionTransformerEncoder):
    """SegFormer's encoder (Xie et al., NeurIPS 2021) of segmentation-models-pytorch, with timm's interface.

    (B, 3, H, W) float, H and W divisible by 32 -> maps at strides 4, 8, 16 and 32.
    """

    def __init__(self, name: str, **options: Any) -> None:
        settings = {**smp.encoders.encoders[name]["params"], **options}
        widths = settings["embed_dims"]
        super().__init__(**{**settings, "out_channels": [3, 0, *widths]})
        self.feature_info = FeatureInfo(
            [
                {"num_chs": width, "reduction": 4 * 2**stage, "module": f"norm{stage + 1}"}
                for stage, width in enumerate(widths)
            ],
            tuple(range(len(widths))),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        return super().forward(images)[2:]  # without the picture and an empty map at stride 2


def create_backbone(encoder: Encoder, output_stride: int, dilate: bool = True) -> nn.Module:
    """A feature extractor: (B, 3, H, W) float -> list of maps (B, C, h, w), the deepest at `output_stride`.

    Any convolutional timm model, mit_b0 … mit_b5, or a transformer of `beco.networks.tokens`. Where the stride is
    less than the model's own, strided stages are dilated instead, or with `dilate` false only lose their stride;
    names of tensors are the same. Weights are not loaded here, except `imagenet` where no installed package ships
    them: then they are the library's own download. UserError if name, options and stride do not fit together or the
    download fails.

    The shortcut of a dilated stage has no pooling, as in the published networks: where ResNet-D and its kin halve
    the map by averaging 2×2 cells, timm leaves a 2×2 average at stride 1, which moves the shortcut up and left by
    half a cell a stage (at stride 8 and the embedded pictures, all class maps by about four of 64 pixels).
    """
    kinds.refuse_options(encoder)
    with downloads.quiet():
        if _is_download(encoder) and (error := downloads.unreachable(encoder.name)):
            create_backbone(encoder.model_copy(update={"weights": None}), output_stride)  # or what is wrong besides
            raise kinds.offline_error(encoder.name, error) from error
        if encoder.name in kinds.MIX_TRANSFORMERS:
            return _mix_transformer(encoder, output_stride)
        return _transformer(encoder, output_stride) or _convolutional(encoder, output_stride, dilate)


def _convolutional(encoder: Encoder, output_stride: int, dilate: bool) -> nn.Module:
    kinds.refuse_fixed_size(encoder)
    # 32 is what every model has; those that cannot be dilated do not know the argument
    dilated = {"output_stride": output_stride} if output_stride != 32 else {}
    try:
        backbone = _of_timm(encoder, _is_download(encoder), **dilated)
        if dilated and not dilate:
            with torch.random.fork_rng(devices=[]):  # what is drawn after it is what is drawn with dilation
                _undilate(backbone, _of_timm(encoder, False))
    except Exception as error:
        if not dilated or output_stride not in (8, 16) or not _is_of_dilation(error):
            raise kinds.refusal(encoder, error) from error
        backbone = _undilated(encoder, output_stride)
    kinds.refuse_maps(backbone, encoder)
    _unpool(backbone)
    kinds.take_any_size(backbone, encoder)
    return backbone


def _of_timm(encoder: Encoder, pretrained: bool, **dilated: int) -> nn.Module:
    options = {"features_only": True, **encoder.options}
    return timm.create_model(encoder.name, pretrained=pretrained, **dilated, **options)


def _undilated(encoder: Encoder, output_stride: int) -> nn.Module:
    """The encoder without the argument that it refused, whose maps may end at the stride by themselves.

    What cannot be built so either is told of this attempt: the argument was not the user's.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            plain = _of_timm(encoder, False)
        kinds.refuse_maps(plain, encoder)
        if (own := feature_strides(plain)[-1]) != output_stride:
            raise kinds.other_stride(encoder, own)
        return _of_timm(encoder, _is_download(encoder))
    except Exception as error:
        raise kinds.refusal(encoder, error) from error


def _is_download(encoder: Encoder) -> bool:
    return encoder.weights == "imagenet" and weights_file(encoder) is None


def _is_of_dilation(error: Exception) -> bool:
    """Whether timm may have refused the output stride: silently, by name, or for want of the argument."""
    return isinstance(error, AssertionError | NotImplementedError) or "output_stride" in str(error)


def _unpool(backbone: nn.Module) -> None:
    """Take the pooling at stride 1 out of a network's shortcuts; `unpooled` says whether there was any."""
    found = [
        (module, name)
        for module in backbone.modules()
        for name, child in module.named_children()
        if isinstance(child, AvgPool2dSame) and child.stride == (1, 1)
    ]
    for module, name in found:
        setattr(module, name, nn.Identity())
    backbone.unpooled = bool(found)  # type: ignore[assignment]


def refuse_pooled(path: Path | str, metadata: dict[str, str], backbone: nn.Module) -> None:
    """UserError if the network in `path` was trained with the pooling in its shortcuts that `_unpool` takes out."""
    if getattr(backbone, "unpooled", False) and metadata.get("shortcuts") != UNPOOLED:
        raise UserError(
            f"{path}: made by an older version, whose dilated stages moved their maps by half a cell; train it again"
        )


def _undilate(backbone: nn.Module, plain: nn.Module) -> None:
    """Give the convolutions of a dilated network the dilation that they have in `plain`, the same one at stride 32."""
    own = {name: layer.dilation for name, layer in plain.named_modules() if isinstance(layer, nn.Conv2d)}
    for name, layer in backbone.named_modules():
        if not isinstance(layer, nn.Conv2d) or layer.dilation == own[name]:
            continue
        layer.dilation = own[name]
        spans = [one * (side - 1) for one, side in zip(own[name], layer.kernel_size, strict=True)]
        if any(span % 2 for span in spans):  # an even kernel needs one more pixel on one side
            layer.__class__, layer.padding = Conv2dSame, (0, 0)
        elif not isinstance(layer, Conv2dSame):  # which pads by itself
            layer.padding = tuple(span // 2 for span in spans)


def _transformer(encoder: Encoder, output_stride: int) -> nn.Module | None:
    """The encoder, if it is a transformer of timm; its stride is its own."""
    try:
        made = tokens.transformer(encoder)
    except Exception as error:
        raise kinds.refusal(encoder, error) from error
    if made is not None and not feature_strides(made):
        raise UserError(
            f"encoder.options of `{encoder.name}`: leave no block that gives features; set depth to 1 or more"
        )
    if made is not None and (own := feature_strides(made)[-1]) != output_stride:
        raise kinds.other_stride(encoder, own)
    return made


def _mix_transformer(encoder: Encoder, output_stride: int) -> nn.Module:
    if output_stride != 32:
        raise kinds.other_stride(encoder, 32)
    try:
        backbone = MixTransformer(encoder.name, **encoder.options)
    except (TypeError, ValueError, AssertionError, IndexError) as error:
        raise UserError(f"encoder.options of `{encoder.name}`: {one_line(error)}; mend them") from error
    if encoder.weights == "imagenet":
        try:
            source = smp.encoders.get_encoder(encoder.name, weights="imagenet")
        except Exception as error:
            raise kinds.offline_error(encoder.name, error) from error
        load_weights(backbone, source.state_dict(), f"imagenet weights of {encoder.name}")
    return backbone


def feature_channels(backbone: nn.Module) -> list[int]:
    """Channels of each feature map of a backbone from `create_backbone`, shallow to deep."""
    info: Any = backbone.feature_info
    return info.channels()


def feature_strides(backbone: nn.Module) -> list[int]:
    """Stride of each feature map of a backbone from `create_backbone`, shallow to deep."""
    info: Any = backbone.feature_info
    return info.reduction()


def layer_depths(backbone: nn.Module) -> dict[int, int]:
    """How many layers of a ViT or a Swin lie behind each of its parameters, by the parameter's id.

    UserError if the backbone is none.
    """
    depths = getattr(backbone, "depths", None)
    if not callable(depths):  # MiT has a list of this name
        raise UserError("optimiser.layer_decay: only a ViT or a Swin has layers for it; leave it out")
    found: dict[int, int] = depths()
    return found


def is_resnet(backbone: nn.Module) -> bool:
    """Whether the last stage of a backbone from `create_backbone` is of ResNet's blocks, whose dilation can be set."""
    *_, stage = backbone.children()
    return bool(_blocks(stage))


def dilate_first_blocks(backbone: nn.Module, name: str) -> None:
    """Give the first block of each stage of a ResNet the dilation of the stage's other blocks, in place.

    timm leaves it at that of the stage before, as torchvision does. At stride 8 the 3×3 convolutions of stages three
    and four have dilation 2 and 4 throughout then, as BECO's DeepLabV2 has them (mmsegmentation's `contract_dilation`
    false). `name` is the encoder's, for the UserError if it is no ResNet of timm.
    """
    if not is_resnet(backbone):
        raise UserError(f"contract_dilation: `{name}` is no ResNet, so no block can be told its dilation; leave it out")
    for stage in backbone.children():
        for block in _blocks(stage)[:1]:
            _dilate(block, block.dilation)


def set_multi_grid(backbone: nn.Module, factors: Sequence[int], name: str) -> None:
    """Multiply the dilation of the last stage's 3×3 convolutions block by block, in place.

    The stage's own dilation follows from the output stride: factors 1, 2, 4 make 2, 4, 8 of it at stride 16 (Chen et
    al., Rethinking Atrous Convolution, 2017, section 3.2.1). The stage's first block starts from the stage's dilation
    too, whatever `contract_dilation` says. `name` is the encoder's, for the UserError if it is no ResNet of timm or
    has another number of blocks.
    """
    *_, stage = backbone.children()
    blocks = _blocks(stage)
    if not blocks:
        raise UserError(f"multi_grid: `{name}` is no ResNet, so its last stage has no blocks for it; leave it out")
    if len(blocks) != len(factors):
        raise UserError(
            f"multi_grid: {len(factors)} factors for {len(blocks)} blocks in the last stage of `{name}`; "
            f"give {len(blocks)}"
        )
    for block, factor in zip(blocks, factors, strict=True):
        _dilate(block, block.dilation * factor)


def _blocks(stage: nn.Module) -> list[Any]:
    """The blocks of a ResNet's stage; none if it is something else."""
    blocks: list[Any] = list(stage) if isinstance(stage, nn.Sequential) else []
    return blocks if all(isinstance(block, BasicBlock | Bottleneck) for block in blocks) else []


def _dilate(block: nn.Module, dilation: int) -> None:
    for layer in block.children():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.dilation = layer.padding = (dilation, dilation)


def prepare_backbone(backbone: nn.Module, encoder: Encoder, classifier: Path | None = None) -> None:
    """Drop the blocks that `encoder.drop` names and load the weights that `encoder.weights` names, in place.

    `classifier` is the file that `weights: classifier` stands for: stage one's trained network. UserError if the file
    cannot be read or is not of this backbone.
    """
    for name in encoder.drop:
        parent, _, leaf = name.rpartition(".")
        try:
            backbone.get_submodule(name)
            setattr(backbone.get_submodule(parent), leaf, nn.Identity())
        except AttributeError as error:
            blocks = ", ".join(child for child, _ in backbone.named_children())
            raise UserError(f"encoder.drop: `{encoder.name}` has no block `{name}`; it has {blocks}") from error
    if encoder.weights == "classifier":
        if classifier is None:
            raise UserError("encoder.weights: `classifier` needs --classifier, the trained network of stage one")
        state, metadata = load_network(classifier, "classifier")
        refuse_pooled(classifier, metadata, backbone)
        prefix = "backbone."
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        load_weights(backbone, state, str(classifier))
    elif (file := weights_file(encoder)) is not None:
        body = getattr(backbone, "body", backbone)
        state = authors.in_timms_names(read_weights(file), encoder, body, str(file))
        load_weights(body, state, str(file), body is backbone, lambda: _whole(encoder))


def _whole(encoder: Encoder) -> dict[str, Tensor]:
    """The tensors of timm's whole model, without data: as it is published, with what lies behind the last features."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            state = timm.create_model(encoder.name, **encoder.options).state_dict()
    except Exception:  # of other authors, or of options that only features have: then there is nothing to know
        return {}
    dropped = tuple(f"{name}." for name in encoder.drop)
    return {key: value for key, value in state.items() if not key.startswith(dropped)}


def weights_hash(encoder: Encoder) -> str | None:
    """What the weights of an encoder are known by: None (random), the hash of their file, or imagenet (a download)."""
    file = weights_file(encoder)
    return encoder.weights if file is None else file_hash(file)


def save_network(module: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write a module's tensors and text metadata as .safetensors, atomically."""
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    with whole(path) as temporary:
        write_safetensors(temporary, state, {**metadata, "shortcuts": UNPOOLED})


NETWORKS = {
    "classifier": "the classifier.safetensors of beco train-classifier",
    "irn": "the irn.safetensors of beco train-irn",
    "networks": "the networks.safetensors of beco train",
}


def load_network(
    path: Path, kind: str | None = None, classes: list[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `save_network` wrote.

    UserError if it is missing, damaged or another's, or, where they are given, not of the `kind` (a key of `NETWORKS`)
    or of the `classes`.
    """
    try:
        tensors, metadata = read_safetensors(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run the training that makes it first") from error
    except Exception as error:
        damage = f"not readable as safetensors ({one_line(error)}); remove it and train again"
        raise unreadable(path, error, damage, "a network", ("empty",)) from error
    if "classes" not in metadata:
        raise UserError(
            f"{path}: not a network that this program saved; as starting weights, name it in encoder.weights"
        )
    found = "networks" if "network" in metadata else "irn" if "mean_displacement" in tensors else "classifier"
    if kind not in (None, found):
        raise UserError(f"{path}: is {NETWORKS[found]}; give {NETWORKS[str(kind)]}")
    with described(path):
        if classes is not None and json.loads(metadata["classes"]) != classes:
            raise UserError(f"{path}: trained for other classes than the manifest's; train it again")
    return refuse_unsound(tensors, path), metadata


@contextmanager
def described(path: Path) -> Iterator[None]:
    """UserError if the block cannot build the network that a file's metadata describe, or its tensors do not fit it."""
    try:
        yield
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: not the network that it says it is ({one_line(error)}); train it again") from error


def load_whole(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load every tensor of a file of ours; within `described`."""
    module.load_state_dict(as_present(state, module.state_dict(), path))
