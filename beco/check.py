"""Everything that a configuration needs, looked at before hours are spent: data, weights, machine, disk, software.

Nothing is written, and nothing stops at the first problem: what is wrong is told together, group by group.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import torch
from packaging.requirements import Requirement

from beco.config import Config, Encoder
from beco.datasets import formats
from beco.datasets.manifest import Manifest
from beco.encoders import create_backbone, prepare_backbone
from beco.engine import choose_device
from beco.errors import Problems, UserError

GIB = 2**30
PROCESS = 2 * GIB
"""What one job takes before it has seen a picture: Python, torch, a small network."""


@dataclass
class Group:
    """What was found about one thing."""

    name: str
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check(config: Config) -> list[Group]:
    """Look at all that `config` needs; each group has its problems, a line with its mend each, and what to know."""
    data, manifest = _dataset(config)
    looks: list[tuple[str, Callable[[Group], None]]] = [
        ("weights", partial(_weights, config)),
        ("imported labels", partial(_imports, config)),
        ("machine", partial(_machine, config, manifest)),
        ("disk", partial(_disk, config, manifest)),
        ("software", partial(_software, config)),
    ]
    groups = [data]
    for name, look in looks:
        group = Group(name)
        look(group)
        groups.append(group)
    return groups


# --- data ---------------------------------------------------------------------------------------------------


def _dataset(config: Config) -> tuple[Group, Manifest | None]:
    """Read and check every picture, label and mask, as the rule `manifest` does."""
    group, dataset = Group("dataset"), config.dataset
    if dataset.format == "shapes":
        drawn = dataset.shapes
        group.notes.append(f"{drawn.train} + {drawn.val} pictures of {drawn.size} px, drawn when they are needed")
        return group, None
    with tempfile.TemporaryDirectory() as folder:
        try:
            manifest = formats.build(dataset, Path(folder) / "manifest.csv")
        except Problems as error:
            group.problems += error.lines
            return group, None
        except UserError as error:
            group.problems.append(str(error))
            return group, None
    parts = [f"{len(manifest.split(name))} {name}" for name in ("train", "val")]
    masks = len(manifest.with_masks())
    group.notes.append(
        f"{len(manifest)} pictures ({', '.join(parts)}), {len(manifest.classes)} classes, {masks or 'no'} masks"
    )
    if smallest := _smallest_batch(config, len(manifest.split("train"))):
        group.problems.append(smallest)
    return group, manifest


def _smallest_batch(config: Config, pictures: int) -> str:
    batches = {"classifier": config.classifier.schedule.batch_size}
    batches |= {
        f"experiments.{name}.training": e.training.schedule.batch_size for name, e in config.experiments.items()
    }
    large = [f"{name}.schedule.batch_size ({batch})" for name, batch in batches.items() if batch > pictures]
    return f"{', '.join(large)}: more than the {pictures} training pictures; make it smaller" if large else ""


# --- files that are started from ----------------------------------------------------------------------------


def _encoders(config: Config) -> dict[str, tuple[Encoder, int]]:
    """Every backbone that is built, with its output stride, by the key that sets it."""
    found = {"classifier.encoder": (config.classifier.encoder, config.classifier.output_stride)}
    for name in sorted({experiment.network for experiment in config.experiments.values()}):
        network = config.networks[name]
        found[f"networks.{name}.encoder"] = (network.encoder, network.output_stride)
    return found  # type: ignore[return-value]


def _weights(config: Config, group: Group) -> None:
    """Build every backbone and load the file it starts from; downloads are left for later."""
    for key, (encoder, stride) in _encoders(config).items():
        known = encoder.weights in (None, "imagenet", "classifier")
        try:
            backbone = create_backbone(encoder.model_copy(update={"weights": None}), stride)
            prepare_backbone(backbone, encoder.model_copy(update={"weights": None}) if known else encoder)
        except UserError as error:
            group.problems.append(f"{key}: {error}")
            continue
        source = {None: "random weights", "imagenet": "ImageNet weights, downloaded when first needed"}
        group.notes.append(f"{key}: {encoder.name}, {source.get(encoder.weights, str(encoder.weights))}")


def _imports(config: Config, group: Group) -> None:
    for key, path in config.needed().items():
        if key.startswith("labels.") and not Path(path).exists():
            group.problems.append(f"{key}: {path}: no such folder; put the labels there or change the path")
        elif key.startswith("labels."):
            group.notes.append(f"{key}: {path}")


# --- machine ------------------------------------------------------------------------------------------------


def _machine(config: Config, manifest: Manifest | None, group: Group) -> None:
    compute = config.compute
    try:
        device = choose_device(compute.device)
    except UserError as error:
        group.problems.append(str(error))
        device = torch.device("cpu")
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        group.notes.append(f"{gpus} × {torch.cuda.get_device_name(0)}")
        if compute.devices > gpus:
            group.problems.append(f"compute.devices: {compute.devices}, but this machine has {gpus}; set it to {gpus}")
    else:
        group.notes.append("no GPU: all runs on the CPU")
        if shutil.which("nvidia-smi"):
            group.notes.append("there is a driver (nvidia-smi), but torch sees no GPU; look at `nvidia-smi`")
        wanted = [("classifier", config.classifier.schedule.precision)]
        wanted += [
            (f"experiments.{name}.training", e.training.schedule.precision) for name, e in config.experiments.items()
        ]
        group.problems += [
            f"{key}.schedule.precision: fp16 needs a GPU; set bf16 or 32" for key, value in wanted if value == "fp16"
        ]
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted_bytes = memory(config, manifest)
    text = f"memory: {there / GIB:.1f} GiB, a job needs about {wanted_bytes / GIB:.1f}"
    if wanted_bytes > there:
        group.problems.append(f"{text}; shrink the largest pictures, or use a larger machine")
    else:
        group.notes.append(text)


def memory(config: Config, manifest: Manifest | None) -> int:
    """Bytes that the job with the largest picture takes: `PROCESS`, and three maps of scores at the picture's size.

    A map is (K+1, H, W) float32; prediction holds one network's, their sum, and the resized one at once.
    """
    if manifest is None or config.prediction.squeeze:
        return PROCESS
    pixels = int((manifest.table["height"] * manifest.table["width"]).max())
    return PROCESS + 3 * 4 * pixels * (len(manifest.classes) + 1)


def _disk(config: Config, manifest: Manifest | None, group: Group) -> None:
    folder = Path(config.results).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free, wanted = shutil.disk_usage(there).free, disk(config, manifest)
    text = f"{config.results}: {free / GIB:.1f} GiB free, at most about {wanted / GIB:.1f} needed"
    if not os.access(there, os.W_OK):
        group.problems.append(f"{there}: may not be written to; choose another folder for results")
    if wanted > free:
        group.problems.append(f"{text}; make room, or choose another folder for results")
    else:
        group.notes.append(text)


def disk(config: Config, manifest: Manifest | None) -> int:
    """Bytes of the results, from above, since compression is not counted.

    Per pixel of a training picture 2 for each recipe of labels (label and confidence), and 2/16 for each of
    its classes (float16 CAMs at stride 4, at the picture's own size); per pixel of a predicted picture 1 for each run;
    and for every network 4 times its float32 parameters (weights, and in the checkpoint weights and two moments).
    """
    runs = [(experiment, seed) for experiment in config.experiments.values() for seed in experiment.seeds]
    trained = [_encoders(config)["classifier.encoder"]]
    for experiment, _ in runs:
        network = config.networks[experiment.network]
        trained += [(network.encoder, network.output_stride)] * (1 if experiment.recipe == "single" else 2)
    networks = 4 * 4 * sum(_parameters(*one) for one in trained)
    if manifest is None:
        drawn = config.dataset.shapes
        pixels = drawn.size**2
        return networks + pixels * (drawn.train * (2 * len(config.labels) + 1) + drawn.val * len(runs))
    table = manifest.table.assign(pixels=manifest.table["height"] * manifest.table["width"])
    train = table[table["split"] == "train"]
    shown = train[manifest.classes].sum(axis=1)
    stage_one = (train["pixels"] * (2 * len(config.labels) + 2 / 16 * shown)).sum()
    predicted = table if config.dataset.format == "folder" else table[table["split"] == "val"]
    return int(networks + stage_one + predicted["pixels"].sum() * len(runs))


def _parameters(encoder: Encoder, stride: int) -> int:
    """Parameters of a backbone; 0 where it cannot be built, which is told elsewhere."""
    try:
        with torch.device("meta"):
            backbone = create_backbone(encoder.model_copy(update={"weights": None}), stride)
    except UserError:
        return 0
    return sum(parameter.numel() for parameter in backbone.parameters())


# --- software -----------------------------------------------------------------------------------------------


def _software(config: Config, group: Group) -> None:
    """Installed packages against the requirements of this one, and what a setting needs in addition."""
    told = [f"Python {platform.python_version()}"]
    for text in requires("beco") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            group.problems.append(f"{wanted.name}: not installed; run `make env` again")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            group.problems.append(f"{wanted.name} {found}: wanted is {wanted.specifier}; run `make env` again")
        if wanted.name in ("torch", "snakemake"):
            told.append(f"{wanted.name} {found}")
    group.notes.append(", ".join(told))
    crfs = [recipe.crf for recipe in config.labels.values()] + [config.prediction.crf]
    if any(crf is not None and crf.backend == "pydensecrf" for crf in crfs) and find_spec("pydensecrf") is None:
        compiler = "there is one here" if shutil.which("c++") else "there is none here: apt-get install g++"
        group.problems.append(
            "crf.backend: pydensecrf is not installed; set torch, which gives the same labels, or install "
            f"pydensecrf2, which needs a C++ compiler ({compiler})"
        )
