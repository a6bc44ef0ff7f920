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
) -> None:
    """Train segmentation networks on pseudo-labels."""
    from beco.config import Network, Training, read_settings
    from beco.datasets import manifest as manifests
    from beco.schema.slots import RECIPES
    from beco.stage2 import train as stage
    from beco.training.trainer import Compute

    RECIPES.given(recipe, "--recipe")
    pictures, chosen = manifests.read(manifest, root), read_settings(Training, settings)
    built = read_settings(Network, network, "--network")
    wanted = stage.Wanted(recipe, built, chosen, seed, labels, classifier)
    held_out = pictures.split(val_split) if chosen.validate_every else None
    compute = Compute(device, threads, workers, devices, nodes, compile)
    stage.train(pictures.split(split), held_out, wanted, compute, output, replace)


@app.command()
def predict(
    manifest: ManifestPath,
    root: Root,
    networks: Annotated[Path, typer.Option(help="networks.safetensors")],
    output: Output,
    split: Annotated[str, typer.Option(help="name of the split in the manifest, or all")] = "val",
    settings: Settings = None,
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Write a palette PNG per picture."""
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
