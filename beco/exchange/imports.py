"""Pseudo-labels of other programs as `labels.h5`, so that stage two learns from them as from our own."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from beco.artifacts import store, supervision
from beco.artifacts.files import file_hash, text_hash
from beco.artifacts.ordered import allowed_threads, in_order
from beco.artifacts.pseudolabels import UNCERTAIN, put
from beco.config import Import, Labels
from beco.datasets.manifest import Manifest
from beco.datasets.matching import claims
from beco.errors import UserError
from beco.exchange.foreign import Kind, Unfit
from beco.exchange.foreign_formats import FORMATS, SAMPLE, SLACK, Labelled, read_labelled, read_mask, recognise

log = logging.getLogger("beco")

SUFFIXES = tuple(sorted({suffix for form in FORMATS.values() for suffix in form.suffixes}))
MASK = "mask"
SHOWN = 3
Found = dict[Path, dict[Kind, list[str]]]
"""What is wrong by folder and kind: names of files, with details."""


@dataclass(frozen=True)
class Folder:
    """The files of a folder that belong to the pictures of a manifest."""

    path: Path
    form: str
    """Name of the format, or MASK."""
    files: dict[str, Path]
    """By image id."""
    doubled: set[str]
    """Image ids that several files claim; they are in `files`, too."""


@dataclass(frozen=True)
class Source:
    """Where the labels and confidences of pictures come from."""

    labels: Folder
    trusted: Folder | None
    background: float
    allow_missing: bool

    @property
    def folders(self) -> list[Folder]:
        """The folders that are read."""
        return [self.labels] if self.trusted is None else [self.labels, self.trusted]


def make(
    manifest: Manifest,
    folder: Path,
    output: Path,
    form: str = "auto",
    background: float = 0.25,
    confidence: Path | None = None,
    allow_missing: bool = False,
) -> None:
    """Write the pseudo-labels that another program left in `folder` as a store for all pictures of `manifest`.

    Args:
        manifest: one split; files are matched to its ids by name, COCO's with or without prefix and zeros.
        folder: one file a picture, `.png`, `.npy` or `.pt`.
        output: `labels.h5`, as `pseudolabels.put` stores pictures.
        form: a name of `FORMATS`, or `auto` to recognise it.
        background: score of the background where files hold scores but none for it (0.25 is BECO's for IRN); such
            scores have to lie within 0 and 1, others are refused with their range.
        confidence: folder of masks of trusted pixels, or of scores; without it, what `folder` tells.
        allow_missing: pictures without a file get no opinion (255) instead of being refused.

    Raises `UserError` with everything that is wrong; then no output is left behind.
    """
    labels = _open(folder, manifest, form)
    trusted = _open(confidence, manifest, "auto", masks=True) if confidence is not None else None
    source = Source(labels, trusted, background, allow_missing)
    with store.create(output, **_attributes(manifest, source)) as writer:
        work = partial(_labelled, manifest, source)
        _write(writer, manifest, source, in_order(work, manifest.ids, allowed_threads(), "pictures"))


def look(manifest: Manifest, folder: Path, form: str = "auto", background: float = 0.25) -> str:
    """The name of the format of the files in `folder`, after a look at a few of those of `manifest`.

    Raises `UserError` with what `make` would say of these.
    """
    source = Source(_open(folder, manifest, form), None, background, False)
    problems: Found = {}
    for place in np.unique(np.linspace(0, len(manifest) - 1, SAMPLE).astype(int)):
        found = _labelled(manifest, source, manifest.ids[place])
        if isinstance(found, Unfit):
            _note(problems, source, manifest.ids[place], found)
    if problems:
        raise UserError(_told(problems))
    return source.labels.form


def _note(problems: Found, source: Source, image_id: str, found: Unfit) -> None:
    kinds = problems.setdefault(found.folder or source.labels.path, {})
    kinds.setdefault(found.kind, []).append(": ".join(filter(None, [found.name or image_id, found.detail])))


def _write(writer: store.Writer, manifest: Manifest, source: Source, pictures: Iterable[Labelled | Unfit]) -> None:
    """Store the pictures of `manifest` in order, or raise one `UserError` after the last if any of them is unfit."""
    problems: Found = {}
    seen: set[int] = set()
    strangers, beyond = [], []
    for image_id, found in zip(manifest.ids, pictures, strict=True):
        if isinstance(found, Unfit):
            _note(problems, source, image_id, found)
        elif not problems:
            label, doubt = found
            put(writer, image_id, label, doubt)
            if doubt.min(initial=0) < -SLACK:
                beyond.append(image_id)
            values = set(np.unique(label).tolist()) - {0, UNCERTAIN}
            seen |= values
            if not values <= set(manifest.present(image_id)):
                strangers.append(image_id)
    if problems:
        raise UserError(_told(problems))
    if not seen and manifest.labels().any():
        raise UserError(
            f"{source.labels.path}: no pixel of any class in {len(manifest)} pictures; are these masks (0 and 255), "
            "other pictures, or maps whose best score stays below --background?"
        )
    if beyond:
        log.warning(
            "%d of %d pictures have scores beyond 0 to 1 (such as %s): the order of their confidences is kept, so "
            "reliable_fraction holds, but reliable_threshold says nothing",
            len(beyond), len(manifest), beyond[0],
        )  # fmt: skip
    if strangers:
        log.warning(
            "%d of %d pictures hold classes that their image-level labels do not name (such as %s); if it is most, "
            "the order of the classes differs",
            len(strangers), len(manifest), strangers[0],
        )  # fmt: skip


def _told(problems: Found) -> str:
    """The problems in one line: of each folder how many of each kind, the first of them, and the mend."""
    folders = []
    for folder, kinds in problems.items():
        parts = []
        for kind, names in kinds.items():
            more = ", …" if len(names) > SHOWN else ""
            parts.append(f"{len(names)} × {kind.what} ({', '.join(names[:SHOWN])}{more}): {kind.mend}")
        folders.append(f"{folder}: {'; '.join(parts)}")
    return "; ".join(folders)


def _attributes(manifest: Manifest, source: Source) -> dict[str, Any]:
    """What made the file, as `beco labels` tells it; the hash is that of the names and contents of all files read."""
    origin = Import(path=str(source.labels.path), format=source.labels.form)
    settings = Labels(refine="import", background=source.background, source=origin)
    paths = [path for folder in source.folders for path in folder.files.values()]
    hashes = list(in_order(file_hash, paths, allowed_threads(), "hashing"))
    return {
        "labels": settings.model_dump(mode="json", include={"refine", "background", "source"}),
        "source": text_hash([[path.name, value] for path, value in zip(paths, hashes, strict=True)]),
        supervision.KEY: [supervision.IMPORTED],
        "classes": manifest.classes,
    }


# --- one picture --------------------------------------------------------------------------------------------


def _labelled(manifest: Manifest, source: Source, image_id: str) -> Labelled | Unfit:
    """Label and doubt of one picture, or what is wrong with its files (kept, to be told with the others)."""
    size, classes = manifest.size(image_id), len(manifest.classes)
    try:
        label, doubt = _read(source.labels, source, image_id, size, classes)
        if source.trusted is not None:
            doubt = _read(source.trusted, source, image_id, size, classes)[1]
    except Unfit as unfit:
        copy = Unfit(unfit.kind, unfit.detail, unfit.name)  # the old one holds on to the arrays of its frames
        copy.folder = unfit.folder
        return copy
    doubt[label == UNCERTAIN] = 1
    return label, doubt


def _read(folder: Folder, source: Source, image_id: str, size: tuple[int, int], classes: int) -> Labelled:
    """What one folder says of a picture; the label of a folder of masks is without meaning."""
    path = folder.files.get(image_id)
    try:
        if path is None:
            if source.allow_missing:
                return np.full(size, UNCERTAIN, np.uint8), np.ones(size)
            raise Unfit(Kind.MISSING)
        if image_id in folder.doubled:
            raise Unfit(Kind.DOUBLED)
        if folder.form == MASK:
            return np.zeros(size, np.uint8), 1 - read_mask(path, size)
        return read_labelled(path, folder.form, size, classes, source.background)
    except Unfit as unfit:
        unfit.name, unfit.folder = f"{folder.path.name}/{path.name if path else image_id}", folder.path
        raise


# --- the files of a folder ----------------------------------------------------------------------------------


def _open(path: Path, manifest: Manifest, form: str, masks: bool = False) -> Folder:
    """The files in `path` for the pictures of `manifest`, and their format; PNGs are `masks` if told so."""
    if form not in ("auto", *FORMATS):
        raise UserError(f"--format: no format `{form}`; known: auto, {', '.join(FORMATS)}")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give the folder with one file for each picture")
    files, doubled, others = _matched(path, manifest.ids, SUFFIXES if form == "auto" else FORMATS[form].suffixes)
    if not files:
        raise UserError(_nothing_in(path, manifest.ids[0], others))
    kinds = sorted({file.suffix.lower() for file in files.values()})
    if form == "auto":
        if len(kinds) > 1:
            raise UserError(f"{path}: holds {' and '.join(kinds)} files; say which with --format")
        form = MASK if masks and kinds == [".png"] else recognise(files, manifest)
        who = "0/255 or 0/1 PNG" if form == MASK else FORMATS[form].methods
        log.info("%s: recognised %s (%s), files: %d", path, form, who, len(files))
    if others:
        log.info("%s: left out, files of no picture of this split: %d", path, others)
    return Folder(path, form, files, doubled)


def _matched(path: Path, ids: list[str], suffixes: tuple[str, ...]) -> tuple[dict[str, Path], set[str], int]:
    """Files by image id, ids that several files claim, and how many files belong to none; the same name goes first.

    Coloured twins, NAME_palette.png beside NAME.png, are passed over.
    """
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and file.is_file())
    claimed = claims(found, ids)
    taken, stems = {file for files in claimed.values() for file in files}, {file.stem for file in found}
    others = [file for file in found if file not in taken]
    others = [file for file in others if not (file.stem.endswith("_palette") and file.stem[:-8] in stems)]
    files = {name: files[0] for name, files in claimed.items() if files}
    return files, {name for name, files in claimed.items() if len(files) > 1}, len(others)


def _nothing_in(path: Path, example: str, others: int) -> str:
    """What to say of a folder without a file for any picture."""
    if others:
        return (
            f"{path}: none of its {others} files has the name of a picture of the split, such as {example}.png; "
            "check the folder and --split"
        )
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    inside = f"; it has the folders {', '.join(folders[:SHOWN])}: give one of them" if folders else ""
    return f"{path}: holds no {', '.join(SUFFIXES)} file{inside or '; check the folder and --format'}"
