"""Dictionaries that other programs saved with `np.save` and `torch.save`, read without running any of their code.

Both formats hold pickles, and a pickle is a program: it may name any function of any module and have it called. Here
it may name a handful of functions, and even those are ours: numpy would take sizes and flags of memory on trust
when it rebuilds an array, so arrays are rebuilt by stand-ins that check them against the bytes that are there.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from beco.artifacts.files import refusal
from beco.artifacts.firstbytes import told

Dictionary = dict[str | int, NDArray[Any]]
"""What is read: arrays by name or by class number."""


class Kind(Enum):
    """What may be wrong with a picture's file, and what mends it."""

    MISSING = ("no file", "add them, or give --allow-missing")
    DOUBLED = ("more than one file", "keep one of them")
    UNREADABLE = ("unreadable or damaged", "copy them again")
    REFUSED = ("refused by the system", "check the disk, the path and its permissions")
    UNSAFE = ("would run code when read, refused", "get them from a source you trust, or save them as index PNG")
    FORMAT = ("not of this format", "check the folder, or choose another --format")
    SIZE = ("another size than the picture", "export them at the size of the pictures")
    COLOURS = ("colours that no label of the VOC palette has", "save index PNGs, without smoothing")
    VALUES = (
        "values beyond the manifest's classes",
        "check the classes; scipy's imsave and matplotlib stretch the contrast of index PNGs, Pillow does not",
    )
    RANGE = (
        "scores beyond 0 to 1, against which the background's score means nothing",
        "divide each map by its maximum, or save a plane for the background (irn with one plane more, seam-crf)",
    )
    MASK = ("neither a 0/255 nor a 0/1 mask", "save masks so, or give a folder of scores")

    @property
    def what(self) -> str:
        """What is wrong."""
        return str(self.value[0])

    @property
    def mend(self) -> str:
        """What to do about it."""
        return str(self.value[1])


class Unfit(Exception):
    """One file cannot be used; the caller collects these into one `UserError`."""

    def __init__(self, kind: Kind, detail: str = "", name: str = "") -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.name = name
        """Of the file or picture, where it is known."""
        self.folder: Path | None = None
        """That the file is in, likewise."""


def unfit_to_read(path: Path, error: Exception, what: str, own: tuple[str, ...] = ()) -> Unfit:
    """What is wrong with a file that a reader failed on: it is something else, the system, or its content.

    `what` and `own` are those of `firstbytes.told`.
    """
    if words := told(path, what, own):
        return Unfit(Kind.UNREADABLE, words)
    if said := refusal(path, error):
        return Unfit(Kind.REFUSED, said.partition(";")[0])
    return Unfit(Kind.UNREADABLE, " ".join(str(error).split())[:80])


def read_dictionary(path: Path) -> Dictionary:
    """The dictionary in a `.npy` file (a pickle in a 0-d object array) or in a file of `torch.save`.

    Keys are names or whole numbers. Values become numpy arrays in main memory, tensors too, wherever they were saved
    from; bfloat16 becomes float32. Raises `Unfit`: damaged, would run code, or no dictionary of arrays.
    """
    try:
        with path.open("rb") as stream:
            content = _read_npy(stream) if path.suffix.lower() == ".npy" else _read_torch(stream)
        if not isinstance(content, dict):
            raise Unfit(Kind.FORMAT, f"holds a {type(content).__name__.strip('_').lower()}, not a dictionary")
        return {_key(key): _array(value) for key, value in content.items()}
    except Unfit:
        raise
    except Exception as error:  # a damaged pickle may raise anything at all, as the manual of pickle says
        if refused := re.search(r"GLOBAL (\S+)", str(error)):  # how torch names what it would not load
            raise Unfit(Kind.UNSAFE, f"names {refused[1]}") from error
        raise unfit_to_read(path, error, "a file of labels", ("a ZIP archive", "a NumPy array")) from error


def _read_npy(stream: BinaryIO) -> Any:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    if not dtype.hasobject:
        raise Unfit(Kind.FORMAT, f"holds an array {shape} {dtype}, not a dictionary")
    found = _Restricted(stream).load()
    return found.items[0] if isinstance(found, _Array) and found.items and len(found.items) == 1 else found


