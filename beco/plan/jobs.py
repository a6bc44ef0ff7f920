"""The jobs that the workflow makes of a configuration, and the work of each; jobs that share a file are one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from beco.artifacts.grids import fitted_size
from beco.benchmark.presets import Setting
from beco.config import Config, Experiment, Labels
from beco.plan import networks, room
from beco.plan.networks import Spec
from beco.plan.pictures import Pictures
from beco.schema.slots import RECIPES
from beco.stage1.refine.irn import MOST_PIXELS, TOGETHER
from beco.stage1.refine.irn_pairs import offsets
from beco.training.engine import total_steps

Size = tuple[int, int]
GRID = 16  # pixels of a picture to one of its class maps, at stride 4


@dataclass(frozen=True)
class Work:
    """Some equal pieces of work."""

    kind: str
    """start, train, infer, load, read, write, scores, crf, walk, merge, evaluate or draw."""
    count: float
    """Steps, pictures or runs."""
    each: float = 1.0
    """Size of one: FLOPs (train, infer), pixel·iterations (crf), class·pixel·steps (walk), class·pixels (scores,
    merge), pixels (others).
    """
    what: Any = None
    """What is to be measured, by kind; equal ones take equally long."""


@dataclass(frozen=True)
class Trained:
    """A training of which steps are measured."""

    spec: Spec
    setting: Any
    """`Classifier`, `Irn` or the `Setting` of a benchmark."""
    forward: float
    """FLOPs of a picture forwards through one network, to find one like it."""


@dataclass(frozen=True)
class Applied:
    """Inference that is measured: a network over the views of a picture."""

    spec: Spec
    views: tuple[Size, ...]
    """Height and width of each."""
    batch: int
    forward: float
    """FLOPs of a picture of `views[0]`, likewise."""


@dataclass(frozen=True)
class Job:
    """One job of the workflow."""

    rule: str
    name: str
    """As the file that Snakemake measures it in is called, without .tsv."""
    stage: str
    works: tuple[Work, ...]
    needs: tuple[str, ...] = ()
    """Names of the jobs before it."""
    on_device: bool = False
    """Whether a GPU does it, where there is one."""
    threads: int = 1
    memory: int = 0
    """Bytes beyond those of a process that has just started."""
    loaders: int = 0
    """Processes that load while the networks work."""


def jobs(config: Config, pictures: Pictures) -> list[Job]:
    """All jobs of a plain `snakemake`, in an order in which they can run. UserError for networks that cannot be."""
    return [
        *_data(config, pictures),
        *_classifier(config, pictures),
        *_labels(config, pictures),
        *_stage_two(config, pictures),
        *_tables(config, pictures),
    ]


def _start(group: str) -> Work:
    return Work("start", 1, what=group)


# --- data and classifier ------------------------------------------------------------------------------------


def _data(config: Config, pictures: Pictures) -> Iterable[Job]:
    everything, needs = pictures.train + pictures.val, tuple[str, ...]()
    if config.dataset.format == "shapes":
        drawn = Work("draw", everything, pictures.pixels)
        yield Job("draw_shapes", "draw_shapes", "dataset", (_start("pictures"), drawn))
        needs = ("draw_shapes",)
    work = (_start("pictures"), Work("read", everything, pictures.pixels))
    yield Job("manifest", "manifest", "dataset", work, needs)
    if config.dataset.format == "coco":
        masks = (_start("pictures"), Work("write", everything, pictures.pixels))
        yield Job("render_masks", "render_masks", "dataset", masks, threads=config.compute.threads)


def _masks(config: Config) -> tuple[str, ...]:
    return ("render_masks",) if config.dataset.format == "coco" else ()


def _classifier(config: Config, pictures: Pictures) -> Iterable[Job]:
    settings, compute, cam = config.classifier, config.compute, config.cam
    spec = networks.classifier(settings, pictures.classes)
    size, batch = settings.crop.size, settings.schedule.batch_size
    validated = fitted_size(pictures.height, pictures.width, settings.resize)
    steps = total_steps(settings.schedule, pictures.train)
    yield Job(
        "train_classifier",
        "train_classifier",
        "classifier",
        (
            _start("networks"),
            Work("train", steps, batch * networks.step(spec, size), _trained(spec, settings, size)),
            Work("load", steps * batch, pictures.pixels, ("classifier", settings.crop)),
            _infer(spec, [validated], pictures.val, 16),
            Work("read", pictures.val, pictures.pixels),
        ),
        ("manifest",),
        True,
        compute.threads,
        room.training(spec, size, batch // settings.schedule.accumulate, settings.schedule, settings.optimiser),
        compute.workers,
    )
    fed = fitted_size(pictures.height, pictures.width, cam.resize)
    views = [_scaled(fed, scale) for scale in cam.scales] * (2 if cam.flip else 1)
    shards = _shares(pictures.train, compute.shards.cams)
    for name, count in shards:
        work = (
            _start("networks"),
            _infer(spec, views, count, cam.batch_size),
            Work("read", count, pictures.pixels),
            Work("write", count, pictures.pixels * pictures.shown / GRID),
        )
        largest = max(views)
        memory = room.inference(spec, largest, min(cam.batch_size, count) * (2 if cam.flip else 1))
        needs = ("train_classifier",)
        yield Job("infer_cams", f"infer_cams.{name}", "CAMs", work, needs, True, compute.threads, memory)
    yield Job(
        "gather_cams", "gather_cams", "CAMs", (_start("store"),), tuple(f"infer_cams.{name}" for name, _ in shards)
    )


def _trained(spec: Spec, setting: object, size: int) -> Trained:
    return Trained(spec, setting, networks.forward(spec, size, size))


def _infer(spec: Spec, views: list[Size], count: float, batch: int) -> Work:
    each = sum(networks.forward(spec, *view) for view in views)
    return Work("infer", count, each, Applied(spec, tuple(views), batch, networks.forward(spec, *views[0])))


def _scaled(size: Size, scale: float) -> Size:
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _shares(count: int, shards: int) -> list[tuple[str, int]]:
    """Name and number of pictures of each shard: every n-th picture."""
    return [(f"{k + 1}-of-{shards}", len(range(k, count, shards))) for k in range(shards)]


# --- labels -------------------------------------------------------------------------------------------------


def _labels(config: Config, pictures: Pictures) -> Iterable[Job]:
    last = sorted(config.labels, key=lambda name: config.labels[name].refine == "irn")  # it may learn from others
    for name in last:
        recipe, owner = config.labels[name], config.scores_of(name)
        if owner == name:
            yield from _irn(config, pictures, name)
        if recipe.refine == "import":
            work = (_start("pictures"), Work("read", pictures.train, pictures.pixels))
            yield Job("import_labels", f"import_labels.{name}", "labels", work, ("manifest",))
        else:
            maps = f"gather_scores.{owner}" if owner else "gather_cams"
            yield from _labelling(config, pictures, name, recipe, (maps,), "labels")
    for name in config.labels:
        source = "import_labels" if config.labels[name].refine == "import" else "gather_labels"
        work = (_start("pictures"), Work("evaluate", pictures.train, pictures.pixels))
        needs = (f"{source}.{name}", *_masks(config))
        yield Job("evaluate_labels", f"evaluate_labels.{name}", "scores", work, needs, threads=config.compute.threads)
    for name in config.swept():
        yield _sweep(config, pictures, name)


def _labelling(
    config: Config, pictures: Pictures, name: str, recipe: Labels, needs: tuple[str, ...], what: str
) -> Iterable[Job]:
    """The shards of `what`, labels or pairs, and their joining."""
    shards = _shares(pictures.train, config.compute.shards.labels)
    stage = "labels" if what == "labels" else "IRN"
    for shard, count in shards:
        work = [_start("networks" if recipe.refine == "crf" and recipe.crf.backend == "torch" else "pictures")]
        work += [Work("scores", count, pictures.pixels * pictures.shown), Work("write", count, pictures.pixels)]
        if recipe.refine == "crf":
            work += [_crf(pictures, recipe, 2 * count), Work("read", count, pictures.pixels)]
        memory = room.crf(pictures.pixels, pictures.shown + 1) if recipe.refine == "crf" else 0
        yield Job(f"make_{what}", f"make_{what}.{name}.{shard}", stage, tuple(work), needs, memory=memory)
    joined = tuple(f"make_{what}.{name}.{shard}" for shard, _ in shards)
    yield Job(f"gather_{what}", f"gather_{what}.{name}", stage, (_start("store"),), joined)


def _crf(pictures: Pictures, recipe: Labels, runs: float) -> Work:
    each = pictures.pixels * recipe.crf.iterations
    return Work("crf", runs, each, (recipe.crf, max(round(pictures.shown), 1) + 1))


def _irn(config: Config, pictures: Pictures, name: str) -> Iterable[Job]:
    compute, settings = config.compute, config.labels[name].irn
    shared = config.pairs_of(name)
    if shared is None:
        yield from _labelling(config, pictures, name, config.labels[name].for_pairs(), ("gather_cams",), "pairs")
    pairs = f"gather_labels.{shared}" if shared else f"gather_pairs.{name}"
    spec = networks.irn(config.classifier, pictures.classes)
    size, batch, own = settings.crop.size, settings.schedule.batch_size, (pictures.height, pictures.width)
    steps = total_steps(settings.schedule, pictures.train)
    work = (
        _start("networks"),
        Work("train", steps, batch * networks.step(spec, size), _trained(spec, settings, size)),
        Work("load", steps * batch, pictures.pixels, ("labelled", settings.crop)),
        _infer(spec, [own], pictures.train, _together(own)),
        Work("read", pictures.train, pictures.pixels),
    )
    memory = room.training(spec, size, batch // settings.schedule.accumulate, settings.schedule, settings.optimiser)
    memory = max(memory, room.inference(spec, own, _together(own)))
    yield Job("train_irn", f"train_irn.{name}", "IRN", work, (pairs,), True, compute.threads, memory, compute.workers)
    fed = fitted_size(pictures.height, pictures.width, settings.resize)
    neighbours = 2 * len(offsets(settings.walk_radius)) + 1
    shards = _shares(pictures.train, compute.shards.cams)
    for shard, count in shards:
        steps_of_walk = pictures.shown * fed[0] * fed[1] / GRID * neighbours * 2**settings.squarings
        work = (
            _start("networks"),
            _infer(spec, [fed, fed], count, _together(fed)),
            Work("walk", count, steps_of_walk, (settings, fed)),
            Work("read", count, pictures.pixels),
            Work("write", count, pictures.pixels * pictures.shown / GRID),
        )
        memory, needs = room.walk(spec, fed, min(_together(fed), count), neighbours), (f"train_irn.{name}",)
        yield Job("random_walk", f"random_walk.{name}.{shard}", "IRN", work, needs, True, compute.threads, memory)
    joined = tuple(f"random_walk.{name}.{shard}" for shard, _ in shards)
    yield Job("gather_scores", f"gather_scores.{name}", "IRN", (_start("store"),), joined)


def _together(size: Size) -> int:
    """Pictures of a size that IRN takes at once."""
    return max(min(TOGETHER, MOST_PIXELS // (size[0] * size[1])), 1)


def _sweep(config: Config, pictures: Pictures, name: str) -> Job:
    """One labelling and scoring for each background score."""
    recipe, many = config.labels[name], len(config.quality.backgrounds)
    work = [_start("networks" if recipe.refine == "crf" else "pictures")]
    work += [Work("scores", pictures.train, pictures.pixels * pictures.shown)]
    work += [Work("evaluate", pictures.train * many, pictures.pixels)]
    if recipe.refine == "crf":
        work += [_crf(pictures, recipe, many * pictures.train), Work("read", pictures.train, pictures.pixels)]
    owner = config.scores_of(name)
    needs = (f"gather_scores.{owner}" if owner else "gather_cams", *_masks(config))
    return Job("sweep_labels", f"sweep_labels.{name}", "scores", tuple(work), needs)


# --- stage two ----------------------------------------------------------------------------------------------


def _stage_two(config: Config, pictures: Pictures) -> Iterable[Job]:
    for name, experiment in config.experiments.items():
        for seed in experiment.seeds:
            yield from _run(config, pictures, experiment, f"{experiment.labels}.{name}.seed{seed}")


def _run(config: Config, pictures: Pictures, experiment: Experiment, run: str) -> Iterable[Job]:
    compute, settings = config.compute, experiment.training
    network = config.networks[experiment.network]
    spec = networks.segmenter(network, pictures.classes)
    many = RECIPES.fact(experiment.recipe, "NETWORKS")
    size, batch, accumulate = settings.crop.size, settings.schedule.batch_size, settings.schedule.accumulate
    steps = total_steps(settings.schedule, pictures.train)
    setting = Setting(network, settings, experiment.recipe, pictures.classes)
    forward = networks.forward(spec, size, size)
    online = RECIPES.entry(experiment.recipe).online_steps(settings, steps)
    warm = steps - online
    each = batch * many * networks.step(spec, size)
    asked = batch * many * forward if online else 0
    work = [
        _start("networks"),
        # a step of the warm-up lacks the forward passes of the online labels
        Work("train", steps - warm * asked / (each + asked), each + asked, _trained(spec, setting, size)),
        Work("load", steps * batch, pictures.pixels, ("labelled", settings.crop)),
    ]
    if settings.validate_every:
        epochs = steps // max(pictures.train // batch, 1) // settings.validate_every
        looked_at = pictures.val + min(settings.watch_labels or 0, pictures.train)
        work.append(_infer(spec, [(size, size)] * many, epochs * looked_at, 16))
        work.append(Work("read", epochs * looked_at, pictures.pixels))
    needs = [] if experiment.labels == "truth" else [_labels_job(config, experiment.labels)]
    needs += ["train_classifier"] if network.encoder.weights == "classifier" else []
    needs += _masks(config) if settings.validate_every or experiment.labels == "truth" else ()
    memory = room.training(spec, size, batch // accumulate, settings.schedule, settings.optimiser, many)
    yield Job(
        "train_segmenter",
        f"train_segmenter.{run}",
        "training",
        tuple(work),
        ("manifest", *needs),
        True,
        compute.threads * compute.devices,
        memory,
        compute.workers,
    )
    yield _prediction(config, pictures, spec, many, run)
    scored = (_start("pictures"), Work("evaluate", pictures.val, pictures.pixels))
    needs = [f"predict.{run}", *_masks(config)]
    yield Job("evaluate", f"evaluate.{run}", "scores", scored, tuple(needs), threads=compute.threads)


def _labels_job(config: Config, name: str) -> str:
    return f"import_labels.{name}" if config.labels[name].refine == "import" else f"gather_labels.{name}"


def _prediction(config: Config, pictures: Pictures, spec: Spec, many: int, run: str) -> Job:
    settings, compute = config.prediction, config.compute
    fed = fitted_size(pictures.height, pictures.width, settings.resize, settings.squeeze)
    used = 1 if settings.networks == "first" else many
    views = [_scaled(fed, scale) for scale in settings.scales] * (used * (2 if settings.flip else 1))
    count = pictures.predicted(config.dataset)
    written = settings.scored_side**2 if settings.scored_side else pictures.pixels
    channels = pictures.classes + 1
    work = [
        _start("networks"),
        _infer(spec, views, count, settings.batch_size),
        Work("read", count, pictures.pixels),
        Work("write", count, written),
        Work("merge", count, used * written * channels),
    ]
    memory = max(room.scores(written, channels), room.inference(spec, max(views), min(settings.batch_size, count)))
    if settings.crf is not None:
        work.append(Work("crf", count, written * settings.crf.iterations, (settings.crf, channels)))
        memory += compute.threads * room.crf(written, channels)
    needs = (f"train_segmenter.{run}",)
    return Job("predict", f"predict.{run}", "prediction", tuple(work), needs, True, compute.threads, memory)


def _tables(config: Config, pictures: Pictures) -> Iterable[Job]:
    runs = {
        name: [f"{experiment.labels}.{name}.seed{seed}" for seed in experiment.seeds]
        for name, experiment in config.experiments.items()
    }
    scored = [f"evaluate.{run}" for found in runs.values() for run in found]
    needs = (*scored, *(f"evaluate_labels.{name}" for name in config.labels))
    needs = (*needs, *(f"sweep_labels.{name}" for name in config.swept()))
    yield Job("tabulate", "tabulate", "tables and report", (_start("tables"),), needs)
    for name, comparison in config.comparisons.items():
        compared = tuple(f"evaluate.{run}" for one in comparison.experiments for run in runs[one])
        yield Job("compare", f"compare.{name}", "tables and report", (_start("tables"),), compared)
    shown = min(config.gallery, pictures.val) * (1 + len(scored)) + min(config.gallery, pictures.train) * (
        2 + len(config.labels)
    )
    work = (_start("tables"), Work("write", shown, pictures.pixels))
    yield Job("report", "report", "tables and report", work, needs)
