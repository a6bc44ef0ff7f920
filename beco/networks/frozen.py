"""Parts of a backbone that learn nothing: its first stages, and the statistics of its batch norm."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from beco.errors import UserError
from beco.networks import encoders
from beco.networks.weights import one_line

SIDE = 64  # pixels of the picture that is sent through a backbone to see what its maps depend on


def freeze(backbone: nn.Module, stages: int, name: str) -> None:
    """Set all parameters that the first `stages` stages depend on to learn nothing, in place.

    Stage n ends at the n-th feature map of stride 4 or more (`layer1` … `layer4` of a ResNet), and 0 stands for the
    stem alone, up to the map at stride 2; so it does not matter what an encoder calls its blocks. No gradient reaches
    these parameters, and optimisers that are given what learns leave them alone, weight decay included: the same as
    detaching the map at the end of the stage. `name` is the encoder's, for the UserError if it has no such stage.
    """
    strides = encoders.feature_strides(backbone)
    ends = [number for number, stride in enumerate(strides) if stride >= 4]
    before = [number for number, stride in enumerate(strides) if stride < 4][-1:]
    found = before if stages == 0 else ends[stages - 1 : stages]
    if not found:
        known = f"{'0, the stem, and ' if before else ''}1 to {len(ends)}"
        raise UserError(
            f"frozen_stages: {stages}, but `{name}` has features at strides {', '.join(map(str, strides))}, so its "
            f"stages are {known}; choose one of these or null"
        )
    for parameter in _upstream(backbone, found[0], name):
        parameter.requires_grad_(False)


def _upstream(backbone: nn.Module, number: int, name: str) -> list[nn.Parameter]:
    """The parameters that a feature map depends on, read off autograd's graph of one pass in evaluation mode."""
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if not parameters:
        return []
    training = {module: module.training for module in backbone.modules()}
    try:
        with torch.enable_grad():
            maps = backbone.eval()(torch.zeros(1, 3, SIDE, SIDE, device=parameters[0].device))
            if not maps[number].requires_grad:  # all of it was frozen before
                return []
            reached = torch.autograd.grad(maps[number].sum(), parameters, allow_unused=True)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"frozen_stages: what the stages of `{name}` depend on cannot be told from a picture of {SIDE}² "
            f"({one_line(error)}); set null"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    return [parameter for parameter, gradient in zip(parameters, reached, strict=True) if gradient is not None]


def fix_statistics(module: nn.Module) -> None:
    """Put every batch norm of `module` into evaluation mode, in place; scale and shift still learn.

    To be called after each `train()`, which would take it back.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
