"""No command may write over what it reads: looked at for every command, before it begins.

Paths are compared as files, so that links and other spellings of a path count as what they lead to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from beco.config import parse_yaml
from beco.errors import UserError
from beco.exchange.watch import SUFFIXES

OUTPUTS = ("output", "project", "save")
OTHER = "name another output"
HEADER = b"image_id,split,"  # of a manifest
MESSAGES = re.compile(rb"\d\d:\d\d:\d\d ")  # as `options` begins each
TRAINING = ("history.csv", "checkpoint.pt", "best.safetensors")
MEASURED = ("metrics.json", "per_class.csv", "per_image.csv", "per_image_class.csv")
INSIDE: dict[str, tuple[str, ...]] = {
    "train_classifier": ("classifier.safetensors", "classifier.json", *TRAINING),
    "train_irn": ("irn.safetensors", "irn.json", *TRAINING),
    "train": ("networks.safetensors", "training.json", *TRAINING),
    "evaluate": MEASURED,
    "evaluate_labels": MEASURED,
    "init": ("config.yaml",),
}
"""What a command writes into the folder that it is given as its output."""
BESIDE: dict[str, tuple[str, ...]] = {"manifest": (".json",), "comparison": (".md", ".tex")}
"""Suffixes of what it writes beside its output."""
REPLACED = ("predict", "predict_split", "export_labels", "draw_shapes")
"""Commands that put a new folder in the place of the old one."""
LISTED = ("import_labels", "export_labels", "archive")
"""Commands that read whatever files of these suffixes lie in the folder that they are given."""
READ_IN = ("cams.h5", "classifier/classifier.json", "classifier/history.csv")
"""What is read in the folder of a source of score maps."""
KEYS = ("labels", "masks", "root", "saliency", "text", "weights", "path")
"""Keys of settings that name files."""
WORDS = ("imagenet", "classifier", "truth")


def refuse(command: str, values: Mapping[str, Any]) -> None:
    """UserError if the function `command`, called with `values`, would write over a file or folder that it reads."""
    inputs = list(_inputs(values))
    for output in [Path(values[name]) for name in OUTPUTS if values.get(name) is not None]:
        written = [output, *(output / name for name in INSIDE.get(command, ()))]
        if output.suffix:
            written += [output.with_suffix(suffix) for suffix in BESIDE.get(command, ())]
        for given, option in inputs:
            for path in written:
                if _same(path, given):
                    raise UserError(f"{path}: is also an input ({option}), which would be lost; {OTHER}")
            if command in REPLACED and output.is_dir() and _within(given, output):
                raise UserError(f"{output}: holds an input ({option}: {given}), which would be lost; {OTHER}")
            if command in LISTED and output.suffix.lower() in SUFFIXES and output.is_file() and _within(output, given):
                raise UserError(f"{output}: is one of the files of an input ({option}: {given}); {OTHER}")
        if values.get("root") is not None:
            _refuse_dataset(command, output, Path(values["root"]), values.get("manifest"))


def _refuse_dataset(command: str, output: Path, root: Path, manifest: Path | None) -> None:
    """UserError for an output in the place of a picture, a mask or another file of the dataset at `root`.

    Our own results may lie there, too; which files are the dataset's stands in its manifest.
    """
    if not (_within(output, root) or _within(root, output) or _same(root, output)):
        return
    if manifest is None:  # it is about to be made
        with suppress(OSError), output.open("rb") as stream:
            if stream.read(len(HEADER)) != HEADER:
                raise UserError(f"{output}: is a file of the dataset, and no manifest; {OTHER}")
        return
    from beco.datasets import manifest as manifests

    try:
        table = manifests.read(manifest, root).table
    except UserError:  # told where it is read
        return
    is_file, target, base = output.is_file(), output.resolve(), root.resolve()
    for name in filter(None, (*table["image"], *table["mask"])):
        if _same(base / name, output) if is_file else command in REPLACED and (base / name).is_relative_to(target):
            raise UserError(f"{output}: is or holds a file of the dataset ({name}), which would be lost; {OTHER}")


def refuse_log(log: Path, words: list[str]) -> None:
    """UserError if the file of messages, which is emptied first, is named by another of the command line's words.

    Inputs stand in settings and in folders, too; so no file is emptied that does not look like one of messages.
    """
    own = {f"--log={log}"} | {f"{one} {two}" for one, two in pairwise(words) if one == "--log"}
    for before, word in pairwise(["", *words]):
        if word in own or f"{before} {word}" in own:
            continue
        named = {word, word.partition("=")[2]} - {""}
        if any(_same(log, Path(one)) for one in named):
            raise UserError(f"--log: {log}: is also named as {word}, and would be lost; name another file")
    with suppress(OSError):  # told where it is written
        if log.is_file():
            with log.open("rb") as stream:
                begin = stream.read(len("12:34:56 "))
            if begin and not MESSAGES.fullmatch(begin):
                raise UserError(f"--log: {log}: holds no messages of beco, and would be lost; name another file")


def _inputs(values: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Every path that is read, with the option that names it."""
    for name, value in values.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            option = f"--{name.replace('_', '-')}"
            if name in OUTPUTS:
                continue
            if isinstance(one, Path):
                yield one, option
            elif isinstance(one, str):
                yield from ((path, option) for path in _named(name, one))


def _named(name: str, text: str) -> Iterator[Path]:
    """What a text names: a file, `name=path`, or files in settings (a text, or a file of it)."""
    is_file = "\n" not in text and text.endswith((".yaml", ".yml", ".json"))
    if name in KEYS or is_file:
        yield Path(text)
    with suppress(UserError, OSError, UnicodeDecodeError):  # told where it is read
        if is_file:
            yield from _paths(parse_yaml(Path(text).read_text(encoding="utf-8-sig"), text))
        elif "=" in text and ": " not in text:
            yield (folder := Path(text.partition("=")[2]))
            yield from (folder / file for file in (READ_IN if name == "sources" else ()))
        elif ":" in text:
            yield from _paths(parse_yaml(text, name))


def _paths(settings: Any) -> Iterator[Path]:
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key in KEYS and isinstance(value, str) and value not in WORDS:
                yield Path(value)
            yield from _paths(value)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one of them is not there
        return False


def _within(inner: Path, outer: Path) -> bool:
    """Whether an existing path lies in a folder, links followed."""
    with suppress(OSError, ValueError):
        return inner.exists() and inner.resolve() != outer.resolve() and inner.resolve().is_relative_to(outer.resolve())
    return False
