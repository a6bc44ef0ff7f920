"""Weights files that users own, and how their names become the backbone's."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from beco.errors import UserError
from beco.firstbytes import told

State = dict[str, Tensor]

# A classification head that a weights file brings along and a backbone has no use for.
HEAD_PREFIXES = ("fc.", "classifier.", "head.", "conv_head.", "bn2.", "last_linear.", "norm.")
# What training programs put before the names of a backbone, one or several in a row.
WRAPPERS = ("module.", "model.", "network.", "backbone.", "encoder.")
# A deep stem is one sequence of three convolutions in mmcls and mmsegmentation; timm ends it after the third
# convolution and gives the last normalisation a name of its own.
MMCLS_STEM = {"0": "conv1.0", "1": "conv1.1", "3": "conv1.3", "4": "conv1.4", "6": "conv1.6", "7": "bn1"}


def read_weights(path: Path) -> State:
    """Tensors of a .safetensors or .pth/.pt file; the latter read without unpickling anything but tensors.

    A table within a table (`state_dict`, `model`) is unwrapped. UserError if there is no file or no such table.
    """
    try:
        if path.suffix == ".safetensors":
            return _finite(safetensors.torch.load_file(path), path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        words = _other(path) or f"{path}: no such weights file; put it there or change encoder.weights"
        raise UserError(words) from error
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if words := _other(path):
            raise UserError(words) from error
        raise UserError(
            f"{path}: not a readable weights file (damaged, or it holds more than tensors); copy it again, or save its "
            "state_dict alone"
        ) from error
    except Exception as error:
        words = _other(path) or f"{path}: not a readable weights file ({one_line(error)}); copy it again"
        raise UserError(words) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no table of tensors; export the network's state_dict")
    return _finite(state, path)


def _other(path: Path) -> str:
    """What a file is that holds no weights, by its first bytes; "" if they do not tell."""
    words = told(path, "a weights file", ("a ZIP archive",))
    return f"{path}: {words}" if words else ""


def _finite(state: State, path: Path) -> State:
    for key, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{path}: {key} holds NaN or infinity; its training went wrong, take an earlier checkpoint")
    return state


def load_weights(backbone: nn.Module, state: State, source: str) -> None:
    """Load `state` whole, in place: every parameter and statistic of the backbone must be there, with its shape.

    Names may carry `WRAPPERS`, lack timm's dots (`stages.0` is `stages_0` in its feature extractors), or be those of
    mmcls's ResNets; classification heads are passed over. `source` names the file in the UserError if anything is
    missing, too many or of another shape.
    """
    own = backbone.state_dict()
    state = _in_timms_names(_unwrapped(state, own), own)
    given = {_plain(key): value for key, value in state.items()}
    if len(given) != len(state):
        raise UserError(f"{source}: two of its tensors have names that differ by dots alone; rename them")
    chosen, missing, misfit = {}, [], []
    for key, present in own.items():
        value = given.pop(_plain(key), None)
        if value is None and key.endswith("num_batches_tracked"):
            value = present
        if value is None:
            missing.append(key)
        elif value.shape != present.shape:
            misfit.append(f"{key} is {tuple(value.shape)}, the network's {tuple(present.shape)}")
        else:
            chosen[key] = value
    if missing:
        raise UserError(
            f"{source}: lacks {len(missing)} tensors of the encoder, such as {missing[0]}; choose the encoder that it "
            "was made for, or name the absent blocks in encoder.drop"
        )
    if misfit:
        raise UserError(f"{source}: does not fit the encoder ({misfit[0]}); check encoder.name and encoder.options")
    heads = tuple(_plain(prefix) for prefix in HEAD_PREFIXES)
    surplus = [key for key in given if not key.startswith(heads)]
    if surplus:
        raise UserError(
            f"{source}: has {len(surplus)} tensors that the encoder lacks, such as {surplus[0]}; "
            "check encoder.name and encoder.drop"
        )
    backbone.load_state_dict(chosen)


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _unwrapped(state: State, own: State) -> State:
    """The part of `state` behind those wrappers that make most names the backbone's; the rest belongs to heads."""
    names = {_plain(key) for key in own}
    return max(_views(state), key=lambda view: sum(_plain(key) in names for key in view))


def _views(state: State) -> Iterator[State]:
    """`state` itself, and what lies behind every chain of wrappers in it."""
    yield state
    for wrapper in WRAPPERS:
        inner = {key.removeprefix(wrapper): value for key, value in state.items() if key.startswith(wrapper)}
        if inner:
            yield from _views(inner)


def _in_timms_names(state: State, own: State) -> State:
    """`state` with the names of mmcls's ResNets (V1c, V1d) changed to timm's; any other state as it is.

    Besides the stem they differ in the shortcuts: timm keeps a place for the pooling even where it does nothing (in
    the first stage), so that the convolution is `downsample.1` there too and not `downsample.0`.
    """
    deep_stem = "conv1.6.weight" in own and "conv1.6.weight" not in state
    renamed = {}
    for key, value in state.items():
        name = key
        if deep_stem and (match := re.fullmatch(r"stem\.(\d)\.(\w+)", key)) and match[1] in MMCLS_STEM:
            name = f"{MMCLS_STEM[match[1]]}.{match[2]}"
        elif match := re.fullmatch(r"(.+\.downsample)\.([01])\.(\w+)", key):
            shortcut = match[1]
            if f"{shortcut}.0.weight" in state and f"{shortcut}.0.weight" not in own and f"{shortcut}.2.weight" in own:
                name = f"{shortcut}.{int(match[2]) + 1}.{match[3]}"
        renamed[name] = value
    return renamed


def one_line(error: Exception) -> str:
    """What a library's exception says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
