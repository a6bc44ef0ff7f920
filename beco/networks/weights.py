"""Weights files that users own, and how their names become the backbone's."""

from __future__ import annotations

import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from beco.artifacts.files import unreadable
from beco.artifacts.firstbytes import told
from beco.errors import UserError
from beco.networks.names import HEAD_PREFIXES, State, in_timms_names, plain

log = logging.getLogger("beco")

# Where training programs keep the network's table within their own, the one to be taken first.
TABLES = (
    *("state_dict", "model", "model_state_dict", "state_dict_ema", "ema_state_dict", "model_ema", "params_ema"),
    *("params", "teacher", "net", "network", "weights"),
)
EARLIER = "its training went wrong, take an earlier checkpoint"
DENSE = "save the network as trained, with dense floating-point tensors"
PICKLE, PROTOCOLS = b"\x80", (b"\x02", b"\x03", b"\x04", b"\x05")
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""How a file of torch.save began before it was an archive."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_weights(path: Path) -> State:
    """Tensors of a .safetensors or .pth/.pt file; the latter read without unpickling anything but tensors.

    A table within a table (`TABLES`) is unwrapped. UserError if there is no file or no such table, and for tensors that
    are not dense or hold NaN or infinity.
    """
    try:
        if path.suffix == ".safetensors":
            return refuse_unsound(read_safetensors(path)[0], path)
        with warnings.catch_warnings(action="ignore"):  # of kinds of tensors that are refused in one line
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        missing = "no such weights file; put it there or change encoder.weights"
        raise UserError(f"{path}: {told(path, 'a weights file') or missing}") from error
    except UserError:
        raise
    except Exception as error:
        damage = f"not a readable weights file ({one_line(error)}); copy it again"
        if isinstance(error, pickle.UnpicklingError):
            damage = (
                "not a readable weights file (damaged, or it holds more than tensors); copy it again, or save its "
                "state_dict alone"
            )
        if words := _other_than_tensors(path, error):
            raise UserError(f"{path}: {words}") from error
        raise unreadable(path, error, damage, "a weights file", ("a ZIP archive",)) from error
    return refuse_unsound(_table(state, path), path)


def _other_than_tensors(path: Path, error: Exception) -> str:
    """What a file that could not be read holds instead of tensors by name, with the mend; "" if that cannot be told."""
    alone = "save its state_dict alone with torch.save"
    with suppress(OSError, zipfile.BadZipFile):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
            if any("/code/" in name for name in names):
                return f"is a TorchScript program, not a weights file; if you trust it, torch.jit.load it and {alone}"
            if names and all(name.endswith(".npy") for name in names):
                return f"is an archive of NumPy arrays, not a weights file; put them into the network and {alone}"
        elif _is_pickle(path):
            return (
                "not a readable weights file (a plain pickle, as of detectron2, which holds more than tensors); if you "
                f"trust where it comes from, load it with pickle and {alone}"
            )
    if found := re.search(r"GLOBAL (\S+)", str(error)):  # how torch names what it would not load
        return (
            f"not a readable weights file (it holds more than tensors: {found[1]}, which loading it would run); if you "
            f"trust where it comes from, load it with torch.load(…, weights_only=False) and {alone}"
        )
    return ""


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle, and not as one of torch.save from before it was an archive."""
    with path.open("rb") as stream:
        head = stream.read(len(LEGACY))
    return len(head) == len(LEGACY) and head[:1] == PICKLE and head[1:2] in PROTOCOLS and head != LEGACY


def _table(content: Any, path: Path) -> State:
    """The table of tensors in what a .pth file holds, unwrapped."""
    tables = [key for key in TABLES if isinstance(content, dict) and isinstance(content.get(key), dict)]
    if tables:
        if len(tables) > 1:
            log.info("%s: holds %s; `%s` is taken", path, ", ".join(f"`{key}`" for key in tables), tables[0])
        return _table(content[tables[0]], path)
    mend = "save the network's state_dict() alone"
    if not isinstance(content, dict) or not content:
        what = "an empty table" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path}: holds no table of tensors, but {what}; {mend}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(f"{path}: holds no table of tensors by name ({one_line(key)}: {kind}); {mend}")
    return content


def refuse_unsound(state: State, path: Path) -> State:
    """`state`, or a UserError naming the first tensor that is not dense, has no content, or is not finite.

    Weights and biases are floating-point numbers; other tensors may be whole ones, see `as_present`.
    """
    for key, value in state.items():
        if value.is_quantized or value.is_nested or value.layout != torch.strided or value.is_meta:
            kind = "has no content (meta)" if value.is_meta else "is quantised, sparse or nested"
            raise UserError(f"{path}: {one_line(key)} {kind}; {DENSE}")
        if value.dtype not in FLOATS and key.rpartition(".")[2] in ("weight", "bias"):
            raise _not_floating(path, key, value)
        if value.dtype in FLOATS and not bool(value.isfinite().all()):
            raise UserError(f"{path}: {one_line(key)} holds NaN or infinity; {EARLIER}")
        if value.dtype in FLOATS and key.rpartition(".")[2] == "running_var" and bool((value < 0).any()):
            raise UserError(f"{path}: {one_line(key)} holds negative variances; {EARLIER}")
    return state


def as_present(state: State, present: State, source: Path | str) -> State:
    """`state`, or a UserError for a tensor that is no floating-point one where that of the same name in `present` is.

    Counters, as of batch norm's batches, are whole numbers.
    """
    for key, value in state.items():
        wanted = present[key].is_floating_point() if key in present else False
        if value.dtype not in FLOATS if wanted else value.is_complex():
            raise _not_floating(source, key, value)
    return state


def _not_floating(source: Path | str, key: str, value: Tensor) -> UserError:
    return UserError(f"{source}: {one_line(key)} is of {str(value.dtype).removeprefix('torch.')}; {DENSE}")


# --- .safetensors -------------------------------------------------------------------------------------------


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """Tensors and metadata; read, not mapped into memory, which not every file system can do and ends in SIGBUS."""
    content = path.read_bytes()
    tensors = from_bytes(content)
    return tensors, _header(content)[0].get("__metadata__") or {}


def write_safetensors(path: Path, state: State, metadata: dict[str, str]) -> None:
    """Write tensors and metadata; the same ones give the same bytes.

    The library writes metadata in an order that is another in every process.
    """
    content = as_bytes(state)
    header, end = _header(content)
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as stream:  # not save_file, which would ignore the umask
        for part in (len(text).to_bytes(8, "little"), text, memoryview(content)[end:]):
            stream.write(part)


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """The table at the beginning of a .safetensors file, and where it ends."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), end


