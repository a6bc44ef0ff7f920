"""The hash of a stage's code: an edit that can change a result changes it, any other leaves it."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from own_methods import forget_code

from beco.artifacts import sources
from beco.artifacts.files import file_hash, text_hash
from beco.errors import UserError

STAGES = {
    "beco.datasets.coco",
    "beco.datasets.shapes",
    "beco.datasets.formats",
    "beco.evaluation.tables.archive",
    "beco.evaluation.tables.comparisons",
    "beco.evaluation.scores.evaluate",
    "beco.evaluation.scores.quality",
    "beco.evaluation.report.report",
    "beco.evaluation.scores.sweep",
    "beco.evaluation.tables.table_files",
    "beco.stage1.views",
    "beco.stage1.train",
    "beco.exchange.imports",
    "beco.stage1.refine.irn_train",
    "beco.stage1.refine.irn_walk",
    "beco.stage1.refine.labels",
    "beco.stage2.predict",
    "beco.stage2.train",
    "beco.artifacts.store",
}
Edit = Callable[..., set[str]]


def read_from(folder: Path) -> None:
    """Let `beco.artifacts.sources` read this folder in place of the package, and nothing that it remembers."""
    sources.PACKAGE = folder
    forget_code()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty package."""
    original = sources.PACKAGE
    (tmp_path / "beco").mkdir()
    read_from(tmp_path / "beco")
    yield tmp_path / "beco"
    read_from(original)


def hashes() -> dict[str, str]:
    read_from(sources.PACKAGE)
    return {stage: sources.stage_hash(stage) for stage in STAGES}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package."""
    folder = tmp_path_factory.mktemp("copy") / "beco"
    return Path(shutil.copytree(ROOT / "beco", folder, ignore=shutil.ignore_patterns("__pycache__")))


@pytest.fixture(scope="module")
def changed_by(copied: Path) -> Iterator[Edit]:
    """Which stages' hashes differ after an edit of one module, which is then taken back."""
    original = sources.PACKAGE
    read_from(copied)
    before = hashes()

    def edit(module: str, change: Callable[[str], str]) -> set[str]:
        path = copied / module
        text = path.read_text()
        assert change(text) != text
        path.write_text(change(text))
        after = hashes()
        path.write_text(text)
        return {stage for stage in STAGES if before[stage] != after[stage]}

    yield edit
    assert hashes() == before  # every edit was taken back
    read_from(original)


def replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


