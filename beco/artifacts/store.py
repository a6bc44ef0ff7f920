"""The HDF5 artifacts: one dataset per picture and layer, read lazily by image id.

Layout of every store: `/<layer>/<image_id>`, with root attributes that say what made the file. `labels.h5` has the
layers `label` (uint8, H×W, 255 = no opinion) and `confidence` (uint8, H×W, with the attribute `steps`, see
`beco.artifacts.pseudolabels`); `cams.h5` has `cam` (float16, K×h×w) with the attribute `classes` on each dataset. Each
dataset is one compressed chunk with a checksum (fletcher32), so a flipped byte is noticed when the picture is read.
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from beco.artifacts.files import unreadable, whole
from beco.errors import UserError

FORMAT_VERSION = 1


class _Disk(io.FileIO):
    """A file that HDF5 never sees fail: `failure` keeps the first error, and what comes after it is dropped.

    HDF5 does not survive a refused write (seen with 2.0; h5py's issue 914 has it since 1.8): closing the file fails,
    its datasets stay among the open ones, and the process crashes when another store is closed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.failure: BaseException | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest and self.failure is None:
                if (written := super().write(rest)) is None:  # so Python says EAGAIN
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                rest = rest[written:]
        except BaseException as error:  # Ctrl-C, too
            self.failure = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except BaseException as error:
            self.failure = self.failure or error
            return size or 0

    def check(self) -> None:
        """Raise what has failed so far."""
        if self.failure:
            raise self.failure


class Writer:
    """Writes one store; obtained from `create`."""

    def __init__(self, file: h5py.File, disk: _Disk) -> None:
        self._file, self._disk = file, disk

    def put(self, layer: str, image_id: str, array: np.ndarray, **attributes: Any) -> None:
        """Store `array` (any shape and dtype) as `layer` of `image_id`, with attributes."""
        dataset = self._file.create_dataset(
            f"{layer}/{image_id}",
            data=array,
            chunks=array.shape if array.size else None,
            compression="gzip" if array.size else None,
            compression_opts=6 if array.size else None,
            shuffle=bool(array.size) and array.dtype.itemsize > 1,
            fletcher32=bool(array.size),
        )
        for key, value in attributes.items():
            dataset.attrs[key] = value
        self._disk.check()

    def copy(self, source: Store) -> None:
        """Copy every layer of another store, compressed as it is."""
        for layer in source.layers:
            target = self._file.require_group(layer)
            for image_id in source.ids(layer):
                if image_id in target:
                    raise UserError(f"{source.path}: {image_id} is in another shard, too; run the stage again")
                try:
                    source.file.copy(source.file[layer][image_id], target, name=image_id)
                except (KeyError, OSError, RuntimeError, ValueError) as error:
                    raise source.damaged(f"{layer} of {image_id}", error) from error
                self._disk.check()


@contextmanager
def create(path: Path | str, **attributes: Any) -> Iterator[Writer]:
    """Create a store at `path`, atomically; `attributes` are kept as JSON at its root."""
    with whole(path) as temporary, _Disk(temporary) as disk:
        with h5py.File(disk, "w", libver="latest") as file:
            file.attrs["format_version"] = FORMAT_VERSION
            for key, value in attributes.items():
                # of fixed length: text of any length lies in a heap without checksum, and HDF5 never comes back from
                # reading one with a damaged byte
                text = json.dumps(value)
                file.attrs.create(key, text, dtype=h5py.string_dtype("ascii", len(text)))
            yield Writer(file, disk)
        disk.check()


class Store:
    """A store opened for reading. Opened on first use in each process, so it may be handed to worker processes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None

    @property
    def file(self) -> h5py.File:
        """The open h5py file."""
        if self._file is None:
            try:
                # without locks, which some file systems refuse (NFS, Lustre): what is read was renamed into its place
                # whole, and is never written to again
                self._file = h5py.File(self.path, "r", locking=False)
            except FileNotFoundError as error:
                raise UserError(f"{self.path}: no such file; run the stage that makes it first") from error
            except OSError as error:
                mend = "remove it and run the stage that makes it again"
                damage = f"not a readable HDF5 file; {mend}"
                raise unreadable(self.path, error, damage, "an HDF5 file", ("an HDF5 file", "empty")) from error
            version = self._file.attrs.get("format_version")
            if version != FORMAT_VERSION:
                self.close()
                raise UserError(
                    f"{self.path}: store format {version}, this program reads {FORMAT_VERSION}; "
                    "remove it and run its stage again"
                )
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None}

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def damaged(self, what: str, error: Exception | None = None) -> UserError:
        """What to say of a part that cannot be read."""
        return unreadable(self.path, error, f"{what} is damaged (checksum); remove the file and run its stage again")

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        try:
            return list(self.file.keys())
        except (KeyError, OSError, RuntimeError) as error:
            raise self.damaged("header", error) from error

    @property
    def attributes(self) -> dict[str, Any]:
        """Root attributes, decoded."""
        try:
            texts = {key: value for key, value in self.file.attrs.items() if key != "format_version"}
        except (KeyError, OSError, RuntimeError, ValueError, TypeError) as error:
            raise self.damaged("header", error) from error
        values = {}
        for key, text in texts.items():
            try:
                values[key] = json.loads(text)
            except (ValueError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{self.path}: its attribute {key} is no JSON, as beco writes it; remove the file and run its "
                    "stage again"
                ) from error
        return values

    def ids(self, layer: str) -> list[str]:
        """Image ids of a layer, in order."""
        try:
            if layer not in self.file:
                return []
            group = self._opened(self.file, layer, h5py.Group)
            return list(group.keys())
        except (KeyError, OSError, RuntimeError) as error:
            raise self.damaged(layer, error) from error

    def get(self, layer: str, image_id: str) -> np.ndarray:
        """The array of one picture, as stored."""
        dataset = self._dataset(layer, image_id)
        try:
            return dataset[()]
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise self.damaged(f"{layer} of {image_id}", error) from error

    def shape(self, layer: str, image_id: str) -> tuple[int, ...]:
        """The shape of one picture's array, which is not read."""
        return tuple(self._dataset(layer, image_id).shape)

    def expect(self, layer: str, image_id: str, numbers: type[np.generic], axes: int) -> tuple[int, ...]:
        """The shape of one picture's array, which is not read; UserError unless it has such axes and numbers."""
        dataset = self._dataset(layer, image_id)
        if len(dataset.shape or ()) != axes or not np.issubdtype(dataset.dtype, numbers):
            raise UserError(
                f"{self.path}: {layer} of {image_id} has the shape {dataset.shape} and the type {dataset.dtype}, not "
                f"{axes} axes and {numbers.__name__}; remove the file and run its stage again"
            )
        return tuple(dataset.shape)

    def attribute(self, layer: str, image_id: str, key: str) -> Any:
        """One attribute of one picture's dataset."""
        dataset = self._dataset(layer, image_id)
        try:
            return dataset.attrs[key]
        except KeyError:  # as it says
            raise
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise self.damaged(f"{layer} of {image_id}", error) from error

    def _dataset(self, layer: str, image_id: str) -> Any:
        try:
            # not `get`, which takes a broken object for a missing one
            group = self._opened(self.file, layer, h5py.Group) if layer in self.file else ()
            dataset = self._opened(group, image_id, h5py.Dataset) if image_id in group else None
        except (KeyError, OSError, RuntimeError, ValueError) as error:  # there, but not to be opened
            raise self.damaged(f"{layer} of {image_id}", error) from error
        if dataset is None:
            raise UserError(
                f"{self.path}: no {layer} for {image_id}; it was made from another manifest: run its stage again"
            )
        return dataset

    def _opened(self, group: h5py.Group, name: str, wanted: type) -> Any:
        """What is known to be in a group; UserError for a link to somewhere else, or for anything but `wanted`."""
        where = f"{self.path}: {f'{group.name}/{name}'.strip('/')}"
        if isinstance(link := group.get(name, getlink=True), h5py.ExternalLink | h5py.SoftLink):
            target = getattr(link, "filename", "") or link.path
            raise UserError(f"{where} is a link to {target}, and no data; give a file that holds its data itself")
        found = group[name]
        if not isinstance(found, wanted):
            raise UserError(
                f"{where} is an HDF5 {type(found).__name__.lower()}, not a {wanted.__name__.lower()}; remove the file "
                "and run its stage again"
            )
        return found


def gather(parts: Iterable[Path | str], path: Path | str) -> None:
    """Join the stores of several shards into one; their root attributes must agree. What is at `path` must be alike."""
    stores = [Store(part) for part in parts]
    if not stores:
        raise UserError(f"{path}: nothing to gather; name at least one shard")
    first = stores[0].attributes
    for store in stores[1:]:
        if store.attributes != first:
            raise UserError(f"{store.path}: made with other settings than {stores[0].path}; run the stage again")
    if Path(path).is_file() and Path(path).stat().st_size:
        with Store(path) as before:
            if before.layers != stores[0].layers:
                raise UserError(
                    f"{path}: is there, is not what {stores[0].path} is a shard of, and would be lost; move it"
                )
    with create(path, **first) as writer:
        for store in stores:
            writer.copy(store)
            store.close()
