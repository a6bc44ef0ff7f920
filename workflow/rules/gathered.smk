"""What the tables, comparisons and the report are made from: runs, labels and sources, as options of the commands."""


def all_runs(pattern):
    """One path per experiment and seed."""
    return [pattern.format(run=run_folder(name, seed)) for name, seed in RUNS]


def first_scores(experiments):
    """The scores of one network alone, of the experiments that have them."""
    return [
        f"{run_folder(name, seed)}/first/metrics.json"
        for name, seed in RUNS
        if name in experiments and CONFIG.has_first(name)
    ]


def run_options(experiments):
    """Runs as the tables and the report take them: --runs experiment:seed:labels=folder …

    And, if one network is scored beside the average, --first.
    """
    named = [
        f"{name}:{seed}:{CONFIG.experiments[name].labels}={run_folder(name, seed)}"
        for name, seed in RUNS
        if name in experiments
    ]
    first = ["--first"] if CONFIG.prediction.networks == "both" else []
    return [*(word for option in named for word in ("--runs", option)), *first]


def label_options(names):
    """Stage-one recipes as the tables and the report take them: --labels name:source=folder …"""
    made = {
        name: "" if CONFIG.labels[name].imported else f":{CONFIG.source_of(name)}"
        for name in names
    }
    return [
        word
        for name, source in made.items()
        for word in ("--labels", f"{name}{source}={BASE}/{name}")
    ]


def source_options():
    """The sources as the tables and the report take them: --source name=folder …"""
    return [word for name in SOURCES for word in ("--source", f"{name}={BASE}/{name}")]


def all_sources(pattern):
    """One path per source that something is made of."""
    return [pattern.format(source=name) for name in SOURCES]


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
        *first_scores(names),
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
