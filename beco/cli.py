"""The `beco` command: parse, call, nothing else. Stages are imported when they are called."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from beco.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Weakly supervised semantic segmentation, stage by stage. `snakemake` runs them all in order.",
)

Root = Annotated[Path, typer.Option(help="dataset root that the manifest's paths are relative to")]
ManifestPath = Annotated[Path, typer.Option("--manifest", help="manifest.csv")]
Split = Annotated[str, typer.Option(help="name of the split in the manifest")]
Settings = Annotated[str | None, typer.Option(help="YAML or JSON text, or a file of it; see config.yaml")]
Output = Annotated[Path, typer.Option("--output", "-o", help="what to write")]
Shard = Annotated[str, typer.Option(help="k-of-n: work on every n-th picture")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads")]
Workers = Annotated[int, typer.Option(min=0, help="data-loading processes")]
Devices = Annotated[int, typer.Option(min=1, help="GPUs (or CPU processes) on each machine that share a batch")]
Nodes = Annotated[int, typer.Option(min=1, help="machines that share a batch")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the networks")]
Replace = Annotated[bool, typer.Option("--replace", help="drop a checkpoint of other settings")]


@app.callback()
def _options(
    log: Annotated[Path | None, typer.Option(help="write messages to this file, too")] = None,
) -> None:
    logger = logging.getLogger("beco")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers: list[logging.Handler] = [logging.FileHandler(log, mode="w")] if log else []
    if not (log and sys.stderr.isatty()):  # on a terminal a bar shows the progress, and the file keeps the lines
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)


@app.command()
def draw_shapes(output: Output, settings: Settings = None) -> None:
    """Draw the embedded dataset in VOC layout."""
    from beco.config import Shapes, read_settings
    from beco.datasets import shapes

    shapes.draw(output, read_settings(Shapes, settings))


@app.command()
def manifest(root: Root, output: Output, settings: Settings = None) -> None:
    """Read a dataset in its own format, check every file of it, and list it in one CSV."""
    from beco.config import Dataset, read_settings
    from beco.datasets import shapes, voc
    from beco.files import write_json

    dataset = read_settings(Dataset, settings).model_copy(update={"root": str(root)})
    classes = dataset.classes or (shapes.CLASSES if dataset.format == "shapes" else voc.VOC_CLASSES)
    voc.build(root, dataset.train, dataset.val, list(classes), output)
    write_json(output.with_suffix(".json"), {"dataset": dataset.identity()})


@app.command()
def train_classifier(
    manifest: ManifestPath,
    root: Root,
    output: Output,
    train_split: Split = "train",
    val_split: Split = "val",
    settings: Settings = None,
    device: Device = "auto",
    threads: Threads = 1,
    devices: Devices = 1,
    nodes: Nodes = 1,
    workers: Workers = 0,
    replace: Replace = False,
) -> None:
    """Train the multi-label classifier on image-level labels."""
    from beco.config import Classifier, read_settings
    from beco.datasets import manifest as manifests
    from beco.engine import Compute
    from beco.stage1 import classifier

    chosen = read_settings(Classifier, settings)
    compute = Compute(device, threads, workers, devices, nodes)
    classifier.train(manifests.read(manifest, root), train_split, val_split, chosen, compute, output, replace)


@app.command()
def cams(
    manifest: ManifestPath,
    root: Root,
    classifier: Annotated[Path, typer.Option(help="classifier.safetensors")],
    output: Output,
    split: Split = "train",
    settings: Settings = None,
    shard: Shard = "1-of-1",
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Infer class activation maps."""
    from beco.config import Cam, read_settings
    from beco.datasets import manifest as manifests
    from beco.engine import Compute
    from beco.stage1 import cam

    pictures = manifests.read(manifest, root).split(split)
    cam.infer(pictures, classifier, read_settings(Cam, settings), Compute(device, threads), shard, output)


