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

from beco.config import Config
from beco.datasets import formats, saliency, shapes
from beco.datasets import manifest as manifests
from beco.datasets.manifest import Manifest
from beco.datasets.meaning import order
from beco.errors import Problems, UserError
from beco.exchange import imports
from beco.networks.joint import image_projection
from beco.project import networks, room, sources
from beco.stage1 import texts
from beco.stage1.train import unscored
from beco.training.trainer import choose_device

GIB = room.GIB


@dataclass
class Group:
    """What was found about one thing."""

    name: str
    notes: list[str] = field(default_factory=list)
    """What to know."""
    problems: list[str] = field(default_factory=list)
    """What is wrong, a line with its mend each."""
    doubts: list[str] = field(default_factory=list)
    """The same by an estimate, which may be wrong itself."""


def check(config: Config, quick: bool = False, elsewhere: bool = False) -> list[Group]:
    """Look at all that `config` needs.

    `quick` leaves the pictures alone, for which the list of an earlier run stands, if there is one; `elsewhere` leaves
    out this machine, since others will do the work.
    """
    data, manifest = _listed(config) if quick else _dataset(config)
    looks: list[tuple[str, Callable[[Group], None]]] = [
        ("weights", partial(_weights, config)),
        ("imported labels", partial(_imports, config, manifest)),
        ("machine", partial(_machine, config, manifest)),
        ("disk", partial(_disk, config, manifest)),
        ("software", partial(_software, config)),
    ]
    if users := [name for name in config.used_sources() if config.saliency_of(name)]:
        looks.insert(2, ("saliency", partial(_saliency, config, manifest, users)))
    if users := [name for name in config.used_sources() if config.sources[name].text]:
        looks.insert(2, ("texts", partial(_texts, config, manifest, users)))
    if elsewhere:
        looks = [(name, look) for name, look in looks if name != "machine"]
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
    _describe(config, manifest, group)
    return group, manifest


def _listed(config: Config) -> tuple[Group, Manifest | None]:
    """The manifest that an earlier run of the workflow has made of this configuration's dataset, or None."""
    group, path = Group("dataset"), Path(config.results) / config.dataset.name / "manifest.csv"
    if not path.is_file():
        group.notes.append("read by the workflow's first job")
        return group, None
    manifest = manifests.read(path, config.dataset.root or "")
    _describe(config, manifest, group)
    return group, manifest


def _describe(config: Config, manifest: Manifest, group: Group) -> None:
    """Note how many pictures, classes and masks there are, and refuse batches of more than there are."""
    parts = [f"{len(manifest.split(name))} {name}" for name in ("train", "val")]
    masks = len(manifest.with_masks())
    group.notes.append(
        f"{len(manifest)} pictures ({', '.join(parts)}), {len(manifest.classes)} classes, {masks or 'no'} masks"
    )
    if masks:
        group.notes.append(f"label values of the masks: {order(manifest.classes)}")
    if words := unscored(manifest.split("val")):
        group.notes.append(f"classifier: {words}")
    if smallest := _smallest_batch(config, len(manifest.split("train"))):
        group.problems.append(smallest)


def _smallest_batch(config: Config, pictures: int) -> str:
    batches = {key: settings.schedule.batch_size for key, settings in config.classifiers().items()}
    batches |= {
        f"experiments.{name}.training": e.training.schedule.batch_size for name, e in config.experiments.items()
    }
    large = [f"{name}.schedule.batch_size ({batch})" for name, batch in batches.items() if batch > pictures]
    return f"{', '.join(large)}: more than the {pictures} training pictures; make it smaller" if large else ""


# --- files that are started from ----------------------------------------------------------------------------


def _weights(config: Config, group: Group) -> None:
    """Build every network and load the file it starts from; then the localisers."""
    notes, problems = networks.look(config)
    group.notes += notes
    group.problems += problems or sources.misfits(config)


def _imports(config: Config, manifest: Manifest | None, group: Group) -> None:
    """Look whether the folders are there, and with a manifest at a few files of each."""
    for name, recipe in config.labels.items():
        if recipe.imported is None:
            continue
        key, path = f"labels.{name}.source.path", recipe.imported.path
        if not Path(path).exists():
            group.problems.append(f"{key}: {path}: no such folder; put the labels there or change the path")
            continue
        form = recipe.imported.format
        if manifest is not None:
            try:
                form = imports.look(manifest.split("train"), Path(path), form)
            except UserError as error:
                group.problems.append(f"{key}: {error}")
                continue
        group.notes.append(f"{key}: {path} ({form})")


def _saliency(config: Config, manifest: Manifest | None, users: list[str], group: Group) -> None:
    """Look whether the folder is there, and with a manifest whether every training picture has a map of its size."""
    place = Path(str(config.dataset.saliency))
    if config.dataset.saliency is None:
        group.notes.append(f"{saliency.OBJECTS}, for sources.{', sources.'.join(users)}")
        return
    try:
        if manifest is not None:
            saliency.in_folder(place, manifest.split("train"))
        elif not place.is_dir():
            drawn = " or leave it out for the true objects" if config.dataset.format == "shapes" else ""
            raise UserError(f"{place}: no such folder; put the saliency maps there or change the path{drawn}")
    except Problems as error:
        group.problems += [f"dataset.saliency: {line}" for line in error.lines]
    except UserError as error:
        group.problems.append(f"dataset.saliency: {error}")
    else:
        group.notes.append(f"dataset.saliency: {place}, for sources.{', sources.'.join(users)}")


