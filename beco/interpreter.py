"""What Python goes by here and in the programs started from here, whatever the machine says.

Text, file names and arguments are UTF-8: by another locale Python would look for `Käse.jpg` under other bytes than
those on disk. A `random.py` in the current folder is a file like any other, and no module. The user has a name.
"""

from __future__ import annotations

import getpass
import locale
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO


def settle() -> None:
    """Settle all this, at once or, where it is settled when Python starts, in this process begun anew.

    What is printed stays in the encoding of the locale, which is the terminal's; there `?` stands for what it lacks.
    """
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        getpass.getuser()
    except (KeyError, OSError):  # no entry in passwd, as in many containers; Snakemake and torch ask for the name
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    if not _is_utf8(sys.getfilesystemencoding()) and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.environ.setdefault("PYTHONIOENCODING", f"{locale.getencoding()}:replace")
        program, *words = _raw_words()
        with suppress(UnicodeEncodeError):  # else as the system has it, from the script's first line
            program = os.fsencode(sys.executable)
        os.execvp(program, [program, b"-X", b"utf8", *words])
    for stream in (sys.stdout, sys.stderr):
        forgive(stream)


def _raw_words() -> list[bytes]:
    """The words that this process was started with, as the system has them.

    Python cannot always give back what it has made of them: in EUC-JP the C library takes bytes for text that Python's
    codec cannot write.
    """
    try:
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:  # not Linux
        words = []
    return words if len(words) == len(sys.orig_argv) else [os.fsencode(word) for word in sys.orig_argv]


def forgive(stream: TextIO) -> None:
    """Have a text stream write `?` for what its encoding lacks, where it would raise an error."""
    if (change := getattr(stream, "reconfigure", None)) and stream.errors == "strict":
        change(errors="replace")


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("-", "") == "utf8"
