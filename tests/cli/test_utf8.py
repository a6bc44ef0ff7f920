"""Text is UTF-8 whatever the locale says, and what a terminal cannot show is no error."""

from __future__ import annotations

import ast
import getpass
import io
import os
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest
import yaml
from conftest import ROOT
from PIL import Image
from plans import TINY

from beco import cli, interpreter

CODES = "import sys; from beco.artifacts.sources import stage_hash; print(stage_hash('beco.stage2.train'))"
TEXT_CALLS = {"open", "read_text", "write_text", "FileHandler", "fdopen", "TextIOWrapper", "NamedTemporaryFile"}
NOT_TEXT = {"Image", "tarfile", "zipfile"}
"""Whose `open` is of another kind."""


def in_locale(latin1: dict[str, str], *command: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHON", "LANG"))}
    return subprocess.run([sys.executable, *command], env=kept | latin1, capture_output=True)


def beco(latin1: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Status of a command in that locale, and what it said."""
    done = in_locale(latin1, "-c", "from beco.cli import main; main()", *arguments)
    return done.returncode, (done.stdout + done.stderr).decode("latin-1")


def test_a_problem_is_told_where_the_terminal_lacks_its_mark(tmp_path: Path, latin1: dict[str, str]) -> None:
    values = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    values["classifier"]["schedule"]["batch_size"] = 2
    values["labels"]["theirs"] = {"refine": "import", "source": {"path": str(tmp_path / "weg → über")}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    status, said = beco(latin1, "check", "--configfile", str(tmp_path / "config.yaml"))
    assert status == 1 and "Traceback" not in said
    assert "labels.theirs.source.path: " in said and "To mend: 1." in said


def test_pictures_are_found_by_names_beyond_the_locale(tmp_path: Path, latin1: dict[str, str]) -> None:
    folder = tmp_path / "Bilder 図"
    folder.mkdir()
    for name in ("Käse.png", "図.png", "a.png", "b.png"):
        Image.new("RGB", (40, 40)).save(folder / name)
    sheet = "image,labels\nKäse.png,Käse\n図.png,Käse\na.png,犬\nb.png,犬\n"
    (tmp_path / "labels.csv").write_text(sheet, encoding="utf-8")
    settings = f"{{format: folder, labels: '{tmp_path}/labels.csv', val_share: 0.5}}"
    output = tmp_path / "out" / "manifest.csv"
    log = tmp_path / "manifest.log"
    command = ["manifest", "--root", str(folder), "--settings", settings, "--output", str(output)]
    status, said = beco(latin1, "--log", str(log), *command)
    assert status == 0, said
    text = output.read_text(encoding="utf-8")
    assert {"Käse", "犬"} <= set(text.splitlines()[0].split(",")) and "\n図," in text
    assert "図" in (output.with_suffix(".json")).read_text(encoding="utf-8").encode().decode("unicode-escape")
    assert log.is_file()


@pytest.mark.parametrize("charmap", ["EUC-JP", "GBK"])
def test_arguments_stay_the_bytes_that_they_are(tmp_path: Path, charmap: str) -> None:
    made = ["localedef", "-c", "-i", "ja_JP", "-f", charmap, str(tmp_path / "odd")]
    if which(made[0]):
        subprocess.run(made, capture_output=True)  # it warns of what the encoding lacks
    if not (tmp_path / "odd").exists():
        pytest.skip("no localedef, or not this encoding")
    folder = tmp_path / "Käse 図 ～‾ 犬"
    for arguments in (["gather", str(folder / "é.h5"), "--output", ""], ["draw-shapes", "--output", str(folder)]):
        settings = ["--settings", "{train: 1, val: 1, size: 48}"] if arguments[0] == "draw-shapes" else []
        status, said = beco({"LOCPATH": str(tmp_path), "LC_ALL": "odd"}, *arguments, *settings)
        assert "Traceback" not in said and status == (0 if settings else 1), said
    assert (folder / "classes.txt").is_file()


def test_hashes_of_code_are_those_of_any_locale(latin1: dict[str, str]) -> None:
    ours = subprocess.run([sys.executable, "-c", CODES], capture_output=True, check=True)
    assert in_locale(latin1, "-c", CODES).stdout == ours.stdout != b""


def test_a_name_that_is_no_text_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(standalone_mode: bool) -> None:
        "folder/K\udce4se".encode()

    monkeypatch.setattr(cli, "app", write)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and said.startswith("beco: 'folder/K") and said.count("\n") == 1


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # to be put back
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    interpreter.settle()
    assert getpass.getuser() == f"uid{os.getuid()}"


@pytest.mark.parametrize("errors", ["strict", "backslashreplace"])
def test_streams_are_forgiven_what_they_lack(errors: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
    interpreter.forgive(stream)
    interpreter.forgive(io.StringIO())
    stream.write("✗")
    stream.flush()
    assert stream.buffer.getvalue() == {"strict": b"?", "backslashreplace": b"\\u2717"}[errors]  # type: ignore[attr-defined]


def test_text_is_opened_with_an_encoding() -> None:
    """Ruff's PLW1514 sees this where it knows that a value is a path; here every call of the name counts."""
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)[:80]}"
        for path in sorted((ROOT / "beco").rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and opens_by_locale(call)
    ]
    assert not found


def opens_by_locale(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    given = {word.arg: word.value for word in call.keywords}
    if isinstance(call.func, ast.Name) and name == "read_text":
        return False  # `beco.artifacts.text`'s, which reads UTF-8
    if "encoding" in given or owner in NOT_TEXT or (owner, name) == ("tokenize", "open"):  # which reads the file's own
        return False
    if name in ("run", "Popen", "check_output") and owner == "subprocess":
        return "text" in given or "universal_newlines" in given
    if name not in TEXT_CALLS:
        return False
    modes = [word.value for word in [*call.args, *given.values()] if isinstance(word, ast.Constant)]
    return not any(isinstance(mode, str) and set(mode) <= set("rwabx+") and "b" in mode for mode in modes)


@pytest.mark.parametrize(
    ("arguments", "threads"),
    [
        (["train", "--threads", "4"], "4"),
        (["train", "--threads=4", "-o", "x"], "4"),
        (["train", "--threads=2", "--threads", "3"], "3"),
        (["train", "--threads"], None),
        (["train", "--threads=many"], None),
        (["train"], None),
    ],
)
def test_threads_are_read_before_typer_does(arguments: list[str], threads: str | None) -> None:
    assert cli._threads(arguments) == threads
