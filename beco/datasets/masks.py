"""Masks and outlines that do not fit their pictures, and masks with values that no class has; how they are told."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from beco.datasets import meaning
from beco.datasets.meaning import Seen
from beco.datasets.palette import read_with_palette
from beco.errors import UserError

Size = tuple[int, int]
"""(height, width) in pixels."""
SHOWN = 6
"""Values beyond the classes that a line names."""


class Beyond(UserError):
    """A mask at `path` holds `values` beyond the `count` classes, ascending."""

    def __init__(self, path: Path, values: list[int], count: int) -> None:
        super().__init__(
            f"{path}: holds the value {values[0]}, but labels go from 0 to {count} (and 255);"
            " correct the mask or dataset.classes"
        )
        self.path, self.values, self.count = path, values, count


def told(problems: Iterable[UserError]) -> list[str]:
    """A line for each problem, but one for all masks beyond the classes: one reason has them all, such as classes left
    out of the labels, and twenty lines of it would hide the rest.
    """
    lines, beyond, place = list[str](), list[Beyond](), 0
    for problem in problems:
        if isinstance(problem, Beyond):
            place = place if beyond else len(lines)
            beyond.append(problem)
        else:
            lines.append(str(problem))
    if len(beyond) == 1:
        lines.insert(place, str(beyond[0]))
    elif beyond:
        values = sorted({value for one in beyond for value in one.values})
        which = ", ".join(map(str, values[:SHOWN])) + (f" … {values[-1]}" if len(values) > SHOWN else "")
        lines.insert(
            place,
            f"{len(beyond)} masks, such as {beyond[0].path}, hold values beyond the classes ({which}): labels go from "
            f"0 to {beyond[0].count} (and 255); correct the masks or dataset.classes",
        )
    return lines


def outlined_otherwise(path: Path, outlined: Size, size: Size, turned: bool) -> UserError:
    """What to say of a picture whose outlines were drawn for another size."""
    mend = "copy the picture that belongs to the annotation"
    if turned and outlined == size[::-1]:
        mend = (
            "it was outlined on the pixels as stored, before the picture's EXIF orientation: turn the outlines alike, "
            "or take the orientation out of the picture (`exiftool -Orientation=`)"
        )
    return UserError(
        f"{path}: is {size[1]}×{size[0]}, its annotation {outlined[1]}×{outlined[0]} (width×height); {mend}"
    )


def check_mask(path: Path, size: tuple[int, int], count: int, turned: bool) -> Seen:
    """What a mask holds; UserError if it does not fit its picture, or has a value that no class has."""
    label, palette = read_with_palette(path)
    if label.shape != size:
        mend = "give both the same size"
        if turned and label.shape == size[::-1]:
            mend = (
                "it was drawn on the pixels as stored, before the picture's EXIF orientation: turn the mask alike, or "
                "take the orientation out of the picture (`exiftool -Orientation=`)"
            )
        raise UserError(
            f"{path}: is {label.shape[1]}×{label.shape[0]}, its picture {size[1]}×{size[0]} (width×height); {mend}"
        )
    held = meaning.seen(label, palette)
    if wrong := sorted(value for value in held.values if count < value != meaning.IGNORE):
        raise Beyond(path, wrong, count)
    return held
