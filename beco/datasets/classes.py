"""Names of classes: brought to one spelling, checked once for every format, and told with their counts."""

from __future__ import annotations

import logging
import unicodedata

import pandas as pd

from beco.artifacts.text import breaks_lines
from beco.errors import UserError

COLUMNS = ["image_id", "split", "image", "mask", "width", "height"]
"""What a manifest has beside its classes; no class may be called so."""
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))
"""Characters of no width, which come along when text is copied from pages."""
LONGEST = 200
BACKGROUND = "background is label 0 by itself"

log = logging.getLogger("beco")


def clean(name: str) -> str:
    """A name in Unicode's composed form, with single plain spaces and nothing invisible: what is compared and kept."""
    return " ".join(unicodedata.normalize("NFC", name.translate(INVISIBLE)).split())


def is_background(name: str) -> bool:
    """Whether a name means what label 0 stands for, as `Background` and `_background_` do."""
    return clean(name).strip("_").casefold() == "background"


def check_classes(classes: list[str], where: str = "dataset.classes") -> list[str]:
    """The class names, each as `clean` spells it; `where` they stand begins every refusal.

    Raises `UserError` if one has no letters, cannot be written, comes twice, differs from another by its case alone or
    is reserved, or if there are too few or many.
    """
    names = [clean(name) for name in classes]
    if not 1 <= len(names) <= 254:
        raise UserError(f"{where}: {len(names)} classes; give 1 to 254, without background")
    first: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError(f"{where}: class {number} of {len(names)} has no name; name it, or leave it out")
        if len(name) > LONGEST:
            raise UserError(f"{where}: class {number} has a name of {len(name)} letters; use at most {LONGEST}")
        if breaks_lines(name):
            raise UserError(f"{where}: {name!a} holds characters that no text has; write the name anew")
        if is_background(name):
            raise UserError(f"{where}: `{name}`: {BACKGROUND}; leave it out")
        if name in COLUMNS:
            raise UserError(f"{where}: {name} is reserved; choose another name for the class")
        other = first.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f"{where}: `{other}` and `{name}` differ by their case alone; write one of them")
        if names.index(name) < number - 1:
            raise UserError(f"{where}: {name} comes twice; name each class once")
    return names


def warn_of_unseen(table: pd.DataFrame, classes: list[str], mend: str) -> None:
    """Tell of classes that no training picture shows: nothing can learn them, and their score will be 0."""
    shown = table.loc[table["split"] == "train", classes].sum()
    if unseen := [name for name in classes if shown[name] == 0]:
        log.warning("no training picture shows %s; %s", ", ".join(unseen), mend)


def tell(table: pd.DataFrame, classes: list[str]) -> None:
    """Tell of a dataset that was checked: pictures of each split, and the classes in label order with their counts."""
    for name in ("train", "val"):
        rows = table[table["split"] == name]
        log.info("%s: %d pictures, %d with a mask", name, len(rows), int((rows["mask"] != "").sum()))
    counts = table[classes].sum()
    listed = ", ".join(f"{value} {name} ({counts[name]})" for value, name in enumerate(classes, 1))
    log.info("classes in label order, with the pictures that show each: %s", listed)
    if alone := int((table[classes].sum(axis=1) == 0).sum()):
        log.info("%d pictures show no class: they are background throughout", alone)
