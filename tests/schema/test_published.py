"""Published figures: the file itself, its use in a configuration, and the columns of the tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from configurations import changed, refusal
from conftest import ROOT
from pages import Page
from results_for_tests import PROTOCOL, make_labels, make_manifest, make_run, write_metrics
from typer.testing import CliRunner

from beco.artifacts.files import write_json
from beco.cli import app
from beco.config import validate_config
from beco.errors import UserError
from beco.evaluation.report.report import write_report
from beco.evaluation.tables.table_files import MEAN_NOTE, latex, write_tables
from beco.evaluation.tables.tables import Results, Run, run_table
from beco.schema.published import figures

BECO = "beco/voc12/val/deeplabv3plus-resnet101d"


def test_the_file() -> None:
    known = figures()
    assert known[BECO].miou == 0.721 and known[BECO].method == "BECO"
    assert known[f"{BECO}/no-crf"].miou == 0.709 and known[f"{BECO}/no-crf"].protocol.startswith("no CRF, ")
    assert known["beco/coco14/val/deeplabv3plus-resnet101d"].miou == 0.451
    assert known["beco/voc12/test/segformer-mit_b2"].miou == 0.735
    assert (known["irn/voc12/val"].miou, known["irn/voc12/test"].miou) == (0.635, 0.648)
    for key, figure in known.items():
        method, dataset, split = key.split("/")[:3]
        assert dataset in ("voc12", "coco14") and split in ("val", "test") and method and figure.source
        # what was not found is said to be so, and is not a number
        assert (figure.source == "not found") == (figure.miou is None)
        assert figure.miou is None or 0.3 < figure.miou < 0.8
    rows = pd.read_csv(Path(str(figures.__wrapped__.__globals__["FILE"])))
    assert len(rows) == len(known) and not rows["key"].duplicated().any()


def test_a_configuration_names_a_figure() -> None:
    config = validate_config(changed("experiments.one.published", BECO))
    assert config.experiments["one"].published == BECO
    message = refusal(changed("experiments.one.published", "beco/voc12/val/deeplabv3plus-resnet101"))
    assert f"experiments.one.published: no `beco/voc12/val/deeplabv3plus-resnet101` in beco/schema/published.csv; did you mean `{BECO}`?" in message  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("key", "recipe", "prediction", "wrong"),
    [
        (BECO, "beco", {"squeeze": 512, "crf": {}}, None),
        (BECO, "beco", {}, None),  # 72.1 is said to be of two networks, and nothing else of it is known
        (BECO, "single", {}, "two networks"),
        (BECO, "beco", {"networks": "first"}, "two networks"),
        (f"{BECO}/one-network", "beco", {"networks": "first"}, None),
        (f"{BECO}/one-network", "cotraining", {}, "one of the two networks"),
        (f"{BECO}/one-network", "beco", {"networks": "both"}, "one of the two networks"),  # the average stands first
        (f"{BECO}/one-network", "single", {}, "one of the two networks"),  # it was co-trained
        (f"{BECO}/no-crf", "beco", {"squeeze": 512}, None),
        (f"{BECO}/no-crf", "beco", {"squeeze": 512, "crf": {}}, "no CRF"),
        (f"{BECO}/no-crf", "beco", {"resize": 512}, "squeezed to 512×512"),
        (f"{BECO}/no-crf", "beco", {"squeeze": 512, "score_at": "square"}, "scored at own size"),
        ("single/voc12/val/deeplabv3plus-resnet101d", "single", {}, None),  # not found: a cell to be filled in
    ],
)
def test_a_figure_stands_beside_its_own_protocol(key: str, recipe: str, prediction: dict, wrong: str | None) -> None:
    values = changed("experiments.one", {"recipe": recipe, "published": key}) | {"prediction": prediction}
    if wrong is None:
        assert validate_config(values).experiments["one"].published == key
    else:
        assert f"experiments.one.published: `{key}` was measured with `{wrong}`, unlike this" in refusal(values)


@pytest.mark.parametrize("name", ["voc12", "voc12_official_code", "paper_voc12"])
def test_what_stands_beside_72_1(name: str) -> None:
    """The official test, and IRN's labels, as the paper learns from."""
    path = ROOT / "workflow" / "presets" / f"{name}.yaml"
    config = validate_config(yaml.safe_load(path.read_text()), str(path))
    beside = {key: item for key, item in config.experiments.items() if item.published}
    assert beside["beco"].published == BECO
    for item in beside.values():
        labels = config.labels[item.labels]
        assert (labels.refine, labels.background) == ("irn", 0.25)
        assert (labels.foreground_threshold, labels.background_threshold) == (0.30, 0.05)
    told = config.prediction
    assert (told.squeeze, told.scored_side, told.scales, told.flip, told.networks) == (512, None, [1.0], False, "all")
    assert told.crf is not None and (told.crf.image == "official-code") == (name == "voc12_official_code")