# --- into a backbone ----------------------------------------------------------------------------------------


def load_weights(
    backbone: nn.Module,
    state: State,
    source: str,
    droppable: bool = True,
    left_out: Callable[[], Mapping[str, Tensor]] = dict,
) -> None:
    """Load `state` whole, in place: every parameter and statistic of the backbone must be there, with its shape.

    Names may carry wrappers, lack timm's dots, or be those of other programs (see `beco.networks.names`);
    classification heads are passed over, and what `left_out` says that the backbone was made without, in timm's names.
    `source` names the file in the UserError if anything is missing, too many or of another shape; `droppable` says
    whether it may propose encoder.drop, which a transformer has no use for.
    """
    own = backbone.state_dict()
    state = in_timms_names(state, backbone)
    given = {plain(key): value for key, value in state.items()}
    if len(given) != len(state):
        raise UserError(f"{source}: two of its tensors have names that differ by dots alone; rename them")
    chosen, missing, misfit = {}, [], []
    for key, present in own.items():
        value = given.pop(plain(key), None)
        if value is None and key.endswith("num_batches_tracked"):
            value = present
        if value is None:
            missing.append(key)
        elif value.shape != present.shape:
            misfit.append(f"{key} is {tuple(value.shape)}, the network's {tuple(present.shape)}")
        else:
            chosen[key] = value
    if missing:
        drop = ", or name the absent blocks in encoder.drop" if droppable else ""
        raise UserError(
            f"{source}: lacks {len(missing)} tensors of the encoder, such as {missing[0]}; choose the encoder that it "
            f"was made for{drop}"
        )
    if misfit:
        raise UserError(f"{source}: does not fit the encoder ({misfit[0]}); check encoder.name and encoder.options")
    heads = tuple(plain(prefix) for prefix in HEAD_PREFIXES)
    surplus = [key for key in given if not key.startswith(heads)]
    if surplus:
        known = {plain(key): value.shape for key, value in left_out().items()}
        surplus = [key for key in surplus if known.get(key) != given[key].shape]
    if surplus:
        raise UserError(
            f"{source}: has {len(surplus)} tensors that the encoder lacks, such as {one_line(surplus[0])}; "
            f"check encoder.name and encoder.{'drop' if droppable else 'options'}"
        )
    backbone.load_state_dict(as_present(chosen, own, source))


def one_line(error: object) -> str:
    """What a library's exception says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
