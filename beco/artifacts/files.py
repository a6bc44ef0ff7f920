"""Files that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from beco.artifacts.firstbytes import told
from beco.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("beco")

TEMPORARY = re.compile(r"\..+\.(?P<place>[0-9a-f]{8})-(?P<pid>\d+)\.tmp(\..*)?")
ABANDONED = 7 * 24 * 3600
"""Seconds without a change after which a temporary of another machine is taken for a dead process's."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
REMOTE = (errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN)
STORAGE = (errno.EIO, errno.ENODEV, errno.ENXIO, errno.EAGAIN, errno.EOVERFLOW, errno.EBUSY, *REMOTE)
"""What disks and network file systems say when they fail; the file itself may be sound."""
CHECK_DISK = "check the disk or the connection to it, then run this again"
READING = {errno.EACCES: "check the path and its permissions", errno.EPERM: "check the path and its permissions"}
READING |= dict.fromkeys((errno.ENOLCK, errno.EOPNOTSUPP), "set HDF5_USE_FILE_LOCKING=FALSE, if it is what locks files")
READING |= {errno.EMFILE: "raise the limit on open files (ulimit -n)"} | dict.fromkeys(STORAGE, CHECK_DISK)
"""What mends a refused reading, by the system's number; else the path is to be looked at."""
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")
MEMORY_WORDS = ("out of memory", "can't allocate memory")
TORCH_WORDS = ("iostream error", "PytorchStreamWriter failed", "unexpected pos")


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block ends well, remove it otherwise.

    The block writes a file there; for folders see `folders.whole_folder`. The temporary name keeps the suffix, because
    many writers choose their format by it. What killed processes have left in the folder is removed, see `sweep`.
    Raises `UserError` if `path` is a folder, or its own folder cannot be made or written to, or the disk is full.
    """
    if Path(path).is_dir():
        raise UserError(f"{path}: is a folder, and a file is to be written; name a file")
    with renamed(path) as temporary:
        yield temporary


@contextmanager
def renamed(path: Path | str) -> Iterator[Path]:
    """As `whole` and `whole_folder`, which look first what is in the place of `path`: this replaces anything."""
    path = Path(path)
    if path.name in ("", ".."):
        path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be created ({error.strerror}); choose another output") from error
    sweep(path.parent)
    temporary = _temporary(path, path.suffix)
    _remove(temporary)
    try:
        yield temporary
        _put(temporary, path)
    except UserError as error:
        if str(temporary) not in str(error):
            raise
        # of a file within a folder that will never be
        raise UserError(str(error).replace(str(temporary), str(path))) from error
    except Exception as error:
        name = error.filename if isinstance(error, OSError) else None
        ours = name is None or str(name).startswith(str(temporary))  # not a file that the block reads
        reason = _not_written(error) if ours else None
        if reason is None:
            raise
        raise UserError(f"{path}: {reason}") from error
    finally:
        _remove(temporary)


def _temporary(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.stem}.{_place()}-{os.getpid()}.tmp{suffix}")


@cache
def _place() -> str:
    """Where process numbers mean the same: this machine, and the container if in one; 8 hex digits."""
    try:
        numbers = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        numbers = ""
    return hashlib.sha256(f"{socket.gethostname()} {numbers}".encode()).hexdigest()[:8]


def _put(temporary: Path, path: Path) -> None:
    """Rename to the final name; a folder in the way leaves it in one step, too, so nobody sees it half-removed."""
    if temporary.is_dir() and path.is_dir():
        former = _temporary(path, ".former")
        _remove(former)
        path.replace(former)
        temporary.replace(path)
        _remove(former)
    else:
        temporary.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _not_written(error: Exception) -> str | None:
    """Why a file could not be written, with the mend, if that is what an error says; libraries say it in their ways."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if number in FULL or (number is None and any(words in text for words in FULL_WORDS)):
        return "cannot be written, the disk (or your share of it) is full; free some space and run this again"
    if number is None and any(words in text for words in TORCH_WORDS):  # it keeps the reason to itself
        return f"cannot be written ({text[:80]}); most likely the disk is full: free some space and run this again"
    if number in READ_ONLY:
        return f"cannot be written ({os.strerror(number)}); make its folder writable, or choose another output"
    if number in STORAGE:
        return f"cannot be written ({os.strerror(number)}); {CHECK_DISK}"
    return None


