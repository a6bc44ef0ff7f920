"""The rooms of the package: which may import which."""

from __future__ import annotations

import ast
from pathlib import Path

from conftest import ROOT

# From the door down; a room imports those that stand in its line, and all of them stand below it.
ALLOWED = {
    "": "stage2",
    "cli": "project plan benchmark evaluation exchange stage2 stage1 training datasets config artifacts schema "
    "interpreter",
    "project": "exchange stage1 networks training datasets config artifacts schema",
    "plan": "networks training datasets config artifacts",
    "benchmark": "evaluation stage2 stage1 networks training crf datasets config artifacts schema",
    "evaluation": "stage1 datasets config artifacts schema",
    "exchange": "stage1 datasets config artifacts",
    "stage2": "networks training crf datasets config artifacts schema",
    "stage1": "networks training crf datasets config artifacts schema",
    "networks": "training config artifacts",
    "training": "datasets config artifacts",
    "crf": "config",
    "datasets": "config artifacts schema",
    "config": "artifacts schema",
    "artifacts": "schema",
    "schema": "",
    "interpreter": "",
    "errors": "",
}  # fmt: skip
ANYWHERE = "errors"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= set(inner) if node.module == "beco" else {node.module}
    return {name for name in found if name.split(".")[0] == "beco" and name != "beco"}


def room(module: str) -> str:
    return [*module.split("."), ""][1]  # the package itself is in none


def test_every_room_has_a_line_and_every_line_a_room() -> None:
    there = {path.stem for path in (ROOT / "beco").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert there - {"__init__", "__pycache__", "py"} == set(ALLOWED) - {""}


def test_nothing_imports_upwards() -> None:
    order = list(ALLOWED)
    for name, below in ALLOWED.items():
        assert all(order.index(other) > order.index(name) for other in below.split()), name


def test_imports_are_those_allowed() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / "beco").rglob("*.py"))
        if room(module_of(path))
        for name in sorted(imported(path))
        if room(name) not in {room(module_of(path)), ANYWHERE, *ALLOWED[room(module_of(path))].split()}
    ]
    assert not wrong


def test_no_line_allows_what_nothing_needs() -> None:
    used: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for path in (ROOT / "beco").rglob("*.py"):
        used[room(module_of(path))] |= {room(name) for name in imported(path)}
    idle = {name: set(below.split()) - used[name] for name, below in ALLOWED.items()}
    assert not {name: rooms for name, rooms in idle.items() if rooms}
