"""Commands from pseudo-labels to predictions, and the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from beco.cli.options import (
    Compile,
    Device,
    Devices,
    ManifestPath,
    Nodes,
    Output,
    Replace,
    Root,
    Settings,
    Split,
    Threads,
    Workers,
    app,
)


@app.command()
def train(
    manifest: ManifestPath,
    root: Root,
    output: Output,
    recipe: Annotated[str, typer.Option(help="single, cotraining or beco")],
    labels: Annotated[Path | None, typer.Option(help="labels.h5; without it the training masks are used")] = None,
    classifier: Annotated[Path | None, typer.Option(help="for encoder.weights: classifier")] = None,
    split: Split = "train",
    val_split: Split = "val",
    network: Annotated[str | None, typer.Option(help="settings of the network, YAML text or file")] = None,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    threads: Threads = 1,
    workers: Workers = 0,
    compile: Compile = False,
    replace: Replace = False,
    prediction: Annotated[str | None, typer.Option(help="how they are to predict; kept in their file")] = None,
) -> None:
    """Train segmentation networks on pseudo-labels."""
    from beco.config import Network, Prediction, Training, read_settings
    from beco.datasets import manifest as manifests
    from beco.schema.slots import RECIPES
    from beco.stage2 import train as stage
    from beco.training.trainer import Compute

    RECIPES.given(recipe, "--recipe")
    pictures, chosen = manifests.read(manifest, root), read_settings(Training, settings)
    built = read_settings(Network, network, "--network")
    protocol = None if prediction is None else read_settings(Prediction, prediction, "--prediction")
    wanted = stage.Wanted(recipe, built, chosen, seed, labels, classifier, protocol)
    held_out = pictures.split(val_split) if chosen.validate_every else None
    compute = Compute(device, threads, workers, devices, nodes, compile)
    stage.train(pictures.split(split), held_out, wanted, compute, output, replace)


@app.command()
def predict(
    networks: Annotated[Path, typer.Argument(help="a run's folder, results/…/seed0, or a networks.safetensors")],
    pictures: Annotated[list[Path], typer.Argument(help="folders, with all in them, and picture files")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write, or to go on in")],
    confidence: Annotated[bool, typer.Option("--confidence", help="also how sure each label is, as grey PNGs")] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="also the labels' colours over the pictures")] = False,
    refuse_bad: Annotated[
        bool, typer.Option("--refuse-bad", help="stop at once if a picture cannot be read, and do not leave it out")
    ] = False,
    settings: Annotated[
        str | None,
        typer.Option(help="other settings of `prediction` than the networks' own, YAML text or file: {flip: true}"),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="pictures processed together")] = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="drop predictions of other networks, settings or pictures")
    ] = False,
) -> None:
    """Label pictures of your own with a trained network: a palette PNG each, and a table of shares.

    Given once more, it goes on where it stood.
    """
    import os

    from beco.config import Prediction, merged_settings
    from beco.stage2 import anywhere as stage
    from beco.stage2.outputs import More
    from beco.stage2.train import load
    from beco.training.trainer import Compute

    path = stage.networks_file(networks)
    trained = load(path)
    chosen = merged_settings(Prediction, stage.settings_of(trained, path), settings)
    if batch is not None:
        chosen = chosen.model_copy(update={"batch_size": batch})
    compute = Compute(device, threads or len(os.sched_getaffinity(0)))
    choices = stage.Choices(More(confidence, overlay), refuse_bad, replace)
    stage.predict(path, pictures, chosen, trained, compute, output, choices)


@app.command()
def predict_split(
    manifest: ManifestPath,
    root: Root,
    networks: Annotated[Path, typer.Option(help="networks.safetensors")],
    output: Output,
    split: Annotated[str, typer.Option(help="name of the split in the manifest, or all")] = "val",
    settings: Settings = None,
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Write a palette PNG per picture of a manifest's split, as the workflow does."""
    from beco.config import Prediction, read_settings
    from beco.datasets import manifest as manifests
    from beco.stage2 import predict as stage
    from beco.training.trainer import Compute

    pictures = manifests.read(manifest, root)
    pictures = pictures if split == "all" else pictures.split(split)
    stage.predict(pictures, networks, read_settings(Prediction, settings), Compute(device, threads), output)


@app.command()
def benchmark(
    what: Annotated[str, typer.Option(help="training, stages, stores, crf or all")] = "training",
    preset: Annotated[str, typer.Option(help="demo (config.yaml's) or paper (two ResNet-101 at 512²)")] = "demo",
    network: Annotated[str | None, typer.Option(help="settings over the preset's network, YAML text or file")] = None,
    settings: Settings = None,
    recipe: Annotated[str, typer.Option(help="single, cotraining or beco")] = "beco",
    classes: Annotated[int | None, typer.Option(min=1, max=254, help="default: 6 (demo), 20 (paper)")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="measurements; default by preset")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="rough figures in seconds")] = False,
    size: Annotated[int, typer.Option(min=48, help="side of the stages' pictures, pixels")] = 256,
    entries: Annotated[int, typer.Option(min=1, help="pictures in the store that is opened")] = 100_000,
    pictures: Annotated[int | None, typer.Option(min=1, help="pictures for crf; default 24")] = None,
    manifest: Annotated[Path | None, typer.Option(help="manifest.csv: feed these pictures")] = None,
    labels: Annotated[Path | None, typer.Option(help="labels.h5, with --manifest")] = None,
    root: Annotated[Path | None, typer.Option(help="dataset root, with --manifest")] = None,
    split: Split = "train",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON to write")] = None,
    device: Device = "auto",
    threads: Threads = 1,
    workers: Workers = 0,
    compile: Compile = False,
) -> None:
    """Measure the speed on this machine against bounds of the same run."""
    from beco.benchmark import report as stage
    from beco.training.trainer import Compute

    options = stage.Options(
        preset,
        network,
        settings,
        recipe,
        classes,
        rounds,
        quick,
        size,
        entries,
        pictures,
        manifest,
        labels,
        root,
        split,
    )
    stage.run(what, options, Compute(device, threads, workers, compile=compile), output)
