"""What Python goes by here and in the programs started from here, whatever the machine says.

Text, file names and arguments are UTF-8: by another locale Python would look for `Käse.jpg` under other bytes than
those on disk. A `random.py` in the current folder is a file like any other, and no module. The user has a name.
"""

from __future__ import annotations

import getpass
import locale
import os
import sys
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
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        forgive(stream)


def forgive(stream: TextIO) -> None:
    """Have a text stream write `?` for what its encoding lacks, where it would raise an error."""
    if (change := getattr(stream, "reconfigure", None)) and stream.errors == "strict":
        change(errors="replace")


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("-", "") == "utf8"
