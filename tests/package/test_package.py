"""The package by itself: what it imports is declared, and a wheel of it runs without checkout or Snakemake."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    packages_distributions,
    requires,
    version,
)
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT, Checkout
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from plans import config

from beco.project import check
from beco.project import init as project

UNIMPORTED = {"tensorboard"}
"""Declared, though no file of ours says `import`: torch.utils.tensorboard wants it."""


def applying(name: str, extra: str) -> Iterator[Requirement]:
    """The requirements of an installed distribution, with those of one of its extras, on this machine."""
    for text in requires(name) or []:
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
            yield wanted


def declared(extra: str = "") -> set[str]:
    """Names of the distributions that pyproject.toml names."""
    return {canonicalize_name(wanted.name) for wanted in applying("beco", extra)}


def imported() -> dict[str, str]:
    """Distribution of each third-party import below `beco/`, and a file that has it."""
    owners, found = packages_distributions(), {}
    for path in (ROOT / "beco").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"beco"}:
                found[canonicalize_name(owners.get(top, [top])[0])] = str(path.relative_to(ROOT))
    return found


def test_what_is_imported_is_declared() -> None:
    found = imported()
    optional = (declared("clip") | declared("pydensecrf") | declared("workflow")) - declared()
    assert {name: path for name, path in found.items() if name not in declared() | optional} == {}
    assert declared() - set(found) == UNIMPORTED


def test_importing_the_package_is_quick_and_silent() -> None:
    """It reads nothing but itself, so that it costs next to nothing and a program may import it for its version."""
    lines = "import sys, time; start = time.perf_counter(); import beco; cost = time.perf_counter() - start"
    lines += "; third = {name.split('.')[0] for name in sys.modules} & {'torch', 'numpy', 'typer', 'pydantic', 'yaml'}"
    lines += "; assert not third, third; assert cost < 0.3, cost"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- without Snakemake ----------------------------------------------------------------------------------------


def test_check_tells_that_the_workflow_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """To know, not as a problem: the commands do without. A package that they need is a problem."""

    def found(name: str) -> str:
        if name.startswith("snakemake") or name == absent:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(check, "version", found)
    absent, group = "", check.Group("software")
    check._software(config(), group)
    assert not group.problems
    assert [line for line in group.notes if line.startswith("snakemake") and line.endswith("'beco[workflow]'")]
    absent, group = "timm", check.Group("software")
    check._software(config(), group)
    assert [line.split(":")[0] for line in group.problems] == ["timm"]


def test_init_tells_what_the_next_command_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert project.before_next() == []
    monkeypatch.chdir(tmp_path)
    assert project.before_next() == [] and str(ROOT / "workflow" / "Snakefile") in project.next_command(tmp_path)
    monkeypatch.setattr(project, "find_spec", lambda name: None)
    monkeypatch.setattr(project, "SNAKEFILE", tmp_path / "workflow" / "Snakefile")  # installed from a wheel
    snakemake, checkout = project.before_next()
    assert snakemake.endswith("pip install 'beco[workflow]'") and "CHECKOUT" in checkout
    assert "CHECKOUT/workflow/Snakefile" in project.next_command(tmp_path)


# --- a wheel, where there is nothing else ---------------------------------------------------------------------


def needed(extra: str = "") -> dict[str, Distribution]:
    """All distributions that `pip install beco[extra]` would bring, by name, without `beco` itself."""
    found: dict[str, Distribution] = {}
    open_ = [wanted for wanted in applying("beco", extra) if canonicalize_name(wanted.name) != "beco"]
    while open_:
        wanted = open_.pop()
        name = canonicalize_name(wanted.name)
        known = name in found
        found[name] = distribution(name)
        for part in wanted.extras or ([""] if not known else []):
            open_ += applying(name, part)
    return found


class Installed:
    """A wheel of this checkout in a fresh environment, which sees the packages that it declares and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.checkout = Checkout(folder / "checkout")
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder / "dist")]
        subprocess.run(build, cwd=self.checkout.folder, check=True, capture_output=True)
        (self.wheel,) = (folder / "dist").glob("*.whl")
        uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")  # as in the Makefile, which has fetched it
        new = [uv, "venv", "--quiet", "--offline", "--python", sys.executable, str(folder / "env")]
        subprocess.run(new, check=True, capture_output=True)
        self.python = folder / "env" / "bin" / "python"
        put = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(self.python), str(self.wheel)]
        subprocess.run(put, check=True, capture_output=True)
        (self.packages,) = (folder / "env").glob("lib/python*/site-packages")
        self._lend(folder / "lent")
        self.folder = folder / "elsewhere"
        self.folder.mkdir()

    def _lend(self, lent: Path) -> None:
        """Let it see the declared distributions, linked into a folder of their own, and no Snakemake."""
        lent.mkdir()
        for found in needed().values():
            for top in {path.parts[0] for path in found.files or [] if path.parts[0] not in ("..", "__pycache__")}:
                if not (lent / top).exists():
                    (lent / top).symlink_to(Path(str(found.locate_file(top))))
        (self.packages / "lent.pth").write_text(f"{lent}\n", encoding="utf-8")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program of its environment, in a folder that has nothing to do with the checkout."""
        bare = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        command = [str(self.python.parent / words[0]), *words[1:]]
        return subprocess.run(command, cwd=self.folder, env=bare, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, built and installed once."""
    return Installed(tmp_path_factory.mktemp("wheel"))


def test_a_wheel_holds_every_file_of_the_package(installed: Installed) -> None:
    """Templates, styles, scripts and tables too: whatever the repository has below `beco/`."""
    folder = installed.checkout.folder
    wanted = {str(path.relative_to(folder)) for path in (folder / "beco").rglob("*") if path.is_file()}
    assert any(name.endswith((".j2", ".csv", ".js")) for name in wanted)
    with ZipFile(installed.wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("beco/")} == wanted


def test_a_wheel_works_without_checkout_or_snakemake(installed: Installed) -> None:
    """Every module imports, and the first stages run."""
    everything = (
        "import importlib, importlib.util, pathlib, pkgutil, beco\n"
        "assert importlib.util.find_spec('snakemake') is None\n"
        f"assert str(pathlib.Path(beco.__file__)).startswith({str(installed.packages)!r})\n"
        "for found in pkgutil.walk_packages(beco.__path__, 'beco.'): importlib.import_module(found.name)\n"
        "print(len(list(pkgutil.walk_packages(beco.__path__, 'beco.'))))\n"
    )
    done = installed.run("python", "-c", everything)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
    done = installed.run("beco", "--help")
    assert done.returncode == 0 and "manifest" in done.stdout, done.stderr
    drawn = "{train: 2, val: 2, size: 48}"
    done = installed.run("beco", "draw-shapes", "--output", "drawn", "--settings", drawn)
    assert done.returncode == 0, done.stderr
    done = installed.run(
        "beco", "manifest", "--root", "drawn", "--output", "manifest.csv", "--settings", "{format: shapes}"
    )
    assert done.returncode == 0, done.stderr
    assert (installed.folder / "manifest.csv").read_text(encoding="utf-8").count("\n") == 5
