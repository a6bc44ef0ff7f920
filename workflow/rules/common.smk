"""What the rules share: the checked configuration, paths, and the slices of the configuration that each rule uses."""

import json
import os
import shutil
from functools import cache
from pathlib import Path

from beco.config import parse_yaml, validate_config
from beco.datasets import watch
from beco.errors import UserError
from beco.exchange.watch import source_token
from beco.artifacts.files import hold
from beco.interpreter import settle
from beco.networks import packages
from beco.project.preflight import preflight, refuse_results
from beco.artifacts.sources import data_files, stage_hash
from beco.schema.slots import RECIPES

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


wildcard_constraints:
    labels="|".join([*LABELS, "truth"]),
    experiment="|".join(CONFIG.experiments),
    comparison="|".join(CONFIG.comparisons) or "(?!)",
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


def weights_file(encoder):
    """The weights file of an encoder, if it starts from one, also one that an installed package ships."""
    return existing([packages.weights_file(encoder)])


def irn_start(wildcards):
    """The weights file that the backbone of a recipe's IRN starts from, if not from the classifier."""
    from_encoder = CONFIG.labels[wildcards.labels].irn.start == "encoder"
    return weights_file(CONFIG.classifier.encoder) if from_encoder else []


def experiment_of(wildcards):
    """The experiment that a path belongs to."""
    return CONFIG.experiments[wildcards.experiment]


def network_of(wildcards):
    """The network settings of the experiment that a path belongs to."""
    return CONFIG.networks[experiment_of(wildcards).network]


def training_code(wildcards):
    """What a training depends on in our code: its recipe's, and no other's."""
    recipe = RECIPES.module(experiment_of(wildcards).recipe)
    return stage_hash("beco.stage2.train", recipe)


def run_folder(name, seed):
    """results/<dataset>/<labels>/<experiment>/seed<k>."""
    return f"{BASE}/{CONFIG.experiments[name].labels}/{name}/seed{seed}"


def recipes(*kinds):
    """What the wildcard `labels` may be in a rule that is for some values of `refine` alone."""
    names = [name for name, recipe in CONFIG.labels.items() if recipe.refine in kinds]
    return "|".join(names) or "(?!)"  # matches nothing


def label_settings(wildcards):
    """The settings that the labels follow from, given the class maps."""
    recipe = CONFIG.labels[wildcards.labels]
    return recipe.model_dump_json(include=recipe.label_keys())


def pair_settings(wildcards):
    """The settings of the confident labels that IRN learns from."""
    recipe = CONFIG.labels[wildcards.labels].for_pairs()
    return recipe.model_dump_json(include=recipe.label_keys())


def pair_labels(wildcards):
    """The confident labels that IRN learns from: a CRF recipe's of the same settings, if there is one, or its own."""
    shared = CONFIG.pairs_of(wildcards.labels)
    return (
        f"{BASE}/{shared}/labels.h5"
        if shared
        else f"{BASE}/{wildcards.labels}/pairs.h5"
    )


def class_maps(wildcards):
    """What a recipe makes labels of: the CAMs, or their scores after IRN's walk, shared by recipes of one IRN."""
    owner = CONFIG.scores_of(wildcards.labels)
    return f"{BASE}/{owner}/scores.h5" if owner else f"{BASE}/cams.h5"


def sweep_settings(wildcards):
    """The settings of the sweep of a path."""
    return CONFIG.swept_settings(wildcards.labels)


def sweep_options():
    """The background scores of the sweep: --background score …"""
    return [
        word
        for score in CONFIG.quality.backgrounds
        for word in ("--background", str(score))
    ]


def quality_options():
    """How the quality of labels is measured, as options of `beco evaluate-labels`."""
    options = ["--fraction", str(CONFIG.training.reliable_fraction)]
    if CONFIG.training.reliable_threshold is not None:
        options += ["--threshold", str(CONFIG.training.reliable_threshold)]
    return options + [
        word for name in CONFIG.quality.apart for word in ("--apart", name)
    ]


def label_quality():
    """What is measured of the labels: their quality, and the sweep if one is asked for."""
    found = [f"{BASE}/{name}/quality/metrics.json" for name in LABELS]
    return found + [f"{BASE}/{name}/quality/sweep.csv" for name in CONFIG.swept()]


def irn_settings(part):
    """The settings of IRN's training or of its walk, as a function of the wildcards."""

    def chosen(wildcards):
        settings = CONFIG.labels[wildcards.labels].irn
        return settings.model_dump_json(include=getattr(settings, f"{part}_keys")())

    return chosen


