"""One network of a recipe beside the average of all of them, in tables, comparisons and report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pages import Page
from results_for_tests import make_labels, make_manifest, make_run, write_metrics
from typer.testing import CliRunner

from beco.artifacts.files import read_json, write_json
from beco.cli import app
from beco.config import Comparison
from beco.errors import UserError
from beco.evaluation.report.report import write_report
from beco.evaluation.tables.comparisons import write_comparison
from beco.evaluation.tables.table_files import FIRST_NOTE, write_tables
from beco.evaluation.tables.tables import Results, Run, run_table

HEADING = "one network, mIoU (%)"
MIOUS = {"single": (0.50, 0.52), "beco": (0.54, 0.58)}
ALONE = {"single": (0.50, 0.52), "beco": (0.51, 0.55)}


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Two seeds of one network and of two, of which the first alone is scored, too."""
    made = []
    for name, mious in MIOUS.items():
        for seed, miou in enumerate(mious):
            run = Run(name, seed, "crf", tmp_path / name / f"seed{seed}", first=True)
            write_metrics(run.folder, miou, 0.3)
            write_json(run.folder / "training.json", {"recipe": name, "network": {}})
            if name == "beco":
                write_metrics(run.folder / "first", ALONE[name][seed], 0.2)
            made.append(run)
    return made


def lines(path: Path) -> list[dict[str, str]]:
    """A Markdown table, its rows by its header."""
    text = path.read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_the_tables_have_both(runs: list[Run], tmp_path: Path) -> None:
    write_tables(Results(runs), tmp_path / "out")
    by_run = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert by_run["miou_first"].tolist() == [*ALONE["single"], *ALONE["beco"]]
    recipes = pd.read_csv(tmp_path / "out" / "recipes.csv", index_col="experiment")
    assert recipes["miou"].tolist() == pytest.approx([0.51, 0.56])
    assert recipes["miou_first"].tolist() == pytest.approx([0.51, 0.53])
    assert recipes["miou_first_std"].tolist() == pytest.approx([0.01 * 2**0.5, 0.02 * 2**0.5])
    assert [row[HEADING] for row in lines(tmp_path / "out" / "recipes.md")] == ["51.0 ± 1.4", "53.0 ± 2.8"]
    assert FIRST_NOTE in (tmp_path / "out" / "recipes.md").read_text()
    assert HEADING.replace("%", r"\%") in (tmp_path / "out" / "recipes.tex").read_text()


def test_differences_of_first_networks_beside_those_of_averages(runs: list[Run], tmp_path: Path) -> None:
    write_tables(Results(runs), tmp_path / "out")
    (pair,) = pd.read_csv(tmp_path / "out" / "differences.csv").to_dict("records")
    assert pair["miou"] == pytest.approx(0.05) and pair["miou_first"] == pytest.approx(0.02)
    assert pair["miou_first_by_seed"] == "0.010000;0.030000"
    ends = (0.02 - 0.01 * 12.706205, 0.02 + 0.01 * 12.706205)  # t(0.975, 1) · s / √2
    assert (pair["miou_first_low"], pair["miou_first_high"]) == pytest.approx(ends)
    (row,) = lines(tmp_path / "out" / "differences.md")
    assert row["one network, mIoU (points, over seeds)"] == "+2.0 (−10.7 to +14.7)"


def test_a_comparison_has_the_gain_of_one_network(runs: list[Run], tmp_path: Path) -> None:
    write_comparison(Comparison(experiments=["single", "beco"]), Results(runs), tmp_path / "c.csv")
    found = pd.read_csv(tmp_path / "c.csv", index_col="experiment")
    assert found["miou_first"].tolist() == pytest.approx([0.51, 0.53])
    assert found["gain_miou_first"].tolist() == pytest.approx([float("nan"), 0.02], nan_ok=True)
    single, beco = lines(tmp_path / "c.md")
    assert single.keys() == beco.keys() and single[HEADING] == "51.0 ± 1.4"
    assert beco["gain of one network in mIoU"] == "+2.0 (−10.7 to +14.7)" and beco["gain over"] == "single"
    assert FIRST_NOTE in (tmp_path / "c.md").read_text()


def test_without_it_there_is_no_such_column(runs: list[Run], tmp_path: Path) -> None:
    """Also where older scores of one network lie beside the average, which may be another training's."""
    plain = [Run(run.experiment, run.seed, run.labels, run.folder) for run in runs]
    write_tables(Results(plain), tmp_path / "out")
    write_comparison(Comparison(experiments=["single", "beco"]), Results(plain), tmp_path / "out" / "c.csv")
    texts = [path.read_text() for path in sorted((tmp_path / "out").iterdir())]
    assert not any("miou_first" in text or "one network" in text.lower() for text in texts)


def test_the_command_is_told(runs: list[Run], tmp_path: Path) -> None:
    told = [word for run in runs for word in ("--runs", f"{run.experiment}:{run.seed}:crf={run.folder}")]
    for name, more in (("with", ["--first"]), ("without", [])):
        done = CliRunner().invoke(app, ["tables", *told, *more, "--output", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    found, plain = (pd.read_csv(tmp_path / name / "runs.csv") for name in ("with", "without"))
    assert found["miou_first"].tolist()[2:] == list(ALONE["beco"])
    pd.testing.assert_frame_equal(found.drop(columns="miou_first"), plain)


def test_what_one_network_is(runs: list[Run]) -> None:
    metrics = read_json(runs[2].folder / "metrics.json")
    write_json(runs[2].folder / "metrics.json", metrics | {"protocol": {"networks": "first"}})  # measured so already
    assert run_table(runs)["miou_first"].tolist()[2:] == [MIOUS["beco"][0], ALONE["beco"][1]]
    (runs[3].folder / "first" / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"seed1/first/metrics\.json: no such file"):
        run_table(runs)


def test_the_report_shows_both(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    runs = [make_run(tmp_path, manifest, name, 0, "crf", shift) for name, shift in (("single", 4), ("beco", 1))]
    alone = make_run(tmp_path / "alone", manifest, "beco", 0, "crf", 3)
    alone.folder.rename(runs[1].folder / "first")
    runs = [Run(run.experiment, run.seed, run.labels, run.folder, first=True) for run in runs]
    compared = {"both": Comparison(experiments=["single", "beco"], published=["irn/voc12/val"])}
    write_report(manifest, Results(runs, [make_labels(tmp_path, manifest)], compared=compared), 0, tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    first, over = runs[1].miou_first(), runs[0].miou_first()
    assert first is not None and over is not None and runs[1].metrics()["miou"] > first > over
    assert f"One of the networks that it averages has {100 * first:.1f} % alone." in page.text
    assert page.text.count(FIRST_NOTE) == 1 and page.source.count(f">{100 * first:.1f}</a>") == 2
    assert page.source.count(f">+{100 * (first - over):.1f}</a>") == 2  # in the comparison and in the pairs
    for table in page.source.split("<table")[1:]:
        cells = [row.count("<td") + row.count("<th") for row in table.split("<tr")[1:]]
        assert len(set(cells)) == 1
    assert 'href="beco/seed0/first/metrics.json"' in page.source
