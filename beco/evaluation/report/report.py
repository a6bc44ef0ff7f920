"""The report: one HTML file that needs no network, made from the files of the runs.

The page says nothing that is not computed from those files, and leads from every number to the settings,
the seed and the files behind it. The template is `report.html.j2`, with autoescape on: names of pictures,
classes and experiments are the user's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from beco.artifacts.files import read_json, whole
from beco.artifacts.store import Store
from beco.datasets.manifest import Manifest
from beco.datasets.palette import voc_palette
from beco.evaluation.report import curves, figures
from beco.evaluation.report.gallery import labels_gallery, results_gallery
from beco.evaluation.report.layers import ERRORS, SAFE, VOID_COLOUR
from beco.evaluation.scores.quality import not_as_asked
from beco.evaluation.scores.rank_correlation import correlation_table
from beco.evaluation.tables import comparisons, label_tables, pairs, table_files, tables
from beco.evaluation.tables.tables import LabelSource, MapSource, Results, Run, mean_std, percent
from beco.schema.slots import RECIPES

PACKAGES = ["beco", "torch", "numpy", "timm", "segmentation-models-pytorch", "scikit-image", "snakemake"]
SCORES = ["metrics.json", "per_class.csv", "per_image.csv", "per_image_class.csv"]
RUN_FILES = [*SCORES, "history.csv", "training.json", "predictions"]
FIRST_FILES = [f"{tables.FIRST}/{name}" for name in [*SCORES, "predictions"]]
LABEL_FILES = ["labels.h5", *(f"quality/{name}" for name in [*SCORES, "sweep.csv"])]


def write_report(
    manifest: Manifest,
    results: Results,
    gallery: int,
    output: Path,
    title: str | None = None,
    splits: tuple[str, str] = ("train", "val"),
) -> None:
    """Write the report as one HTML file.

    Args:
        manifest: the whole dataset, all splits.
        results: what it is made from; sections and layers of what is not there are left out.
        gallery: how many pictures of each split are shown, the worst ones first.
        output: the HTML file.
        title: heading of the page; None: the name of the dataset's folder.
        splits: the one whose pseudo-labels are shown, and the one that the runs were evaluated on.

    Raises `UserError` naming the first file that is missing or damaged.
    """
    train, val = (manifest.split(name) for name in splits)
    runs, label_sources = results.runs, results.labels
    numbers = _numbers(runs, label_sources, results.published)
    best = numbers["best"]
    page = {
        "title": title or f"Weakly supervised segmentation of {manifest.root.name}",
        "splits": _splits(train, val, *splits, manifest),
        "legend": _legend(manifest),
        "experiments": _experiments(runs, output),
        "sources": _sources(label_sources, output),
        "provenance": _provenance(runs, results.sources),
        "colours": _colours(manifest),
        "anchors": _anchors(runs, label_sources),
        "val_gallery": results_gallery(val, runs, gallery, best and best["experiment"], _compared(runs, best)),
        "train_gallery": labels_gallery(train, results.sources, label_sources, gallery),
        "comparisons": comparisons.sections(results.compared, runs, label_sources, results.published),
        "classifiers": _classifiers(results.sources, output),
        **numbers,
    }
    with whole(output) as temporary:
        temporary.write_text(_environment().get_template("report.html.j2").render(page), encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "anchor": _anchor}
    environment.globals |= {"mean_std": mean_std, "spread": tables.spread, "over_pictures": table_files.over_pictures}
    environment.globals |= {
        "supervision_note": table_files.SUPERVISION_NOTE,
        "errors": ERRORS,
        "differences_note": table_files.DIFFERENCES_NOTE,
        "mean_note": table_files.MEAN_NOTE,
        "first_note": table_files.FIRST_NOTE,
        "correlations_note": table_files.CORRELATIONS_NOTE,
    }
    return environment


def _anchor(name: str) -> str:
    """A name as the id of an element: letters and digits stay, the rest becomes its code point."""
    return "".join(char if char.isalnum() else f"-{ord(char):x}-" for char in name)


# --- sections -----------------------------------------------------------------------------------------------


def _numbers(runs: list[Run], label_sources: list[LabelSource], published: Mapping[str, str] | None) -> dict[str, Any]:
    """Tables, figures and the sentences drawn from them."""
    recipes = tables.recipe_table(runs, label_sources, published)
    labels = label_tables.label_table(label_sources)
    run_table, classes = tables.run_table(runs), tables.class_table(runs, label_sources)
    experiments = [str(name) for name in recipes["experiment"]][: figures.MOST_LINES]
    shown = [run for run in runs if run.experiment in experiments]
    errors = {source.name: source.metrics().get("border_error", []) for source in label_sources}
    results = {run.experiment: run.metrics().get("border_error", []) for run in reversed(runs)}  # first seed stays
    plots = {
        "scatter": figures.quality_scatter(recipes, run_table),
        "loss": curves.training_curves(shown),
        "shares": curves.share_curves(shown),
        "left_out": curves.left_out_curves(shown),
        "online": curves.online_curves(shown, _reliable(label_sources, shown)),
        "classes": figures.class_bars(classes, experiments),
        "border": figures.border_errors(errors, {name: results[name] for name in experiments}),
        "trimap": figures.trimap_curves({name: comparisons.by_seed(runs, name, "trimap_iou") for name in experiments}),
        **_label_figures(label_sources),
    }
    return {
        "recipes": recipes.to_dict("records"),
        "published": bool(published),
        "not_drawn": len(recipes) - len(experiments),
        "differences": pairs.pair_table(run_table).to_dict("records"),
        "first": "miou_first" in recipes,
        "labels": [
            {**row, "best": _best_on(recipes, row["labels"]), "apart": labels["labels"].duplicated()[index]}
            for index, row in enumerate(labels.to_dict("records"))
        ],
        "not_as_asked": _not_as_asked(label_sources),
        "correlations": table_files.printed_correlations(correlation_table(runs, labels)),
        "class_table": classes,
        "figures": {name: Markup(plot) if plot else None for name, plot in plots.items()},
        "summary": summary(recipes, [run.metrics().get("reason") for run in runs]),
        "best": _best(recipes),
    }


def _label_figures(label_sources: list[LabelSource]) -> dict[str, str | None]:
    """Figures of the pseudo-labels alone."""
    metrics = {source.name: source.metrics() for source in label_sources}
    bins = {name: found.get("confidence", {}).get("bins", []) for name, found in metrics.items()}
    trust = {name: found.get("border_trust", []) for name, found in metrics.items()}
    return {
        "calibration": figures.calibration(bins),
        "trust": figures.border_trust(trust),
        "sweep": figures.sweep_curves(label_tables.sweep_table(label_sources)),
    }


def _reliable(label_sources: list[LabelSource], runs: list[Run]) -> dict[str, dict[str, Any]]:
    """Share and accuracy of the reliable pixels of the labels that the runs learnt from."""
    learnt = {run.labels for run in runs}
    return {source.name: source.metrics().get("reliable", {}) for source in label_sources if source.name in learnt}


def _not_as_asked(label_sources: list[LabelSource]) -> dict[str, str]:
    """What to say of labels whose reliable share is not the one asked for."""
    found = {source.name: not_as_asked(source.metrics().get("reliable", {})) for source in label_sources}
    return {name: words for name, words in found.items() if words}


def _best(recipes: pd.DataFrame) -> dict[str, Any] | None:
    """The weakly supervised experiment with the highest mean mIoU."""
    weak = recipes[recipes["labels"] != "truth"].dropna(subset=["miou"])
    ranked = weak.sort_values("miou", ascending=False, kind="stable").to_dict("records")
    return {str(key): value for key, value in ranked[0].items()} if ranked else None


def _compared(runs: list[Run], best: dict[str, Any] | None) -> tuple[Run, Run] | None:
    """First seeds of the best experiment and of one network's on the same labels; None if there is no such pair."""
    first = {run.experiment: run for run in reversed(runs)}
    if best is None:
        return None
    better = first[best["experiment"]]
    plain = [run for run in first.values() if run.labels == better.labels and _is_plain(run)]
    return None if not plain or better in plain else (better, plain[-1])


