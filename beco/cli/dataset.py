"""Commands before the road: a project for one's own pictures, and a look at everything it needs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from beco.cli.options import app
from beco.errors import UserError


@app.command()
def init(
    project: Annotated[Path, typer.Argument(help="folder to make; config.yaml and the results go there")],
    images: Annotated[Path, typer.Option(help="folder of your pictures")],
    labels: Annotated[Path, typer.Option(help="CSV with a column image, and 0/1 columns by class or a column labels")],
    masks: Annotated[Path | None, typer.Option(help="folder of <picture>.png to measure with; some are enough")] = None,
    weights: Annotated[str | None, typer.Option(help="weights to start from: a file, or imagenet (a download)")] = None,
    encoder: Annotated[str | None, typer.Option(help="timm backbone, such as resnet50; that of --weights FILE")] = None,
    val_share: Annotated[float, typer.Option(help="share for validation, if the CSV has no column split")] = 0.2,
) -> None:
    """Look at your pictures and write a configuration for them."""
    from beco import project as stage
    from beco.config import Dataset, validate
    from beco.datasets import formats

    stage.refuse_unusable(project, images, labels, masks, weights)
    section = {"root": str(images), "labels": str(labels), "masks": str(masks) if masks else None}
    dataset = validate(Dataset, {"format": "folder", **section, "val_share": val_share}, "beco init")
    if weights not in (None, "imagenet") and not Path(str(weights)).is_file():
        raise UserError(f"--weights: {weights}: no such file; name a .safetensors or .pth file, or imagenet")
    with tempfile.TemporaryDirectory() as aside:
        known = stage.facts(formats.build(dataset, Path(aside) / "manifest.csv"))
    here = stage.machine()
    begin = stage.start(encoder, weights, here, known.median <= stage.TINY)
    stage.write(project, {**section, "val_share": val_share}, known, here, begin)
    typer.echo(
        f"{project / 'config.yaml'}: {known.pictures} pictures ({known.train} for training), {known.classes} classes"
    )
    if not begin.pretrained:
        typer.echo("From scratch, since no weights were given; ImageNet weights learn far better (--weights).")
    typer.echo(f"Next:\n  {stage.next_command(project)}")
    folder = project / "results" / stage.NAME
    typer.echo(f"Then the masks are in {folder}/crf/beco/seed0/predictions, the report is {folder}/report.html")


@app.command()
def check(
    configfile: Annotated[Path | None, typer.Option(help="the configuration, as for snakemake")] = None,
    settings: Annotated[str | None, typer.Option(help="or its text, YAML or JSON")] = None,
) -> None:
    """Look at everything that a configuration needs, before hours are spent; exit status 1 if something is wrong."""
    from beco import check as stage
    from beco.config import read_config

    if (configfile is None) == (settings is None):
        raise UserError("beco check: give --configfile FILE or --settings TEXT")
    groups = stage.check(read_config(str(configfile or settings), is_file=configfile is not None))
    for group in groups:
        count = len(group.problems)
        typer.echo(f"{group.name}: " + ("ok" if not count else "1 problem" if count == 1 else f"{count} problems"))
        for line in (*group.problems, *group.notes):
            typer.echo(f"  {'✗' if line in group.problems else '·'} {line}")
    wrong = sum(len(group.problems) for group in groups)
    typer.echo("Nothing is wrong." if not wrong else f"To mend: {wrong}.")
    raise typer.Exit(1 if wrong else 0)
