"""Weights files in the layout of an encoder's authors, by the filters that timm has for its own downloads.

The filters know the files of DINOv2 and v3, OpenAI's and OpenCLIP's towers, EVA, Swin, ConvNeXt and others: they rename
tensors, and resample position embeddings, patches and tables of windows of another size.
"""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from inspect import signature
from typing import Any

import timm
import torch
from torch import nn

from beco.config import Encoder
from beco.errors import UserError
from beco.networks.names import COMPILED, State, plain, views
from beco.networks.tokens import PLAIN

Change = Callable[[State], State]
FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
"""What timm's modules call their filter."""
CLASS, DISTILLED = ("cls_token", "class_embedding"), ("dist_token",)
REGISTERS = ("reg_token", "register_tokens", "storage_tokens")


def in_timms_names(state: State, encoder: Encoder, backbone: nn.Module, source: str) -> State:
    """Tensors of a weights file in the names and shapes of timm's model, if its authors or a training changed them.

    The filters want bare names, so that they are tried behind every chain of wrappers, and beside what they make the
    tensors stay as they are: the view with most of the encoder's tensors is given back. What a filter raises about a
    file that is not its model's says nothing to a user. UserError for a transformer's file with other tokens.
    """
    change = _filter(encoder, backbone)
    if change is None:
        return state
    own = {plain(key): value.shape for key, value in backbone.state_dict().items()}
    best, most = state, 0
    for view in views({key.replace(COMPILED, ""): value for key, value in state.items()}):
        for one in (_changed(change, view), view):  # as the library does it, where both fit
            fitting = sum(own.get(plain(key)) == value.shape for key, value in one.items())
            if fitting > most:
                best, most = one, fitting
    if len(own) > most > len(own) // 2:
        _refuse_tokens(best, encoder, backbone, source)
    return best


def _filter(encoder: Encoder, backbone: nn.Module) -> Change | None:
    """timm's filter for the encoder's files; None if it has none."""
    if not timm.is_model(encoder.name):
        return None
    module = sys.modules[timm.model_entrypoint(encoder.name).__module__]
    found: Any = next((getattr(module, name) for name in FILTERS if hasattr(module, name)), None)
    if found is None:
        return None
    parameters = signature(found).parameters
    if "model" not in parameters:
        return lambda state: found(state)
    # DeiT III's scales; no other file has tensors of these names
    more = {"adapt_layer_scale": True} if "adapt_layer_scale" in parameters else {}
    model = _whole(encoder, backbone)
    return lambda state: found(state, model, **more)


def _whole(encoder: Encoder, backbone: nn.Module) -> nn.Module:
    """The model as timm builds it: its filters look for layers by names that an extractor of features changes."""
    if timm.models.is_model_in_modules(encoder.name, PLAIN):
        return backbone
    options = {key: value for key, value in encoder.options.items() if key != "out_indices"}
    with torch.random.fork_rng(devices=[]):  # what is drawn for the heads is what is drawn without a file
        return timm.create_model(encoder.name, **options)


def _changed(change: Change, view: State) -> State:
    """What a filter makes of tensors; nothing if it fails, as on files of another model."""
    try:
        # EVA's prints what it passes over; resampled tables of windows have torch warn of timm's own code
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            found = change(dict(view))
        return found if all(isinstance(value, torch.Tensor) for value in found.values()) else {}
    except Exception:
        return {}


# --- tokens -------------------------------------------------------------------------------------------------


def _refuse_tokens(state: State, encoder: Encoder, backbone: nn.Module, source: str) -> None:
    """UserError if a file of a transformer has other class, distillation or register tokens than the encoder."""
    given, own = _tokens(state), _tokens(backbone.state_dict())
    if given == own:
        return
    fitting = _with_tokens(encoder, given)
    mend = f"set encoder.name to `{fitting}`" if fitting else "choose the encoder that it was made for"
    raise UserError(f"{source}: has {_words(given)}, `{encoder.name}` {_words(own)}; {mend}")


def _tokens(state: State) -> tuple[int, int, int]:
    """How many class, distillation and register tokens a transformer has."""
    registers = next((state[name] for name in REGISTERS if name in state), None)
    number = 0 if registers is None else registers.numel() // registers.shape[-1]
    return int(any(name in state for name in CLASS)), int(any(name in state for name in DISTILLED)), number


def _words(tokens: tuple[int, int, int]) -> str:
    names = ("class", "distillation", "register")
    found = [f"{count} {name} token{'s' * (count > 1)}" for count, name in zip(tokens, names, strict=True) if count]
    return " and ".join(found) or "no token of these kinds"


def _with_tokens(encoder: Encoder, tokens: tuple[int, int, int]) -> str | None:
    """The model of timm that is the encoder with these tokens: of the same name, but for what tells of them."""
    wanted = _without_tokens(encoder.name.partition(".")[0])
    for name in timm.list_models():
        if _without_tokens(name) == wanted:
            try:
                with torch.device("meta"):
                    other = timm.create_model(name, **encoder.options)
            except Exception:  # which does not take the options
                continue
            if _tokens(other.state_dict()) == tokens:
                return name
    return None


def _without_tokens(name: str) -> str:
    return re.sub(r"_reg\d+|_distilled", "", name)
