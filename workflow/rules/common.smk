"""What the rules share: the checked configuration, paths, and the slices of the configuration that each rule uses."""

import json
import os
import re
import shlex
import shutil
from functools import cache
from pathlib import Path

from beco.config import parse_yaml, validate_config
from beco.datasets import watch
from beco.datasets.matching import by_name
from beco.errors import UserError
from beco.exchange.watch import source_token
from beco.artifacts.files import hold
from beco.interpreter import settle
from beco.networks import packages
from beco.project.preflight import preflight, refuse_results
from beco.artifacts.sources import data_files, stage_hash
from beco.schema.slots import LOCALISERS, RECIPES
from beco.schema.stage1 import inputs_of

settle()


def existing(paths):
    """Those that are there; a file that is missing is named by the stage that wants it, with the mend."""
    return [path for path in paths if path and Path(path).exists()]


def checked_config(values):
    """The configuration as the schema sees it; what is wrong with it is said in one line."""
    files = [str(path) for path in workflow.overwrite_configfiles] or ["config.yaml"]
    try:
        for path in existing(
            files
        ):  # a key that comes twice is no longer seen in `values`
            parse_yaml(Path(path).read_text(encoding="utf-8-sig"), path)
        checked = validate_config(values, ", ".join(files))
        refuse_results(f"{checked.results}/{checked.dataset.name}")
        return checked
    except UserError as error:
        raise SystemExit(
            f"beco: {error}"
        )  # a WorkflowError would add lines of this file


def begin(elsewhere, deployed):
    """Refuse a second run in the same results, which a killed run is not, and what would fail hours later.

    Jobs and dry runs do not get here. `elsewhere`: the jobs are another machine's. `deployed`: their software is not what
    is installed here, so nothing can be said of it.
    """
    try:
        hold(BASE)
        if not deployed:
            preflight(CONFIG, BASE, elsewhere)
        WATCHED.list_masks()
    except UserError as error:
        raise SystemExit(f"beco: {error}")


def cache_or_measure(rules):
    """Take the benchmark off the rules whose results are kept between folders."""
    for entry in rules:
        if entry.cache.output:
            entry._benchmark = None  # the property takes paths alone


CONFIG = checked_config(config)
BASE = f"{CONFIG.results}/{CONFIG.dataset.name}"
LABELS = list(CONFIG.labels)
SOURCES = CONFIG.used_sources()
RUNS = [
    (name, seed) for name, entry in CONFIG.experiments.items() for seed in entry.seeds
]
COMPUTE = CONFIG.compute
# A GPU is asked for where one is wanted or seen, so that jobs on one card take turns (profile: resources gpu).
GPU = int(
    COMPUTE.device == "cuda"
    or (COMPUTE.device == "auto" and shutil.which("nvidia-smi") is not None)
)
ENVIRONMENT = "../../envs/beco.yaml"
# Where results are kept between folders (`--cache`); their rules are not measured then, as Snakemake wants it. What their
# hash does not see goes into their params (the shard), and what it should not see into their resources (the dataset's
# folder: what is in it has tokens).
CACHED = "SNAKEMAKE_OUTPUT_CACHE" in os.environ
# What the report is made with besides its code, relative to the package.
REPORT_FILES = [*data_files("evaluation/report"), "schema/published.csv"]


container: "beco.sif"  # with --sdm apptainer; made from envs/beco.def


def growing(amount):
    """A resource that an attempt after a failure asks for once more: 1, 2, 3 times `amount`."""
    return lambda wildcards, attempt: attempt * amount


scattergather:
    cams=COMPUTE.shards.cams,
    labels=COMPUTE.shards.labels,


def one_of(names):
    """The pattern of a wildcard that is one of these names; without any it matches nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    source=one_of(CONFIG.sources),
    labels=one_of([*LABELS, "truth"]),
    experiment=one_of(CONFIG.experiments),
    comparison=one_of(CONFIG.comparisons),
    seed=r"\d+",


def dataset_root():
    """The folder with the pictures; the embedded set is drawn into the results."""
    return (
        f"{BASE}/dataset" if CONFIG.dataset.format == "shapes" else CONFIG.dataset.root
    )


WATCHED = watch.Watched(CONFIG.dataset, dataset_root(), BASE)
try:
    WATCHED.refuse_other()
except UserError as error:
    raise SystemExit(f"beco: {error}")


# With other masks alone the manifest is made anew before the first job, and no reason to run what does not read them.
MANIFEST = f"{BASE}/manifest.csv"
LISTED = ancient(MANIFEST) if WATCHED.is_listed else MANIFEST


def drawn_pictures():
    """The embedded dataset, if it is this one; what is in it counts, and not the folder's time."""
    drawn = [f"{BASE}/dataset"] if CONFIG.dataset.format == "shapes" else []
    return [ancient(path) if WATCHED.is_listed else path for path in drawn]


def watched(*masks):
    """What a rule depends on that reads the manifest and these masks, as a parameter."""
    return WATCHED.parameter("pictures", *masks)


def watched_in_training(wildcards):
    """The same for a training, which may look at masks: it learns from them, or is scored on them."""
    settings = experiment_of(wildcards).training
    learnt = wildcards.labels == "truth" or settings.watch_labels
    looks = ["val_masks"] * bool(settings.validate_every)
    return watched(*looks, *["train_masks"] * bool(learnt))


def drawn_masks(wildcards):
    """The mark that the masks are there, of a dataset whose masks have to be drawn."""
    return [f"{BASE}/masks/complete"] if CONFIG.dataset.format == "coco" else []


def masks_in_training(wildcards):
    """The same for a training that looks at masks: one on them, or with scores on the validation split."""
    looks = experiment_of(wildcards).training.validate_every
    return drawn_masks(wildcards) if looks or wildcards.labels == "truth" else []
