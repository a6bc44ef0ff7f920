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
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from beco.errors import UserError
from beco.schema.base import nearest

PACKAGE = Path(__file__).parents[1]
SHARED = ("base",)  # files of a slot's folder that are no method


@dataclass(frozen=True)
class Slot:
    """A folder of the package that holds one file for each method."""

    what: str
    """What a method of this slot is called, as messages say it."""
    package: str
    """The folder as a dotted name, such as `beco.stage2.recipes`."""
    facts: dict[str, Any] = field(default_factory=dict, hash=False)
    """The constants that a method's file may set, with the values that hold where it does not."""

    @property
    def folders(self) -> list[Path]:
        """Where its files lie: in the package, and in `BECO_METHODS`."""
        inside = PACKAGE.joinpath(*self.package.split(".")[1:])
        own = os.environ.get("BECO_METHODS")
        return [inside, *([Path(own).expanduser() / inside.name] if own else [])]

    def files(self) -> dict[str, Path]:
        """The file of each method by its name; a name that comes twice is the package's."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            for path in sorted(folder.glob("*.py")):
                if path.stem not in SHARED and not path.stem.startswith("_"):
                    found.setdefault(path.stem, path)
        return found

    def check(self, name: str) -> str:
        """`name`, which is a method's; ValueError if there is none of that name."""
        known = self.files()
        if name not in known:
            raise ValueError(f"no {self.what} `{name}`{nearest(name, known)}")
        return name

    def given(self, name: str, option: str) -> str:
        """The same for a name that a command is given; `UserError`."""
        try:
            return self.check(name)
        except ValueError as error:
            raise UserError(f"{option}: {error}") from None

    def fact(self, name: str, key: str) -> Any:
        """A constant of a method's file, such as NETWORKS; that of any method where there is no such file any more."""
        path = self.files().get(name)
        return {**self.facts, **(_constants(path) if path else {})}[key]

    def module(self, name: str) -> str:
        """The module of a method, as `stage_hash` takes it."""
        return f"{self.package}.{name}"

    def entry(self, name: str) -> Any:
        """The class of a method: the one that its file defines and that is not named with an underscore."""
        module = importlib.import_module(self.module(self.check(name)))
        own = [
            found
            for key, found in vars(module).items()
            if inspect.isclass(found) and found.__module__ == module.__name__ and not key.startswith("_")
        ]
        if len(own) != 1:
            raise ValueError(
                f"{module.__file__}: {len(own)} public classes; a {self.what} is the one class of its file"
            )
        return own[0]


@cache
def _constants(path: Path) -> dict[str, Any]:
    """The capital names that a file sets to literals at its top level."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id.isupper():
            try:
                found[target.id] = ast.literal_eval(node.value)
            except ValueError:
                continue  # a constant that is computed is no fact
    return found


RECIPES = Slot("recipe", "beco.stage2.recipes", {"NETWORKS": 1, "PAIRS": False, "UNUSED": ()})
"""How stage two learns. NETWORKS: how many it trains. PAIRS: it works on pairs of pictures, so a batch is even.
UNUSED: beginnings of settings, such as `training.mix`, that it does not look at."""

LOCALISERS = Slot(
    "localiser",
    "beco.stage1.localisers",
    {"OPTIONS": {}, "EXTENDS": None, "INPUTS": (), "MAP_INPUTS": (), "TRAINS": True},
)
"""How stage one comes from image-level labels to score maps. OPTIONS: the settings of its own, see
`beco.schema.stage1.options_of`. EXTENDS: the localiser whose OPTIONS it has, too. INPUTS: what its training wants
besides pictures and their labels, of `Source.inputs`; MAP_INPUTS: what of it the inference of its maps wants again.
TRAINS: false where nothing is learnt before the maps. An option may want inputs, too, see `inputs_of` there."""

SLOTS = (LOCALISERS, RECIPES)
