"""Which ImageNet weights are at hand on this machine, and which could be: `beco weights`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import scan_cache_dir
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import CacheNotFound

from beco.errors import UserError
from beco.networks.packages import PACKAGES, shipped

REPOSITORY = re.compile(r"(?:timm/(?P<timm>[^/]+)|smp-hub/(?P<mit>mit_b\d)\.imagenet)")
"""Where the library downloads weights from, with the name that an encoder has here."""
TENSORS = ("model.safetensors", "pytorch_model.bin")
UNKNOWN = "not known"


@dataclass(frozen=True)
class Found:
    """Weights on this machine that `weights: imagenet` takes."""

    encoder: str
    licence: str
    bytes: int
    source: str


def at_hand() -> list[Found]:
    """Those of installed packages first, then what the library has downloaded before."""
    return [*_of_packages(), *sorted(_downloaded(), key=lambda found: found.encoder)]


def installable() -> dict[str, str]:
    """Packages that ship weights and are not installed, by the encoder's name."""
    return {encoder: package.name for encoder, package in PACKAGES.items() if shipped(encoder) is None}


def _of_packages() -> Iterator[Found]:
    for encoder, package in PACKAGES.items():
        if file := shipped(encoder):
            source = f"{package.name} {version(package.name)}: {file}"
            yield Found(encoder, package.licence, file.stat().st_size, source)


def _downloaded() -> Iterator[Found]:
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    except ValueError as error:  # a file where the folder should be
        raise UserError(f"HF_HUB_CACHE: {HF_HUB_CACHE} is no folder; set it to one, or leave it out") from error
    for repository in repositories:
        match = REPOSITORY.fullmatch(repository.repo_id)
        files = [file for one in repository.revisions for file in one.files if file.file_name in TENSORS]
        if match is None or not files:
            continue
        newest = max(files, key=lambda file: file.blob_last_modified)
        name = match["timm"] or match["mit"]
        yield Found(name, _licence(name), newest.size_on_disk, f"downloaded: {Path(newest.file_path)}")


def _licence(name: str) -> str:
    import timm  # here: it takes seconds, and most machines have no download

    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that this version of timm does not know
        known = None
    return (known and known.license) or UNKNOWN
