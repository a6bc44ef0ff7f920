"""The CSV of a user's own labels: which picture shows which classes. Read, and everything wrong with it listed.

One row a picture, in any order. `image` is its path in the folder of pictures. The classes are either columns of 0
and 1, one for each class, or names in one column `labels`, separated by `;` or `|` (or written as a list,
`['cat', 'dog']`); a row without any is a picture of background alone. `split` (train or val) and `mask` (a path) are
optional.
"""

from __future__ import annotations

import ast
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from beco.errors import UserError
from beco.files import unreadable
from beco.schema.base import nearest

SPECIAL = ("image", "split", "mask", "labels")
VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}  # the latter two are what pandas makes of a column with gaps
SPLITS = ("train", "val")


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
    lines = _lines(path)
    header = [name.strip() for name in lines[0][1]]
    if "image" not in header:
        raise UserError(
            f"{path}: has no column `image`; give that name to the column with each picture's path (there are: "
            f"{', '.join(header)})"
        )
    sheet = Sheet(path, [], "split" in header)
    cells = [(line, dict(zip(header, values, strict=True))) for line, values in _whole_rows(sheet, header, lines[1:])]
    _check_header(sheet, header)
    if "labels" in header:
        shown = [_names(sheet, line, row["labels"]) for line, row in cells]
        _check_columns(sheet, header, [])
        sheet.classes = classes or sorted(set().union(*shown))
        _check_names(sheet, cells, shown)
    else:
        columns = [name for name in dict.fromkeys(header) if name and name not in SPECIAL]
        sheet.classes = classes or columns
        _check_columns(sheet, header, sheet.classes)
        shown = _numbers(sheet, cells, [name for name in columns if name in sheet.classes])
    if not sheet.classes:
        sheet.wrong(1, "names no class; add a 0/1 column for each class, or a column `labels` with names")
    for (line, row), names in zip(cells, shown, strict=True):
        split = row.get("split", "").strip()
        if sheet.has_split and split not in SPLITS:
            sheet.wrong(line, f"split is `{split}`; write train or val")
        sheet.rows.append(Row(line, row["image"].strip(), split, row.get("mask", "").strip(), names))
    return sheet


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Every line that is not blank with its number, the header first."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; set dataset.labels to the CSV of your labels") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as `CSV UTF-8`") from error
    except OSError as error:
        raise unreadable(path, error, "cannot be read; check the path") from error
    header = text.partition("\n")[0]
    separator = next((mark for mark in ",;\t" if mark in header), ",")  # spreadsheets of many countries write ;
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        found = [(reader.line_num, values) for values in reader if any(value.strip() for value in values)]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not readable as CSV ({error}); mend its quotes") from error
    if len(found) < 2:
        raise UserError(f"{path}: lists no pictures; write a header and one row for each picture")
    return found


def _whole_rows(sheet: Sheet, header: list[str], lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    found = []
    for line, values in lines:
        if len(values) == len(header):
            found.append((line, values))
        else:
            sheet.wrong(line, f"{len(values)} fields for {len(header)} columns; put names with commas in quotes")
    return found


def _check_header(sheet: Sheet, header: list[str]) -> None:
    for name, count in Counter(header).items():
        if not name:
            sheet.wrong(1, "a column has no name; name it or remove it (pandas: to_csv(index=False))")
        elif count > 1:
            sheet.wrong(1, f"column `{name}` comes {count} times; keep one")


def _check_columns(sheet: Sheet, header: list[str], classes: list[str]) -> None:
    """Columns that mean nothing, and classes without a column, where `classes` are those that should have one."""
    for name in header:
        if name and name not in (*SPECIAL, *classes):
            mend = "remove it, or the column `labels`" if "labels" in header else "remove it, or add it there"
            known = "beside `labels`" if "labels" in header else f"among dataset.classes{nearest(name, classes)}"
            sheet.wrong(1, f"unknown column `{name}` {known}; {mend}")
    for name in classes:
        if name not in header:
            sheet.wrong(1, f"no column for the class `{name}` of dataset.classes; add it")


def _names(sheet: Sheet, line: int, text: str) -> set[str]:
    """Class names in a field of the column `labels`."""
    text = text.strip()
    if text.startswith("["):
        try:
            values = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            sheet.wrong(line, f"labels is `{text}`, not a list of names; write ['cat', 'dog'], or cat;dog")
            return set()
        return {str(value).strip() for value in values}
    return {name.strip() for name in re.split(r"[;|]", text) if name.strip()}


def _check_names(sheet: Sheet, cells: list[tuple[int, dict[str, str]]], shown: list[set[str]]) -> None:
    """Names that no class has, and names that differ by their case alone; each is told once."""
    first: dict[str, int] = {}
    for (line, _), names in zip(cells, shown, strict=True):
        for name in sorted(names):
            first.setdefault(name, line)
    for name, line in first.items():
        if name not in sheet.classes:
            sheet.wrong(line, f"unknown class `{name}`{nearest(name, sheet.classes)}")
    spellings: dict[str, str] = {}
    for name in first:
        other = spellings.setdefault(name.casefold(), name)
        if other != name:
            sheet.wrong(first[name], f"`{name}` and `{other}` differ by their case alone; write one of them")


def _numbers(sheet: Sheet, cells: list[tuple[int, dict[str, str]]], columns: list[str]) -> list[set[str]]:
    """Classes of each row from columns of 0 and 1; a column with anything else is told once."""
    for name in columns:
        wrong = [(line, row[name]) for line, row in cells if row[name].strip() not in VALUES]
        if wrong:
            more = f" (and {len(wrong) - 1} more lines)" if len(wrong) > 1 else ""
            sheet.wrong(
                wrong[0][0],
                f"column `{name}` holds `{wrong[0][1]}`{more}; write 0 or 1, or remove the column if it is no class",
            )
    return [{name for name in columns if VALUES.get(row[name].strip())} for _, row in cells]
