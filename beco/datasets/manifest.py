"""`manifest.csv`: every picture of a dataset with its split, size, mask and image-level labels.

The file is checked when it is built, so later stages trust it. Columns: `image_id, split, image, mask, width,
height`, then one 0/1 column for each foreground class; the order of those columns gives the label values
1…K (0 is background, 255 is no opinion). Paths are relative to the dataset's root, and `mask` may be empty.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from beco.artifacts.files import read_json, whole
from beco.artifacts.ordered import allowed_threads, in_order
from beco.artifacts.text import read_text, shown
from beco.datasets import meaning
from beco.datasets.classes import COLUMNS
from beco.datasets.masks import Size, check_mask, outlined_otherwise, told
from beco.datasets.meaning import Seen
from beco.datasets.palette import opened, read_index_png, turn_upright
from beco.errors import Problems, UserError

log = logging.getLogger("beco")

TEXT = ["image_id", "split", "image", "mask"]
IGNORE = 255
MOST_LINES = 20
LONGEST_SIDE = 1_000_000
MASK_RULE = "rule.json"
"""Beside masks that a program made: how, as text by key, to be told beside every number measured on them."""


@dataclass(frozen=True)
class Manifest:
    """The pictures of a dataset, or of one split of it, in the order of the file."""

    root: Path
    """What the paths in the table are relative to."""
    table: pd.DataFrame
    """One row a picture, indexed by `image_id`; the columns of the file."""
    classes: list[str]
    """Names of the foreground classes; position k holds the name of label value k + 1."""

    def __len__(self) -> int:
        return len(self.table)

    def split(self, name: str) -> Manifest:
        """The pictures of one split. Raises `UserError` naming the known splits if there are none."""
        rows = self.table[self.table["split"] == name]
        if rows.empty:
            known = ", ".join(dict.fromkeys(self.table["split"])) or "none"
            raise UserError(f"split `{name}`: no pictures in the manifest; known splits: {known}")
        return replace(self, table=rows)

    def with_masks(self) -> Manifest:
        """The pictures that have a mask; possibly none."""
        return replace(self, table=self.table[self.table["mask"] != ""])

    @property
    def ids(self) -> list[str]:
        """The image ids, in order."""
        return [str(name) for name in self.table.index]

    @property
    def has_masks(self) -> bool:
        """Whether every picture has a mask."""
        return bool((self.table["mask"] != "").all())

    def image(self, image_id: str) -> NDArray[np.uint8]:
        """The picture, (H, W, 3) uint8 RGB, upright as its EXIF orientation says."""
        return read_picture(self.root / self._text(image_id, "image"))

    def mask(self, image_id: str) -> NDArray[np.uint8]:
        """The true label of each pixel, (H, W) uint8 in {0…K, 255}. Raises `UserError` if there is none."""
        path = self._text(image_id, "mask")
        if not path:
            raise UserError(f"{image_id}: has no mask in the manifest; choose pictures that have one")
        return read_index_png(self.root / path)

    def mask_rule(self) -> dict[str, str]:
        """How the masks were made, if a program made them (`MASK_RULE` in their folder); empty otherwise."""
        with_masks = self.with_masks()
        if not len(with_masks):
            return {}
        path = (self.root / self._text(with_masks.ids[0], "mask")).parent / MASK_RULE
        return read_json(path)["rule"] if path.is_file() else {}

    def labels(self, ids: Sequence[str] | None = None) -> NDArray[np.float32]:
        """Image-level labels, (N, K) float32 of 0 and 1, rows as `ids` (None: all pictures), columns as `classes`."""
        table = self.table if ids is None else self.table.loc[list(ids)]
        return table[self.classes].to_numpy(dtype=np.float32, copy=True)

    def present(self, image_id: str) -> list[int]:
        """Label values (1…K, ascending) of the classes in a picture."""
        row = self._row(image_id)[self.classes].to_numpy(dtype=np.int64)
        return [int(k) + 1 for k in np.flatnonzero(row)]

    def size(self, image_id: str) -> tuple[int, int]:
        """(height, width) in pixels."""
        row = self._row(image_id)
        return int(row["height"]), int(row["width"])

    def _text(self, image_id: str, column: str) -> str:
        return str(self._row(image_id)[column])

    def _row(self, image_id: str) -> pd.Series:
        try:
            row = self.table.loc[image_id]
        except KeyError as error:
            raise UserError(f"{image_id}: not in the manifest; build the manifest again") from error
        assert isinstance(row, pd.Series)  # ids are unique
        return row


# --- the file -----------------------------------------------------------------------------------------------


def write(table: pd.DataFrame, path: Path | str) -> None:
    """Write a table with the columns of the file (`image_id` as a column), whole or not at all."""
    with whole(path) as temporary:
        _to_csv(table, temporary)


def save(table: pd.DataFrame, path: Path | str, root: Path | str) -> Manifest:
    """Write a table as `write` does, and return what `read` makes of it; what `read` refuses is not left at `path`."""
    with whole(path) as temporary:
        _to_csv(table, temporary)
        return _checked(_read_table(temporary), path, root)


def _to_csv(table: pd.DataFrame, path: Path) -> None:
    classes = [str(name) for name in table.columns if name not in COLUMNS]
    table[COLUMNS + classes].to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


def read(path: Path | str, root: Path | str) -> Manifest:
    """Read and check a manifest. Raises `UserError` for missing columns, wrong values and repeated ids."""
    return _checked(_read_table(Path(path)), path, root)


def _checked(table: pd.DataFrame, path: Path | str, root: Path | str) -> Manifest:
    classes = [str(name) for name in table.columns if name not in COLUMNS]
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise UserError(f"{path}: lacks the column(s) {', '.join(missing)}; build the manifest again")
    if not classes:
        raise UserError(f"{path}: has no class columns; add one 0/1 column for each foreground class")
    if table.empty:
        raise UserError(f"{path}: lists no pictures; build the manifest again")
    for name in ["image_id", "split", "image"]:
        if (table[name] == "").any():
            raise UserError(f"{path}: empty {name} in {_line(table, table[name] == '')}; fill it in")
    if (repeated := table["image_id"].duplicated()).any():
        name = table.loc[repeated, "image_id"].iloc[0]
        raise UserError(f"{path}: image_id {name} comes twice; keep one of its rows")
    _refuse_strays(table, path)
    table = _numbers(table, ["width", "height"], lambda n: n.between(1, LONGEST_SIDE), "a whole number of pixels", path)
    table = _numbers(table, classes, lambda n: n.isin([0, 1]), "0 or 1", path)
    return Manifest(Path(root), table.set_index("image_id"), classes)


def _read_table(path: Path) -> pd.DataFrame:
    text = read_text(path, "save it as `CSV UTF-8`", missing="no such manifest; run `beco manifest` first")
    try:
        # As text, and without guessing at missing values: ids such as 000012 or NA are ids.
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        header = next(csv.reader(io.StringIO(text)))  # pandas gives the second of two equal names another
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path}: not readable as CSV ({' '.join(str(error).split())}); mend it") from error
    if repeated := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{path}: has two columns {repeated[0]}; keep one")
    if "" in header:
        raise UserError(f"{path}: has a column without a name; name it or remove it")
    return table


def _refuse_strays(table: pd.DataFrame, path: Path | str) -> None:
    """Files are named after ids, and paths are joined to the root: neither may lead out of its folder.

    Masks may lie beside the root (drawn ones do), but at a path relative to it.
    """
    plain = table["image_id"].map(lambda name: name not in (".", "..") and not set(name) & set("/\\\0"))
    away = table["image"].map(lambda name: f"{os.path.normpath(name)}/".startswith(("/", "../")))
    absolute = table["mask"].map(lambda name: name.startswith("/"))
    for column, wrong, mend in (
        ("image_id", ~plain, "use a name without slashes"),
        ("image", away, "write a path inside the dataset's root"),
        ("mask", absolute, "write it relative to the dataset's root"),
    ):
        if wrong.any():
            first = table.loc[wrong, column].iloc[0]
            raise UserError(f"{path}: {column} is `{shown(first)}` in {_line(table, wrong)}; {mend}")


def _numbers(
    table: pd.DataFrame,
    columns: list[str],
    valid: Callable[[pd.Series], pd.Series],
    wanted: str,
    path: Path | str,
) -> pd.DataFrame:
    """The table with the columns as integers, or a `UserError` naming the first line that does not fit."""
    found = {}
    for name in columns:
        values = pd.to_numeric(table[name], errors="coerce")
        wrong = ~(valid(values) & (values % 1 == 0))
        if wrong.any():
            first = table.loc[wrong, name].iloc[0]
            raise UserError(f"{path}: {name} is `{shown(str(first))}` in {_line(table, wrong)}; write {wanted}")
        found[name] = values.astype("int64")
    return table.assign(**found)


def _line(table: pd.DataFrame, where: pd.Series) -> str:
    """`line n` of the first row that a condition holds for, counted as an editor does."""
    return f"line {int(np.flatnonzero(where.to_numpy())[0]) + 2}"


# --- while building -----------------------------------------------------------------------------------------


def check_and_measure(
    table: pd.DataFrame,
    root: Path | str,
    classes: list[str],
    problems: Iterable[str] = (),
    listed: Sequence[Size] | None = None,
) -> pd.DataFrame:
    """Open every picture and mask; return the table with `width` and `height`, columns in the file's order.

    Args:
        table: columns `image_id, split, image, mask` and one 0/1 column per class.
        root: what the paths are relative to.
        classes: foreground classes in label order; masks may hold 0…K and 255.
        problems: what was found wrong before, to be told first and with the rest.
        listed: (height, width) of each picture as its outlines have it, where masks are to be drawn of outlines.

    Raises `UserError` listing these and every picture that is missing, does not decode to its end or is of another size
    than listed, and every mask that is missing, not an index PNG, of another size than its picture, or with a value
    that no class has; and one for all masks if they contradict the labels (`meaning`).
    """
    outlined: Sequence[Size | None] = listed or [None] * len(table)
    rows = list(zip(table["image"].astype(str), table["mask"].astype(str), outlined, strict=True))
    check = partial(_check, Path(root), len(classes))
    found = list(in_order(check, rows, allowed_threads(), "checking pictures"))
    refuse([*problems, *told(problem for problem in found if isinstance(problem, UserError))], f"{root}")
    good = [picture for picture in found if isinstance(picture, _Picture)]
    with_mask = np.array([picture.mask is not None for picture in good], dtype=bool)
    masks = [picture.mask for picture in good if picture.mask is not None]
    for line in refuse_other_meaning(table[with_mask], classes, masks, f"{root}"):
        log.warning("%s", line)
    sizes = np.array([(picture.height, picture.width) for picture in good], dtype=np.int64).reshape(-1, 2)
    _warn_of_turned(table["image"][[picture.turned for picture in good]])
    return table.assign(height=sizes[:, 0], width=sizes[:, 1])[COLUMNS + classes]


def refuse_other_meaning(table: pd.DataFrame, classes: list[str], masks: list[Seen], where: str) -> list[str]:
    """Hold masks against the image-level labels of their pictures, the rows of `table`, one for each of `masks`.

    Raises `UserError` where most contradict the labels, of all or of those of one split, since each is measured alone.
    Returns what to warn of: a few that do.
    """
    shown, names = table[classes].to_numpy(dtype=np.int64) > 0, table["mask"].astype(str).tolist()
    problem, warnings = meaning.contradictions(names, shown, masks, classes)
    for split in table["split"].unique():
        rows = np.flatnonzero(table["split"] == split)
        chosen = [names[row] for row in rows], shown[rows], [masks[row] for row in rows]
        problem = problem or meaning.contradictions(*chosen, classes)[0]
    refuse([f"{where}: {problem}"] if problem else [], where)
    return [f"{where}: {line}" for line in warnings]


def check_meaning(manifest: Manifest) -> None:
    """Read all masks of `manifest` and hold them against its labels, see `refuse_other_meaning`."""
    measured = manifest.with_masks()

    def look(image_id: str) -> Seen:
        return meaning.seen(measured.mask(image_id))

    masks = list(in_order(look, measured.ids, allowed_threads(), "checking masks"))
    refuse_other_meaning(measured.table, measured.classes, masks, f"{manifest.root}")


def refuse(problems: Iterable[str], where: str) -> None:
    """Raise one `UserError` for all problems, if any: a single line, or a count and the first 20 of them."""
    lines = list(problems)
    if len(lines) == 1:
        raise Problems(lines[0], lines)
    if lines:
        shown = lines[:MOST_LINES]
        first = f"; the first {len(shown)}" if len(shown) < len(lines) else ""
        raise Problems("\n".join([f"{where}: {len(lines)} problems{first}:", *shown]), lines)


def read_picture(path: Path | str) -> NDArray[np.uint8]:
    """Decode a picture to its end, (H, W, 3) uint8 RGB, upright as its EXIF orientation says.

    Alpha is left out, and of 16-bit greys the high byte is kept. Raises `UserError` if the file is missing, damaged,
    too large (`palette.MOST_PIXELS`), or holds numbers that are not colours.
    """
    return _decoded(path)[0]


def _decoded(path: Path | str) -> tuple[NDArray[np.uint8], bool]:
    """The picture, and whether an EXIF orientation moved its pixels."""
    with opened(path) as picture:
        return as_rgb(picture, path)


def as_rgb(picture: Image.Image, name: Path | str) -> tuple[NDArray[np.uint8], bool]:
    """(H, W, 3) uint8 of a picture as `read_picture` has it, which it turns in place; and whether it was turned.

    Raises `UserError`, which begins with `name`, if it holds numbers that are not colours.
    """
    turned = turn_upright(picture)
    if picture.mode.startswith("I;16"):  # Pillow would cut at 255
        return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[..., None], 3, axis=2), turned
    if picture.mode in ("I", "F"):
        raise UserError(f"{name}: holds numbers of 32 bits (mode {picture.mode}), not colours; save it with 8 bits")
    if "transparency" in picture.info:
        del picture.info["transparency"]  # alpha is left out, without a warning
    return np.array(picture.convert("RGB"), dtype=np.uint8), turned


@dataclass(frozen=True)
class _Picture:
    """What is known of a picture that was looked at."""

    height: int
    width: int
    turned: bool
    """Shown turned, and drawn on by a mask or an outline."""
    mask: Seen | None


def _check(root: Path, count: int, row: tuple[str, str, Size | None]) -> _Picture | UserError:
    """What is known of a picture, or what is wrong with it, its mask or the size of its outlines."""
    image, mask, outlined = row
    try:
        picture, turned = _decoded(root / image)
        height, width = picture.shape[:2]
        if mask and os.path.normpath(mask) == os.path.normpath(image):
            return UserError(f"{root / mask}: is the picture, given as its mask; name the folder of the masks")
        held = check_mask(root / mask, (height, width), count, turned) if mask else None
        if outlined and outlined != (height, width):
            return outlined_otherwise(root / image, outlined, (height, width), turned)
    except UserError as error:
        return error
    return _Picture(height, width, turned and bool(mask or outlined), held)


def _warn_of_turned(images: pd.Series) -> None:
    """Tell of pictures whose masks may have been drawn on the pixels as stored: where sizes agree, nobody else can."""
    if len(images):
        log.warning(
            "%d pictures carry an EXIF orientation and are turned as a viewer shows them, such as %s; "
            "see that their masks or outlines show the turned picture, too",
            len(images), images.iloc[0],
        )  # fmt: skip