def test_the_workflow_asks_for_these_stages() -> None:
    asked = set()
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        asked |= set(re.findall(r'(?:stage_hash|localiser_code)\("([\w.]+)"', path.read_text()))
    assert asked == STAGES
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in hashes().values())
    assert len(set(hashes().values())) == len(STAGES)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "# a comment\n" + text.replace("\n\n\n", "\n\n\n# another\n\n\n"),
        replacing('"""Dense CRF', '"""A dense CRF'),  # of the module
        replacing('"""Mean-field posterior', '"""Posterior'),  # of a function
        replacing("(image: np.ndarray, label", "(\n    image: np.ndarray,\n    label"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(changed_by: Edit, change: Callable[[str], str]) -> None:
    assert changed_by("crf/refine.py", change) == set()


def test_a_docstring_that_comes_or_goes_does_not_count(changed_by: Edit) -> None:
    assert changed_by("crf/refine.py", lambda text: text.split('"""', 2)[2]) == set()
    assert changed_by("stage1/merging.py", replacing('    """Sum', '    """Other.\n\n    Sum')) == set()


def test_an_edit_counts_for_its_own_stage_and_what_imports_it(changed_by: Edit) -> None:
    irn = {"beco.stage1.refine.irn_train", "beco.stage1.refine.irn_walk"}
    localisers = {"beco.stage1.train", "beco.stage1.views"}
    training = {*localisers, "beco.stage2.train", "beco.stage2.predict", *irn}
    # the sweep makes labels, too
    labels = {"beco.stage1.refine.labels", "beco.exchange.imports", "beco.evaluation.scores.sweep"}
    assert changed_by("stage1/refine/labels.py", replacing("1e-12", "1e-11")) == labels
    assert changed_by("crf/refine.py", replacing("1 - settings.gt_prob", "2 - settings.gt_prob")) == {
        *labels,
        "beco.stage2.predict",  # which may run a CRF after the networks
    }
    # a recipe counts for the trainings that are its own, see test_slots
    assert changed_by("stage2/recipes/cotraining.py", replacing("first.max(1)", "first.min(1)")) == set()
    assert changed_by("stage2/recipes/base.py", replacing("unit_range(batch", "0 + unit_range(batch")) == {
        "beco.stage2.train",
        "beco.stage2.predict",  # which reads the networks through the training's module
    }
    assert changed_by("training/trainer.py", replacing("momentum=settings.momentum", "momentum=0.8")) == training
    assert changed_by("networks/names.py", replacing('"fc."', '"fcc."')) == training
    stores = changed_by("artifacts/store.py", replacing("compression_opts=6", "compression_opts=5"))
    made = {"beco.artifacts.store", "beco.stage1.views", "beco.stage1.refine.labels", "beco.stage2.train"}
    assert stores >= made
    assert not stores & {"beco.datasets.formats", "beco.datasets.shapes"}


def test_the_schema_and_the_errors_do_not_count(changed_by: Edit) -> None:
    assert changed_by("schema/base.py", replacing("Fraction = ", "Share = 1\nFraction = ")) == set()
    assert changed_by("errors.py", replacing("class UserError(", "X = 1\n\n\nclass UserError(")) == set()
    assert changed_by("cli/__init__.py", replacing("import os", "import os, re")) == set()


def test_files_beside_the_code_count_where_they_are_named(folder: Path) -> None:
    (folder / "report.py").write_text("X = 1\n")
    (folder / "page.html").write_text("a")
    alone, before = sources.stage_hash("beco.report"), sources.stage_hash("beco.report", "page.html")
    (folder / "page.html").write_text("b")
    assert sources.stage_hash("beco.report", "page.html") != before != alone
    assert sources.stage_hash("beco.report") == alone
    with pytest.raises(FileNotFoundError):
        sources.stage_hash("beco.report", "pages.html")
    with pytest.raises(ModuleNotFoundError, match=r"beco\.reports"):
        sources.stage_hash("beco.reports")


@pytest.mark.parametrize(
    "line",
    [
        "import beco.two",
        "import beco.two as other",
        "from beco import two",
        "from beco.two import X",
        "from beco.two import *",
        "def f():\n    from beco.two import X",
        "from . import two",
        "from .two import X",
    ],
)
def test_every_way_to_import_is_followed(folder: Path, line: str) -> None:
    (folder / "one.py").write_text(f"{line}\n")
    found = []
    for value in (1, 2):
        (folder / "two.py").write_text(f"X = {value}\n")
        read_from(folder)
        found.append(sources.stage_hash("beco.one"))
    assert found[0] != found[1]


def test_imports_in_a_circle_end(folder: Path) -> None:
    (folder / "one.py").write_text("import beco.two\n")
    (folder / "two.py").write_text("import beco.one\n")
    assert sources.stage_hash("beco.one") == sources.stage_hash("beco.two")


def test_what_python_really_imports_is_covered() -> None:
    """A second way to the same set: run the imports, and look at what has been loaded."""
    code = """
import json, sys
found = {}
for stage in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] == "beco"]:
        del sys.modules[name]
    __import__(stage)
    found[stage] = sorted(name for name in sys.modules if name.split(".")[0] == "beco")
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *sorted(STAGES)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for stage, loaded in json.loads(done.stdout).items():
        for name in {name for name in loaded if not name.startswith(sources.LEFT_OUT)} - sources._closure(stage):
            # left over are packages on the way, and those hold nothing that could change a result
            path = sources._file(name)
            assert path is not None and path.name == "__init__.py", (stage, name)
            kinds = {type(node) for node in ast.parse(path.read_text()).body}
            handing_on = {ast.If, ast.ImportFrom, ast.FunctionDef} if name == "beco" else set()  # its `load`
            assert kinds <= {ast.Expr, ast.Assign, *handing_on}, (stage, name)


def test_the_commit_of_a_checkout(folder: Path) -> None:
    assert sources.commit() is None
    (folder / "crf.py").write_text("X = 1\n")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    name = sources.commit()
    assert name is not None and re.fullmatch("[0-9a-f]{12}", name)
    (folder / "crf.py").write_text("")
    assert sources.commit() == name + "+"


def test_hashes_of_files_and_settings(tmp_path: Path) -> None:
    """The hashes of files and of settings, of which the stages' artifacts keep a note."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_hash(tmp_path / "abc") == "ba7816bf8f01cfea"  # FIPS 180-4, example of one block
    with pytest.raises(UserError, match="cannot be read"):
        file_hash(tmp_path / "none")
    assert text_hash({"a": 1, "b": [2]}) == text_hash({"b": [2], "a": 1}) != text_hash({"a": 1, "b": [3]})


def test_files_that_are_no_python_count_by_folder() -> None:
    found = sources.data_files("evaluation/report")
    assert {"evaluation/report/report.html.j2", "evaluation/report/page/style.css"} <= set(found)
    assert not any(name.endswith((".py", ".pyc")) for name in found)
    assert sources.stage_hash("beco.evaluation.report.report", *found) != sources.stage_hash(
        "beco.evaluation.report.report", *found[1:]
    )
