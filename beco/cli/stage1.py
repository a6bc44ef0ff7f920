"""Commands from a dataset to pseudo-labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from beco.cli.options import (
    Device,
    Devices,
    ManifestPath,
    Nodes,
    Output,
    Replace,
    Root,
    Settings,
    Shard,
    Split,
    Threads,
    Workers,
    app,
)
from beco.errors import UserError
from beco.schema.slots import LOCALISERS


@app.command()
def draw_shapes(output: Output, settings: Settings = None) -> None:
    """Draw the embedded dataset in VOC layout."""
    from beco.config import Shapes, read_settings
    from beco.datasets import shapes

    shapes.draw(output, read_settings(Shapes, settings))


@app.command()
def manifest(
    root: Root,
    output: Output,
    settings: Settings = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="format coco: the folder of render-masks, by default masks, beside the output; format folder: the "
            "folder of the masks"
        ),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="format folder: the CSV of the labels")] = None,
    watched: Annotated[list[str] | None, typer.Option(help="of the workflow: PART=TOKEN, see datasets/watch")] = None,
) -> None:
    """Read a dataset in its own format, check every file of it, and list it in one CSV."""
    from beco.artifacts.files import write_json
    from beco.config import Dataset, read_settings
    from beco.datasets import formats, watch

    paths = {"root": root, "labels": labels, "masks": masks}
    given = {key: str(path) for key, path in paths.items() if path}
    dataset = read_settings(Dataset, settings).model_copy(update=given)
    tokens = watch.parse_tokens(watched) if watched else None
    formats.build(dataset, output, masks)
    write_json(output.with_suffix(".json"), {"dataset": dataset.identity()})
    if tokens:
        watch.record(dataset, root, output.parent, tokens)


@app.command()
def render_masks(root: Root, output: Output, settings: Settings = None, threads: Threads = 1) -> None:
    """Draw the masks of a dataset that comes with instances alone (COCO)."""
    from beco.config import Dataset, read_settings
    from beco.datasets import coco

    dataset = read_settings(Dataset, settings)
    if dataset.format != "coco":
        raise UserError(f"--settings: format {dataset.format} brings its own masks; only coco's are drawn")
    coco.render(root, dataset.train, dataset.val, dataset.classes, dataset.coco, output, threads)


@app.command()
def train_classifier(
    manifest: ManifestPath,
    root: Root,
    output: Output,
    train_split: Split = "train",
    val_split: Split = "val",
    settings: Settings = None,
    method: Annotated[str, typer.Option(help="the localiser: a file of beco/stage1/localisers")] = "cam",
    options: Annotated[str | None, typer.Option(help="settings of the method alone: YAML text or file")] = None,
    labels: Annotated[Path | None, typer.Option(help="labels.h5 to learn from, where the method wants labels")] = None,
    start: Annotated[
        Path | None, typer.Option(help="classifier.safetensors to go on from, where the method wants one")
    ] = None,
    saliency: Annotated[
        Path | None,
        typer.Option(
            help="folder of saliency maps of the training pictures, where the method wants them; shapes: the true "
            "objects of the embedded dataset"
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="file of beco text-features, where the method compares with texts")
    ] = None,
    watched: Annotated[str | None, typer.Option(help="of the workflow: TOKEN, see exchange/watch")] = None,
    device: Device = "auto",
    threads: Threads = 1,
    devices: Devices = 1,
    nodes: Nodes = 1,
    workers: Workers = 0,
    replace: Replace = False,
) -> None:
    """Train a localiser, such as a multi-label classifier, on image-level labels."""
    from beco.config import Classifier, read_settings
    from beco.datasets import manifest as manifests
    from beco.datasets import saliency as maps
    from beco.datasets.matching import by_name
    from beco.exchange import watch
    from beco.schema.stage1 import options_of
    from beco.stage1 import texts
    from beco.stage1 import train as stage
    from beco.stage1.localisers.base import Inputs
    from beco.training.trainer import Compute

    own = read_settings(options_of(LOCALISERS.given(method, "--method")), options, "--options").model_dump()
    words = texts.read(text) if text else None
    Inputs(labels, start, maps.Saliency({}) if saliency else None, words).checked(method, own)
    chosen, pictures = read_settings(Classifier, settings), manifests.read(manifest, root)
    learnt = pictures.split(train_split)
    inputs = Inputs(
        labels,
        start,
        maps.given(saliency, learnt, manifest) if saliency else None,
        words.of(learnt.classes) if words else None,
    )
    compute = Compute(device, threads, workers, devices, nodes)
    wanted = stage.Wanted(chosen, method, own, inputs)
    stage.train(learnt, pictures.split(val_split), wanted, compute, output, replace)
    if watched and saliency:
        watch.record(saliency, output, learnt.ids, watched, by_name)


@app.command()
def text_features(
    classes: Annotated[str, typer.Argument(help="names parted by commas, a manifest.csv, or a config.yaml")],
    output: Output,
    tower: Annotated[str, typer.Option(help="OpenCLIP's name of the model, such as ViT-B-16-quickgelu")],
    weights: Annotated[Path, typer.Option(help="file of the whole model's weights")],
    template: Annotated[str, typer.Option(help="the prompt, {} where the class is named")] = "a clean origami {}.",
    words: Annotated[
        str | None, typer.Option(help="what classes are called instead: YAML, a text or a list of texts by name")
    ] = None,
) -> None:
    """Turn the names of classes into what the method clip_es compares pictures with; needs OpenCLIP."""
    from beco.stage1 import texts

    names = texts.named(classes)
    texts.make(names, texts.words_of(words, names), template, tower, weights, output)


@app.command()
def cams(
    manifest: ManifestPath,
    root: Root,
    classifier: Annotated[Path, typer.Option(help="classifier.safetensors")],
    output: Output,
    split: Split = "train",
    settings: Settings = None,
    labels: Annotated[
        Path | None, typer.Option(help="labels.h5 that the network learnt from, where its method wants them again")
    ] = None,
    saliency: Annotated[
        Path | None, typer.Option(help="saliency maps of these pictures, likewise; see train-classifier")
    ] = None,
    options: Annotated[
        str | None, typer.Option(help="settings of the method that concern its maps alone: YAML text or file")
    ] = None,
    shard: Shard = "1-of-1",
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Infer the score maps of a localiser: class activation maps."""
    from beco.config import Cam, read_settings
    from beco.datasets import manifest as manifests
    from beco.datasets import saliency as maps
    from beco.stage1 import views
    from beco.stage1.localisers.base import Inputs
    from beco.training.trainer import Compute

    pictures = manifests.read(manifest, root).split(split)
    compute = Compute(device, threads)
    inputs = Inputs(labels, saliency=maps.given(saliency, pictures, manifest) if saliency else None)
    views.infer(pictures, classifier, read_settings(Cam, settings), compute, shard, output, inputs, options)


