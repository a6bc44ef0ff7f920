"""What a dataset is read from, watched: a token for each part of it, which is another one once its files are.

Snakemake compares what a rule was given with what it is given now, and the tokens are among that. The files that a
manifest was made from are recorded beside it with size, time and hash. A file of the same size and time is taken for
the same, one of another time is read: what was only touched, copied or moved to another folder keeps its token. Nothing
here depends on how `dataset.root` is spelt.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from beco.artifacts.files import read_json, text_hash, whole, write_json
from beco.artifacts.sources import stage_hash
from beco.artifacts.states import Seen, state_of, token_of, unchanged
from beco.config import Dataset
from beco.datasets.paths import SUFFIXES, image_id
from beco.errors import UserError

NAME = "watched.json"
"""Beside the manifest: what it was made from."""
PARTS = ("pictures", "train_masks", "val_masks")
"""Pictures and all that image-level labels come from; the masks of either split."""
LISTED = "listed"
"""The token of all that decides which pictures with which labels a manifest lists."""

Files = dict[str, dict[str, str]]  # as text: of a hundred thousand, objects take seconds
"""The files of each part, by a name that does not tell where the dataset lies."""


class Listed(NamedTuple):
    """A picture of a manifest."""

    image_id: str
    split: str
    image: str
    mask: str


PLACES = ("name", "root", "labels", "masks", "saliency", "shapes", "coco")
"""Settings of a dataset that say where it is, and those of the masks alone."""


def settings(dataset: Dataset) -> str:
    """The settings that a manifest follows from, as JSON: no paths, and not those of the masks alone."""
    left_out: dict[str, Any] = dict.fromkeys(PLACES, True)
    if dataset.format == "coco":
        left_out["coco"] = dataset.coco.mask_keys()
    return dataset.model_dump_json(exclude=left_out)


class Watched:
    """What the workflow asks of a dataset: its folder `root`, and the folder `base` of its results."""

    def __init__(self, dataset: Dataset, root: Path | str, base: Path | str) -> None:
        self.dataset, self.root, self.base = dataset, Path(root), Path(base)
        self.known = _record(self.base)

    @cached_property
    def tokens(self) -> dict[str, str]:
        """The token of each of `PARTS`, looked at once: the record's, or another one if a file differs from it.

        A dataset that is not there yet, or not any more, has tokens, too.
        """
        if self.known is None and self.dataset.format == "shapes":
            # drawn by a rule between two looks, of which one may be that of a job on another machine
            return dict.fromkeys(PARTS, "drawn")
        files, known = _files(self.dataset, self.root, self.base), self.known
        if known is None:
            return {part: token_of(files[part]) for part in PARTS}
        found, seen = {part: known["tokens"][part] for part in PARTS}, dict(known["files"])
        for part in PARTS:
            now = unchanged(files[part], seen[part])
            if now is None:
                found[part] = token_of(files[part])
            else:
                seen[part] = now
        if seen != known["files"]:  # of other times alone; they need not be read again
            with suppress(UserError):  # someone else's results
                _keep(self.base, known["tokens"], seen)
        return found

    def parameter(self, *parts: str) -> str:
        """What a rule depends on that reads these parts: their tokens, how they are listed and, if so, drawn."""
        drawn = self.dataset.shapes.model_dump_json() if self.dataset.format == "shapes" else ""
        listed = settings(self.dataset), stage_hash("beco.datasets.formats")
        return text_hash([drawn, listed, [self.tokens[part] for part in parts]])

    @property
    def is_listed(self) -> bool:
        """Whether the manifest lists the pictures and labels as they are; of the masks it may know another state."""
        there = (self.base / "manifest.csv").is_file()
        return there and self.known is not None and self.known["tokens"][LISTED] == self.parameter("pictures")

    def options(self) -> str:
        """Where everything is, and the tokens to be recorded, as options of `beco manifest` for a shell."""
        own = self.dataset if self.dataset.format == "folder" else None
        given = {"--root": str(self.root)}
        given |= {"--labels": own.labels or "", "--masks": own.masks or ""} if own else {}
        words = [word for key, path in given.items() if path for word in (key, path)]
        for part, token in (self.tokens | {LISTED: self.parameter("pictures")}).items():
            words += ["--watched", f"{part}={token}"]
        return shlex.join(words)

    def list_masks(self) -> None:
        """Make the manifest anew if its masks are others and nothing else is, which is no reason to train again.

        As a rule's output the manifest would have all rules run that take it. Raises `SystemExit` if something is
        wrong, which is told by then.
        """
        if self.is_listed and self.known and any(self.tokens[part] != self.known["tokens"][part] for part in PARTS):
            command = [sys.executable, "-P", "-c", "from beco.cli import main; main()"]
            command += ["--log", str(self.base / "logs" / "manifest.log"), "manifest"]
            command += ["--settings", settings(self.dataset), "--output", str(self.base / "manifest.csv")]
            done = subprocess.run([*command, *shlex.split(self.options())])
            if done.returncode:
                raise SystemExit(done.returncode)

    def refuse_other(self) -> None:
        """Raise `UserError` if the results are of another dataset; the same one in another place is adopted."""
        made_by = self.base / "manifest.json"
        if not made_by.exists():
            return
        before, now = read_json(made_by)["dataset"], self.dataset.identity()
        changed = [key for key in now if before.get(key) != now[key]]
        if not changed:
            return
        if set(changed) <= {"root", "labels"} and self.is_listed:
            write_json(made_by, {"dataset": now})
            return
        raise UserError(
            f"{self.base}: holds results of another dataset ({changed[0]} was {before.get(changed[0])}, is now "
            f"{now[changed[0]]}); choose another dataset.name or results folder, or remove this one"
        )


def record(dataset: Dataset, root: Path, base: Path, given: dict[str, str]) -> None:
    """Note beside a new manifest the files that it was made from, and the tokens that its rule was given."""
    files = _files(dataset, root, base)
    seen = {part: {name: state_of(path) for name, path in files[part].items()} for part in PARTS}
    _keep(base, given, seen)


# --- which files --------------------------------------------------------------------------------------------


def _files(dataset: Dataset, root: Path, base: Path) -> Files:
    if dataset.format == "folder":
        return _of_folder(dataset, root, listed_in(base / "manifest.csv"))
    if dataset.format == "coco":
        return _of_coco(dataset, root, base)
    return _of_voc(dataset, root)


def _of_voc(dataset: Dataset, root: Path) -> Files:
    found: Files = {part: {} for part in PARTS}
    lists = {name: f"ImageSets/Segmentation/{getattr(dataset, name)}.txt" for name in ("train", "val")}
    found["pictures"] = {listing: f"{root}/{listing}" for listing in lists.values()}
    names = {split: _ids(root / listing) for split, listing in lists.items()}
    both = names["train"] | names["val"]
    for folder in ("JPEGImages", "Annotations"):
        found["pictures"] |= {path: f"{root}/{path}" for path in _below(root, folder) if _stem(path) in both}
    for folder in ("SegmentationClass", "SegmentationClassAug"):
        masks = list(_below(root, folder))
        for split, ids in names.items():
            found[f"{split}_masks"] |= {path: f"{root}/{path}" for path in masks if _stem(path) in ids}
    return found


def _of_coco(dataset: Dataset, root: Path, base: Path) -> Files:
    """The masks are drawn, by a rule of its own; what the manifest says of them is where they are from the root."""
    names = [f"annotations/instances_{name}.json" for name in (dataset.train, dataset.val)]
    if listed := listed_in(base / "manifest.csv"):
        names += [picture.image for picture in listed]
    else:
        names += [path for name in (dataset.train, dataset.val) for path in _pictures(root, name)]
    drawn = {os.path.relpath((base / "masks").resolve(), root.resolve()): os.devnull}
    return {"pictures": {name: f"{root}/{name}" for name in names}, "train_masks": drawn, "val_masks": drawn}


def _of_folder(dataset: Dataset, root: Path, listed: list[Listed]) -> Files:
    found: Files = {part: {} for part in PARTS}
    pictures = [picture.image for picture in listed] or _pictures(root, "")
    found["pictures"] = {name: f"{root}/{name}" for name in pictures}
    if dataset.labels:
        found["pictures"][" labels"] = dataset.labels
    splits = {picture.image_id: picture.split for picture in listed}
    taken = set()
    if dataset.masks:
        masks = os.path.abspath(dataset.masks)  # noqa: PTH100  (as the manifest was made: links stay)
        for path in _below(Path(masks), ""):
            split = splits.get(image_id(path)) if listed else "val"
            if split:
                found[f"{split}_masks"][path] = f"{masks}/{path}"
                taken.add(f"{masks}/{path}")
    top = os.path.abspath(root)  # noqa: PTH100
    for picture in listed:  # masks that the CSV names
        if picture.mask and os.path.normpath(f"{top}/{picture.mask}") not in taken:
            found[f"{picture.split}_masks"][f" {picture.mask}"] = f"{root}/{picture.mask}"
    return found


def listed_in(path: Path) -> list[Listed]:
    """The pictures of a manifest, [] if there is none; without pandas, which takes longer to import."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream)
            header = next(rows)
            places = [header.index(name) for name in Listed._fields]
            return [Listed(*(row[place] for place in places)) for row in rows]
    except (OSError, ValueError, IndexError, StopIteration, csv.Error):
        return []


