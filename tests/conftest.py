"""What several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # how long an example takes says more of the machine than of the code

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; a pool of threads each would only fight

pytest_plugins = ["own_pictures", "small_encoders", "trained_networks"]  # fixtures of several files

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast files first, those that walk roads last; but Slurm's at once, which mostly waits for its queue."""
    slow = {item.path for item in items if item.get_closest_marker("road")}
    items.sort(key=lambda item: (item.path.name != "test_slurm.py", item.path in slow))  # stable


BIN = Path(sys.executable).parent


class Checkout:
    """A copy of the repository's files in which commands run against the copy, not the original."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            text=True,
            check=True,
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((ROOT / name).read_bytes())
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),  # before the installed package, which is the original
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy; both output streams as text."""
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`snakemake` on the tiny configuration."""
        return self.run("snakemake", "--cores", "2", "--configfile", "tests/tiny.yaml", *arguments)

    def planned(self, *arguments: str) -> dict[str, int]:
        """How many jobs of each rule a dry run announces."""
        done = self.snakemake("--quiet", "rules", "--dry-run", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        counts: dict[str, int] = {}
        for line in (done.stdout + done.stderr).splitlines():
            words = line.split()
            if len(words) == 2 and words[1].isdigit():
                counts[words[0]] = int(words[1])
        counts.pop("total", None)
        counts.pop("all", None)
        return counts


@pytest.fixture(scope="session")
def latin1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine whose locale is ISO-8859-1; where none can be made, one that knows ASCII alone."""
    folder = tmp_path_factory.mktemp("locales")
    made = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US")]
    try:
        subprocess.run(made, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return {"LOCPATH": str(folder), "LC_ALL": "en_US"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which the tiny road has been walked once."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    done = checkout.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout
