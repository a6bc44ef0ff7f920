"""The CSV of a user's own labels: which picture shows which classes. Read, and everything wrong with it listed.

One row a picture, in any order. `image` is its path in the folder of pictures, with its suffix or without
(`folder.complete`). The classes are either columns of 0 and 1, one for each class, or names in one column `labels`,
separated by `;` or `|` (or written as a list, `['cat', 'dog']`); a row without any is a picture of background alone.
`split` (train or val) and `mask` (a path) are optional.

Names are compared and kept as `classes.clean` spells them. The column `labels` is free text: what holds a separator,
bracket or quote there, is made of other classes' names (`cat dog`), or means nothing (`nan`) is taken for a name only
if `dataset.classes` has it.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from beco.artifacts.text import read_text, shown
from beco.datasets.cells import (
    SPLITS,
    a_number,
    as_bit,
    as_split,
    by_words,
    looks,
    not_a_name,
    numbers_in,
    parts_of,
    split_names,
)
from beco.datasets.classes import clean
from beco.errors import UserError
from beco.schema.base import nearest

SPECIAL = ("image", "split", "mask", "labels")
NAMING = ("label", "class", "classes", "category", "categories", "tag", "tags")
SEPARATORS = ",;\t"
"""What may part cells; spreadsheets of many countries write `;`."""
TOLD = re.compile(r'"?sep=(.)"?\r?', re.IGNORECASE)
"""The first line by which spreadsheets are told what parts the cells."""
VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}  # the latter two are what pandas makes of a column with gaps


@dataclass
class Row:
    """One picture as the CSV has it."""

    line: int
    """As an editor counts."""
    image: str
    split: str
    mask: str
    present: set[str]
    """Names of the classes that it shows."""


@dataclass
class Sheet:
    """A CSV that was read, and what is wrong with it, a line each."""

    path: Path
    classes: list[str]
    """Foreground classes in label order: that of `dataset.classes`, of the columns, or of the alphabet."""
    has_split: bool
    joint: str = ";"
    """What is to stand between two names in a cell: `|` where `;` parts the cells."""
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def wrong(self, line: int, problem: str) -> None:
        """Note what is wrong with a line, and its mend."""
        self.problems.append(f"{self.path}: line {line}: {problem}")


def read_sheet(path: Path, classes: list[str] | None) -> Sheet:
    """Read the CSV at `path`; `classes` are the names that are expected, None for those that it has.

    A UserError at once where nothing can be made of the file: no such file, no text, no rows, no column `image`. All
    else that is wrong is in `problems`, and its rows are in `rows` as far as they can be understood.
    """
    lines, separator = _lines(path)
    header = [clean(name) for name in lines[0][1]]
    classes = None if classes is None else [clean(name) for name in classes]
    if "image" not in header:
        raise UserError(f"{path}: has no column `image`; {_mend_of_header(header)}")
    sheet = Sheet(path, [], "split" in header, "|" if separator == ";" else ";")
    cells = [(line, dict(zip(header, values, strict=True))) for line, values in _whole_rows(sheet, header, lines[1:])]
    _check_header(sheet, header)
    _take_out_bits(sheet, cells)
    if "labels" in header:
        _check_columns(sheet, header, [])
        present = _named(sheet, cells, classes)
    else:
        columns = [name for name in dict.fromkeys(header) if name and name not in SPECIAL]
        sheet.classes = classes or columns
        _check_columns(sheet, header, sheet.classes)
        present = _numbers(sheet, cells, [name for name in columns if name in sheet.classes])
    if not sheet.classes and not sheet.problems:
        sheet.wrong(1, "names no class; add a 0/1 column for each class, or a column `labels` with names")
    for (line, row), names in zip(cells, present, strict=True):
        split = row.get("split", "").strip()
        if sheet.has_split and split not in SPLITS:
            sheet.wrong(line, f"split is `{shown(split)}`; write {as_split(split) or 'train or val'}")
        sheet.rows.append(Row(line, row["image"].strip(), split, row.get("mask", "").strip(), names))
    return sheet


def _lines(path: Path) -> tuple[list[tuple[int, list[str]]], str]:
    """Every line that is not blank with its number, the header first, and what parts the cells."""
    missing = "no such file; set dataset.labels to the CSV of your labels"
    text = read_text(path, "save it as `CSV UTF-8`", missing)
    first, _, rest = text.partition("\n")
    told = TOLD.fullmatch(first)
    text = rest if told else text
    above = 1 if told else 0
    separator = told[1] if told else _separator(first)
    if separator not in SEPARATORS:
        raise UserError(f"{path}: its cells are parted by `{separator}`; save it with commas or semicolons in between")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        found = [(reader.line_num + above, values) for values in reader if any(value.strip() for value in values)]
    except csv.Error as error:
        line = reader.line_num + above
        raise UserError(f"{path}: line {line}: not readable as CSV ({error}); mend its quotes") from error
    if len(found) < 2:
        raise UserError(f"{path}: lists no pictures; write a header and one row for each picture")
    return found, separator


def _separator(header: str) -> str:
    """What parts the cells: what makes a column `image` of the header, or else the most columns."""
    best, most = SEPARATORS[0], 0
    for mark in (*SEPARATORS, "|"):
        names = [clean(name) for name in next(csv.reader([header], delimiter=mark), [])]
        count = len(names) + len(header) * ("image" in map(str.casefold, names) and len(names) > 1)
        if count > most and (mark in SEPARATORS or count > len(header)):
            best, most = mark, count
    return best


def _mend_of_header(header: list[str]) -> str:
    if capital := [name for name in header if name.casefold() in SPECIAL and name not in SPECIAL]:
        written = ", ".join(f"`{name.casefold()}` for `{name}`" for name in capital)
        if "image" in map(str.casefold, capital):
            return f"write {written}, in small letters"
    return f"give that name to the column with each picture's path (there are: {', '.join(header)})"


def _whole_rows(sheet: Sheet, header: list[str], lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    found = []
    for line, values in lines:
        if len(values) == len(header):
            found.append((line, values))
        else:
            mend = "put names with commas in quotes"
            if "labels" in header:
                mend = f"write several labels as cat{sheet.joint}dog, and put other texts with commas in quotes"
            sheet.wrong(line, f"{len(values)} fields for {len(header)} columns; {mend}")
    return found


def _check_header(sheet: Sheet, header: list[str]) -> None:
    for name, count in Counter(header).items():
        if not name:
            sheet.wrong(1, "a column has no name; name it or remove it (pandas: to_csv(index=False))")
        elif count > 1:
            sheet.wrong(1, f"column `{name}` comes {count} times; keep one")


def _take_out_bits(sheet: Sheet, cells: list[tuple[int, dict[str, str]]]) -> None:
    """Note and empty a column `mask` that holds 0 and 1, as that of a class called so does."""
    masks = {row.get("mask", "").strip() for _, row in cells} - {""}
    if masks and masks <= VALUES.keys():
        what = f"column `mask` holds {' and '.join(sorted(masks))}, but `mask` names a path"
        sheet.wrong(1, f"{what}; rename the class, such as `masked`, if it is one, or write paths")
        for _, row in cells:
            row["mask"] = ""


def _check_columns(sheet: Sheet, header: list[str], classes: list[str]) -> None:
    """Columns that mean nothing, and classes without a column, where `classes` are those that should have one."""
    for name in header:
        if name and name not in (*SPECIAL, *classes):
            if name.casefold() in SPECIAL:
                sheet.wrong(1, f"unknown column `{name}`; write `{name.casefold()}`, in small letters, or remove it")
                continue
            mend = "remove it, or the column `labels`" if "labels" in header else "remove it, or add it there"
            known = "beside `labels`" if "labels" in header else f"among dataset.classes{nearest(name, classes)}"
            sheet.wrong(1, f"unknown column `{name}` {known}; {mend}")
    for name in classes:
        if name not in header:
            sheet.wrong(1, f"no column for the class `{name}` of dataset.classes; add it")


def _named(sheet: Sheet, cells: list[tuple[int, dict[str, str]]], classes: list[str] | None) -> list[set[str]]:
    """Classes of each row from the column `labels`; sets those of the sheet, `classes` or all that are named.

    What is no name is told once for each reason, and left out of rows and classes.
    """
    doubts: dict[tuple[str, str], list[tuple[int, str]]] = {}
    rows: list[tuple[int, set[str]]] = []
    for line, row in cells:
        written = split_names(row["labels"])
        if written is None:
            cell = shown(row["labels"])
            sheet.wrong(line, f"labels is `{cell}`, not a list of names; write ['cat', 'dog'], or cat{sheet.joint}dog")
        names, numbers = set(), numbers_in(row["labels"])
        for text in written or []:
            reason = a_number(sheet.joint) if text in numbers else not_a_name(text, sheet.joint)
            if clean(text) not in (classes or ()) and reason:
                doubts.setdefault(reason, []).append((line, text))
            else:
                names.add(clean(text))
        rows.append((line, names))
    _tell_doubts(sheet, doubts)
    first: dict[str, int] = {}
    for line, names in rows:
        for name in sorted(names):
            first.setdefault(name, line)
    wrong = _wrong_names(sheet, first, classes)
    sheet.classes = classes or sorted(first.keys() - wrong)
    return [names - wrong for _, names in rows]


def _tell_doubts(sheet: Sheet, doubts: dict[tuple[str, str], list[tuple[int, str]]]) -> None:
    """One line for each reason, with the mend of its first cell."""
    reasons: dict[str, list[tuple[int, str, str]]] = {}
    for (reason, mend), found in doubts.items():
        reasons.setdefault(reason, []).extend((line, text, mend) for line, text in found)
    for reason, several in reasons.items():
        line, text, mend = min(several)
        more = f" (and {len(several) - 1} more like it)" if len(several) > 1 else ""
        sheet.wrong(line, f"labels: `{shown(text)}` {reason}{more}; {mend}")


def _wrong_names(sheet: Sheet, first: dict[str, int], classes: list[str] | None) -> set[str]:
    """Names that no class has, are made of others, or look like another, each told once at its first line."""
    wrong, spellings, known = set(), dict[str, str](), by_words(first if classes is None else classes)
    for name in sorted(first, key=len):  # the plainest is the one to keep
        spellings.setdefault(looks(name), name)
    for name, line in first.items():
        if classes is not None and name in classes:
            continue
        parts = parts_of(name, known)
        other = spellings[looks(name)]
        if parts:
            what = f"`{name}` is made of other classes" if classes is None else f"unknown class `{name}`"
            mend = f"write {sheet.joint.join(parts)}, or list every class in dataset.classes if it is one by itself"
            sheet.wrong(line, f"{what}; {mend}")
        elif classes is not None:
            sheet.wrong(line, f"unknown class `{name}`{nearest(name, classes)}")
        elif other != name and other.casefold() == name.casefold():
            sheet.wrong(line, f"`{name}` and `{other}` differ by their case alone; write one of them")
        elif other != name:
            mend = "write one of them, or list both in dataset.classes if they are two"
            sheet.wrong(line, f"`{name}` and `{other}` look like one class; {mend}")
        else:
            continue
        wrong.add(name)
    return wrong


def _numbers(sheet: Sheet, cells: list[tuple[int, dict[str, str]]], columns: list[str]) -> list[set[str]]:
    """Classes of each row from columns of 0 and 1; a column with anything else is told once."""
    for name in columns:
        wrong = [(line, row[name].strip()) for line, row in cells if row[name].strip() not in VALUES]
        if not wrong:
            continue
        line, value = next(((line, value) for line, value in wrong if as_bit(value) is None), wrong[0])
        more = f" (and {len(wrong) - 1} more lines)" if len(wrong) > 1 else ""
        bit = as_bit(value)
        mend = f"write {bit} for it" if bit is not None else "write 0 or 1, or remove the column if it is no class"
        if name.casefold() in SPECIAL:
            mend = f"write the column's name in small letters, `{name.casefold()}`, or 0 or 1 if it is a class"
        elif name.casefold() in NAMING:
            mend = "call the column `labels` if it holds names, or write 0 or 1 if it is a class"
        sheet.wrong(line, f"column `{name}` holds `{shown(value)}`{more}; {mend}")
    return [{name for name in columns if VALUES.get(row[name].strip())} for _, row in cells]