def _ids(path: Path) -> set[str]:
    """What the lines of a list may mean: each of its words, as an id or a path, and the whole of it."""
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:
        return set()
    words = {PurePosixPath(word).stem if "/" in word else word for line in lines for word in line.split()}
    return words | {line.strip() for line in lines}


def _below(root: Path, name: str) -> Iterator[str]:
    """Every file in a folder of `root`, in any depth, relative to `root`; none if there is no such folder."""
    for folder, _, names in os.walk(root / name):
        relative = os.path.relpath(folder, root)
        yield from (file if relative == "." else f"{relative}/{file}" for file in names if not file.startswith("."))


def _pictures(root: Path, name: str) -> Iterator[str]:
    return (path for path in _below(root, name) if os.path.splitext(path)[1].lower() in SUFFIXES)  # noqa: PTH122


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


# --- the record ---------------------------------------------------------------------------------------------


def _record(base: Path) -> dict[str, Any] | None:
    """What was recorded, or None if nothing was that can be read."""
    try:
        known = json.loads((base / NAME).read_bytes())
        return known if {*known["tokens"]} == {*PARTS, LISTED} and {*known["files"]} == {*PARTS} else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _keep(base: Path, given: dict[str, str], files: dict[str, dict[str, Seen]]) -> None:
    with whole(base / NAME) as temporary:
        temporary.write_text(json.dumps({"tokens": given, "files": files}), encoding="utf-8")


def parse_tokens(words: Iterable[str]) -> dict[str, str]:
    """Tokens by their part, from `part=token` each; UserError if a part is missing."""
    found = dict(word.partition("=")[::2] for word in words)
    if set(found) != {*PARTS, LISTED}:
        raise UserError(f"--watched: expected {', '.join(f'{part}=TOKEN' for part in (*PARTS, LISTED))}; give all")
    return found
