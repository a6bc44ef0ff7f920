"""The space that pictures and texts share in CLIP (Radford et al., ICML 2021): how each tower's features get there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from beco.config import Encoder
from beco.errors import UserError
from beco.networks.packages import weights_file
from beco.networks.weights import one_line, read_weights

PROJECTIONS = {"head.weight": False, "visual.proj": True, "visual.head.proj.weight": False}
"""What the projection of an image tower is called, by timm, by OpenAI and by OpenCLIP, and whether it is transposed."""
WRAPPER = "module."
EXTRA = "pip install open_clip_torch, or make the file where there is one"


def image_projection(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """What the weights file of an image tower brings besides its encoder: (E, C) and (E,) float32, weight and bias.

    UserError if the encoder starts from no file, or the file has no projection.
    """
    file = weights_file(encoder)
    if file is None:
        raise UserError(
            f"encoder.weights: {encoder.weights or 'null'} brings no projection to the space of texts; name the "
            "weights file of a CLIP image tower"
        )
    state = {key.removeprefix(WRAPPER): value for key, value in read_weights(file).items()}
    for name, transposed in PROJECTIONS.items():
        weight = state.get(name)
        if weight is not None and weight.ndim == 2:
            weight = (weight.T if transposed else weight).float().contiguous()
            bias = state.get(name.replace("weight", "bias"), torch.zeros(0)).float()
            return weight, bias if bias.shape == weight.shape[:1] else torch.zeros(len(weight))
    raise UserError(
        f"{file}: has no projection to the space of texts ({', '.join(PROJECTIONS)}); take a file of a whole CLIP, or "
        "of its image tower with its head"
    )


def text_features(prompts: Sequence[Sequence[str]], tower: str, weights: Path) -> tuple[Tensor, float]:
    """Features (n, E) float32 of length 1 of n meanings, and the factor of the cosine (the logit scale's exponential).

    Each meaning has one or several prompts; several are averaged (as in CLIP's own zero-shot evaluation). `tower`:
    OpenCLIP's name of the model, whose whole `weights` the file holds. UserError if OpenCLIP is not installed, has no
    such model, or the file is not of it.
    """
    model, tokenise = _text_tower(tower, weights)
    with torch.inference_mode():
        found = [F.normalize(model.encode_text(tokenise(list(some))).float(), dim=-1).mean(0) for some in prompts]
    return F.normalize(torch.stack(found), dim=-1).clone(), float(model.logit_scale.detach().exp())


def _text_tower(tower: str, weights: Path) -> tuple[Any, Any]:
    try:
        import open_clip  # here: an extra, and it takes seconds
    except ImportError as error:
        raise UserError(f"beco text-features: OpenCLIP is not installed ({one_line(error)}); {EXTRA}") from error
    if open_clip.get_model_config(tower) is None:
        raise UserError(f"--tower: OpenCLIP has no model `{tower}`; see open_clip.list_models()")
    state = {key.removeprefix(WRAPPER): value.float() for key, value in read_weights(weights).items()}
    logging.disable(logging.WARNING)  # it says that the model is random so far
    try:
        apart = any(key.startswith("text.") for key in state)
        model = open_clip.create_model(tower, load_weights=False, force_custom_text=apart)
        if lacking := model.load_state_dict(state, strict=False).missing_keys:  # OpenAI's files have numbers besides
            raise KeyError(f"lacks {len(lacking)} tensors, such as {lacking[0]}")
    except Exception as error:
        raise UserError(
            f"{weights}: not the weights of `{tower}` with its text tower ({one_line(error)}); name the model that the "
            "file is of"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return model.eval(), open_clip.get_tokenizer(tower)
