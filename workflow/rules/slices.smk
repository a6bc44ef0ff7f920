"""What each rule of the two stages starts from, and the slice of the configuration that it depends on."""


def weights_file(encoder):
    """The weights file of an encoder, if it starts from one, also one that an installed package ships."""
    return existing([packages.weights_file(encoder)])


def labels_file(name):
    """The pseudo-labels of a stage-one recipe."""
    return f"{BASE}/{name}/labels.h5"


def classifier(source):
    """The network of a source."""
    return f"{BASE}/{source}/classifier/classifier.safetensors"


def source_of(wildcards):
    """The source that a path belongs to."""
    return CONFIG.sources[wildcards.source]


def localiser_starts(wildcards):
    """The files that a source starts from besides the pictures."""
    source = source_of(wildcards)
    return [
        *weights_file(source.classifier.encoder),
        *([classifier(source.start)] if source.start else []),
        *([labels_file(source.labels)] if source.labels else []),
        *existing([source.text]),
    ]


def localiser_inputs(wildcards):
    """What a source has besides pictures and their labels, as options of `beco train-classifier`."""
    source = source_of(wildcards)
    start = ["--start", classifier(source.start)] if source.start else []
    labels = ["--labels", labels_file(source.labels)] if source.labels else []
    text = ["--text", source.text] if source.text else []
    folder = saliency_folder(wildcards)
    watched = ["--watched", saliency_token(wildcards.source)] if folder else []
    return start + labels + text + watched


def saliency_folder(wildcards):
    """The folder of the saliency maps that a source learns from, if it does and they are not drawn."""
    return CONFIG.saliency_of(wildcards.source) and CONFIG.dataset.saliency


def saliency_option(wildcards):
    """The same for a shell; no trigger, since a resource: what is in the folder has a token."""
    found = CONFIG.saliency_of(wildcards.source)
    return shlex.join(["--saliency", found]) if found else ""


@cache
def saliency_token(source):
    """What a training depends on of its saliency maps, looked at once."""
    folder = Path(CONFIG.dataset.saliency)
    base = Path(f"{BASE}/{source}/classifier")
    return source_token(folder, base, Path(MANIFEST), by_name)


def watched_by_localiser(wildcards):
    """What a localiser's training depends on: the pictures, and the masks if the objects drawn are its saliency maps."""
    drawn = CONFIG.saliency_of(wildcards.source) and not saliency_folder(wildcards)
    return watched(*["train_masks"] * bool(drawn))


def _for_maps(source):
    """What the maps of a source want besides its network and the pictures."""
    return inputs_of(source.method, source.options, "MAP_INPUTS")


def map_labels(wildcards):
    """The labels that the maps of a source want again, if its method does."""
    source = source_of(wildcards)
    return [labels_file(source.labels)] if "labels" in _for_maps(source) else []


def map_inputs(wildcards):
    """The same and its method's own settings of maps, as options of `beco cams`."""
    labels = [word for path in map_labels(wildcards) for word in ("--labels", path)]
    own = source_of(wildcards).parted_options()[1]
    return [*labels, *(["--options", json.dumps(own)] if own else [])]


def map_saliency_option(wildcards):
    """The saliency maps that the maps of a source want again, for a shell; no trigger, as in its training."""
    wanted = "saliency" in _for_maps(source_of(wildcards))
    return saliency_option(wildcards) if wanted else ""


def watched_by_maps(wildcards):
    """What score maps depend on: the pictures, and what their saliency maps are where they want such."""
    if "saliency" not in _for_maps(source_of(wildcards)):
        return watched()
    files = [saliency_token(wildcards.source)] if saliency_folder(wildcards) else []
    return [watched_by_localiser(wildcards), *files]


def localiser_code(stage):
    """What a stage depends on in our code, as a function of the wildcards: the stage's, and the source's method."""
    return lambda wildcards: stage_hash(
        stage, LOCALISERS.module(source_of(wildcards).method)
    )


def cams_of(wildcards):
    """The score maps that a recipe starts from."""
    return f"{BASE}/{CONFIG.source_of(wildcards.labels)}/cams.h5"


def classifier_of(wildcards):
    """The network of the source that a recipe's IRN starts from."""
    return classifier(CONFIG.source_of(wildcards.labels))


def irn_start(wildcards):
    """The weights file that the backbone of a recipe's IRN starts from, if not from the classifier."""
    if CONFIG.labels[wildcards.labels].irn.start != "encoder":
        return []
    source = CONFIG.sources[CONFIG.source_of(wildcards.labels)]
    return weights_file(source.classifier.encoder)


def experiment_of(wildcards):
    """The experiment that a path belongs to."""
    return CONFIG.experiments[wildcards.experiment]


def network_of(wildcards):
    """The network settings of the experiment that a path belongs to."""
    return CONFIG.networks[experiment_of(wildcards).network].alone


def training_code(wildcards):
    """What a training depends on in our code: its recipe's, and no other's."""
    recipe = RECIPES.module(experiment_of(wildcards).recipe)
    return stage_hash("beco.stage2.train", recipe)


def run_folder(name, seed):
    """results/<dataset>/<labels>/<experiment>/seed<k>."""
    return f"{BASE}/{CONFIG.experiments[name].labels}/{name}/seed{seed}"


def of_the_first():
    """How one network alone is to predict, and is scored."""
    return CONFIG.prediction.model_copy(update={"networks": "first"}).model_dump_json()


def recipes(*kinds):
    """What the wildcard `labels` may be in a rule that is for some values of `refine` alone."""
    return one_of(
        name for name, recipe in CONFIG.labels.items() if recipe.refine in kinds
    )


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
    return labels_file(shared) if shared else f"{BASE}/{wildcards.labels}/pairs.h5"


def class_maps(wildcards):
    """What a recipe makes labels of: the CAMs, or their scores after IRN's walk, shared by recipes of one IRN."""
    owner = CONFIG.scores_of(wildcards.labels)
    return f"{BASE}/{owner}/scores.h5" if owner else cams_of(wildcards)


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
    options = ["--format", recipe.imported.format]
    if "background" in recipe.model_fields_set:
        options += ["--background", str(recipe.background)]
    return options


@cache
def import_token(labels):
    """What an import depends on besides the manifest: the files of its folder, looked at once."""
    path = Path(CONFIG.labels[labels].imported.path)
    return source_token(path, Path(f"{BASE}/{labels}"), Path(MANIFEST))


def pseudo_labels(wildcards):
    """The labels that an experiment learns from; none if it learns from the training masks."""
    return [] if wildcards.labels == "truth" else [labels_file(wildcards.labels)]


def starting_weights(wildcards):
    """Files that the networks of an experiment start from."""
    encoder = network_of(wildcards).encoder
    if encoder.weights == "classifier":
        return [classifier(CONFIG.start_of(wildcards.experiment))]
    return weights_file(encoder)


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
        options += ["--labels", labels_file(wildcards.labels)]
    if network_of(wildcards).encoder.weights == "classifier":
        options += ["--classifier", *starting_weights(wildcards)]
    return options
