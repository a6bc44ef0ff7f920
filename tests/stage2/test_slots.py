"""The slots: what every recipe has to do, the ones of this package and one that lies in a folder of the user's own."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ROOT
from own_methods import edits
from results_for_tests import make_labels, make_manifest, make_run

from beco.artifacts import sources
from beco.artifacts.files import read_json, write_json
from beco.benchmark import presets
from beco.benchmark import training as bench
from beco.config import Network, Training, read_config_files
from beco.datasets import manifest as manifests
from beco.datasets import shapes, voc
from beco.errors import UserError
from beco.evaluation.tables.table_files import write_tables
from beco.evaluation.tables.tables import Results, run_protocol
from beco.networks.encoders import load_network
from beco.schema import Shapes
from beco.schema.slots import RECIPES
from beco.stage2 import recipes
from beco.stage2 import train as training
from beco.training.trainer import Compute

TOY = '''"""A toy: three networks, each on the labels, the second and third with half the loss."""

from torch.nn import functional as F

from beco.stage2.recipes.base import Recipe

NETWORKS = 3
UNUSED = ("training.mix", "training.reliable")


class Weighted(Recipe):
    """Cross-entropy of every network."""

    def losses(self, logits, target, batch, step, steps):
        losses = [F.cross_entropy(one, target.label, ignore_index=255) for one in logits]
        return {"loss": losses[0] + 0.5 * losses[1] + 0.5 * losses[2]}
'''
EXAMPLE = textwrap.dedent(
    (ROOT / "docs" / "add-a-recipe.md").read_text(encoding="utf-8").split("```python\n")[1].split("    ```")[0]
)
NETWORK = Network.model_validate(
    {
        "encoder": {"name": "resnet10t", "options": {"channels": [8, 16, 24, 32]}},
        "decoder_channels": 8,
        "atrous_rates": [1, 2, 3],
    }
)
SETTINGS = {"warmup": 0.3, "crop": {"size": 32, "area": [0.5, 1.0]}, "schedule": {"batch_size": 4}}
NAMES = [
    *sorted(path.stem for path in (ROOT / "beco/stage2/recipes").glob("[a-z]*.py") if path.stem != "base"),
    "halves",
    "toy",
]


@pytest.fixture(autouse=True)
def toy(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with this recipe and the documentation's: a file each, and nothing else knows of them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "toy.py").write_text(TOY, encoding="utf-8")
    (folder / "recipes" / "halves.py").write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.setenv("BECO_METHODS", str(folder))
    monkeypatch.setattr(recipes, "__path__", [str(path) for path in RECIPES.folders])
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> manifests.Manifest:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=8, val=2))
    return voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv")


def test_a_file_is_a_recipe() -> None:
    assert set(RECIPES.files()) == set(NAMES) >= {"single", "cotraining", "beco"}
    assert [RECIPES.fact(name, "NETWORKS") for name in ("single", "cotraining", "beco", "toy")] == [1, 2, 2, 3]
    assert RECIPES.fact("gone", "NETWORKS") == 1 and RECIPES.fact("toy", "PAIRS") is False
    with pytest.raises(UserError, match=r"--recipe: no recipe `becco`; did you mean `beco`\?"):
        RECIPES.given("becco", "--recipe")


def test_a_file_with_two_classes_is_told(toy: Path) -> None:
    text = TOY.replace('"""A toy', '"""Another') + "\n\nclass Second(Weighted):\n    pass\n"
    (toy / "recipes" / "twice.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"twice\.py: 2 public classes"):
        RECIPES.entry("twice")


def run(pictures: manifests.Manifest, name: str, output: Path) -> dict[str, torch.Tensor]:
    settings = Training.model_validate(
        {**SETTINGS, "schedule": {"batch_size": 4, "steps": 4, "checkpoint_minutes": 1e-6}}
    )
    wanted = training.Wanted(name, NETWORK, settings, 1)
    training.train(pictures.split("train"), pictures.split("val"), wanted, Compute("cpu"), output, False)
    return load_network(output / "networks.safetensors")[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(
    name: str, pictures: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(pictures, name, tmp_path / "whole")
    entry = RECIPES.entry(name)
    given = entry.losses

    def stop(self: Any, logits: Any, target: Any, batch: Any, step: int, steps: int) -> Any:
        if step == 2:
            raise InterruptedError
        return given(self, logits, target, batch, step, steps)

    monkeypatch.setattr(entry, "losses", stop)
    with pytest.raises(InterruptedError):
        run(pictures, name, tmp_path / "stopped")
    monkeypatch.setattr(entry, "losses", given)
    again = run(pictures, name, tmp_path / "stopped")
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)
    numbers = {key.split(".")[0] for key in whole}
    assert len(numbers) == RECIPES.fact(name, "NETWORKS")
    kept = read_json(tmp_path / "stopped" / "training.json")
    assert kept["recipe"] == name and kept["code"] == sources.stage_hash("beco.stage2.train", RECIPES.module(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_measured_with_its_pieces(name: str) -> None:
    small = "{encoder: {name: resnet10t, options: {channels: [8, 16, 24, 32]}}, decoder_channels: 8}"
    setting = presets.setting("demo", small, "{crop: {size: 32}, schedule: {batch_size: 4}}", name, None, "cpu")
    made = bench.prepare(setting, Compute("cpu"))
    before = [parameter.clone() for parameter in made.task.parameters()]
    made.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, made.task.parameters(), strict=True))
    assert {"conversion", "colour", "loss", "cross_entropy", "optimiser"} <= set(bench.breakdown(made, 1))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_configured_and_planned_by_its_name(name: str, tmp_path: Path) -> None:
    config = read_config_files([ROOT / "tests" / "tiny.yaml"], [f"experiments={{one: {{recipe: {name}}}}}"])
    assert config.experiments["one"].recipe == name
    assert RECIPES.entry(name).online_steps(config.training, 80) == (79 if name == "beco" else 0)


@pytest.mark.parametrize("name", NAMES)
def test_tables_say_how_many_networks_and_leave_out_what_it_does_not_use(name: str, tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    made = make_run(tmp_path, manifest, "one", 0, "crf", 1)
    write_json(made.folder / "training.json", {**made.training(), "recipe": name})
    many = RECIPES.fact(name, "NETWORKS")
    assert f"{many} network" in run_protocol(made)
    write_tables(Results([made], [make_labels(tmp_path, manifest)]), tmp_path / "tables")
    assert pd.read_csv(tmp_path / "tables" / "recipes.csv")["experiment"].tolist() == ["one"]


@pytest.fixture
def edited(toy: Path) -> Iterator[Any]:
    yield from edits(toy / "recipes" / "toy.py", TOY)


def test_only_its_own_code_counts_for_a_training(edited: Any) -> None:
    edited("", "")
    both = [sources.stage_hash("beco.stage2.train", RECIPES.module(name)) for name in ("toy", "single")]
    edited("0.5 * losses[1]", "0.4 * losses[1]")
    now = [sources.stage_hash("beco.stage2.train", RECIPES.module(name)) for name in ("toy", "single")]
    assert now[0] != both[0] and now[1] == both[1]