def import_options(wildcards):
    """What the configuration says of an import, as options of `beco import-labels`.

    Without a background in the configuration the command's own holds: the default of the section is for our own CAMs.
    """
    recipe = CONFIG.labels[wildcards.labels]
    options = ["--format", recipe.source.format]
    if "background" in recipe.model_fields_set:
        options += ["--background", str(recipe.background)]
    return options


@cache
def import_token(labels):
    """What an import depends on besides the manifest: the files of its folder, looked at once."""
    path = Path(CONFIG.labels[labels].source.path)
    return source_token(path, Path(f"{BASE}/{labels}"), Path(MANIFEST))


def pseudo_labels(wildcards):
    """The labels that an experiment learns from; none if it learns from the training masks."""
    return (
        [] if wildcards.labels == "truth" else [f"{BASE}/{wildcards.labels}/labels.h5"]
    )


def starting_weights(wildcards):
    """Files that the networks of an experiment start from."""
    encoder = network_of(wildcards).encoder
    if encoder.weights == "classifier":
        return [f"{BASE}/classifier/classifier.safetensors"]
    return weights_file(encoder)


def all_runs(pattern):
    """One path per experiment and seed."""
    return [pattern.format(run=run_folder(name, seed)) for name, seed in RUNS]


def run_options(experiments):
    """Runs as the tables and the report take them: --runs experiment:seed:labels=folder …"""
    named = [
        f"{name}:{seed}:{CONFIG.experiments[name].labels}={run_folder(name, seed)}"
        for name, seed in RUNS
        if name in experiments
    ]
    return [word for option in named for word in ("--runs", option)]


def label_options(names):
    """Stage-one recipes as the tables and the report take them: --labels name=folder …"""
    return [word for name in names for word in ("--labels", f"{name}={BASE}/{name}")]


def published_options(experiments):
    """Published figures as the tables and the report take them: --published experiment=key …"""
    named = [(name, CONFIG.experiments[name].published) for name in experiments]
    return [
        word for name, key in named if key for word in ("--published", f"{name}={key}")
    ]


def compared(wildcards):
    """The experiments of a comparison."""
    return CONFIG.comparisons[wildcards.comparison].experiments


def compared_labels(wildcards):
    """The pseudo-labels that the experiments of a comparison learn from."""
    learnt = [CONFIG.experiments[name].labels for name in compared(wildcards)]
    return [name for name in LABELS if name in learnt]


def compared_files(wildcards):
    """What a comparison is made from; nothing of other experiments, lest they are trained for it."""
    names = compared(wildcards)
    runs = [run_folder(name, seed) for name, seed in RUNS if name in names]
    return [
        *(
            f"{run}/{name}"
            for run in runs
            for name in ("metrics.json", "training.json")
        ),
        *(f"{BASE}/{name}/quality/metrics.json" for name in compared_labels(wildcards)),
    ]


def comparison_options(wildcards):
    """A comparison as options of `beco comparison`."""
    names = compared(wildcards)
    return [
        *("--settings", CONFIG.comparisons[wildcards.comparison].model_dump_json()),
        *run_options(names),
        *label_options(compared_labels(wildcards)),
        *published_options(names),
    ]


def comparisons_text():
    """The comparisons as the report takes them."""
    return json.dumps(
        {name: entry.model_dump() for name, entry in CONFIG.comparisons.items()}
    )


def all_tables():
    """Every table: those of all experiments, and the comparisons."""
    named = [f"{BASE}/comparisons/{name}.csv" for name in CONFIG.comparisons]
    return [f"{BASE}/tables", *named]


def get_final_output():
    """What a plain `snakemake` makes."""
    return [*all_tables(), f"{BASE}/report.html"]


def threads_of_a_process(wildcards, threads):
    """Threads of each process of a training; fewer than configured where --cores grants the job fewer."""
    return max(threads // COMPUTE.devices, 1)


def spread_options():
    """How a training is spread over devices, as options of `beco train`; no trigger, since a resource."""
    options = f"--devices {COMPUTE.devices} --nodes {COMPUTE.nodes}"
    return options + (" --compile" if COMPUTE.compile else "")


def label_and_weight_options(wildcards):
    """Where the labels and the starting weights of a training are, as options of `beco train`."""
    options = []
    if wildcards.labels != "truth":
        options += ["--labels", f"{BASE}/{wildcards.labels}/labels.h5"]
    if network_of(wildcards).encoder.weights == "classifier":
        options += ["--classifier", f"{BASE}/classifier/classifier.safetensors"]
    return options