def _texts(config: Config, manifest: Manifest | None, users: list[str], group: Group) -> None:
    """Read each file, compare it with the image tower, and with a manifest look for every class in it."""
    for name in users:
        source, key = config.sources[name], f"sources.{name}"
        try:
            found = texts.read(Path(str(source.text)))
            if manifest is not None or config.dataset.format == "shapes":
                found.of(manifest.classes if manifest else config.dataset.classes or shapes.CLASSES)
            found.refuse_other_width(len(image_projection(source.classifier.encoder)[0]))
        except UserError as error:
            group.problems.append(f"{key}: {error}")
            continue
        group.notes.append(f"{key}.text: {source.text}, {len(found.names)} classes")


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
        wanted = [(key, settings.schedule.precision) for key, settings in config.classifiers().items()]
        wanted += [
            (f"experiments.{name}.training", e.training.schedule.precision) for name, e in config.experiments.items()
        ]
        group.problems += [
            f"{key}.schedule.precision: fp16 needs a GPU; set bf16 or 32" for key, value in wanted if value == "fp16"
        ]
    on_gpu = device.type == "cuda"
    memories = [("memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory(config, manifest, on_gpu))]
    if on_gpu:
        held = torch.cuda.get_device_properties(device).total_memory
        memories.append(("GPU memory", held, learning(config, manifest)))
    for name, there, wanted_bytes in memories:
        text = f"{name}: {there / GIB:.1f} GiB, a job needs about {wanted_bytes / GIB:.1f}"
        if wanted_bytes > there:
            mend = "raise schedule.accumulate, shrink the largest pictures, or use a larger machine"
            group.doubts.append(f"{text}; {mend}")
        else:
            group.notes.append(text)


def learning(config: Config, manifest: Manifest | None) -> int:
    """Bytes of the largest training: see `room.training`."""
    return room.largest_training(config, len(manifest.classes if manifest else shapes.CLASSES))


def memory(config: Config, manifest: Manifest | None, on_gpu: bool = False) -> int:
    """Bytes that the largest job takes: its process, and a training's networks or the scores of the largest picture.

    On a GPU networks learn in its own memory.
    """
    needed = 0 if on_gpu else learning(config, manifest)
    if manifest is not None:
        side = config.prediction.scored_side
        pixels = side**2 if side else int((manifest.table["height"] * manifest.table["width"]).max())
        needed = max(needed, room.scores(pixels, len(manifest.classes) + 1))
    return room.PROCESS + needed


def _disk(config: Config, manifest: Manifest | None, group: Group) -> None:
    folder = Path(config.results).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    if not os.access(there, os.W_OK):
        group.problems.append(f"{there}: may not be written to; choose another folder for results")
    if manifest is None and config.dataset.format != "shapes":
        return
    free, wanted = shutil.disk_usage(there).free, disk(config, manifest)
    text = f"{config.results}: {free / GIB:.1f} GiB free, at most about {wanted / GIB:.1f} needed"
    if wanted > free:
        group.doubts.append(f"{text}; make room, or choose another folder for results")
    else:
        group.notes.append(text)


def disk(config: Config, manifest: Manifest | None) -> int:
    """Bytes of the results, from above: see `room.disk`. Without a manifest: of the embedded dataset."""
    if manifest is None:
        drawn = config.dataset.shapes
        train, val = (count * drawn.size**2 for count in (drawn.train, drawn.val))
        return room.disk(config, room.Sums(train, 0, val, train), len(shapes.CLASSES))
    table = manifest.table.assign(pixels=manifest.table["height"] * manifest.table["width"])
    learnt = table[table["split"] == "train"]
    shown = (learnt["pixels"] * learnt[manifest.classes].sum(axis=1)).sum()
    predicted = table if config.dataset.format == "folder" else table[table["split"] == "val"]
    side = config.prediction.scored_side
    written = len(predicted) * side**2 if side else predicted["pixels"].sum()
    return room.disk(config, room.Sums(learnt["pixels"].sum(), shown, written), len(manifest.classes))


# --- software -----------------------------------------------------------------------------------------------


def _applies(wanted: Requirement, extra: str) -> bool:
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})


def _software(config: Config, group: Group) -> None:
    """Installed packages against the requirements of this one, and what a setting needs in addition."""
    told, absent = [f"Python {platform.python_version()}"], []
    for text in requires("beco") or []:
        wanted = Requirement(text)
        if not _applies(wanted, "workflow"):
            continue
        fix = f"run `make env` again, or pip install '{wanted.name}{wanted.specifier}'"
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            if _applies(wanted, ""):
                group.problems.append(f"{wanted.name}: not installed; {fix}")
            else:
                absent.append(wanted.name)
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            group.problems.append(f"{wanted.name} {found}: wanted is {wanted.specifier}; {fix}")
        if wanted.name in ("torch", "snakemake"):
            told.append(f"{wanted.name} {found}")
    group.notes.append(", ".join(told))
    if absent:  # the commands do without
        group.notes.append(f"{', '.join(absent)}: not installed; the workflow needs it: pip install 'beco[workflow]'")
    crfs = [recipe.crf for recipe in config.labels.values()] + [config.prediction.crf]
    if any(crf is not None and crf.backend == "pydensecrf" for crf in crfs) and find_spec("pydensecrf") is None:
        compiler = "there is one here" if shutil.which("c++") else "there is none here: apt-get install g++"
        group.problems.append(
            "crf.backend: pydensecrf is not installed; set torch, which gives the same labels, or install "
            f"pydensecrf2, which needs a C++ compiler ({compiler})"
        )
