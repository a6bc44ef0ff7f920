"""What the rules share: the checked configuration, paths, and the slices of the configuration that each rule uses."""

import shutil
from pathlib import Path
from shlex import quote

from beco.config import parse_yaml, validate_config
from beco.errors import UserError
from beco.files import hold, read_json
from beco.sources import stage_hash


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
        return validate_config(values, ", ".join(files))
    except UserError as error:
        raise SystemExit(
            f"beco: {error}"
        )  # a WorkflowError would add lines of this file


def refuse_other_dataset(checked, base):
    """Stop before the results of one dataset are overwritten by those of another."""
    made_by = Path(base) / "manifest.json"
    if made_by.exists():
        before, now = read_json(made_by)["dataset"], checked.dataset.identity()
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise SystemExit(
                f"beco: {base}: holds results of another dataset ({changed[0]} was {before.get(changed[0])}, is now "
                f"{now[changed[0]]}); choose another dataset.name or results folder, or remove this one"
            )


def hold_results():
    """Refuse a second run in the same results. Jobs and dry runs do not get here, and a killed run leaves no lock."""
    try:
        hold(BASE)
    except UserError as error:
        raise SystemExit(f"beco: {error}")


CONFIG = checked_config(config)
BASE = f"{CONFIG.results}/{CONFIG.dataset.name}"
refuse_other_dataset(CONFIG, BASE)
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
# What the report is made with besides its code, relative to the package.
REPORT_FILES = ["evaluation/report.html.j2", "published.csv"]


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
    seed=r"\d+",


def dataset_root():
    """The folder with the pictures; the embedded set is drawn into the results."""
    return (
        f"{BASE}/dataset" if CONFIG.dataset.format == "shapes" else CONFIG.dataset.root
    )


def dataset_files(wildcards):
    """What the manifest is made from, as far as Snakemake should watch it: the drawn set, the labels or the split lists."""
    if CONFIG.dataset.format == "shapes":
        return [f"{BASE}/dataset"]
    if CONFIG.dataset.format == "folder":
        return existing([CONFIG.dataset.labels])
    pattern = {
        "voc": "ImageSets/Segmentation/{}.txt",
        "coco": "annotations/instances_{}.json",
    }[CONFIG.dataset.format]
    names = (CONFIG.dataset.train, CONFIG.dataset.val)
    return existing([f"{dataset_root()}/{pattern.format(name)}" for name in names])


def manifest_settings():
    """The settings that the manifest follows from; not those of the masks alone, lest they rerun every training."""
    left_out = {"shapes": True, "coco": CONFIG.dataset.coco.mask_keys()}
    if CONFIG.dataset.format != "coco":
        left_out["coco"] = True
    return CONFIG.dataset.model_dump_json(exclude=left_out)


def drawn_masks(wildcards):
    """The mark that the masks are there, of a dataset whose masks have to be drawn."""
    return [f"{BASE}/masks/complete"] if CONFIG.dataset.format == "coco" else []


def masks_in_training(wildcards):
    """The same for a training that looks at masks: one on them, or with scores on the validation split."""
    looks = experiment_of(wildcards).training.validate_every
    return drawn_masks(wildcards) if looks or wildcards.labels == "truth" else []


def expected_options():
    """What later stages start from, for `beco manifest` to miss before hours are spent; no trigger, since a resource."""
    paths = dict.fromkeys(CONFIG.needed().values())
    return " ".join(f"--expect {quote(path)}" for path in paths)


def weights_file(encoder):
    """The weights file of an encoder, if it starts from one."""
    return existing(
        [encoder.weights]
        if encoder.weights not in (None, "imagenet", "classifier")
        else []
    )


def experiment_of(wildcards):
    """The experiment that a path belongs to."""
    return CONFIG.experiments[wildcards.experiment]


def network_of(wildcards):
    """The network settings of the experiment that a path belongs to."""
    return CONFIG.networks[experiment_of(wildcards).network]


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
    wanted = pair_settings(wildcards)
    for name, recipe in CONFIG.labels.items():
        same = recipe.model_dump_json(include=recipe.label_keys()) == wanted
        if recipe.refine == "crf" and same:
            return f"{BASE}/{name}/labels.h5"
    return f"{BASE}/{wildcards.labels}/pairs.h5"


def class_maps(wildcards):
    """What labels are made of: the CAMs, or their scores after IRN's walk; these are shared by recipes of one IRN."""
    recipe = CONFIG.labels[wildcards.labels]
    if recipe.refine != "irn":
        return f"{BASE}/cams.h5"
    keys = {"refine", "irn"} | recipe.for_pairs().label_keys()
    wanted = recipe.model_dump(include=keys)
    same = [
        name
        for name, other in CONFIG.labels.items()
        if other.model_dump(include=keys) == wanted
    ]
    return f"{BASE}/{same[0]}/scores.h5"


def sweep_settings(wildcards):
    """What a sweep of the background score depends on: of a CRF recipe, the CRF; its thresholds are what is swept."""
    recipe = CONFIG.labels[wildcards.labels]
    return recipe.model_dump_json(include={"refine", "crf"} & recipe.label_keys())


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
    if CONFIG.quality.backgrounds:
        found += [f"{BASE}/{name}/quality/sweep.csv" for name in swept_labels()]
    return found


def swept_labels():
    """The recipes that are swept: not imports, and of several that differ in nothing but what is swept the first."""
    first = {}
    for name, recipe in CONFIG.labels.items():
        if recipe.refine != "import":
            keys = {"refine", "crf"} | ({"irn"} if recipe.refine == "irn" else set())
            first.setdefault(recipe.model_dump_json(include=keys), name)
    return list(first.values())


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


def run_options():
    """The runs as the tables and the report take them: --runs experiment:seed:labels=folder …"""
    named = [
        f"{name}:{seed}:{CONFIG.experiments[name].labels}={run_folder(name, seed)}"
        for name, seed in RUNS
    ]
    return [word for option in named for word in ("--runs", option)]


def label_options():
    """The stage-one recipes as the tables and the report take them: --labels name=folder …"""
    return [word for name in LABELS for word in ("--labels", f"{name}={BASE}/{name}")]


def published_options():
    """The published figures as the tables and the report take them: --published experiment=key …"""
    named = [(name, entry.published) for name, entry in CONFIG.experiments.items()]
    return [
        word for name, key in named if key for word in ("--published", f"{name}={key}")
    ]


def get_final_output():
    """What a plain `snakemake` makes."""
    return [f"{BASE}/tables", f"{BASE}/report.html"]


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
