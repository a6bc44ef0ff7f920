"""Reading the configuration: the whole of it for the workflow, or the slice that one stage takes (`--settings`).

A change in one section reruns the stage that reads the section and what follows it, and nothing before it. What is
wrong is said in one line that names every wrong key and its mend.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from beco import schema
from beco.artifacts.text import read_text
from beco.errors import UserError
from beco.schema import *  # noqa: F403  (the rest of the program takes the sections from here)
from beco.schema import Config, Section, nearest
from beco.schema.stage1 import KINDS

__all__ = [
    "merge",
    "merged_settings",
    "parse_yaml",
    "read_config",
    "read_config_files",
    "read_settings",
    "validate",
    "validate_config",
]
__all__ += schema.__all__

S = TypeVar("S", bound=Section)
Origin = Callable[[tuple[Any, ...]], str]


def validate(model: type[S], values: Any, where: str, origin: Origin = lambda _: "") -> S:
    """Check `values` against a section; on failure raise one `UserError` naming every wrong key and its mend.

    `origin` has more to say of where a key stands, behind the line about it.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected keys and values, found {type(values).__name__}; see config.yaml")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        wrong = [item for item in error.errors() if not _inherited(item, error)]
        lines = [_explain(model, item) + origin(item["loc"]) for item in wrong]
        raise UserError(f"{where}: " + "; ".join(lines)) from error


def validate_config(values: dict[str, Any], where: str = "config", origin: Origin = lambda _: "") -> Config:
    """Check a whole configuration; `origin` as in `validate`.

    `training` is the base of every experiment's own `training`, `classifier` and `cam` are those of every source's, and
    names of `encoders` are replaced by what they stand for, so that each section is complete in itself. Experiments and
    comparisons that are null are left out, as a layer says of those of the file below.
    """
    if isinstance(values, dict):
        named = values.get("encoders")
        known = named if isinstance(named, dict) else {}
        values = {k: v if k == "encoders" else _with_encoders(v, known, where) for k, v in values.items()}
        values.setdefault("sources", {"cam": {}})
        for section in TAKEN_OUT:
            if isinstance(entries := values.get(section), dict):
                values[section] = {name: entry for name, entry in entries.items() if entry is not None}
        for section, keys in COMMON.items():
            values = _with_common(values, section, keys)
    return validate(Config, values, where, origin)


TAKEN_OUT = ("experiments", "comparisons")
"""Sections whose entries a null takes out; in others it stands for an entry of defaults."""
COMMON = {"experiments": ("training",), "sources": ("classifier", "cam")}
"""Sections by name, and what of the whole configuration is the base of each entry's own."""