@app.command()
def train_irn(
    manifest: ManifestPath,
    root: Root,
    classifier: Annotated[Path, typer.Option(help="classifier.safetensors, whose backbone is used")],
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
    from beco.engine import Compute
    from beco.stage1 import irn_train

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
    from beco.engine import Compute
    from beco.stage1 import irn_walk

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
    from beco.stage1 import labels as stage

    pictures = manifests.read(manifest, root).split(split)
    stage.make(pictures, cams, read_settings(Labels, settings), shard, output)


@app.command()
def gather(
    parts: Annotated[list[Path], typer.Argument(help="HDF5 files of the shards")],
    output: Output,
) -> None:
    """Join the HDF5 files of several shards."""
    from beco import store

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
        float, typer.Option(min=0, max=1, help="the background's score, where the files have none")
    ] = 0.25,
    confidence: Annotated[
        Path | None, typer.Option(help="folder of masks of trusted pixels (0/255 or 0/1 PNG), or of scores")
    ] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="no file: no opinion anywhere")] = False,
) -> None:
    """Turn what another stage-one program left in a folder into labels.h5."""
    from beco.datasets import manifest as manifests
    from beco.stage1 import imports as stage

    pictures = manifests.read(manifest, root).split(split)
    stage.make(pictures, source, output, form, background, confidence, allow_missing)


@app.command()
def export_labels(
    labels: Annotated[Path, typer.Argument(help="labels.h5")],
    output: Output,
) -> None:
    """Write pseudo-labels as palette PNGs, 255 where there is no opinion."""
    from beco.datasets.palette import write_index_png
    from beco.files import whole
    from beco.pseudolabels import PseudoLabels

    reader = PseudoLabels(labels)
    with whole(output) as folder:
        folder.mkdir()
        for image_id in reader.ids():
            write_index_png(folder / f"{image_id}.png", reader.label(image_id))


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
    from beco.engine import Compute
    from beco.stage2 import train as stage

    if recipe not in ("single", "cotraining", "beco"):
        raise UserError(f"--recipe: no recipe `{recipe}`; known: single, cotraining, beco")
    stage.train(
        manifests.read(manifest, root),
        split,
        val_split,
        labels,
        classifier,
        read_settings(Network, network, "--network"),
        read_settings(Training, settings),
        recipe,  # type: ignore[arg-type]
        seed,
        Compute(device, threads, workers, devices, nodes, compile),
        output,
        replace,
    )


