"""The corpus of bad input: one line with the file and the mend, status 1, nothing left; odd but good input is read.

BECO_WRITE_CORPUS=1 writes `corpus.md` anew, from what the commands say.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import run
from conftest import ROOT, Checkout
from corpus import CASES, ELSEWHERE, Case
from corpus_inputs import COMMANDS, jpeg, sound
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TABLE = ROOT / "tests" / "corpus.md"


@dataclass(frozen=True)
class Outcome:
    status: int
    error: str
    folder: Path

    @property
    def lines(self) -> list[str]:
        """The lines that `beco` stops with; several problems under one heading count as one."""
        said = self.error.splitlines()
        starts = [index for index, line in enumerate(said) if line.startswith("beco: ")]
        return [" ".join(said[at:]) if said[at].endswith(":") else said[at] for at in starts]


def outcome(case: Case, template: Path, folder: Path) -> Outcome:
    shutil.copytree(template, folder, symlinks=True)
    case.harm(folder)
    status, error = run(COMMANDS[case.command](folder))
    return Outcome(status, error, folder)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    sound(folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What each command said."""
    base = tmp_path_factory.mktemp("corpus")
    return {case.name: outcome(case, template, base / str(number)) for number, case in enumerate(CASES)}


def test_the_sound_folder_is_accepted_by_the_commands(template: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(template, tmp_path / "at"))
    for command in ("manifest", "folder", "coco", "evaluate", "evaluate-labels"):
        status, error = run(COMMANDS[command](folder))
        assert status == 0, error


@pytest.mark.parametrize("case", [case for case in CASES if not case.accepted], ids=lambda case: case.name)
def test_refused_in_one_line(outcomes: dict[str, Outcome], case: Case) -> None:
    found = outcomes[case.name]
    assert found.status == 1, found.error
    assert "Traceback" not in found.error
    assert len(found.lines) == 1 and all(word in found.lines[0] for word in case.words), found.error
    assert "; " in found.lines[0] or "did you mean" in found.lines[0] or case.command == "settings"  # a mend
    left = [path for path in (found.folder / "out").rglob("*") if path.is_file()]
    assert not left, left
    assert not (found.folder / "trap").exists() and not Path("trap").exists()


@pytest.mark.parametrize("case", [case for case in CASES if case.accepted], ids=lambda case: case.name)
def test_odd_but_good(outcomes: dict[str, Outcome], case: Case) -> None:
    found = outcomes[case.name]
    assert found.status == 0, found.error
    assert case.accepted is not None
    case.accepted(found.folder)


def test_a_class_that_only_validation_shows_is_told(outcomes: dict[str, Outcome]) -> None:
    said = outcomes["class that only validation shows"].error
    assert "no training picture shows cat; add some, or take it off dataset.classes" in said


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True))
def test_a_jpeg_cut_anywhere(template: Path, tmp_path: Path, share: float) -> None:
    folder = tmp_path / "at"
    shutil.rmtree(folder, ignore_errors=True)
    case = Case("cut", jpeg(lambda content: content[: int(share * (len(content) - 2))]))
    found = outcome(case, template, folder)
    assert found.status == 1 and len(found.lines) == 1, found.error
    assert "a.jpg: truncated or damaged; copy it again" in found.lines[0] or "a.jpg: is empty" in found.lines[0]
    assert "Traceback" not in found.error
    assert not list((folder / "out").rglob("*.csv"))


def test_there_are_enough_kinds() -> None:
    assert len(CASES) >= 40 and len({case.name for case in CASES}) == len(CASES)


@pytest.mark.road
def test_a_key_twice_in_a_configuration_is_refused_before_any_job(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    path = tmp_path / "tests" / "tiny.yaml"
    path.write_text(path.read_text() + "gallery: 5\n")
    done = checkout.snakemake("--dry-run")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("beco: ")]
    assert len(lines) == 1 and "tiny.yaml: not valid YAML (the key `gallery` comes twice" in lines[0], done.stderr


# --- the table ----------------------------------------------------------------------------------------------


def written(outcomes: dict[str, Outcome]) -> str:
    rows = ["| input | command | what happens |", "|---|---|---|"]
    for case in CASES:
        found = outcomes[case.name]
        said = found.lines[0].removeprefix("beco: ") if found.lines else "accepted"
        said = said.replace(f"{found.folder}/", "").replace("|", "\\|")
        said = said if len(said) <= 240 else f"{said[:239]}…"
        rows.append(f"| {case.name} | `beco {COMMANDS[case.command](found.folder)[0]}` | {said} |")
    others = [f"* {what}: `{where}`" for what, where in ELSEWHERE]
    return "\n".join(
        [
            "# What bad input gets",
            "",
            "Written by `tests/cli/test_corpus.py` (BECO_WRITE_CORPUS=1) from what the commands say: one line, exit",
            "status 1, nothing left behind. `accepted`: odd, but read as it should be.",
            "",
            *rows,
            "",
            "Tested elsewhere:",
            "",
            *others,
            "",
        ]
    )


def test_the_table_is_up_to_date(outcomes: dict[str, Outcome]) -> None:
    text = written(outcomes)
    if os.environ.get("BECO_WRITE_CORPUS"):
        TABLE.write_text(text)
    assert TABLE.read_text() == text, "run it with BECO_WRITE_CORPUS=1"
