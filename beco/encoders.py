"""Backbones from timm and the weights they start from; used by the classifier and by the segmentation networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from beco.config import Encoder
from beco.errors import UserError
from beco.files import whole

# A classification head that a weights file brings along and a backbone has no use for.
HEAD_PREFIXES = ("fc.", "classifier.", "head.", "conv_head.", "bn2.", "last_linear.", "norm.")


def create_backbone(encoder: Encoder, output_stride: int) -> nn.Module:
    """A timm feature extractor: (B, 3, H, W) float -> list of feature maps, the deepest at `output_stride`.

    Weights are not loaded here, except `imagenet`, which is timm's own download.
    """
    with_weights = encoder.weights == "imagenet"
    try:
        return timm.create_model(
            encoder.name,
            pretrained=with_weights,
            features_only=True,
            output_stride=output_stride,
            **encoder.options,
        )
    except (RuntimeError, NotImplementedError) as error:
        if "Unknown model" in str(error) or "not registered" in str(error):
            raise UserError(f"encoder.name: timm has no model `{encoder.name}`; see timm.list_models()") from error
        raise UserError(f"encoder `{encoder.name}`: {_line(error)}; check encoder.options and output_stride") from error
    except TypeError as error:
        raise UserError(f"encoder.options of `{encoder.name}`: {_line(error)}") from error
    except Exception as error:
        if with_weights:
            raise offline_error(encoder.name, error) from error
        raise


def feature_channels(backbone: nn.Module) -> list[int]:
    """Channels of each feature map of a backbone from `create_backbone`, shallow to deep."""
    info: Any = backbone.feature_info
    return info.channels()


def offline_error(name: str, error: Exception) -> UserError:
    """What to say when the library could not bring ImageNet weights."""
    return UserError(
        f"encoder.weights: ImageNet weights of `{name}` could not be downloaded ({type(error).__name__}); "
        "put the file on this machine and set encoder.weights to its path, or set it to null for random weights"
    )


def prepare_backbone(backbone: nn.Module, encoder: Encoder, classifier: Path | None = None) -> None:
    """Drop the blocks that `encoder.drop` names and load the weights that `encoder.weights` names, in place.

    `classifier` is the file that `weights: classifier` stands for: stage one's trained network.
    """
    for name in encoder.drop:
        parent, _, leaf = name.rpartition(".")
        try:
            backbone.get_submodule(name)
            setattr(backbone.get_submodule(parent), leaf, nn.Identity())
        except AttributeError as error:
            blocks = ", ".join(child for child, _ in backbone.named_children())
            raise UserError(f"encoder.drop: `{encoder.name}` has no block `{name}`; it has {blocks}") from error
    if encoder.weights in (None, "imagenet"):
        return
    if encoder.weights == "classifier":
        if classifier is None:
            raise UserError("encoder.weights: `classifier` needs --classifier, the trained network of stage one")
        state, _ = load_network(classifier)
        prefix = "backbone."
        state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        _load(backbone, state, str(classifier))
    else:
        _load(backbone, read_weights(Path(str(encoder.weights))), str(encoder.weights))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or .pth/.pt file; the latter read without unpickling anything but tensors."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such weights file; put it there or change encoder.weights") from error
    except Exception as error:
        raise UserError(f"{path}: not a readable weights file ({_line(error)}); copy it again") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no table of tensors; export the network's state_dict")
    return state


def _load(backbone: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` whole: every parameter and statistic of the backbone must be in the file, with its shape.

    timm's feature extractors flatten names (`stages.0` becomes `stages_0`), so names are compared without dots.
    """
    given = {key.replace(".", "_"): value for key, value in state.items()}
    if len(given) != len(state):
        raise UserError(f"{source}: two of its tensors have names that differ by dots alone; rename them")
    chosen, missing, misfit = {}, [], []
    for key, own in backbone.state_dict().items():
        value = given.pop(key.replace(".", "_"), None)
        if value is None and key.endswith("num_batches_tracked"):
            value = own
        if value is None:
            missing.append(key)
        elif value.shape != own.shape:
            misfit.append(f"{key} is {tuple(value.shape)}, the network's {tuple(own.shape)}")
        else:
            chosen[key] = value
    if missing:
        raise UserError(
            f"{source}: lacks {len(missing)} tensors of the encoder, such as {missing[0]}; choose the encoder that it "
            "was made for, or name the absent blocks in encoder.drop"
        )
    if misfit:
        raise UserError(f"{source}: does not fit the encoder ({misfit[0]}); check encoder.name and encoder.options")
    heads = tuple(prefix.replace(".", "_") for prefix in HEAD_PREFIXES)
    surplus = [key for key in given if not key.startswith(heads)]
    if surplus:
        raise UserError(
            f"{source}: has {len(surplus)} tensors that the encoder lacks, such as {surplus[0]}; "
            "check encoder.name and encoder.drop"
        )
    backbone.load_state_dict(chosen)


def save_network(module: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write a module's tensors and text metadata as .safetensors, atomically."""
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    with whole(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(state, metadata))  # save_file would ignore the umask


def load_network(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `save_network` wrote."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run the training that makes it first") from error
    except Exception as error:
        raise UserError(f"{path}: not readable as safetensors ({_line(error)}); remove it and train again") from error
    if "classes" not in metadata:
        raise UserError(
            f"{path}: not a network that this program saved; as starting weights, name it in encoder.weights"
        )
    return tensors, metadata


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
