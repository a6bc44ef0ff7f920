"""Text that users bring: UTF-8, or one line that says what it is instead."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from beco.artifacts.files import unreadable
from beco.artifacts.firstbytes import told
from beco.errors import UserError

SHOWN = 60
TEXTS = ("a text", "a JSON text", "an XML text", "an SVG drawing", "empty")


def read_text(path: Path, mend: str, missing: str = "") -> str:
    """The text of a file in UTF-8, without a byte-order mark and with `\\n` at the ends of lines.

    Raises `UserError` if it is missing (with those words), cannot be read, or is no such text (with that mend).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        if words := told(path, "a text", TEXTS):
            raise UserError(f"{path}: {words}") from error
        reason = f"it looks like {_wide(error.object)}" if b"\0" in error.object else error.reason
        raise UserError(f"{path}: not text in UTF-8 ({reason}); {mend}") from error
    except FileNotFoundError as error:
        words = missing or f"cannot be read ({error.strerror}); check the path"
        raise UserError(f"{path}: {words}") from error
    except OSError as error:
        raise unreadable(path, error, f"cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:  # a path with a zero in it
        raise UserError(f"{str(path)!a}: cannot be read ({error}); check the path") from error
    except MemoryError as error:
        raise UserError(f"{path}: larger than this machine's memory; check the path") from error
    if words := told(path, "a text", TEXTS):
        raise UserError(f"{path}: {words}")
    if "\0" in text:  # the other half of every letter of UTF-16; with a byte-order mark it does not get here
        raise UserError(f"{path}: not text in UTF-8 (it looks like {_wide(text.encode())}); {mend}")
    return text


def _wide(content: bytes) -> str:
    """What texts with zeros in them are, as far as that can be told."""
    return "UTF-32" if b"\0\0\0" in content else "UTF-16"


def shown(text: str) -> str:
    """A text in one line, cut where it is long: what a message can hold of a user's file."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def breaks_lines(text: str) -> bool:
    """Whether a name holds line breaks, other control characters, or halves of characters: no file may be named so."""
    if text.isprintable():  # which is quick; it says no to unusual spaces, too
        return False
    return any(map(_breaks, text))


def readable(name: str | Path) -> str:
    """A name as one line of text, for messages and tables: what breaks lines and what is no UTF-8 as `\\x…`."""
    return "".join(_escaped(letter) if _breaks(letter) else letter for letter in str(name))


def _breaks(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # so Python keeps a byte that is no text
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")