@app.command()
def predict(
    manifest: ManifestPath,
    root: Root,
    networks: Annotated[Path, typer.Option(help="networks.safetensors")],
    output: Output,
    split: Split = "val",
    settings: Settings = None,
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Write a palette PNG per picture."""
    from beco.config import Prediction, read_settings
    from beco.datasets import manifest as manifests
    from beco.engine import Compute
    from beco.stage2 import predict as stage

    pictures = manifests.read(manifest, root).split(split)
    stage.predict(pictures, networks, read_settings(Prediction, settings), Compute(device, threads), output)


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
    from beco.evaluation import evaluate as stage

    protocol = read_settings(Prediction, settings).model_dump(mode="json", exclude={"batch_size"})
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
    from beco.evaluation import archive as stage

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
    threads: Threads = 1,
) -> None:
    """Score pseudo-labels against the training masks, where there are any."""
    from beco.datasets import manifest as manifests
    from beco.evaluation import evaluate as stage

    stage.evaluate_labels(manifests.read(manifest, root).split(split), labels, output, fraction, threads)


def _named(options: list[str], what: str) -> list[tuple[str, Path]]:
    """`name=folder` options as pairs."""
    pairs = [option.partition("=") for option in options]
    wrong = [option for option, (name, _, folder) in zip(options, pairs, strict=True) if not (name and folder)]
    if wrong:
        raise UserError(f"{what}: expected name=folder, found `{wrong[0]}`")
    return [(name, Path(folder)) for name, _, folder in pairs]


def _sources(runs: list[str], labels: list[str]) -> tuple[list[Any], list[Any]]:
    """`--runs experiment:seed:labels=folder` and `--labels name=folder` as what the tables are made from."""
    from beco.evaluation.tables import LabelSource, Run

    found = []
    for name, folder in _named(runs, "--runs"):
        parts = name.split(":")
        if len(parts) != 3 or not parts[1].isdigit():
            raise UserError(f"--runs: expected experiment:seed:labels=folder, found `{name}={folder}`")
        found.append(Run(parts[0], int(parts[1]), parts[2], folder))
    return found, [LabelSource(name, folder) for name, folder in _named(labels, "--labels")]


Runs = Annotated[list[str], typer.Option(help="experiment:seed:labels=folder of an evaluated training; repeatable")]
LabelFolders = Annotated[list[str], typer.Option(help="name=folder of evaluated pseudo-labels; repeatable")]


@app.command()
def tables(
    output: Output,
    runs: Runs,
    labels: LabelFolders = [],  # noqa: B006
    classifier: Annotated[Path | None, typer.Option(help="classifier.json")] = None,
) -> None:
    """Write the tables of recipes, pseudo-labels and classes."""
    from beco.evaluation import tables as stage

    stage.write_tables(*_sources(runs, labels), classifier, output)


@app.command()
def report(
    manifest: ManifestPath,
    root: Root,
    output: Output,
    runs: Runs,
    labels: LabelFolders = [],  # noqa: B006
    cams: Annotated[Path | None, typer.Option(help="cams.h5")] = None,
    classifier: Annotated[Path | None, typer.Option(help="folder of the classifier")] = None,
    gallery: Annotated[int, typer.Option(min=0, help="pictures of each split")] = 24,
    title: Annotated[str | None, typer.Option(help="heading of the page")] = None,
) -> None:
    """Write the report: one page that needs nothing beside it."""
    from beco.datasets import manifest as manifests
    from beco.evaluation import report as stage

    found, sources = _sources(runs, labels)
    pictures = manifests.read(manifest, root)
    stage.write_report(pictures, "train", "val", cams, sources, found, classifier, gallery, output, title)


@app.command()
def benchmark(
    what: Annotated[str, typer.Option(help="training, stages, stores or all")] = "training",
    preset: Annotated[str, typer.Option(help="demo (config.yaml's) or paper (two ResNet-101 at 512²)")] = "demo",
    network: Annotated[str | None, typer.Option(help="settings over the preset's network, YAML text or file")] = None,
    settings: Settings = None,
    recipe: Annotated[str, typer.Option(help="single, cotraining or beco")] = "beco",
    classes: Annotated[int | None, typer.Option(min=1, max=254, help="default: 6 (demo), 20 (paper)")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="measurements; default by preset")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="rough figures in seconds")] = False,
    size: Annotated[int, typer.Option(min=48, help="side of the stages' pictures, pixels")] = 256,
    entries: Annotated[int, typer.Option(min=1, help="pictures in the store that is opened")] = 100_000,
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
    from beco.engine import Compute

    options = stage.Options(
        preset, network, settings, recipe, classes, rounds, quick, size, entries, manifest, labels, root, split
    )
    stage.run(what, options, Compute(device, threads, workers, compile=compile), output)


def main() -> None:
    """Run the command line; a `UserError` is one line on standard error and exit status 1."""
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None and "--threads" in sys.argv[:-1]:  # before numpy and torch choose for themselves
        os.environ["OMP_NUM_THREADS"] = sys.argv[sys.argv.index("--threads") + 1]
    try:
        app(standalone_mode=True)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; check the path, its permissions and the free space")
    except Exception:
        logging.getLogger("beco").exception("beco stopped on an error of its own; please report it")
        sys.exit(2)


def _fail(message: str) -> None:
    for handler in logging.getLogger("beco").handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(logging.makeLogRecord({"msg": message, "levelno": logging.ERROR}))
    print(f"beco: {message}", file=sys.stderr)
    sys.exit(1)
