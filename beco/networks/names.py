"""How others call the tensors of a backbone, and which of them are heads that it has no use for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

State = dict[str, Tensor]

# A classification head that a weights file brings along and a backbone has no use for.
HEAD_PREFIXES = (
    *("fc.", "classifier.", "head.", "conv_head.", "bn2.", "last_linear.", "norm."),
    *("projection_head.", "prototypes."),  # SwAV's
)
# What training programs put before the names of a backbone, one or several in a row.
WRAPPERS = ("module.", "model.", "network.", "net.", "backbone.", "encoder.", "encoder_q.", "teacher.")
COMPILED = "_orig_mod."  # what torch.compile puts before the names of whatever part was compiled
# A deep stem is one sequence of three convolutions in mmcls and mmsegmentation; timm ends it after the third
# convolution and gives the last normalisation a name of its own.
MMCLS_STEM = {"0": "conv1.0", "1": "conv1.1", "3": "conv1.3", "4": "conv1.4", "6": "conv1.6", "7": "bn1"}

# EfficientNets as ported from TensorFlow (efficientnet_pytorch, and the packages of Lite's weights): what stands
# outside the blocks, and the parts of a block, which timm counts from 1 where the block widens its input first.
PORTED = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
PORTED_PARTS = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand", "_depthwise_conv": "conv_dw"}
WIDENING = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
FLAT = {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def in_timms_names(state: State, backbone: nn.Module) -> State:
    """The part of `state` behind those `WRAPPERS` that make most names the backbone's, in timm's names.

    The rest belongs to heads. Known are the names of mmcls's ResNets and of EfficientNets ported from TensorFlow.
    """
    own = backbone.state_dict()
    names = {plain(key) for key in own}
    state = {key.replace(COMPILED, ""): value for key, value in state.items()}
    found = [_ported_efficientnet(_mmcls(view, own), backbone) for view in views(state)]
    return max(found, key=lambda view: sum(plain(key) in names for key in view))


def plain(name: str) -> str:
    """A name without dots: timm's feature extractors have `stages_0` for `stages.0`."""
    return name.replace(".", "_")


def views(state: State) -> Iterator[State]:
    """`state` itself, and what lies behind every chain of wrappers in it."""
    yield state
    for wrapper in WRAPPERS:
        inner = {key.removeprefix(wrapper): value for key, value in state.items() if key.startswith(wrapper)}
        if inner:
            yield from views(inner)


def _mmcls(state: State, own: State) -> State:
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


def _ported_efficientnet(state: State, backbone: nn.Module) -> State:
    """`state` with a ported EfficientNet's names changed to timm's; any other state as it is.

    There the blocks are counted through, in timm stage by stage.
    """
    if "_conv_stem.weight" not in state:
        return state
    blocks = [name for name, _ in backbone.named_modules() if re.fullmatch(r"blocks\.\d+\.\d+", name)]
    widening = {key.split(".")[1] for key in state if re.fullmatch(r"_blocks\.\d+\._expand_conv\.weight", key)}
    return {_ported_name(key, blocks, widening): value for key, value in state.items()}


def _ported_name(key: str, blocks: Sequence[str], widening: set[str]) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if match is None:
        part, _, leaf = key.partition(".")
        return f"{PORTED.get(part, part)}.{leaf}"
    number, part, leaf = match.groups()
    parts = PORTED_PARTS | (WIDENING if number in widening else FLAT)
    if int(number) >= len(blocks) or part not in parts:
        return key
    return f"{blocks[int(number)]}.{parts[part]}.{leaf}"
