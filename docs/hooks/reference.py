"""The page of all keys of a configuration, written from `beco.schema`: `python docs/hooks/reference.py` prints it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args

from pydantic_core import PydanticUndefined

from beco.schema import Config, Section
from beco.schema.stage1 import LOCALISERS, options_of

MARK = "<!-- the keys -->"
"""Where `docs/reference.md` has the keys."""
BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
WORDS = {"boolean": "true or false", "integer": "whole number", "number": "number", "string": "text", "null": "null"}


def keys() -> str:
    """Markdown: a heading, where it stands, and a table of type, range, default and meaning for each section."""
    schema = Config.model_json_schema()
    places: dict[type[Section], list[str]] = {}
    for section, path in _sections(Config, ""):
        places.setdefault(section, []).append(path)
    tables = [_table(section, where, schema) for section, where in places.items()]
    return "\n".join([*tables, *map(_options, LOCALISERS.files())])


def _options(method: str) -> str:
    """The table of what a localiser's file says of its own settings; none for one without any."""
    model = options_of(method)
    where = [f"sources.<name>.options, method: {method}"]
    return _table(model, where, {"$defs": {model.__name__: model.model_json_schema()}}) if model.model_fields else ""


def _sections(section: type[Section], path: str) -> Iterator[tuple[type[Section], str]]:
    """Each section below and including this one, with the path of its keys in a file."""
    yield section, path
    for key, field in section.model_fields.items():
        for inner, is_named in _inner(field.annotation):
            yield from _sections(inner, f"{path}{key}.{'<name>.' * is_named}")


def _inner(annotation: Any) -> Iterator[tuple[type[Section], bool]]:
    """The sections in a type, and whether they stand under names of one's own."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, False
    for part in get_args(annotation):
        yield from ((inner, "dict" in str(annotation)) for inner, _ in _inner(part))


def _table(section: type[Section], paths: list[str], schema: dict[str, Any]) -> str:
    name = section.__name__
    described = schema if section is Config else schema["$defs"][name]
    where = ", ".join(f"`{path.rstrip('.')}`" for path in paths if path)
    lines = [f"## {'The file' if section is Config else name}", "", inspect.getdoc(section) or "", ""]
    if where:
        lines += [f"Found at {where}.", ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        node = described["properties"][key]
        meaning = field.description or _first_line(field.annotation)
        lines.append(f"| `{key}` | {_type(node)} | {_default(field)} | {_plain(meaning)} |")
    return "\n".join([*lines, ""])


def _first_line(annotation: Any) -> str:
    """The meaning of a key that has no words of its own: that of its section."""
    return next(((inner.__doc__ or "").split("\n")[0] for inner, _ in _inner(annotation)), "")


def _type(node: dict[str, Any]) -> str:
    """A node of a JSON schema in words, with its range."""
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in node:
            return " or ".join(_type(part) for part in node[key])
    if node.get("type") == "array":
        if "prefixItems" in node:
            parts = [_type(part) for part in node["prefixItems"]]
            return f"list of {len(parts)}: {', '.join(dict.fromkeys(parts))}{' each' * (len(set(parts)) == 1)}"
        least = " (at least one)" if node.get("minItems") else ""
        return f"list of {_type(node.get('items', {}))}{least}"
    if node.get("type") == "object":
        kept = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), None)
        least = " (at least one)" if node.get("minProperties") else ""
        return f"names, each with {_type(kept)}{least}" if isinstance(kept, dict) else "names with values"
    if "pattern" in node:
        return f"text like {_code(node['pattern'])}"
    return f"{WORDS.get(node.get('type', ''), 'any value')}{_range(node)}"


def _range(node: dict[str, Any]) -> str:
    if "minimum" in node and "maximum" in node:
        return f" {node['minimum']:g} to {node['maximum']:g}"
    bounds = ", ".join(f"{sign} {node[key]:g}" for key, sign in BOUNDS if key in node)
    return f" {bounds}" if bounds else ""


def _default(field: Any) -> str:
    """The default as it would stand in a file; of a section what it sets otherwise than its own table says."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Section):
        told = value.model_dump(mode="json", exclude_unset=True)
        return _code(_flow(told)) if told else "as there"
    return _code(_flow(value))


def _flow(value: Any) -> str:
    """A value in YAML's flow style; of a section, what it sets."""
    if isinstance(value, Section):
        value = value.model_dump(mode="json", exclude_unset=True)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _plain(text: str) -> str:
    return _cell(text.replace("<", "&lt;"))


def _cell(text: str) -> str:
    """Text that a cell of a table can hold."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(keys())
