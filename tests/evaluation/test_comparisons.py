"""Comparisons: the tables of a paper, their gains by hand, their settings and the experiments that they need."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import ROOT, Checkout
from results_for_tests import make_labels, make_manifest, make_run

from beco.artifacts.files import read_json, write_json
from beco.config import Comparison, Training, parse_yaml, validate_config
from beco.errors import UserError
from beco.evaluation.report.figures import gains, setting_curve
from beco.evaluation.tables.comparisons import comparison_table, note, printed, sections, setting, write_comparison
from beco.evaluation.tables.tables import LabelSource, Results, Run, run_table

NAMES = ["single", "half", "beco", "wide", "truth"]


@pytest.fixture
def world(tmp_path: Path) -> tuple[list[Run], list[LabelSource]]:
    """Two seeds of three experiments on one network, one on another, and one on the true masks."""
    manifest = make_manifest(tmp_path)
    made = {"single": (3, 4), "half": (2, 2), "beco": (1, 0), "wide": (5,), "truth": (0,)}
    runs = []
    for name, shifts in made.items():
        for seed, shift in enumerate(shifts):
            run = make_run(tmp_path, manifest, name, seed, "truth" if name == "truth" else "crf", shift)
            training = read_json(run.folder / "training.json")
            training["network"] = {"output_stride": 8 if name == "wide" else 16}
            training["settings"] = {"mix": {"probability": {"half": 0.25, "beco": 0.5}.get(name, 0)}}
            write_json(run.folder / "training.json", training)
            runs.append(run)
    return runs, [make_labels(tmp_path, manifest)]


def table(world: tuple[list[Run], list[LabelSource]], **settings: Any) -> pd.DataFrame:
    return comparison_table(Comparison(experiments=NAMES, **settings), *world).set_index("experiment")


def test_gains_are_those_over_the_first_of_the_same_labels_and_networks(world: Any) -> None:
    frame = table(world)
    assert frame["over"].fillna("").tolist() == ["", "single", "single", "", ""]
    by_run = run_table(world[0]).set_index(["experiment", "seed"])["miou"]
    for name in ("half", "beco"):
        by_seed = [by_run[name, seed] - by_run["single", seed] for seed in (0, 1)]
        row = frame.loc[name]
        assert row["gain_miou"] == pytest.approx(sum(by_seed) / 2) and row["gain_miou"] > 0
        half = 12.706204736 * abs(by_seed[0] - by_seed[1]) / 2  # t(0.975, 1) · s / √2
        assert row["gain_miou_high"] - row["gain_miou_low"] == pytest.approx(2 * half)
        low, high = row["gain_miou_pictures_low"], row["gain_miou_pictures_high"]
        assert low - 1e-9 <= row["gain_miou"] <= high + 1e-9
    assert frame.loc["beco", "gain_pixel_accuracy"] > frame.loc["half", "gain_pixel_accuracy"]
    assert frame.loc[["single", "wide", "truth"], "gain_miou"].isna().all()


def test_the_order_of_a_comparison_is_its_own(world: Any) -> None:
    frame = comparison_table(Comparison(experiments=["beco", "single"]), *world)
    assert frame["experiment"].tolist() == ["beco", "single"]
    assert frame["over"].fillna("").tolist() == ["", "beco"] and frame["gain_miou"].iloc[1] < 0


def test_settings_that_vary_come_from_the_files(world: Any) -> None:
    paths = ["training.mix.probability", "network.output_stride", "labels.refine"]
    frame = table(world, vary=paths)
    assert frame["training.mix.probability"].tolist() == [None, 0.25, 0.5, 0, 0]  # no part of `single`
    assert frame["network.output_stride"].tolist() == [16, 16, 16, 8, 16]
    assert frame["labels.refine"].tolist() == ["crf"] * 4 + [None]
    with pytest.raises(UserError, match=r"half.seed0: its files do not name training.mix.width; take it off `vary`"):
        table(world, vary=["training.mix.width"])


@pytest.mark.parametrize(
    ("recipe", "used"), [("single", []), ("cotraining", ["peer_weight"]), ("beco", ["peer_weight", "mix.band_width"])]
)
def test_a_setting_without_effect_is_not_shown(world: Any, recipe: str, used: list[str]) -> None:
    run = world[0][0]
    settings = Training().model_dump()
    write_json(run.folder / "training.json", {"recipe": recipe, "settings": settings, "network": {}})
    for path in ("crop.size", "peer_weight", "mix.band_width"):
        value = setting(run, {}, f"training.{path}")
        assert (value is not None) == (path in ["crop.size", *used])


def test_published_figures_stand_beside_and_beneath(world: Any) -> None:
    comparison = Comparison(experiments=["single", "beco"], published=["mctformer/voc12/val"])
    published = {"beco": "beco/voc12/val/deeplabv3plus-resnet101d", "single": "beco/voc12/val/deeplabv2-resnet101"}
    frame = comparison_table(comparison, *world, published)
    assert frame["experiment"].tolist() == ["single", "beco", "MCTformer, ResNet-38"]
    assert frame["published"].tolist() == pytest.approx([float("nan"), 0.721, 0.719], nan_ok=True)
    header, rows = printed(frame, comparison)
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["published (%)"] for row in cells] == ["", "72.1", "71.9"]
    assert [row["ours − published"] != "" for row in cells] == [False, True, False]
    assert [row["supervision"] for row in cells] == ["image labels + saliency"] * 2 + [""]
    assert cells[2]["mIoU (%)"] == cells[2]["seeds"] == cells[2]["labels"] == "" and "2023" in cells[2]["source"]
    assert cells[1]["source"].startswith("Rong") and cells[0]["source"] == "not found"


def test_without_published_figures_there_are_no_such_columns(world: Any) -> None:
    comparison = Comparison(experiments=NAMES)
    header, rows = printed(comparison_table(comparison, *world), comparison)
    assert not any("published" in name for name in header) and all(len(row) == len(header) for row in rows)


def test_one_protocol_is_a_note_and_two_are_a_column(world: Any) -> None:
    comparison = Comparison(experiments=["single", "beco"])
    frame = comparison_table(comparison, *world)
    header, _ = printed(frame, comparison)
    assert note(frame).startswith("Protocol: scale") is (frame["protocol"].nunique() == 1)
    assert ("protocol" in header) is (frame["protocol"].nunique() == 2)
    frame.loc[0, "protocol"] = "another"
    assert "protocol" in printed(frame, comparison)[0] and "Protocol" not in note(frame)


def test_files(world: Any, tmp_path: Path) -> None:
    comparison = Comparison(title="A & B", experiments=["single", "half"], vary=["training.mix.probability"])
    write_comparison(comparison, Results(*world), tmp_path / "out" / "mix.csv")
    saved = pd.read_csv(tmp_path / "out" / "mix.csv")
    assert saved["training.mix.probability"].fillna(-1).tolist() == [-1, 0.25] and saved["over"].tolist()[1] == "single"
    text = (tmp_path / "out" / "mix.md").read_text()
    assert text.startswith("A & B\n\n| experiment | probability | labels |") and "paired bootstrap" in text
    assert r"\toprule" in (tmp_path / "out" / "mix.tex").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mix.csv", "mix.md", "mix.tex"]


def test_sections_of_the_report(world: Any) -> None:
    numbers = Comparison(experiments=["half", "beco"], vary=["training.mix.probability"])
    words = Comparison(title="By labels", experiments=["single", "truth"], vary=["labels.refine"])
    first, second = sections({"mix": numbers, "labels": words}, *world)
    assert first["title"] == "mix" and first["curve"] and "training.mix.probability" in first["figure"]
    assert second["title"] == "By labels" and not second["curve"] and "svg" in second["figure"]  # IoU near borders
    assert first["vary"] == [("training.mix.probability", "probability")] and not first["published"]
    assert [row["experiment"] for row in first["rows"]] == ["half", "beco"]
    assert "beco − half" in first["gains"] and "single − " not in first["gains"]


def test_a_curve_joins_only_what_has_one_recipe_and_one_label_source() -> None:
    rows = pd.DataFrame({"x": [0.25, 0.75, 0.25, 0.75], "miou": [0.1, 0.2, 0.6, 0.5], "boundary_iou": 0.3})
    rows = rows.assign(miou_std=float("nan"), line=["cotraining on crf"] * 2 + ["beco on crf"] * 2)
    apart, joined = setting_curve(rows, "x"), setting_curve(rows.drop(columns="line"), "x")
    assert apart is not None and joined is not None
    assert "cotraining on crf, mIoU" in apart and "beco on crf, boundary IoU" in apart and " on crf" not in joined
    assert [len(line) for line in drawn_lines(apart)] == [2] * 4 and [len(line) for line in drawn_lines(joined)] == [
        4
    ] * 2


def test_gains_are_large_where_every_interval_is_on_one_side() -> None:
    rows = pd.DataFrame(
        {"experiment": ["a", "b", "c"], "over": [None, "a", "a"], "gain_miou": [float("nan"), 0.02, 0.02]}
    )
    ends = {"_low": -0.01, "_high": 0.05, "_pictures_low": 0.01, "_pictures_high": 0.03}
    rows = rows.assign(**{f"gain_miou{end}": [float("nan"), value, value] for end, value in ends.items()})
    assert gains(rows[:1]) is None
    unsure = gains(rows)
    rows.loc[2, "gain_miou_low"] = 0.005
    sure = gains(rows)
    assert unsure is not None and sure is not None and "b − a" in unsure and "c − a" in unsure
    sizes = [{float(size) for size in re.findall(r"C [-\d.]+ ([\d.]+) ", svg)} for svg in (unsure, sure)]
    assert max(sizes[1]) > max(sizes[0]), "the point that is sure is drawn larger"
    assert "a − a" not in sure


def drawn_lines(svg: str) -> list[list[str]]:
    """Horizontal places of the points of each curve of a plot; error bars, which stay at one place, are none."""
    tags = [tag for tag in re.findall("<path[^>]*>", svg) if "clip-path" in tag and "stroke: #" in tag]
    places = [re.findall(r"[ML] (\S+)", tag) for tag in tags]
    return [points for points in places if len(set(points)) > 1]


def test_an_experiment_without_a_run(world: Any) -> None:
    with pytest.raises(UserError, match="no run of ghost, which the comparison lists; add it"):
        comparison_table(Comparison(experiments=["single", "ghost"]), *world)


# --- in the configuration -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comparison", "words"),
    [
        ({"experiments": ["singel"]}, ["comparisons.mine.experiments", "singel", "did you mean `single`"]),
        ({"experiments": ["single", "single"]}, ["`single` comes twice"]),
        ({"experiments": []}, ["comparisons.mine.experiments"]),
        ({"experiments": ["beco"], "vary": ["training.mix.probabilty"]}, ["comparisons.mine.vary", "`probability`"]),
        ({"experiments": ["beco"], "vary": ["probability"]}, ["comparisons.mine.vary"]),
        ({"experiments": ["beco"], "vary": ["labels.crf.iteration"]}, ["`iterations`"]),
        ({"experiments": ["beco"], "published": ["irn/voc12/vall"]}, ["published", "did you mean `irn/voc12/val`"]),
        ({"experiments": ["beco"], "titel": "x"}, ["titel", "`title`"]),
    ],
)
def test_what_is_wrong_is_named(comparison: dict[str, Any], words: list[str]) -> None:
    values = parse_yaml((ROOT / "tests" / "tiny.yaml").read_text(), "tiny")
    with pytest.raises(UserError) as caught:
        validate_config({**values, "comparisons": {"mine": comparison}})
    assert all(word in str(caught.value) for word in words), caught.value


# --- in the workflow ----------------------------------------------------------------------------------------


def test_a_comparison_needs_its_own_experiments_alone(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    values = parse_yaml((ROOT / "tests" / "tiny.yaml").read_text(), "tiny")
    values["comparisons"] = {"one": {"experiments": ["single"]}, "two": {"experiments": ["single", "beco"]}}
    values["prediction"] = {"networks": "both"}
    (checkout.folder / "mine.yaml").write_text(yaml.safe_dump(values))
    one = checkout.planned("--configfile", "mine.yaml", "--", "results/tiny/comparisons/one.csv")
    assert one["compare"] == one["train_segmenter"] == 1 and "report" not in one and "tabulate" not in one
    assert "predict_first" not in one
    every = checkout.planned("--configfile", "mine.yaml", "--", "tables")
    assert every["compare"] == 2 and every["train_segmenter"] == 2 and "report" not in every
    assert every["predict_first"] == every["evaluate_first"] == 1
