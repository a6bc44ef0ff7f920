"""Commands from predictions to scores, tables and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beco.cli.options import ManifestPath, Output, Root, Settings, Split, Threads, app, home
from beco.errors import UserError

if TYPE_CHECKING:
    from beco.evaluation.tables.tables import Results


@app.command()
def evaluate(
    manifest: ManifestPath,
    root: Root,
    predictions: Annotated[Path, typer.Option(help="folder of <image_id>.png")],
    output: Output,
    split: Split = "val",
    settings: Annotated[str | None, typer.Option(help="the protocol: settings of the prediction")] = None,
    threads: Threads = 1,
) -> None:
    """Score predictions against the masks of a split."""
    from beco.config import Prediction, read_settings
    from beco.datasets import manifest as manifests
    from beco.evaluation.scores import evaluate as stage

    protocol = read_settings(Prediction, settings).averaged.model_dump(mode="json", exclude={"batch_size"})
    stage.evaluate_predictions(manifests.read(manifest, root).split(split), predictions, output, protocol, threads)


@app.command()
def archive(
    predictions: Annotated[Path, typer.Argument(help="folder of <image_id>.png")],
    output: Output,
    image_set: Annotated[str, typer.Option("--set", help="val or test of VOC; it names the folder")] = "test",
    challenge: Annotated[str, typer.Option(help="comp5: learnt from VOC alone; comp6: from more")] = "comp6",
    manifest: Annotated[Path | None, typer.Option(help="manifest.csv; every picture of --split must be there")] = None,
    split: Split = "val",
) -> None:
    """Pack predictions for the PASCAL VOC evaluation server."""
    from beco.datasets import manifest as manifests
    from beco.evaluation.tables import archive as stage

    if image_set not in ("val", "test"):
        raise UserError(f"--set: no set `{image_set}`; give val or test")
    if challenge not in ("comp5", "comp6"):
        raise UserError(f"--challenge: no challenge `{challenge}` of segmentation; give comp5 or comp6")
    pictures = manifests.read(manifest, Path()).split(split) if manifest else None
    stage.write_archive(predictions, output, image_set, challenge, pictures)  # type: ignore[arg-type]


@app.command()
def evaluate_labels(
    manifest: ManifestPath,
    root: Root,
    labels: Annotated[Path, typer.Option(help="labels.h5")],
    output: Output,
    split: Split = "train",
    fraction: Annotated[float, typer.Option(min=0, max=1, help="reliable share of each class")] = 0.5,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="instead of --fraction: reliable is what is as confident as this")
    ] = None,
    apart: Annotated[
        list[str], typer.Option(help="split list of VOC whose pictures are measured apart, too; repeatable")
    ] = [],  # noqa: B006
    threads: Threads = 1,
) -> None:
    """Score pseudo-labels and their confidence against the training masks, where there are any."""
    from beco.datasets import manifest as manifests
    from beco.datasets import voc
    from beco.evaluation.scores import quality as stage

    chosen = manifests.read(manifest, root).split(split)
    lists = {name: voc.read_list(root, name) for name in apart}
    stage.evaluate_labels(chosen, labels, output, fraction, threads, threshold, lists)


@app.command()
def sweep_labels(
    manifest: ManifestPath,
    root: Root,
    cams: Annotated[Path, typer.Option(help="cams.h5, or with refine: irn the scores of beco refine")],
    background: Annotated[list[float], typer.Option(min=0, max=1, help="background score; repeatable")],
    output: Output,
    settings: Settings = None,
    split: Split = "train",
    threads: Threads = 1,
) -> None:
    """Score the pseudo-labels of several background scores against the training masks, as CSV."""
    from beco.config import Labels, read_settings
    from beco.datasets import manifest as manifests
    from beco.evaluation.scores import sweep as stage

    pictures = manifests.read(manifest, root).split(split)
    stage.sweep(pictures, cams, read_settings(Labels, settings), background, output, threads)


def _named(options: Sequence[str], what: str) -> list[tuple[str, Path]]:
    """`name=folder` options as pairs; UserError if one is no such pair, or a name comes twice."""
    pairs = [option.partition("=") for option in options]
    wrong = [option for option, (name, _, folder) in zip(options, pairs, strict=True) if not (name and folder)]
    if wrong:
        raise UserError(f"{what}: expected name=folder, found `{wrong[0]}`")
    _refuse_twice([name for name, _, _ in pairs], what)
    return [(name, Path(home(folder))) for name, _, folder in pairs]


def _refuse_twice(names: Sequence[str], what: str) -> None:
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{what}: `{min(twice)}` comes twice; give it once")


def _labels(options: Sequence[str]) -> list[tuple[str, str, Path]]:
    """`--labels name:source=folder` as (name, source, folder), "" for no source."""
    found = []
    for name, folder in _named(options, "--labels"):
        parts = name.split(":")
        if len(parts) > 2 or not all(parts):
            raise UserError(f"--labels: expected name=folder or name:source=folder, found `{name}={folder}`")
        found.append((parts[0], parts[1] if parts[1:] else "", folder))
    _refuse_twice([name for name, _, _ in found], "--labels")
    return found


def _results(
    runs: list[str],
    first: bool,
    labels: list[str],
    published: list[str],
    sources: Sequence[str] = (),
    comparisons: str = "{}",
) -> Results:
    """The options below as what the tables are made from."""
    from beco.config import Comparison, parse_yaml, validate
    from beco.evaluation.tables.tables import LabelSource, MapSource, Results, Run

    found = []
    for name, folder in _named(runs, "--runs"):
        parts = name.split(":")
        if len(parts) != 3 or not parts[1].isdigit():
            raise UserError(f"--runs: expected experiment:seed:labels=folder, found `{name}={folder}`")
        found.append(Run(parts[0], int(parts[1]), parts[2], folder, first))
    compared = parse_yaml(comparisons, "--comparisons")
    return Results(
        found,
        [LabelSource(name, folder, source) for name, source, folder in _labels(labels)],
        [MapSource(name, folder).checked() for name, folder in _named(sources, "--source")],
        _published(published),
        {name: validate(Comparison, entry, f"--comparisons: {name}") for name, entry in compared.items()},
    )


def _published(options: list[str]) -> dict[str, str]:
    """`--published experiment=key` by experiment."""
    from beco.schema.published import unknown

    found = {name: str(key) for name, key in _named(options, "--published")}
    for key in found.values():
        if wrong := unknown("--published", key):
            raise UserError(wrong)
    return found


Runs = Annotated[list[str], typer.Option(help="experiment:seed:labels=folder of an evaluated training; repeatable")]
First = Annotated[
    bool, typer.Option("--first", help="also the first network of each run alone, scored in its folder first/")
]
Published = Annotated[list[str], typer.Option(help="experiment=key in beco/schema/published.csv; repeatable")]
LabelFolders = Annotated[
    list[str], typer.Option(help="name=folder of evaluated pseudo-labels, or name:source=folder; repeatable")
]
SourceFolders = Annotated[
    list[str], typer.Option("--source", help="name=folder with cams.h5 and classifier/ of a source; repeatable")
]


@app.command()
def tables(
    output: Output,
    runs: Runs,
    first: First = False,
    labels: LabelFolders = [],  # noqa: B006
    sources: SourceFolders = [],  # noqa: B006
    published: Published = [],  # noqa: B006
) -> None:
    """Write the tables of recipes, pseudo-labels and classes."""
    from beco.evaluation.tables import table_files as stage

    stage.write_tables(_results(runs, first, labels, published, sources), output)


@app.command()
def comparison(
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV; Markdown and LaTeX are written beside it")],
    settings: Annotated[str, typer.Option(help="title, experiments, vary: YAML text or file")],
    runs: Runs,
    first: First = False,
    labels: LabelFolders = [],  # noqa: B006
    published: Published = [],  # noqa: B006
) -> None:
    """Write the table of some experiments, with what each gains over the first of its labels and networks."""
    from beco.config import Comparison, read_settings
    from beco.evaluation.tables import comparisons as stage

    stage.write_comparison(read_settings(Comparison, settings), _results(runs, first, labels, published), output)


@app.command()
def report(
    manifest: ManifestPath,
    root: Root,
    output: Output,
    runs: Runs,
    first: First = False,
    labels: LabelFolders = [],  # noqa: B006
    sources: SourceFolders = [],  # noqa: B006
    published: Published = [],  # noqa: B006
    gallery: Annotated[int, typer.Option(min=0, help="pictures of each split")] = 24,
    title: Annotated[str | None, typer.Option(help="heading of the page")] = None,
    comparisons: Annotated[str, typer.Option(help="`comparisons` of a configuration: YAML text")] = "{}",
) -> None:
    """Write the report: one page that needs nothing beside it."""
    from beco.datasets import manifest as manifests
    from beco.evaluation.report import report as stage

    results = _results(runs, first, labels, published, sources, comparisons)
    stage.write_report(manifests.read(manifest, root), results, gallery, output, title)