def _is_plain(run: Run) -> bool:
    """Whether a run is one network that learns from the labels as they are."""
    recipe = run.training().get("recipe")
    return recipe is not None and RECIPES.fact(recipe, "NETWORKS") == 1


def _best_on(recipes: pd.DataFrame, labels: str) -> dict[str, Any] | None:
    return _best(recipes[recipes["labels"] == labels])


def _splits(train: Manifest, val: Manifest, train_name: str, val_name: str, whole_set: Manifest) -> str:
    return (
        f"{len(train)} training pictures ({train_name}), {len(val)} evaluation pictures ({val_name}), "
        f"{len(whole_set.classes)} classes and background"
    )


def _legend(manifest: Manifest) -> list[dict[str, str]]:
    """Colour of every class; the position is the label value."""
    names = ["background", *manifest.classes]
    palette = voc_palette()
    return [{"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*palette[k])} for k, name in enumerate(names)]


def _colours(manifest: Manifest) -> dict[str, Any]:
    """What the gallery's script paints with: class colours by label value, and those of the errors by index."""
    classes = [item["colour"] for item in _legend(manifest)]
    return {"classes": classes, "safe": SAFE, "unsure": VOID_COLOUR, "errors": list(ERRORS.values())}


def _anchors(runs: list[Run], label_sources: list[LabelSource]) -> dict[str, str]:
    """Where the experiments and label sources that the summary names are described."""
    sources = {source.name: f"source-{_anchor(source.name)}" for source in label_sources}
    return sources | {run.experiment: f"run-{_anchor(run.experiment)}" for run in runs}


def _experiments(runs: list[Run], output: Path) -> list[dict[str, Any]]:
    """Per experiment its runs, with numbers, settings and links to files."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        metrics = run.metrics()
        found.setdefault(run.experiment, []).append(
            {
                "seed": run.seed,
                "labels": run.labels,
                "metrics": metrics,
                "protocol": tables.run_protocol(run),
                "settings": _yaml(run.training()),
                "files": _links(run.folder, [*RUN_FILES, *(FIRST_FILES if run.first else [])], output),
            }
        )
    return [{"name": name, "runs": items} for name, items in found.items()]


def _sources(label_sources: list[LabelSource], output: Path) -> list[dict[str, Any]]:
    """Per pseudo-label source its settings and links to files."""
    found = []
    for source in label_sources:
        with Store(source.folder / "labels.h5") as store:
            settings = _yaml(store.attributes)
        metrics = source.metrics()
        links = _links(source.folder, LABEL_FILES, output)
        entry = {"name": source.name, "made_from": source.source, "metrics": metrics}
        found.append({**entry, "settings": settings, "files": links})
    return found


def _classifiers(sources: list[MapSource], output: Path) -> list[dict[str, Any]]:
    """The classifier of each source that has one."""
    return [_classifier(source, output) for source in sources if (source.classifier / "classifier.json").is_file()]


def _classifier(source: MapSource, output: Path) -> dict[str, Any]:
    """mAP, AP by class, training curve, settings and files of a source's classifier."""
    folder = source.classifier
    ap = tables.classifier_table([source]).to_dict("records")
    kept = read_json(folder / "classifier.json")
    history = folder / "history.csv"
    drawn = curves.classifier_curve(tables.read_csv(history)) if history.is_file() else None
    return {
        "name": source.name,
        "map": kept.get("map"),
        "method": kept.get("method"),
        "ap": ap[:-1],
        "curve": Markup(drawn) if drawn else None,
        "settings": _yaml({key: value for key, value in kept.items() if key not in ("map", "ap")}),
        "files": _links(folder, ["classifier.json", "history.csv"], output),
    }


def _provenance(runs: list[Run], sources: list[MapSource]) -> dict[str, Any]:
    """Versions of what is installed, and the commits and devices that the runs name."""
    training = [run.training() for run in runs]
    settings = {}
    for source in sources:
        if source.maps.is_file():
            with Store(source.maps) as store:
                settings[source.name] = _yaml(store.attributes)
    return {
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
        "commits": _distinct(item.get("commit") for item in training),
        "devices": _distinct(item.get("device") for item in training),
        "hours": sum(float(item.get("seconds") or 0) for item in training) / 3600,
        "cams": settings,
    }


def _distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).strip() if value else ""


def _links(folder: Path, names: list[str], output: Path) -> list[dict[str, str]]:
    """The files of a folder that exist, as links from where the report lies."""
    start = output.absolute().parent
    found = [name for name in names if (folder / name).exists()]
    return [{"name": name, "href": quote(os.path.relpath((folder / name).absolute(), start))} for name in found]


# --- words --------------------------------------------------------------------------------------------------


def summary(recipes: pd.DataFrame, reasons: list[str | None]) -> list[str]:
    """What the recipe table says, in sentences: the best recipe, its labels, the next one, and the true
    masks.
    """
    best = _best(recipes)
    if best is None:
        reason = next((reason for reason in reasons if reason), "no weakly supervised run was evaluated")
        return [f"No result to report: {reason}."]
    others = recipes[recipes["experiment"] != best["experiment"]]
    return [
        f"The best of {_number(recipes)} is `{best['experiment']}` with {_value(best)}.",
        *_one_of_its_networks(best),
        *_against_labels(best),
        *_against_next(best, _best(others)),
        *_against_truth(best, others[others["labels"] == "truth"]),
    ]


def _number(recipes: pd.DataFrame) -> str:
    count = int((recipes["labels"] != "truth").sum())
    return f"{count} weakly supervised experiment{'s' if count != 1 else ''}"


def _value(row: dict[str, Any]) -> str:
    if pd.isna(row["miou_std"]):
        return f"{percent(row['miou'])} % mIoU (one seed, so its spread is unknown)"
    return f"{mean_std(row['miou'], row['miou_std'])} % mIoU over {row['seeds']} seeds"


def _one_of_its_networks(best: dict[str, Any]) -> list[str]:
    """What the first network of an average reaches, where that was scored and differs."""
    alone = best.get("miou_first")
    if alone is None or pd.isna(alone) or alone == best["miou"]:
        return []
    return [f"One of the networks that it averages has {percent(alone)} % alone."]


def _against_labels(best: dict[str, Any]) -> list[str]:
    if pd.isna(best["difference"]):
        return []
    side = "above" if best["difference"] > 0 else "below"
    return [
        f"That is {percent(abs(best['difference']))} points {side} the pseudo-labels it learnt from "
        f"(`{best['labels']}`, {percent(best['labels_miou'])} % on the training split, other pictures)."
    ]


def _against_next(best: dict[str, Any], second: dict[str, Any] | None) -> list[str]:
    if second is None:
        return []
    lead = best["miou"] - second["miou"]
    start = f"`{second['experiment']}` follows {percent(lead)} points behind"
    spreads = [row["miou_std"] for row in (best, second) if not pd.isna(row["miou_std"])]
    if len(spreads) < 2:
        return [f"{start}; with a single seed the order may be chance."]
    if lead <= max(spreads):
        return [f"{start}, no more than one standard deviation over the seeds: the order may be chance."]
    return [f"{start}, more than the standard deviation over the seeds of either ({_points(spreads)})."]


def _points(spreads: list[float]) -> str:
    return " and ".join(percent(spread) for spread in spreads)


def _against_truth(best: dict[str, Any], truth: pd.DataFrame) -> list[str]:
    rows = truth.dropna(subset=["miou"]).sort_values("miou", ascending=False).to_dict("records")
    if not rows:
        return []
    gap = rows[0]["miou"] - best["miou"]
    side = "more" if gap >= 0 else "less"
    return [
        f"`{rows[0]['experiment']}`, which learns from the true masks, reaches {percent(rows[0]['miou'])} %, "
        f"{percent(abs(gap))} points {side}."
    ]