def unreadable(
    path: Path | str, error: Exception | None, damage: str, what: str = "", own: tuple[str, ...] = ()
) -> UserError:
    """What to say of a file that cannot be read: what it is instead of `what`, what the system said, or `damage`.

    `what` and `own` are those of `firstbytes.told`; without `what` its first bytes are not looked at.
    """
    return UserError(f"{path}: {(told(path, what, own) if what else '') or refusal(path, error) or damage}")


def of_memory(error: BaseException | None) -> bool:
    """Whether an error says that there is not enough memory, in the words of Python, torch or CUDA."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in MEMORY_WORDS)


def refusal(path: Path | str, error: Exception | None) -> str | None:
    """What the system said when it would not let a file be read, with the mend; None if the content is at fault.

    Libraries keep the system's number to themselves, and HDF5 asks the system for nonsense (EINVAL) where a file is
    damaged; so where `error` has no better one, the file is read through once more.
    """
    if of_memory(error):
        return "cannot be read, for lack of memory; free some, then run this again"
    number = error.errno if isinstance(error, OSError) else None
    if number in (None, errno.EINVAL):
        number = _refused(path)
    if number is None:
        return None
    return f"cannot be read ({os.strerror(number)}); {READING.get(number, 'check the path')}"


def _refused(path: Path | str) -> int | None:
    """The number with which the system refuses to read a file; None if every byte can be had."""
    try:
        with Path(path).open("rb") as stream:
            while part := stream.read(2**20):
                pass
        return errno.EAGAIN if part is None else None  # Python's word for it
    except OSError as error:
        return error.errno


@cache  # once a folder and process: a folder of predictions sees a call for every picture
def sweep(folder: Path) -> None:
    """Remove what killed processes have left in a folder: temporaries of `whole` whose process is no more.

    Process numbers tell that only where the process ran, so the name says where that was. On another machine of a
    shared file system it may still be at work; there, a week without a change is waited for.
    """
    try:
        found = list(folder.iterdir())
    except OSError:  # whether it can be written to is another question
        return
    for path in found:
        if (match := TEMPORARY.fullmatch(path.name)) and _is_abandoned(path, match["place"], int(match["pid"])):
            log.info("%s: left by a process that was killed; removed", path)
            with suppress(OSError):  # gone by now, or not ours to remove
                _remove(path)


def _is_abandoned(path: Path, place: str, pid: int) -> bool:
    if place != _place():
        try:
            return time.time() - path.lstat().st_mtime > ABANDONED
        except OSError:  # gone by now
            return False
    return not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


_held: dict[Path, IO[str]] = {}


def hold(folder: Path | str) -> None:
    """Keep every other process that asks from working in `folder`, until this process ends, however it ends.

    The kernel frees the lock of a dead process, so none is ever left behind; the file that carries it stays. Raises
    `UserError` if another process has it. Children that run other programs do not inherit it. Where the file system
    knows no locks (some NFS and Lustre mounts), a warning is all there is.
    """
    path = Path(folder).resolve() / ".lock"
    if path in _held:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        reason = _not_written(error) or f"{error.strerror}; check the path"
        raise UserError(f"{path}: {reason}") from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.seek(0)
        who = stream.read().strip() or "another process"
        stream.close()
        raise UserError(f"{folder}: {who} works in it; wait for its end, or choose another results folder") from error
    except OSError as error:
        log.warning("%s: this file system has no locks (%s); see that nobody else works in it", folder, error.strerror)
    with suppress(OSError):  # on a full disk others do not learn who holds it; held it is
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M')}\n")
        stream.flush()
    _held[path] = stream


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused: no reader of ours would know what it means."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(frame: pd.DataFrame, path: Path | str) -> None:
    """Write a table without its index, atomically; names of files that are no UTF-8 in it are escaped."""
    with whole(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8", errors="backslashreplace")


def read_json(path: Path | str, mend: str = "") -> Any:
    """Read a JSON file, or raise a `UserError` naming it and its mend: to run the stage again, unless told another."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {mend or 'run the stage that makes it first'}") from error
    except (OSError, ValueError, RecursionError) as error:
        damage = f"not readable as JSON ({error}); {mend or 'remove it and run its stage again'}"
        raise unreadable(path, error, damage, "a JSON text", ("a JSON text", "a text", "empty")) from error


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file's bytes, first 16 hex digits."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise unreadable(path, error, "cannot be read; check the path") from error


def text_hash(value: Any) -> str:
    """SHA-256 of a value's canonical JSON text, first 16 hex digits."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