@app.command()
def train_irn(
    manifest: ManifestPath,
    root: Root,
    classifier: Annotated[Path, typer.Option(help="classifier.safetensors, whose backbone is used, see start")],
    labels: Annotated[Path, typer.Option(help="labels.h5 made with refine: crf, 255 where nothing is believed")],
    output: Output,
    split: Split = "train",
    settings: Settings = None,
    device: Device = "auto",
    threads: Threads = 1,
    devices: Devices = 1,
    nodes: Nodes = 1,
    workers: Workers = 0,
    replace: Replace = False,
) -> None:
    """Train the inter-pixel relation network (IRN) on confident pseudo-labels."""
    from beco.config import Irn, read_settings
    from beco.datasets import manifest as manifests
    from beco.stage1.refine import irn_train
    from beco.training.trainer import Compute

    pictures, chosen = manifests.read(manifest, root).split(split), read_settings(Irn, settings)
    compute = Compute(device, threads, workers, devices, nodes)
    irn_train.train(pictures, classifier, labels, chosen, compute, output, replace)


@app.command()
def refine(
    manifest: ManifestPath,
    root: Root,
    cams: Annotated[Path, typer.Option(help="cams.h5")],
    irn: Annotated[Path, typer.Option(help="irn.safetensors")],
    output: Output,
    split: Split = "train",
    settings: Settings = None,
    shard: Shard = "1-of-1",
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Let CAMs walk at random within IRN's boundaries; `beco labels` makes labels of the scores."""
    from beco.config import Irn, read_settings
    from beco.datasets import manifest as manifests
    from beco.stage1.refine import irn_walk
    from beco.training.trainer import Compute

    pictures, chosen = manifests.read(manifest, root).split(split), read_settings(Irn, settings)
    irn_walk.infer(pictures, cams, irn, chosen, Compute(device, threads), shard, output)


@app.command()
def labels(
    manifest: ManifestPath,
    root: Root,
    cams: Annotated[Path, typer.Option(help="cams.h5; with refine: irn the scores of beco refine")],
    output: Output,
    split: Split = "train",
    settings: Settings = None,
    shard: Shard = "1-of-1",
) -> None:
    """Turn CAMs into pseudo-labels with confidence."""
    from beco.config import Labels, read_settings
    from beco.datasets import manifest as manifests
    from beco.stage1.refine import labels as stage

    pictures = manifests.read(manifest, root).split(split)
    stage.make(pictures, cams, read_settings(Labels, settings), shard, output)


@app.command()
def gather(
    parts: Annotated[list[Path], typer.Argument(help="HDF5 files of the shards")],
    output: Output,
) -> None:
    """Join the HDF5 files of several shards."""
    from beco.artifacts import store

    store.gather(parts, output)


@app.command()
def import_labels(
    source: Annotated[Path, typer.Argument(help="folder with one .png, .npy or .pt for each picture")],
    manifest: ManifestPath,
    root: Root,
    output: Output,
    split: Split = "train",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="auto, or: index-png, colour-png (VOC colours), irn (also ReCAM, PPC, RIB, AMN, ToCo), clip-es, "
            "seam (also EPS), seam-crf (with a plane for the background), beco-score, toco-logits",
        ),
    ] = "auto",
    background: Annotated[
        float,
        typer.Option(min=0, max=1, help="score of the background where the files have none; they then lie in 0 to 1"),
    ] = 0.25,
    confidence: Annotated[
        Path | None, typer.Option(help="folder of masks of trusted pixels (0/255 or 0/1 PNG), or of scores")
    ] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="no file: no opinion anywhere")] = False,
    watched: Annotated[str | None, typer.Option(help="of the workflow: TOKEN, see exchange/watch")] = None,
) -> None:
    """Turn what another stage-one program left in a folder into labels.h5."""
    from beco.datasets import manifest as manifests
    from beco.exchange import imports as stage
    from beco.exchange import watch

    pictures = manifests.read(manifest, root).split(split)
    stage.make(pictures, source, output, form, background, confidence, allow_missing)
    if watched:
        watch.record(source, output.parent, pictures.ids, watched)


@app.command()
def export_labels(
    labels: Annotated[Path, typer.Argument(help="labels.h5, or a folder of predictions")],
    output: Output,
    form: Annotated[
        str, typer.Option("--format", help="palette-png, coco-json or cvat (Segmentation mask 1.1)")
    ] = "palette-png",
    manifest: Annotated[
        Path | None, typer.Option(help="manifest.csv: names of classes (for predictions) and of picture files")
    ] = None,
) -> None:
    """Write pseudo-labels or predictions for other programs; 255, no opinion, stays 255 or is left out."""
    from beco.datasets import manifest as manifests
    from beco.exchange import exports as stage

    pictures = manifests.read(manifest, Path()) if manifest else None
    stage.export(stage.open_source(labels, pictures), form, output)
