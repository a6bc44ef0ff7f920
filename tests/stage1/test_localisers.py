"""The slot of localisers: what every entry has to do, the ones of this package and those of a folder of one's own."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import localiser_inputs
import numpy as np
import pytest
import torch
from conftest import ROOT
from own_methods import edits, forget_code

from beco.artifacts import sources
from beco.artifacts.files import read_json
from beco.artifacts.store import Store
from beco.config import Cam, Classifier, Labels, validate_config
from beco.datasets import manifest as manifests
from beco.datasets import shapes, voc
from beco.errors import UserError
from beco.networks.encoders import load_network
from beco.schema import Shapes
from beco.schema.slots import LOCALISERS
from beco.schema.stage1 import Source, options_of
from beco.stage1 import localisers, train, views
from beco.stage1.localisers.base import Inputs
from beco.stage1.refine import labels
from beco.training.trainer import Compute

TOY = '''"""A toy: the classifier's loss, and a second on the maxima of its maps; mapped by a power of their share."""

from torch.nn import functional as F

from beco.stage1.localisers.base import Localiser

OPTIONS = {"weight": {"default": 0.5, "ge": 0, "description": "of the loss on maxima"}}


class Peaks(Localiser):
    """Average and maximum."""

    def losses(self, images, batch, step, steps, draws):
        maps = self.maps(images).float()
        mean, peak = maps.mean((2, 3)), maps.amax((2, 3))
        second = F.multilabel_soft_margin_loss(peak, batch["target"])
        return {"loss": F.multilabel_soft_margin_loss(mean, batch["target"]) + self.options["weight"] * second}

    def normalised(self, planes):
        return super().normalised(planes) ** 2
