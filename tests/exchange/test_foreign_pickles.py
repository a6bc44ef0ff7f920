"""Pickles of other programs: tensors from anywhere are read, and no file runs code."""

from __future__ import annotations

import io
import os
import pickle
import shlex
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_labels import (
    EXPECTED,
    FOURTH,
    MARGIN,
    SECOND,
    SIZE,
    TENSORS,
    assert_found,
    brought,
    refused,
)


def elsewhere(content: bytes) -> bytes:
    """What `torch.save` wrote, as if from a GPU."""
    assert b"X\x03\x00\x00\x00cpu" in content
    return content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")


def storage_of(tensor: torch.Tensor) -> Any:
    return torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)


def saved(value: Any, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


class Reduced:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.called


def test_tensors_from_a_gpu(tmp_path: Path) -> None:
    """In a .npy a tensor holds the bytes of a torch.save of its storage; in a .pt its place stands in data.pkl."""
    maps = torch.from_numpy(np.stack([SECOND, FOURTH]))
    storage = Reduced(torch.storage._load_from_bytes, elsewhere(saved(storage_of(maps), legacy=True)))
    tensor = Reduced(torch._utils._rebuild_tensor_v2, storage, 0, (2, *SIZE), (6, 3, 1), False, {})
    assert_found(
        brought(tmp_path, {"x.npy": {"keys": torch.tensor([1, 3]), "high_res": tensor}}, {"x": [2, 4]}),
        EXPECTED,
        MARGIN,
    )

    content = {"score": torch.cat([torch.full((1, *SIZE), 0.25), maps]).half(), "keys": np.array([0, 2, 4])}
    moved = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(content))) as old, zipfile.ZipFile(moved, "w") as new:
        for name in old.namelist():
            new.writestr(name, elsewhere(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(io.BytesIO(moved.getvalue()), weights_only=False)
    (tmp_path / "pt").mkdir()
    assert_found(brought(tmp_path / "pt", {"x.pt": moved.getvalue()}, {"x": [2, 4]}), EXPECTED, MARGIN)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_pickles_of_older_programs(tmp_path: Path, protocol: int, core: str) -> None:
    """numpy 1 names its functions otherwise, and old protocols keep bytes as Latin-1 text."""
    content = pickle_of(np.array({1: SECOND, 3: FOURTH}, object), protocol)
    for name in (b"numpy.core", b"numpy._core"):
        content = renamed(content, name + b".multiarray", core.encode() + b".multiarray", protocol)
    assert_found(brought(tmp_path, {"x.npy": content}, {"x": [2, 4]}), EXPECTED, MARGIN)


def pickle_of(value: Any, protocol: int = 4) -> bytes:
    """A .npy file of a 0-d array of objects, with any pickle in it."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    return header.getvalue() + (value if isinstance(value, bytes) else pickle.dumps(value, protocol))


def renamed(content: bytes, old: bytes, new: bytes, protocol: int) -> bytes:
    """Replace a name in a pickle; in protocol 4 its length stands before it, and frames are left out."""
    if protocol < 4:
        return content.replace(old, new)
    start = content.index(b"\x80\x04") + 2
    if content[start : start + 1] == b"\x95":
        content = content[:start] + content[start + 9 :]
    return content.replace(bytes([0x8C, len(old)]) + old, bytes([0x8C, len(new)]) + new)


# --- hostile files ------------------------------------------------------------------------------------------


def by_name(module: str, name: str, argument: str, protocol: int = 4) -> bytes:
    """A pickle that calls the function of that name, which protocol 4 lets go through attributes."""
    text = argument.encode()
    if protocol < 4:
        called = f"c{module}\n{name}\n".encode()
    else:
        called = b"".join(bytes([0x8C, len(part)]) + part.encode() for part in (module, name)) + b"\x93"
    return bytes([0x80, protocol]) + called + b"X" + struct.pack("<I", len(text)) + text + b"\x85R."


def in_torch_bytes(blob: bytes) -> bytes:
    """A tensor in a .npy whose storage holds a pickle of its own."""
    return pickle.dumps({"cam": Reduced(torch.storage._load_from_bytes, blob)}, 4)


HOSTILE: dict[str, Callable[[str], bytes]] = {
    "os.system": lambda command: pickle.dumps(Reduced(os.system, command), 2),
    "in the array": lambda command: pickle.dumps(np.array({"cam": Reduced(os.system, command)}, object), 4),
    "eval": lambda command: pickle.dumps(Reduced(eval, f"__import__('os').system({command!r})"), 4),
    "protocol 0": lambda command: b"cos\nsystem\n(V" + command.encode() + b"\ntR.",
    "f2py": lambda command: by_name("numpy.f2py", "os.system", command),
    "dotted": lambda command: by_name("torch.serialization", "os.system", command),
    "copyreg": lambda command: pickle.dumps(Reduced(getattr, Reduced(__import__, "os"), "system"), 4)[:-1]
    + b"X" + struct.pack("<I", len(command)) + command.encode() + b"\x85R.",
    "in torch's bytes": lambda command: in_torch_bytes(pickle.dumps(Reduced(os.system, command), 2)),
    "in torch's archive": lambda command: in_torch_bytes(saved(Reduced(os.system, command))),
    "inst": lambda command: b"(V" + command.encode() + b"\nios\nsystem\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_no_pickle_runs_code(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    blob = HOSTILE[name](f"touch {shlex.quote(str(marker))}")
    with suppress(RuntimeError):  # torch runs the pickle, and only then looks whether it is what it should be
        pickle.loads(blob)
    assert marker.exists()  # the ordinary way to read it would have done it
    marker.unlink()
    (folder := tmp_path / "import").mkdir()
    message = refused(folder, {"x.npy": TENSORS, "y.npy": pickle_of(blob)}, {"x": [2, 4], "y": [2]})
    assert "1 × would run code when read, refused (source/y.npy: names " in message, message
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_no_archive_of_torch_runs_code(tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "marker"
    blob = saved({"score": Reduced(os.system, f"touch {shlex.quote(str(marker))}"), "keys": 1}, legacy)
    torch.load(io.BytesIO(blob), weights_only=False)
    assert marker.exists()
    marker.unlink()
    content, before = {"score": torch.ones(2, *SIZE), "keys": np.array([0, 2])}, torch.serialization.get_safe_globals()
    (folder := tmp_path / "import").mkdir()
    message = refused(folder, {"x.pt": content, "y.pt": blob}, {"x": [2], "y": [2]})
    assert "1 × would run code when read, refused (source/y.pt: names posix.system)" in message
    assert not marker.exists() and torch.serialization.get_safe_globals() == before


def state_of(name: str, state: Any) -> bytes:
    """A pickle that gives a function a new state, such as other default values."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode() + pickle.dumps(state, 0)[:-1] + b"b."


def test_a_pickle_cannot_alter_what_it_may_call(tmp_path: Path) -> None:
    blob = state_of("torch._utils._rebuild_tensor_v2", (None, {"__defaults__": (1, 2)}))
    pickle.loads(blob)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (1, 2)
    torch._utils._rebuild_tensor_v2.__defaults__ = (None,)
    message = refused(tmp_path, {"x.npy": TENSORS, "y.npy": pickle_of(blob)}, {"x": [2, 4], "y": [2]})
    assert "alters a function" in message
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


class Vast(np.ndarray):
    """An array whose pickle claims another shape or kind than its bytes have."""

    claimed: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), self.claimed


@pytest.mark.parametrize(
    "state",
    [
        (1, (10**6, 10**6), np.dtype("f4"), False, b"1234"),
        (1, (-1, 3), np.dtype("f4"), False, b"1234"),
        (1, (1,), np.dtype("V8"), False, b"12345678"),
        (1, (2,), np.dtype("O"), False, [1, 2]),
        (1, (2,), np.dtype("O"), False, b"1234567812345678"),  # forged pointers, were they believed
    ],
)
def test_arrays_that_claim_what_they_are_not(tmp_path: Path, state: tuple[Any, ...]) -> None:
    array = np.zeros(1).view(Vast)
    array.claimed = state
    message = refused(tmp_path, {"x.npy": TENSORS, "y.npy": {**TENSORS, "high_res": array}}, {"x": [2, 4], "y": [2]})
    assert "1 × unreadable" in message or "1 × not of this format" in message


def test_a_tensor_beyond_its_storage(tmp_path: Path) -> None:
    tensor = Reduced(
        torch._utils._rebuild_tensor_v2, storage_of(torch.zeros(6)), 0, (2, 10**6, 10**6), (6, 3, 1), False, {}
    )
    message = refused(
        tmp_path, {"x.npy": TENSORS, "y.npy": {"keys": torch.tensor([1]), "cam": tensor}}, {"x": [2, 4], "y": [2]}
    )
    assert "1 × unreadable or damaged (source/y.npy: setStorage" in message