def test_the_columns_by_hand(tmp_path: Path) -> None:
    runs = [Run(name, seed, "crf", tmp_path / f"{name}{seed}") for name in ("beco", "own", "v2") for seed in (0, 1)]
    for run, miou in zip(runs, (0.70, 0.71, 0.5, 0.5, 0.6, 0.6), strict=True):
        write_metrics(run.folder, miou, 0.5)
    published = {"beco": BECO, "v2": "beco/voc12/val/deeplabv2-resnet101"}
    write_tables(Results(runs, [], published=published), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "recipes.csv", index_col="experiment")
    assert table.loc["beco", "published"] == 0.721
    assert table.loc["beco", "minus_published"] == pytest.approx(0.705 - 0.721)
    assert table.loc["beco", "published_source"] == "Rong et al. 2023, Tables 4 and 5"
    assert table.loc["own", ["published", "minus_published", "published_source"]].isna().all()
    assert table.loc["v2", "published_source"] == "not found" and table.loc[["v2"], "published"].isna().all()
    text = (tmp_path / "out" / "recipes.md").read_text()
    assert "| 70.5 ± 0.7 | 2 | 72.1 | −1.6 | Rong et al. 2023, Tables 4 and 5 (two networks) | 50.0 |" in text
    assert "| 50.0 ± 0.0 | 2 |  |  |  | 50.0 |" in text
    assert text.endswith(f"\n{MEAN_NOTE}\n") and MEAN_NOTE in (tmp_path / "out" / "pseudo_labels.md").read_text()
    assert "| 60.0 ± 0.0 | 2 |  |  | not found | 50.0 |" in text
    tex = (tmp_path / "out" / "recipes.tex").read_text()
    assert r"70.5 $\pm$ 0.7 & 2 & 72.1 & $-$1.6 & Rong et al. 2023, Tables 4 and 5 (two networks) &" in tex
    assert r"mIoU (\%)" in tex and r"\toprule" in tex and r"\bottomrule" in tex
    assert "Student's t" in (tmp_path / "out" / "differences.tex").read_text().splitlines()[0]


def test_names_are_escaped_in_latex() -> None:
    text = latex(["a_b", "100 %"], [["x & y_z", r"\input{#1}"], ["5 × 5", "–"]])
    assert r"a\_b & 100 \% \\" in text
    assert r"x \& y\_z & \textbackslash input\{\#1\} \\" in text
    assert r"5 $\times$ 5 & -- \\" in text
    assert latex(["a"], []).count(r"\toprule") == 1


@pytest.mark.parametrize(("recipe", "words"), [("single", "1 network"), ("beco", "2 networks")])
def test_the_protocol_counts_the_networks(tmp_path: Path, recipe: str, words: str) -> None:
    write_metrics(tmp_path, 0.5, 0.5)
    assert PROTOCOL["networks"] == "all"
    write_json(tmp_path / "training.json", {"recipe": recipe})
    assert run_table([Run("one", 0, "crf", tmp_path)])["protocol"].item().endswith(f"own size, {words}")


def test_the_command(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run", 0.7, 0.5)
    arguments = ["tables", "--output", str(tmp_path / "out"), "--runs", f"beco:0:crf={tmp_path / 'run'}", "--published"]
    done = CliRunner().invoke(app, [*arguments, f"beco={BECO}"])
    assert done.exit_code == 0, done.output
    assert "| 72.1 | −2.1 |" in (tmp_path / "out" / "recipes.md").read_text()
    wrong = CliRunner().invoke(app, [*arguments, "beco=beco/voc12/val/deeplabv3plus-resnet101"])
    assert isinstance(wrong.exception, UserError) and f"did you mean `{BECO}`?" in str(wrong.exception)


def test_the_report_has_the_column_if_a_figure_is_named(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    runs = [make_run(tmp_path, manifest, name, 0, "crf", 1) for name in ("beco", "v2")]
    sources, page = [make_labels(tmp_path, manifest)], tmp_path / "page.html"
    for published in (None, {"beco": BECO, "v2": "beco/voc12/val/deeplabv2-resnet101"}):
        write_report(manifest, Results(runs, sources, published=published), 0, page)
        text, html = Page(page).text, page.read_text()
        assert MEAN_NOTE in text
        assert ("ours − published" in text) == ("72.1" in text) == (published is not None)
        assert ('title="Rong et al. 2023, Tables 4 and 5, two networks"' in html) == (published is not None)
