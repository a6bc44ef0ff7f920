"""Configurations in layers: read as the workflow reads them, and what is wrong told of the layer that it stands in."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from conftest import ROOT
from snakemake.cli import parse_config
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

from beco.cli import dataset as cli
from beco.config import read_config_files, validate_config
from beco.errors import UserError
from beco.project.check import check

PRESETS = ROOT / "workflow" / "presets"
LAYERED = [
    [PRESETS / "voc_sample.yaml", PRESETS / "figure1" / "voc_sample.yaml"],
    [PRESETS / "voc_sample.yaml", PRESETS / "ablation" / "voc_sample.yaml", PRESETS / "reliable" / "voc_sample.yaml"],
    [ROOT / "config.yaml", PRESETS / "transformer" / "shapes.yaml"],
]


@pytest.mark.parametrize("over", [[], ["gallery=3", "dataset={name: other, shapes: {train: 99}}"]])
@pytest.mark.parametrize("paths", LAYERED, ids=lambda paths: paths[-1].parent.name)
def test_layers_read_as_snakemake_lays_them(paths: list[Path], over: list[str]) -> None:
    values: dict[str, object] = {}
    for path in paths:
        update_config(values, load_configfile(str(path)))
    update_config(values, parse_config(over))
    assert read_config_files(paths, over) == validate_config(values)


@pytest.mark.parametrize("overlay", sorted(PRESETS.glob("*/shapes.yaml")), ids=lambda path: path.parent.name)
def test_overlays_of_the_embedded_dataset_want_for_nothing(overlay: Path) -> None:
    groups = check(read_config_files([ROOT / "config.yaml", overlay], []), elsewhere=True)
    assert [line for group in groups if group.name != "disk" for line in group.problems] == []


def test_a_layer_takes_out_what_is_below(tmp_path: Path) -> None:
    (tmp_path / "over.yaml").write_text("experiments: {single: null, mine: {recipe: beco, labels: crf}}\n")
    below = read_config_files([ROOT / "config.yaml"], [])
    found = read_config_files([ROOT / "config.yaml", tmp_path / "over.yaml"], [])
    assert [*found.experiments] == [*(name for name in below.experiments if name != "single"), "mine"]
    none = ", ".join(f"{name}: null" for name in below.experiments)
    with pytest.raises(UserError, match=r"experiments: .*at least 1"):
        read_config_files([ROOT / "config.yaml"], [f"experiments={{{none}}}"])


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """The tiny configuration in two files, neither of which is one by itself."""
    whole = (ROOT / "tests" / "tiny.yaml").read_text(encoding="utf-8")
    (tmp_path / "a.yaml").write_text(whole, encoding="utf-8")
    (tmp_path / "b.yaml").write_text("dataset: {name: other}\ntraining: {schedule: {batch_size: 4}}\n")
    return [tmp_path / "a.yaml", tmp_path / "b.yaml"]


def test_check_takes_them_all(
    layers: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = layers
    seen = []
    monkeypatch.setattr("beco.project.check.check", lambda config, *_: seen.append(config) or [])
    for given in ({"configfile": layers}, {"configfile": [first], "more": [second]}):
        with pytest.raises(typer.Exit):
            cli.check(**given, config=["gallery=2"])  # type: ignore[arg-type]
    for config in seen:
        assert (config.dataset.name, config.gallery) == ("other", 2)
        assert {one.training.schedule.batch_size for one in config.experiments.values()} == {4}
    with pytest.raises(UserError, match=r"laid over --configfile; leave --settings out"):
        cli.check(settings="{}", config=["gallery=2"])


@pytest.mark.parametrize(
    ("text", "over", "words"),
    [
        ("datset: {}", [], r"a\.yaml, .*b\.yaml: datset: unknown key; did you mean `dataset`\? \(in .*b\.yaml\)$"),
        ("dataset: {shapes: {trian: 3}}", [], r"dataset\.shapes\.trian: .* \(in .*b\.yaml\)$"),
        ("training: {crp: 3}", [], r"training\.crp: unknown key.* \(in .*b\.yaml\)$"),
        ("gallery: 3", ["galery=3"], r"b\.yaml, --config: galery: .* \(in --config\)$"),
        ("gallery: none", ["gallery=3"], ""),
    ],
)
def test_what_is_wrong_is_told_of_its_layer(layers: list[Path], text: str, over: list[str], words: str) -> None:
    layers[1].write_text(text)
    if not words:
        assert read_config_files(layers, over).gallery == 3
        return
    with pytest.raises(UserError, match=words) as caught:
        read_config_files(layers, over)
    assert "\n" not in str(caught.value)


def test_a_single_file_is_not_named_twice(layers: list[Path]) -> None:
    layers[1].write_text("datset: {}")
    with pytest.raises(UserError) as caught:
        read_config_files(layers[1:], [])
    assert str(caught.value).count("b.yaml") == 1
