"""The slots: places for methods, each of which is one file, known by the file's name.

A method is found by looking into a folder, so that a new one is a new file and no list of names has to follow. Folders
of one's own come with the environment variable `BECO_METHODS`: a folder with `recipes/` in it, beside which nothing
of the package has to be touched.

What has to be known of a method before it is imported (which takes the seconds that torch takes) stands at the top of
its file as constants, and is read from its text.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import keyword
import os
import tokenize
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from beco.errors import UserError
from beco.schema.base import nearest
from beco.schema.facts import Facts, LocaliserFacts, RecipeFacts

PACKAGE = Path(__file__).parents[1]
SHARED = ("base",)  # files of a slot's folder that are no method


@dataclass(frozen=True)
class Slot:
    """A folder of the package that holds one file for each method."""

    what: str
    """What a method of this slot is called, as messages say it."""
    package: str
    """The folder as a dotted name, such as `beco.stage2.recipes`."""
    facts: type[Facts]
    """The constants that a method's file may set, with the values that hold where it does not."""

    @property
    def folders(self) -> list[Path]:
        """Where its files lie: in the package, and in `BECO_METHODS`."""
        inside = PACKAGE.joinpath(*self.package.split(".")[1:])
        own = os.environ.get("BECO_METHODS")
        return [inside, *([Path(os.path.expanduser(own)) / inside.name] if own else [])]  # noqa: PTH111  (raises nothing)

    def files(self) -> dict[str, Path]:
        """The file of each method by its name; a name that comes twice is the package's."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            for path in sorted(folder.glob("*.py")):
                if path.stem not in SHARED and not path.stem.startswith("_") and _is_name(path.stem):
                    found.setdefault(path.stem, path)
        return found

    def check(self, name: str) -> str:
        """`name`, which is a method's; ValueError if there is none of that name, or its file's constants are wrong."""
        known = self.files()
        if name not in known:
            own = "" if self.folders[1:] else "; a file of your own: name its folder's folder in BECO_METHODS"
            raise ValueError(f"no {self.what} `{name}`{self._unfit(name) or nearest(name, known) + own}")
        self.lineage(name)
        return name

    def _unfit(self, name: str) -> str:
        """Why a file of that name, or a folder of one's own, does not count; "" if there is none."""
        for folder in self.folders:
            if (folder / f"{name}.py").is_file() and not _is_name(name):
                return f"; {folder / name}.py: its name is none that Python can import; rename it"
        own = self.folders[1:]
        return f"; BECO_METHODS: {own[0].parent} is not there" if own and not own[0].parent.is_dir() else ""

    def lineage(self, name: str) -> list[str]:
        """A method and those whose settings it has, too, each after the one that EXTENDS it.

        ValueError if one of them is not there, or extends itself.
        """
        found, known = [name], self.files()
        while (extended := getattr(_facts(known[found[-1]], self.facts), "EXTENDS", None)) is not None:
            where = f"{known[found[-1]]}: EXTENDS"
            if extended not in known:
                raise ValueError(f"{where}: no {self.what} `{extended}`{nearest(extended, known)}")
            if extended in found:
                raise ValueError(f"{where}: `{extended}` extends itself by way of it; name another, or leave it out")
            found.append(extended)
        return found

    def given(self, name: str, option: str) -> str:
        """The same for a name that a command is given; `UserError`."""
        try:
            return self.check(name)
        except ValueError as error:
            raise UserError(f"{option}: {error}") from None

    def fact(self, name: str, key: str) -> Any:
        """A constant of a method's file, such as NETWORKS; that of any method where there is no such file any more.

        UserError if the file cannot be read or a constant of it is wrong.
        """
        path = self.files().get(name)
        try:
            return getattr(_facts(path, self.facts) if path else self.facts(), key)
        except ValueError as error:
            raise UserError(str(error)) from None

    def module(self, name: str) -> str:
        """The module of a method, as `stage_hash` takes it."""
        return f"{self.package}.{name}"

    def entry(self, name: str) -> Any:
        """The class of a method: the one that its file defines and that is not named with an underscore.

        UserError if there is not exactly one.
        """
        module = importlib.import_module(self.module(self.given(name, self.what)))
        own = [
            found
            for key, found in vars(module).items()
            if inspect.isclass(found) and found.__module__ == module.__name__ and not key.startswith("_")
        ]
        if len(own) != 1:
            raise UserError(
                f"{module.__file__}: {len(own)} public classes; a {self.what} is the one class of its file, so let the "
                "names of others begin with an underscore"
            )
        return own[0]


def _is_name(name: str) -> bool:
    """Whether a file of that name can be imported."""
    return name.isidentifier() and not keyword.iskeyword(name)


@cache
def _facts(path: Path, kind: type[Facts]) -> Facts:
    """The constants of a method's file; ValueError with the file, the constant and what is wrong with it."""
    try:
        with tokenize.open(path) as file:
            tree = ast.parse(file.read())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ValueError(f"{path}: is no Python{line}: {getattr(error, 'msg', error)}; mend it") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from None
    try:
        return kind.model_validate(_constants(path, tree, kind.model_fields))
    except ValidationError as error:
        wrong = error.errors()[0]
        said = wrong["msg"].removeprefix("Value error, ")
        where = ".".join(map(str, wrong["loc"]))
        raise ValueError(f"{path}: {where}: {said[0].lower()}{said[1:]}" if where else f"{path}: {said}") from None


def _constants(path: Path, tree: ast.Module, known: Any) -> dict[str, Any]:
    """Those of the names `known` that a file sets to literals at its top level; ValueError if it sets one otherwise."""
    found: dict[str, Any] = {}
    taken: set[ast.AST] = set()
    for statement in tree.body:
        target, value = _assigned(statement)
        if isinstance(target, ast.Name) and target.id in known and value is not None:
            try:
                found[target.id] = ast.literal_eval(value)
            except (ValueError, TypeError):
                break
            taken.add(target)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in known and node not in taken:
            raise ValueError(
                f"{path}: {node.id}: is read from the text, without running it; write it at the top of the file as "
                "plain values"
            )
    return found


def _assigned(statement: ast.stmt) -> tuple[ast.expr | None, ast.expr | None]:
    """The one target and the value of an assignment; of any other statement neither."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        return statement.targets[0], statement.value
    return (statement.target, statement.value) if isinstance(statement, ast.AnnAssign) else (None, None)


RECIPES = Slot("recipe", "beco.stage2.recipes", RecipeFacts)
"""How stage two learns."""

LOCALISERS = Slot("localiser", "beco.stage1.localisers", LocaliserFacts)
"""How stage one comes from image-level labels to score maps."""

SLOTS = (LOCALISERS, RECIPES)
