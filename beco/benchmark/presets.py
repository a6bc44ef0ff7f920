"""What is trained in a benchmark: presets, and settings as `beco train` takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from pydantic import ConfigDict

from beco.config import Network, Section, Training, merge, read_settings, validate
from beco.errors import UserError
from beco.schema.slots import RECIPES

Preset = Literal["demo", "paper"]
S = TypeVar("S", bound=Section)

SMALL = {"name": "resnet10t", "options": {"channels": [32, 64, 128, 256]}}
NETWORKS: dict[Preset, dict[str, Any]] = {
    "demo": {"encoder": SMALL, "decoder_channels": 64, "atrous_rates": [1, 2, 3]},
    "paper": {"encoder": {"name": "resnet101d"}, "output_stride": 16, "multi_grid": [1, 2, 4]},
}
TRAININGS: dict[Preset, dict[str, Any]] = {
    "demo": {
        "reliable_fraction": 1,
        "warmup": 0.5,
        "crop": {"size": 64, "area": [0.5, 1.0]},
        "schedule": {"steps": 900, "batch_size": 16, "precision": "bf16"},
        "optimiser": {"name": "adamw", "lr": 0.002, "weight_decay": 0.01, "min_lr": 0},
    },
    "paper": {"schedule": {"epochs": 80, "batch_size": 16, "precision": "bf16"}},
}
CLASSES: dict[Preset, int] = {"demo": 6, "paper": 20}
CPU_PARTS = 8  # of the paper's batch, so that it fits into the memory of a small machine


@dataclass(frozen=True)
class Setting:
    """One training to be measured."""

    network: Network
    training: Training
    recipe: str
    classes: int


def setting(
    preset: str, network: str | None, settings: str | None, recipe: str, classes: int | None, device: str
) -> Setting:
    """A preset with what `network` and `settings` (YAML text or file, or None) say laid over it; random weights.

    `device` is the kind of device ("cpu", "cuda"); on a CPU the paper's batch is cut into parts. UserError for
    unknown names.
    """
    if preset not in get_args(Preset):
        raise UserError(f"--preset: no preset `{preset}`; known: {', '.join(get_args(Preset))}")
    RECIPES.given(recipe, "--recipe")
    over: dict[str, Any] = {}
    if preset == "paper" and device == "cpu":
        over = {"schedule": {"accumulate": CPU_PARTS}}
    base = merge(TRAININGS[preset], over)  # type: ignore[index]
    chosen = _laid_over(Network, NETWORKS[preset], network, "--network")  # type: ignore[index]
    encoder = chosen.encoder.model_copy(update={"weights": None})
    return Setting(
        chosen.model_copy(update={"encoder": encoder}),
        _laid_over(Training, base, settings, "--settings"),
        recipe,
        classes or CLASSES[preset],  # type: ignore[index]
    )


class _Values(Section):
    """Any keys: what they are worth shows when they are laid over a preset."""

    model_config = ConfigDict(extra="allow")


def _laid_over(model: type[S], base: dict[str, Any], text: str | None, where: str) -> S:
    """`base` with the keys that `text` sets; another encoder leaves behind what belongs to the preset's."""
    values = read_settings(_Values, text, where).model_dump()
    encoder = values.get("encoder")
    if isinstance(encoder, str) or (isinstance(encoder, dict) and "name" in encoder):
        base = {key: value for key, value in base.items() if key not in ("encoder", "multi_grid")}
    return validate(model, merge(base, values), where)
