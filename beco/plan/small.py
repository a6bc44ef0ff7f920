"""A small configuration of a large one: the same rules, networks and batches, on few pictures and few steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beco.config import Config, Encoder, Schedule
from beco.plan.pictures import DRAWN, Pictures
from beco.training.engine import total_steps

EPOCHS = 4
SIDES = dict.fromkeys(("crop", "size", "resize", "squeeze", "long_side", "crop_size", "least_side", "most_side"), 32)
"""Keys that hold sides in pixels, and the least that each may be."""


@dataclass(frozen=True)
class Cut:
    """What a machine that is too small for a configuration gets less of."""

    batch: int | None = None
    """Pictures together at most; None: as the configuration has it."""
    part: float = 1.0
    """Of the sides of pictures and crops."""

    def together(self, batch: int) -> int:
        return min(batch, self.batch or batch)


CUTS = (Cut(), Cut(2), Cut(2, 0.5), Cut(2, 0.25))


def sizes(pictures: Pictures, least: int) -> tuple[int, int]:
    """At least so many training pictures, and validation pictures in the dataset's ratio; a few more if that fits."""
    ratio, most = pictures.val / pictures.train, min(least * 3 // 2, pictures.train)

    def miss(train: int) -> float:
        return round(abs(max(round(train * ratio), 1) / (train * ratio) - 1), 1)

    train = min(range(min(least, pictures.train), most + 1), key=miss)
    return train, min(max(round(train * ratio), 1), pictures.val)


def small(config: Config, pictures: Pictures, dataset: dict[str, Any], train: int, cut: Cut) -> dict[str, Any]:
    """`config` on a `dataset` of `train` pictures (what is different in its section), as values for Snakemake.

    Trainings go through `EPOCHS` at most, or as many as come before a look at the scores: what they do once an epoch
    belongs to the start that two sizes tell from the work.
    """
    values = config.model_dump(mode="json")
    for holder in _sections(values, "schedule"):
        schedule = holder["schedule"]
        steps = total_steps(Schedule.model_validate(schedule), pictures.train)
        batch = cut.together(schedule["batch_size"])
        epochs = steps * schedule["batch_size"] / pictures.train
        short = min(round(epochs * train / batch), max(EPOCHS, holder.get("validate_every") or 0) * (train // batch))
        schedule |= {"epochs": None, "steps": max(short, 2)}
        schedule["accumulate"] = schedule["accumulate"] if batch % schedule["accumulate"] == 0 else 1
        if holder.get("warmup_steps"):
            holder["warmup_steps"] = round(holder["warmup_steps"] * short / steps)
        if holder.get("watch_labels"):
            holder["watch_labels"] = max(round(holder["watch_labels"] * train / pictures.train), 1)
    for section in _sections(values, "batch_size"):
        section["batch_size"] = cut.together(section["batch_size"])
    _shrink(values, cut.part)
    _at_hand(config, values)
    for name, source in config.sources.items():
        values["sources"][name]["options"] |= source.tried()
    experiments = {name: value for name, value in values["experiments"].items() if representative(config, name) == name}
    for value in experiments.values():
        value["seeds"] = value["seeds"][:1]
    values["experiments"], values["comparisons"] = experiments, _comparisons(config)
    values["quality"]["apart"] = []  # lists that the small dataset lacks
    values["compute"]["shards"] = dict.fromkeys(values["compute"]["shards"], 1)
    values["results"] = "results"
    values["dataset"] |= dataset
    return values


def of_one(values: dict[str, Any]) -> dict[str, Any]:
    """The same with the first experiment alone: enough to see how long the rules take to start."""
    name, first = next(iter(values["experiments"].items()))
    kept = {key: value for key, value in values["comparisons"].items() if name in value["experiments"]}
    compared = {key: value | {"experiments": [name]} for key, value in kept.items()}
    return values | {"experiments": {name: first}, "comparisons": compared}


def representative(config: Config, name: str) -> str:
    """The first experiment that costs what `name` does: of its recipe, networks, batch, crop, precision and looks."""
    return next(other for other in config.experiments if _cost(config, other) == _cost(config, name))


def _cost(config: Config, name: str) -> tuple[Any, ...]:
    experiment = config.experiments[name]
    training, schedule = experiment.training, experiment.training.schedule
    fed = (schedule.batch_size, schedule.accumulate, schedule.precision, training.crop.size)
    looks = (training.validate_every, training.watch_labels, training.mix.labels)
    return experiment.recipe, experiment.network, experiment.labels == "truth", fed, looks


def _comparisons(config: Config) -> dict[str, Any]:
    """The comparisons, each of the experiments that stand for its own."""
    found = {}
    for name, comparison in config.comparisons.items():
        chosen = list(dict.fromkeys(representative(config, one) for one in comparison.experiments))
        found[name] = comparison.model_dump(mode="json") | {"experiments": chosen}
    return found


def _sections(values: Any, key: str) -> Iterator[dict[str, Any]]:
    """Every section below `values` that has `key`."""
    if isinstance(values, dict):
        if key in values:
            yield values
        for value in values.values():
            yield from _sections(value, key)


def _shrink(values: Any, part: float) -> None:
    """Multiply all sides by `part`."""
    for key, value in values.items() if isinstance(values, dict) and part != 1 else ():
        if key in SIDES and isinstance(value, int):
            least = DRAWN[0] if "seed" in values else SIDES[key]
            values[key] = max(round(value * part), least)
        elif key in SIDES and isinstance(value, list):
            values[key] = [max(round(side * part), SIDES[key]) for side in value]
        else:
            _shrink(value, part)


def with_weights(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`values` with random weights, in files in `folder`, in place of those that are not at hand."""
    from beco.networks.encoders import create_backbone, prepare_backbone
    from beco.networks.weights import write_safetensors

    made: dict[str, str] = {}
    for section in _sections(values, "weights"):
        given, bare = section["weights"], Encoder.model_validate(section | {"weights": None})
        if given not in (None, "classifier") and (given == "imagenet" or not Path(given).exists()):
            if (text := bare.model_dump_json()) not in made:
                prepare_backbone(backbone := create_backbone(bare, 32), bare)
                made[text] = str(folder / f"random{len(made)}.safetensors")
                write_safetensors(Path(made[text]), backbone.state_dict(), {})
            section["weights"] = made[text]
    return values


def _at_hand(config: Config, values: dict[str, Any]) -> None:
    """Paths from anywhere, and our labels for those to be imported that are not there."""
    for section in _sections(values, "weights"):
        if section["weights"] not in (None, "classifier", "imagenet"):
            section["weights"] = str(Path(section["weights"]).absolute())
    for source in values["sources"].values():
        source["text"] = source["text"] and str(Path(source["text"]).absolute())
    for section in _sections(values, "root"):
        section |= {
            key: section[key] and str(Path(section[key]).absolute()) for key in ("root", "labels", "masks", "saliency")
        }
    for name, recipe in values["labels"].items():
        if recipe["refine"] == "import":
            path = Path(recipe["source"]["path"])
            recipe["source"]["path"] = str(path.absolute())
            if "background" not in config.labels[name].model_fields_set:
                del recipe["background"]  # to be set would mean something
            if not path.exists():
                recipe |= {"refine": "none", "source": None}