def _read_torch(stream: BinaryIO) -> Any:
    # The list of what is allowed belongs to the process, not to the thread.
    with _LOCK, torch.serialization.safe_globals(_SAFE_IN_TORCH):
        return torch.load(stream, map_location="cpu", weights_only=True)


def _key(key: Any) -> str | int:
    if isinstance(key, str | int):
        return key
    raise Unfit(Kind.FORMAT, f"has a key of type {type(key).__name__}")


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    found = value.array if isinstance(value, _Array) else np.asarray(value)
    if found is None or found.dtype.kind not in "biuf":
        raise Unfit(Kind.FORMAT, "holds something else than arrays of numbers")
    return found


# --- stand-ins for what a pickle may name -------------------------------------------------------------------


class _Dtype:
    """Stands in for `numpy.dtype`: plain numbers of up to 8 bytes, or objects; from its state, the byte order only."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, *_: Any) -> None:
        if not re.fullmatch(r"[biuf][1248]|O8?", name):
            raise Unfit(Kind.FORMAT, f"holds an array of type {name[:20]}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">") and not self.dtype.hasobject:
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for `numpy.ndarray` while it is rebuilt. numpy checks the shape against the bytes."""

    __slots__ = ("array", "items")

    def __init__(self, *_: Any) -> None:
        self.array: NDArray[Any] | None = None
        self.items: list[Any] | None = None  # of an array of objects; looked at for the outermost array only

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, fortran, content = state[-4:]
        if dtype.dtype.hasobject:
            self.items = list(content)
        else:
            self.array = np.ndarray(shape, dtype.dtype, bytes(content), order="F" if fortran else "C")


def _scalar(dtype: _Dtype, content: bytes) -> int | float | bool:
    if dtype.dtype.hasobject:
        raise Unfit(Kind.FORMAT, "holds something else than numbers")
    return np.frombuffer(content, dtype.dtype)[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, for the one encoding in which pickles of protocol 2 keep their bytes."""
    if encoding != "latin1":
        raise Unfit(Kind.UNSAFE, f"names the encoding {encoding[:20]}")
    return text.encode("latin1")


def _storage(content: bytes) -> Any:
    """`torch.storage._load_from_bytes`, which would unpickle anything; this reads storages and nothing else."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> torch.Tensor:
    """`torch._utils._rebuild_tensor_v2`; torch checks that size and stride stay within the storage."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise Unfit(Kind.FORMAT, "holds a tensor without a storage")
    flat = torch.empty(0, dtype=storage.dtype).set_(storage)
    return flat.as_strided(size, stride, offset)


class _Call:
    """A function that a pickle may call but not alter (pickles can set attributes, of functions too)."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Unfit(Kind.UNSAFE, "alters a function")


_IN_NUMPY = {
    "numpy.ndarray": _Call(_Array),  # handed to _reconstruct, which does not look at it
    "numpy.dtype": _Call(_Dtype),
    "_codecs.encode": _Call(_latin1),
    **{
        f"numpy.{core}.multiarray.{name}": _Call(function)
        for core in ("core", "_core")  # before and since numpy 2
        for name, function in (("_reconstruct", _Array), ("scalar", _scalar))
    },
}
_ALLOWED = {
    **_IN_NUMPY,
    "torch._utils._rebuild_tensor_v2": _Call(_tensor),
    "torch.storage._load_from_bytes": _Call(_storage),
    "collections.OrderedDict": OrderedDict,  # the hooks of a tensor: an empty one
}
_SAFE_IN_TORCH: list[Any] = [
    *((function, name) for name, function in _IN_NUMPY.items()),
    _Dtype,  # so that torch lets the stand-ins take their state
    _Array,
]
_LOCK = Lock()


class _Restricted(pickle.Unpickler):
    """Knows the names above, each looked up as a whole, so that no attribute of an allowed module can be reached."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise Unfit(Kind.UNSAFE, f"names {module}.{name}"[:60]) from None