def _with_common(values: dict[str, Any], section: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """`values` with `keys` of every entry of a section laid over the common ones; the schema says what is wrong."""
    if not isinstance(values.get(section), dict):
        return values
    entries = {name: {} if entry is None else entry for name, entry in values[section].items()}
    for name, entry in entries.items():
        for key in keys if isinstance(entry, dict) else ():
            base: Any = values.get(key) or {}
            own: Any = entry.get(key) or {}
            if isinstance(base, dict) and isinstance(own, dict):
                entries[name] = {**entries[name], key: merge(base, own)}
    return {**values, section: entries}


def _with_encoders(value: Any, named: dict[str, Any], where: str) -> Any:
    """`value` with every `encoder: name` and `encoder: {like: name, …}` below it spelt out."""
    if not isinstance(value, dict):
        return value
    result = {}
    for key, entry in value.items():
        if key == "encoder" and (isinstance(entry, str) or (isinstance(entry, dict) and "like" in entry)):
            over = {} if isinstance(entry, str) else {k: v for k, v in entry.items() if k != "like"}
            name = entry if isinstance(entry, str) else str(entry["like"])
            if name in named and not isinstance(named[name], dict):
                raise UserError(f"{where}: encoders.{name}: expected keys and values, found `{named[name]}`")
            if name not in named:
                raise UserError(f"{where}: encoder: no `{name}` under encoders{nearest(name, named)}")
            result[key] = merge(named[name], over)
        else:
            result[key] = _with_encoders(entry, named, where)
    return result


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over` laid over it, section by section.

    A schedule is replaced whole where `over` names its length, because `epochs` and `steps` exclude each other, and an
    encoder where `over` names another, of which neither weights nor pixel values are the first one's.
    """
    merged = dict(base)
    if "epochs" in over or "steps" in over:
        merged = {key: value for key, value in merged.items() if key not in ("epochs", "steps")}
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not (key == "encoder" and "name" in value):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def read_settings(model: type[S], text: str | None, where: str = "--settings") -> S:
    """Read a section from YAML or JSON text, from a file's name, or (None) its defaults."""
    values, where = _given(text, where)
    return validate(model, values, where)


def merged_settings(model: type[S], base: S, over: str | dict[str, Any] | None, where: str = "--settings") -> S:
    """As `read_settings`, of what the text (or its values) names; all else is as in `base`."""
    values, where = _given(over, where) if over is None or isinstance(over, str) else (over, where)
    return validate(model, merge(base.model_dump(mode="json"), values) if isinstance(values, dict) else values, where)


def _given(text: str | None, where: str) -> tuple[Any, str]:
    """The values of a text or of the file that it names, {} for none; and where they stand."""
    if text is None:
        return {}, where
    if "\n" not in text and text.endswith((".yaml", ".yml", ".json")):
        where, text = text, read_text(Path(os.path.expanduser(text)), "save it as such")  # noqa: PTH111  (raises nothing)
    return parse_yaml(text, where), where


def read_config(source: str, is_file: bool) -> Config:
    """Read and check a whole configuration from a file, or from YAML or JSON text."""
    where = source if is_file else "--settings"
    return validate_config(parse_yaml(read_text(Path(source), "save it as such") if is_file else source, where), where)


def read_config_files(paths: list[Path], over: list[str]) -> Config:
    """Read and check a configuration of several files, laid over each other as Snakemake does, and `over` them all.

    `over` are entries `key=VALUE` of its `--config`, VALUE in YAML.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    for path in paths:
        found = parse_yaml(read_text(path, "save it as such"), str(path))
        if not isinstance(found, dict):
            validate(Config, found, str(path))  # says so
        layers.append((str(path), found))
    for entry in over:
        key, equals, text = entry.partition("=")
        if not (key and equals):
            raise UserError(f"--config: expected key=VALUE, found `{entry}`")
        layers.append(("--config", {key: parse_yaml(text, "--config") if text else None}))
    values: dict[str, Any] = {}
    for _, layer in layers:
        values = _over(values, layer)
    where = ", ".join(dict.fromkeys(name for name, _ in layers))
    return validate_config(values, where, partial(_layer, layers) if len(layers) > 1 else lambda _: "")


def _layer(layers: list[tuple[str, dict[str, Any]]], key: tuple[Any, ...]) -> str:
    """Behind a line about a key: the layer that it stands in, the last of those that have most of its path.

    What is wrong of one experiment or source may also stand in what is common to all.
    """
    path = tuple(part for part in key if part not in KINDS)
    common = len(path) > 2 and path[2] in COMMON.get(str(path[0]), ())
    paths = [path, path[2:]] if common else [path] if path else []
    most, where = 0.0, ""
    for name, values in layers:
        share = max((_depth(values, one) / len(one) for one in paths), default=0)
        if share and share >= most:
            most, where = share, f" (in {name})"
    return where


def _depth(values: Any, path: tuple[Any, ...]) -> int:
    """How many of a path's keys there are, from the first on."""
    for number, part in enumerate(path):
        if not isinstance(values, dict) or part not in values:
            return number
        values = values[part]
    return len(path)


def _over(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over` laid over it, section by section, and nothing left out (unlike `merge`)."""
    pairs = {k: (base.get(k), value) for k, value in over.items()}
    both = {
        k: _over(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
        for k, (old, new) in pairs.items()
    }
    return {**base, **both}


def parse_yaml(text: str, where: str) -> Any:
    """The values of YAML text, {} for none; a key that comes twice in one place is an error, unlike in PyYAML."""
    try:
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())}); mend it") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # what PyYAML makes of `!!int ""`
        raise UserError(f"{where}: not valid YAML (a value is not what its !!tag says); take the tag out") from error
    except RecursionError as error:
        raise UserError(f"{where}: not valid YAML (nested too deeply); mend it") from error
    return {} if values is None else values


class _Loader(yaml.SafeLoader):
    """Plain values and tables alone: no tag makes an object."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key `{name}` comes twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _inherited(item: Any, error: ValidationError) -> bool:
    """Whether an entry, such as an experiment's `training`, only repeats what is wrong with the common one."""
    path = item["loc"]
    common = [other["loc"] for other in error.errors()]
    return len(path) > 2 and path[2] in COMMON.get(str(path[0]), ()) and path[2:] in common


def _explain(model: type[BaseModel], item: Any) -> str:
    """One pydantic error in words: path, what is wrong, nearest valid key."""
    path = ".".join(str(part) for part in item["loc"] if part not in KINDS)
    if item["type"] == "extra_forbidden":
        parent = _model_at(model, item["loc"][:-1])
        keys = list(parent.model_fields) if parent else []
        return f"{path}: unknown key{nearest(str(item['loc'][-1]), keys) or '; remove it'}"
    if item["type"] == "value_error":
        reason = str(item["ctx"]["error"])
        return f"{path}: {reason}" if path else reason
    message = item["msg"][0].lower() + item["msg"][1:]
    if item["type"] == "missing":
        return f"{path}: missing; add it"
    return f"{path}: {message} (found {reprlib.repr(item['input'])})"  # an alias of YAML can stand for gigabytes


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections among the kinds of value that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for kind in get_args(annotation):
        yield from _sections(kind)


def _model_at(model: Any, path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The section that a path of keys leads to."""
    for part in path:
        if part in KINDS:
            model = next(_sections(model), None)
        elif isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(str(part))
            if field is None:
                return None
            model = field.annotation
        else:  # dict[Name, Section]: any name leads to the value type
            model = getattr(model, "__args__", (None, None))[-1]
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None
