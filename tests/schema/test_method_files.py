"""The constants at the top of a method's file, which a configuration is checked with before the file is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beco.config import validate_config
from beco.errors import UserError
from beco.schema.slots import LOCALISERS
from beco.schema.stage1 import options_of
from beco.stage1 import localisers

OPTION = 'OPTIONS = {"w": {"default": 0.5, "description": "of it"%s}}'
Writer = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writer:
    """Writes a file of a folder of one's own: its path in it, its text."""
    monkeypatch.setenv("BECO_METHODS", str(tmp_path))
    options_of.cache_clear()

    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("latin1"))
        return path

    return written


def options(method: str, **given: Any) -> dict[str, Any]:
    values = {
        "sources": {"mine": {"method": method, "options": given}},
        "labels": {"crf": {}},
        "networks": {"default": {}},
        "experiments": {"one": {"recipe": "single"}},
    }
    return validate_config(values).sources["mine"].options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ndef (:", "is no Python (line 2)"),
        ("# caf\xe9", "is no Python"),
        ("\0", "is no Python"),
        ("X = 1\nOPTIONS = {'w': {'default': X}}", "OPTIONS: is read from the text"),
        ("OPTIONS = dict()", "OPTIONS: is read from the text"),
        ("OPTIONS = {}\nOPTIONS |= {}", "OPTIONS: is read from the text"),
        ("class Mine:\n    OPTIONS = {}", "OPTIONS: is read from the text"),
        ("OPTIONS = {[]: 1}", "OPTIONS: is read from the text"),
        ("OPTIONS = ['w']", "OPTIONS: input should be"),
        ("OPTIONS = {'w': 0.5}", "OPTIONS.w: input should be"),
        ("OPTIONS = {'w': {'description': 'of it'}}", "OPTIONS.w.default: field required"),
        ("OPTIONS = {'w': {'default': None, 'description': 'of it'}}", "OPTIONS.w: `None` is no single value"),
        ("OPTIONS = {'_w': {'default': 1, 'description': 'of it'}}", "OPTIONS._w: a setting cannot be called so"),
        ("OPTIONS = {'json': {'default': 1, 'description': 'of it'}}", "OPTIONS.json: a setting cannot be"),
        (OPTION % ", 'min': 1", "OPTIONS.w.min: "),
        (OPTION % ", 'ge': 'a'", "OPTIONS.w.ge: input should be a valid number"),
        (OPTION % ", 'ge': 1", "OPTIONS.w: default: input should be greater"),
        (OPTION % ", 'choices': [1.0, 2.0]", "OPTIONS.w: default: input should be"),
        (OPTION % ", 'choices': [0.5], 'ge': 0", "OPTIONS.w: ge: is for a default that is a number"),
        (OPTION % ", 'gt': 0, 'tried': 0", "OPTIONS.w: tried: input should be greater than 0"),
        ("INPUTS = ('label',)", "INPUTS.0: input should be 'labels', 'start'"),
        ("INPUTS = ('start')", "INPUTS: input should be a valid tuple"),
        ("MAP_INPUTS = ('labels',)", "MAP_INPUTS: `labels` is not among INPUTS"),
        ("TRAINS = 'no'", "TRAINS: input should be a valid boolean"),
        ("EXTENDS = 'saem'", "EXTENDS: no localiser `saem`; did you mean `seam`?"),
        ("EXTENDS = 'mine'", "EXTENDS: `mine` extends itself"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(write: Writer, text: str, said: str) -> None:
    path = write("localisers/mine.py", text)
    with pytest.raises(UserError) as caught:
        options("mine")
    assert f"sources.mine.method: {path}: {said}" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--method: "):
        LOCALISERS.given("mine", "--method")


def test_settings_of_all_that_a_method_extends(write: Writer) -> None:
    write("localisers/mine.py", 'EXTENDS = "ppc"\n' + OPTION % "")
    assert options("mine") == options("ppc") | {"w": 0.5}
    assert {*options("seam")} < {*options("ppc")} < {*options("mine", w=1)}
    write("localisers/other.py", 'EXTENDS = "mine"\n' + (OPTION % "").replace("0.5", "3"))
    assert options("other", w=4) == options("mine") | {"w": 4}


def test_a_byte_order_mark_and_an_annotation_are_no_matter(write: Writer) -> None:
    write("localisers/mine.py", "\xef\xbb\xbf" + (OPTION % "").replace("OPTIONS", "OPTIONS: dict"))
    assert options("mine") == {"w": 0.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NETWORKS = 'two'", "NETWORKS: input should be a valid integer"),
        ("NETWORKS = 0", "NETWORKS: input should be greater"),
        ("NETWORKS = 1 + 1", "NETWORKS: is read from the text"),
        ("UNUSED = 'training.mix'", "UNUSED: input should be a valid tuple"),
    ],
)
def test_the_same_of_a_recipe(write: Writer, text: str, said: str) -> None:
    path = write("recipes/mine.py", text)
    values = {"labels": {"crf": {}}, "networks": {"default": {}}, "experiments": {"one": {"recipe": "mine"}}}
    with pytest.raises(UserError) as caught:
        validate_config(values)
    assert f"experiments.one.recipe: {path}: {said}" in str(caught.value)


def test_a_file_that_cannot_be_a_method(write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("localisers/we-ird.py", "")
    with pytest.raises(UserError, match=rf"no localiser `we-ird`; {path}: its name is none that Python can import"):
        options("we-ird")
    write("localisers/two.py", "class A: ...\nclass B: ...")
    monkeypatch.setattr(localisers, "__path__", [str(folder) for folder in LOCALISERS.folders])
    with pytest.raises(UserError, match=r"two\.py: 2 public classes"):
        LOCALISERS.entry("two")
    monkeypatch.setenv("BECO_METHODS", str(path.parent / "nothing"))
    with pytest.raises(UserError, match=r"no localiser `two`; BECO_METHODS: .*nothing is not there"):
        options("two")
    monkeypatch.setenv("BECO_METHODS", "~nobody-of-that-name")
    assert "cam" in LOCALISERS.files()