'''
EXAMPLE = textwrap.dedent(
    (ROOT / "docs" / "add-a-localiser.md").read_text(encoding="utf-8").split("```python\n")[1].split("    ```")[0]
)
SMALL = {"name": "resnet10t", "options": {"channels": [8, 16, 24, 32]}}
SETTINGS = {"encoder": SMALL, "crop": {"size": 32, "area": [0.5, 1.0]}, "optimiser": {"name": "adamw", "lr": 0.001}}
NAMES = [
    *sorted(path.stem for path in (ROOT / "beco/stage1/localisers").glob("[a-z]*.py") if path.stem != "base"),
    "peaks",
    "smooth",
]


@pytest.fixture(autouse=True)
def own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with the toy and the documentation's: a file each, and nothing else knows of them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "localisers").mkdir()
    (folder / "localisers" / "peaks.py").write_text(TOY, encoding="utf-8")
    (folder / "localisers" / "smooth.py").write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.setenv("BECO_METHODS", str(folder))
    monkeypatch.setattr(localisers, "__path__", [str(path) for path in LOCALISERS.folders])
    options_of.cache_clear()
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> manifests.Manifest:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=8, val=2))
    return voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv")


def wanted(name: str, steps: int = 4, folder: Path = Path(), /, **options: Any) -> train.Wanted:
    schedule = {"batch_size": 4, "steps": steps, "checkpoint_minutes": 1e-6}
    other = localiser_inputs.ENCODERS.get(name)
    encoder = {"encoder": other(folder / "tower")} if other else {}
    settings = Classifier.model_validate({**SETTINGS, **encoder, "schedule": schedule})
    complete = options_of(name).model_validate(options).model_dump()
    return train.Wanted(settings, name, complete)


def trained(pictures: manifests.Manifest, given: train.Wanted, output: Path) -> dict[str, torch.Tensor]:
    """The network's tensors; what the method wants besides pictures is made beside the output, the same each time."""
    folder = output.with_name(f"{output.name}-inputs")
    inputs = localiser_inputs.made(given.method, pictures.split("train"), given.settings, folder)
    given = dataclasses.replace(given, inputs=inputs)
    train.train(pictures.split("train"), pictures.split("val"), given, Compute("cpu"), output, False)
    return load_network(output / "classifier.safetensors", "classifier")[0]


def test_a_file_is_a_localiser() -> None:
    assert set(LOCALISERS.files()) == set(NAMES) >= {"cam"}
    with pytest.raises(UserError, match=r"--method: no localiser `kam`; did you mean `cam`\?"):
        LOCALISERS.given("kam", "--method")


@pytest.mark.parametrize("name", [name for name in NAMES if LOCALISERS.fact(name, "TRAINS")])
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(
    name: str, pictures: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = LOCALISERS.entry(name)
    given, asked = entry.losses, set()

    class Watched(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            asked.add(key)
            return super().__getitem__(key)

    def watching(self: Any, *rest: Any) -> Any:
        self.options = Watched(self.options)
        return given(self, *rest)

    monkeypatch.setattr(entry, "losses", watching)
    whole = trained(pictures, wanted(name), tmp_path / "whole")
    assert not asked & options_of(name, of_maps=True).model_fields.keys()

    def stop(self: Any, images: Any, batch: Any, step: int, *rest: Any) -> Any:
        if step == 2:
            raise InterruptedError
        return given(self, images, batch, step, *rest)

    monkeypatch.setattr(entry, "losses", stop)
    with pytest.raises(InterruptedError):
        trained(pictures, wanted(name), tmp_path / "stopped")
    monkeypatch.setattr(entry, "losses", given)
    again = trained(pictures, wanted(name), tmp_path / "stopped")
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)
    kept = read_json(tmp_path / "stopped" / "classifier.json")
    assert kept["method"] == name and kept["options"] == wanted(name).options and kept["steps"] == 4


@pytest.mark.parametrize("name", NAMES)
def test_its_maps_are_those_of_any_batch_and_shard(name: str, pictures: manifests.Manifest, tmp_path: Path) -> None:
    """Random weights serve: every picture's own classes, in [0, 1], alike alone and among others."""
    chosen = pictures.split("train")
    given = wanted(name, 1, tmp_path, **localiser_inputs.CHEAP.get(name, {}))
    trained(pictures, given, tmp_path)
    inputs = localiser_inputs.made(name, chosen, given.settings, tmp_path / "again", "MAP_INPUTS")
    found = {}
    for batch, shard in ((1, "1-of-1"), (8, "1-of-2"), (8, "2-of-2")):
        settings, path = Cam(scales=[1, 0.5], batch_size=batch), tmp_path / f"{batch}.{shard}.h5"
        views.infer(chosen, tmp_path / "classifier.safetensors", settings, Compute("cpu"), shard, path, inputs)
        found[batch, shard] = Store(path)
    alone = found[1, "1-of-1"]
    assert alone.ids("cam") == chosen.ids
    for recipe in (
        {"refine": "none", "background": "otsu"},
        {"refine": "crf"},
        {"background": "power", "unary": "scores"},
    ):
        labels.make(chosen, tmp_path / "1.1-of-1.h5", Labels.model_validate(recipe), "1-of-1", tmp_path / "labels.h5")
        with Store(tmp_path / "labels.h5") as made:
            found_labels = {value for one in chosen.ids for value in np.unique(made.get("label", one)).tolist()}
        assert found_labels <= {0, 255, *range(1, len(chosen.classes) + 1)}
    wants = LOCALISERS.fact(name, "INPUTS")
    made_from = ["image labels", *["unknown"] * ("labels" in wants), *["true objects"] * ("saliency" in wants)]
    made_from += ["captions"] * ("text" in wants)
    assert alone.attributes["supervision"] == made_from  # labels made for tests do not say
    assert read_json(tmp_path / "classifier.json")["supervision"] == made_from
    for image_id in chosen.ids:
        planes = alone.get("cam", image_id).astype(float)
        assert alone.attribute("cam", image_id, "classes").tolist() == chosen.present(image_id)
        assert planes.shape[0] == len(chosen.present(image_id)) and 0 <= planes.min() <= planes.max() <= 1
        among = next(store for key, store in found.items() if key[0] == 8 and image_id in store.ids("cam"))
        assert np.abs(among.get("cam", image_id) - planes).max() < 4e-3


def test_settings_of_maps_are_given_with_the_maps(pictures: manifests.Manifest, tmp_path: Path) -> None:
    """In place of the network's own; those of a training are refused, and a source parts the two."""
    chosen, settings = pictures.split("train"), Cam(scales=[1])
    given = wanted("recam", 1)
    trained(pictures, given, tmp_path)

    def maps_with(options: str | None, network: Path = tmp_path) -> list[np.ndarray[Any, Any]]:
        path = tmp_path / "cams.h5"
        given = (chosen, network / "classifier.safetensors", settings, Compute("cpu"), "1-of-1", path, None, options)
        views.infer(*given)
        with Store(path) as made:
            return [made.get("cam", image_id) for image_id in chosen.ids]

    def same(first: list[Any], second: list[Any]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))

    trained(pictures, wanted("recam", 1, maps="first"), tmp_path / "first")
    assert same(maps_with(None, tmp_path / "first"), maps_with("{maps: first}"))
    assert same(maps_with(None), maps_with("{maps: product}")) and not same(maps_with(None), maps_with("{maps: first}"))
    with pytest.raises(UserError, match="--options: weight: unknown key"):
        maps_with("{weight: 2}")
    source = Source.model_validate({"method": "recam", "start": "cam", "options": {"maps": "second", "weight": 0.1}})
    assert source.parted_options() == ({"weight": 0.1}, {"maps": "second"})


@pytest.mark.parametrize("name", NAMES)
def test_it_is_configured_by_its_name(name: str) -> None:
    keys = {"labels": "crf", "start": "first", "text": "texts.safetensors"}
    given = {one: keys[one] for one in LOCALISERS.fact(name, "INPUTS") if one in keys}
    config = validate_config(
        {
            "sources": {"first": {}, "mine": {"method": name, **given}},
            "labels": {"crf": {}},
            "networks": {"default": {}},
            "experiments": {"one": {"recipe": "single"}},
        }
    )
    assert config.sources["mine"].method == name
    assert config.sources["mine"].options == options_of(name)().model_dump()


def test_an_option_changes_the_training_and_is_kept_with_the_network(
    pictures: manifests.Manifest, tmp_path: Path
) -> None:
    one = trained(pictures, wanted("peaks"), tmp_path / "one")
    two = trained(pictures, wanted("peaks", weight=2), tmp_path / "two")
    assert any(not torch.equal(one[key], two[key]) for key in one)
    network, _ = train.load(tmp_path / "two" / "classifier.safetensors")
    assert type(network).__name__ == "Peaks" and network.options == {"weight": 2.0}
    with pytest.raises(UserError, match="a training with other options"):
        trained(pictures, wanted("peaks", weight=3), tmp_path / "one")


def test_a_network_of_a_method_that_is_gone(pictures: manifests.Manifest, tmp_path: Path, own: Path) -> None:
    trained(pictures, wanted("peaks", 1), tmp_path)
    (own / "localisers" / "peaks.py").unlink()
    with pytest.raises(UserError, match=r"classifier\.safetensors: no localiser `peaks`"):
        train.load(tmp_path / "classifier.safetensors")


def test_inputs_that_a_method_does_not_want_or_lacks(tmp_path: Path, own: Path) -> None:
    with pytest.raises(UserError, match="--labels: `cam` does not use it; leave it out"):
        Inputs(labels=tmp_path).checked("cam", {"pool": "auto"})
    (own / "localisers" / "peaks.py").write_text(TOY.replace("OPTIONS", 'INPUTS = ("start",)\nOPTIONS'))
    with pytest.raises(UserError, match=r"--start: `peaks` needs it; give the classifier\.safetensors"):
        Inputs().checked("peaks", {"weight": 0.5})


@pytest.fixture
def edited(own: Path) -> Iterator[Any]:
    yield from edits(own / "localisers" / "peaks.py", TOY)


def test_only_its_own_code_counts_for_a_source(edited: Any) -> None:
    edited("", "")
    both = [sources.stage_hash("beco.stage1.train", LOCALISERS.module(name)) for name in ("peaks", "cam")]
    edited("** 2", "** 3")
    now = [sources.stage_hash("beco.stage1.train", LOCALISERS.module(name)) for name in ("peaks", "cam")]
    assert now[0] != both[0] and now[1] == both[1]


def test_what_a_method_imports_beside_it_counts_for_it(own: Path) -> None:
    helper = own / "localisers" / "_parts.py"
    (own / "localisers" / "peaks.py").write_text(f"from beco.stage1.localisers._parts import ONE\n{TOY}", "utf-8")
    found = []
    for text in ("ONE = 1", "ONE = 2"):
        helper.write_text(text, encoding="utf-8")
        forget_code()
        found.append(sources.stage_hash(LOCALISERS.module("peaks")))
    forget_code()
    assert found[0] != found[1]
