"""What a stage's result depends on in our own code, as one hash.

Snakemake reruns a rule when its command changes, but it does not see the modules that the command imports. Each rule
therefore carries the hash of its stage's module and of all it imports inside this package. Comments, docstrings and
layout do not count, and neither does the configuration schema: the values that a stage uses are parameters of its
rule, defaults included.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
import tokenize
from functools import cache
from pathlib import Path

from beco.schema.slots import SLOTS

PACKAGE = Path(__file__).parents[1]
LEFT_OUT = ("beco.config", "beco.schema", "beco.errors", "beco.artifacts.text")  # the last: text in UTF-8, or a refusal


def stage_hash(*parts: str) -> str:
    """Hash of modules (dotted, such as `beco.stage2.train`), their imports inside beco, and files of the package."""
    digest = hashlib.sha256()
    modules = [part for part in parts if part.startswith(f"{PACKAGE.name}.")]
    for name in sorted(set().union(*(_closure(module) for module in modules))):
        digest.update(f"{name}\n{_code(name)}\n".encode())
    for file in parts:
        if file not in modules:
            digest.update((PACKAGE / file).read_bytes())
    return digest.hexdigest()[:16]


def data_files(folder: str) -> list[str]:
    """The files below a folder of the package that are no Python, such as templates, as `stage_hash` takes them."""
    found = (path for path in (PACKAGE / folder).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    return sorted(path.relative_to(PACKAGE).as_posix() for path in found)


def commit() -> str | None:
    """The commit of this package's checkout, with `+` if tracked files differ from it; None outside of git."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        head = [*git, "rev-parse", "--short=12", "HEAD"]
        name = subprocess.run(head, capture_output=True, encoding="utf-8", check=True)
        same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + ("+" if same.returncode else "")


def _closure(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and not name.startswith(LEFT_OUT):
            found.add(name)
            waiting.extend(_imports(name))
    return found


@cache
def _file(module: str) -> Path | None:
    """Source file of a module of this package, None if there is no such module."""
    parts = module.split(".")
    if parts[0] != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*parts[1:])
    places = [path]
    for slot in SLOTS:  # a method, and what it imports beside it, may lie in a folder of the user's own
        if module.startswith(f"{slot.package}."):
            within = parts[slot.package.count(".") + 1 :]
            places += [folder.joinpath(*within) for folder in slot.folders]
    files = (file for place in places for file in (place / "__init__.py", place.with_name(f"{place.name}.py")))
    return next((file for file in files if file.is_file()), None)


@cache
def _tree(module: str) -> ast.Module:
    path = _file(module)
    if path is None:
        raise ModuleNotFoundError(f"no module {module} in this package")
    with tokenize.open(path) as file:
        return ast.parse(file.read())


@cache
def _imports(module: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                names.add(inner if _file(inner) else source)
    return {name for name in names if _file(name)}


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that a `from … import` of `module` names, dots resolved."""
    if node.level == 0:
        return node.module or ""
    file = _file(module)
    is_package = file is not None and file.name == "__init__.py"
    package = module.split(".")[: len(module.split(".")) - node.level + is_package]
    return ".".join([*package, *([node.module] if node.module else [])])


@cache
def _code(module: str) -> str:
    tree = ast.parse(ast.unparse(_tree(module)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
