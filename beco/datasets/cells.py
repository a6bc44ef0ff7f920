"""What people write in the cells of a CSV of labels: class names, and what only looks like one; hints to mend it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import unicodedata
import warnings
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from beco.artifacts.text import shown
from beco.datasets.classes import BACKGROUND, clean, is_background

SEPARATORS = ",，、،؛；｜\n\r\t"  # beside the two that are understood, ; and |
BRACKETS = r"()\[\]{}<>"
QUOTES = '"“”„«»'
DOUBTFUL = re.compile(rf"[{SEPARATORS}{BRACKETS}{QUOTES}]|^['`‘’]|['`‘’]$")
"""No name holds these; an apostrophe may stand within one."""
JOINTS = re.compile(r"[\s/\\+&_.:~*=#^@%!?・·•∙‧。⁄∕‐-―−-]+")
"""What may stand between two names that are written as one, and within one name as well."""
AND = frozenset(
    ["and", "or", "und", "oder", "et", "ou", "y", "o", "e", "ed", "i", "и", "або", "или", "og", "eller", "och",
     "en", "plus", "with", "mit", "avec", "con", "ve", "və", "a", "και"]
)  # fmt: skip
"""Words between two names, in the languages of those who label."""
HYPHENS = re.compile(r"(?<=\w)[\s_‐-―−-]+(?=\w)")
NUMBER = r"[-+]?(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?"
SCORED = re.compile(
    rf".*[=:]\s*(?:{NUMBER}|\d+|true|false|yes|no)\s*%?|.*\s(?:{NUMBER}\s*%?|\d+\s*%)|{NUMBER}", re.I | re.S
)
"""A name with its value, or a value alone: `cat=1`, `cat: 0.93`, `cat 93 %`, `0.9`; `3` and `cat 3` may be names."""
NOTHING = frozenset(["nan", "none", "null", "nil", "na", "n/a", "#n/a", "<na>", "nat", "-", "--", "?"])
"""How programs and people write that there is nothing."""
TRUTH = dict.fromkeys(("true", "t", "yes", "y", "x"), 1) | dict.fromkeys(("false", "f", "no", "n", "", *NOTHING), 0)
SPLITS = ("train", "val")
MEANT = {"training": "train", "trn": "train"} | dict.fromkeys(("valid", "validation", "dev", "eval", "test"), "val")


def split_names(text: str) -> list[str] | None:
    """The names in a cell of the column `labels` as they are written; None for a list that cannot be read."""
    text = text.strip()
    if not text.startswith("["):
        return [name.strip() for name in re.split(r"[;|]", text) if name.strip()]
    values = _literal(text)
    return None if values is None else [str(value).strip() for value in values if str(value).strip()]


def numbers_in(text: str) -> list[str]:
    """The numbers and truths that a list in a cell holds without quotes, as `split_names` gives them."""
    values = _literal(text.strip()) if text.strip().startswith("[") else None
    return [str(value) for value in values or [] if isinstance(value, bool | int | float | complex)]


def _literal(text: str) -> Any:
    """What a Python or JSON literal stands for; None for no literal, or one that joins texts, as numpy prints lists."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of a backslash that escapes nothing
            value = ast.literal_eval(text)
        return None if _joins_texts(text) else value
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
        return None


def _joins_texts(literal: str) -> bool:
    """Whether two texts follow each other without a comma (`['cat' 'dog']`), which Python reads as one."""
    skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(literal).readline)]
    kinds = [kind for kind in kinds if kind not in skipped]
    return any(a == b == tokenize.STRING for a, b in pairwise(kinds))


def _leaves(value: Any) -> list[str]:
    """The texts in a literal, wherever they are: `{"choices": ["cat", "dog"]}` holds two."""
    if isinstance(value, dict):
        value = value.values()
    return [value] if isinstance(value, str) else [leaf for item in value for leaf in _leaves(item)]


def not_a_name(text: str, joint: str = ";") -> tuple[str, str] | None:
    """Why the text between two separators is no name, and the mend; None if it may be one. `joint` parts names."""
    if text.casefold() in NOTHING:
        return "means nothing", "leave the cell empty where a picture shows no class"
    if DOUBTFUL.search(text):
        mend = f"write {_meant(text, joint)} (names, with {joint} between several)"
        return "holds a comma, line break, bracket or quote", f"{mend}, or list it in dataset.classes if it is one name"
    if SCORED.fullmatch(unicodedata.normalize("NFKC", text)):
        return a_number(joint)
    if is_background(text):
        return f"is no class: {BACKGROUND}", "leave it out, and the cell empty where a picture shows no class"
    return None


def a_number(joint: str) -> tuple[str, str]:
    """Why a number, or a name with its score, is no name, and the mend."""
    mend = f"write the names alone of what the picture shows, such as cat{joint}dog"
    return "is a number, or a name with one", f"{mend}, or list it in dataset.classes if it is one name"


def _meant(text: str, joint: str) -> str:
    """The names that a text seems to hold, written as they should be."""
    try:
        parts = _leaves(_literal(text))
    except (TypeError, RecursionError):  # no literal, or one of numbers
        parts = re.split(rf"[{SEPARATORS}{BRACKETS}{QUOTES}]+|['`‘’]\s+['`‘’]", text)
    names = [name for name in (clean(part).strip("'`‘’ ") for part in parts) if name]
    return shown(joint.join(names if names and not DOUBTFUL.search("".join(names)) else ["cat", "dog"]))


def by_words(names: Iterable[str]) -> dict[str, str]:
    """Names by their words alone, as `parts_of` looks them up."""
    return {" ".join(_words(name)): name for name in names}


def _words(name: str) -> list[str]:
    return [word for word in JOINTS.split(unicodedata.normalize("NFKC", name).casefold()) if word]


def looks(name: str) -> str:
    """What is alike in names that look like one: `hot-dog`, `hot dog`, `Hotdog.` and those of full width."""
    folded = unicodedata.normalize("NFKC", name).casefold()

    def joined(gap: re.Match[str]) -> str:
        is_in_number = folded[gap.start() - 1].isdigit() and folded[gap.end()].isdigit()
        return "-" if is_in_number else ""  # 1-1 is not 11

    return HYPHENS.sub(joined, folded).rstrip(" .") or name


def parts_of(name: str, known: dict[str, str]) -> list[str]:
    """The two or more names of `by_words` that a name is made of, as `cat and traffic light` is; [] if it is not.

    Words have to be known one and all: `traffic light` is a name where there is no class `traffic` or no class `light`.
    """
    words = _words(name)
    best: dict[int, list[str]] = {0: []}  # by how many words are used up
    for end in range(1, len(words) + 1):
        for start in range(end - 1, -1, -1):
            part = known.get(" ".join(words[start:end]))
            if part and start in best and end not in best and end - start < len(words):
                best[end] = [*best[start], part]
        if end not in best and words[end - 1] in AND and best.get(end - 1):
            best[end] = best[end - 1]
    found = best.get(len(words), [])
    return found if len(found) > 1 else []


def as_bit(text: str) -> int | None:
    """The 0 or 1 that a cell means without being it, such as `1.000000`, `TRUE` or an empty one; None if none."""
    try:
        value = float(text)
    except ValueError:
        return TRUTH.get(text.casefold())
    return int(value) if value in (0, 1) else TRUTH.get(text.casefold())


def as_split(text: str) -> str:
    """The split that a word means without being it, such as `Train` or `valid`; nothing if none."""
    word = text.casefold()
    return word if word in SPLITS else MEANT.get(word, "")
