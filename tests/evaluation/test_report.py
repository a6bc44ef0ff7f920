"""The report: its sentences, numbers, links and pictures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import Page
from results_for_tests import (
    CLASSES,
    COMPARED,
    ODD,
    make_labels,
    make_manifest,
    make_run,
    make_source,
)

from beco.artifacts.files import read_json, write_json
from beco.datasets.manifest import Manifest
from beco.evaluation.report.gallery import changes, extremes, picture_scores, results_gallery, worst_first
from beco.evaluation.report.report import summary, write_report
from beco.evaluation.tables.tables import LabelSource, MapSource, Results, Run

# --- summary ------------------------------------------------------------------------------------------------


def recipes(*rows: tuple[str, str, float, float, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["experiment", "labels", "miou", "miou_std", "labels_miou"])
    return frame.assign(seeds=2, difference=frame["miou"] - frame["labels_miou"])


def test_summary_says_what_the_table_says() -> None:
    nan = float("nan")
    said = " ".join(
        summary(
            recipes(
                ("single", "crf", 0.50, 0.01, 0.52),
                ("beco", "crf", 0.48, 0.01, 0.52),
                ("full", "truth", 0.7, nan, nan),
            ),
            [],
        )
    )
    assert "best of 2 weakly supervised experiments is `single` with 50.0 ± 1.0 % mIoU over 2 seeds" in said
    assert "2.0 points below the pseudo-labels" in said
    assert "`beco` follows 2.0 points behind, more than the standard deviation" in said
    assert "`full`, which learns from the true masks, reaches 70.0 %, 20.0 points more" in said


def test_summary_does_not_overstate() -> None:
    nan = float("nan")
    close = " ".join(summary(recipes(("a", "crf", 0.50, 0.03, 0.4), ("b", "crf", 0.49, 0.01, 0.4)), []))
    assert "the order may be chance" in close and "10.0 points above" in close
    single = " ".join(summary(recipes(("a", "crf", 0.50, nan, 0.4), ("b", "crf", 0.3, nan, 0.4)), []))
    assert "one seed, so its spread is unknown" in single and "with a single seed the order may be chance" in single


# --- report -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    root = tmp_path_factory.mktemp("results")
    manifest = make_manifest(root)
    runs = [make_run(root, manifest, name, seed, labels, shift) for name, seed, labels, shift in (
        ("single", 0, "crf", 3), ("single", 1, "crf", 2), ("beco", 0, "crf", 1), ("beco", 1, "crf", 2),
        ("full", 0, "truth", 0))]  # fmt: skip
    output = root / "report.html"
    write_report(
        manifest,
        Results(runs, [make_labels(root, manifest)], [make_source(root, manifest)], compared=COMPARED),
        8,
        output,
        title="Tiny <set>",
    )
    return root, Page(output)


def test_report_holds_the_numbers_of_the_files(built: tuple[Path, Page]) -> None:
    root, page = built
    mious = [read_json(root / "beco" / f"seed{seed}" / "metrics.json")["miou"] for seed in (0, 1)]
    expected = f"{100 * np.mean(mious):.1f} ± {100 * np.std(mious, ddof=1):.1f}"
    assert page.text.count(expected) >= 3  # sentence, card, table
    assert "Mean average precision on the evaluation split: 62.5 %" in page.text
    assert f"{100 * read_json(root / 'labels/quality/metrics.json')['miou']:.1f}" in page.text
    assert all(f"scales 1+0.5, flip, own size, {networks}" in page.text for networks in ("1 network", "2 networks"))
    assert "abc1234" in page.text
    assert page.source.count("<td>image labels + saliency</td>") == 2 + 1 + 2 + 1  # recipes, labels, comparisons
    assert page.source.count("<td>masks</td>") == 1 + 1


def test_a_localiser_that_says_no_classes_has_no_precision(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    source = make_source(tmp_path, manifest)
    write_json(source.classifier / "classifier.json", {"map": None, "ap": {}, "method": "amn"})
    runs = [make_run(tmp_path, manifest, "single", 0, "crf", 3)]
    write_report(manifest, Results(runs, [], [source]), 0, tmp_path / "report.html")
    text = Page(tmp_path / "report.html").text
    assert "mAP of the classifier" not in text and "Average precision by class" not in text
    assert "No mean average precision" in text and "by the method amn" in text


def test_report_escapes_what_the_user_named(built: tuple[Path, Page]) -> None:
    _, page = built
    assert ODD in page.text and ODD not in page.source
    assert "Tiny <set>" in page.text and "note: <i>" in page.text
    assert CLASSES[0] in page.text and CLASSES[1] in page.text


def test_report_needs_no_network(built: tuple[Path, Page]) -> None:
    _, page = built
    assert not re.search(r"https?:", page.source)
    assert page.source.count("<link") == 1  # the empty icon
    assert 'src="//' not in page.source and "@import" not in page.source and "url(http" not in page.source
    pictures = sum(address.startswith("data:image/") for address in page.addresses)
    assert pictures == 2 * (2 + 3) + 2 * (2 + 1 + 2)  # picture, truth, predictions; picture, truth, CAM, labels twice


def test_every_link_of_the_report_leads_somewhere(built: tuple[Path, Page]) -> None:
    root, page = built
    assert len(page.ids) == len(set(page.ids))
    for address in page.addresses:
        if address.startswith("#"):
            assert address[1:] in page.ids, address
        elif not address.startswith("data:"):
            assert (root / address).exists(), address


def test_report_is_made_the_same_again(built: tuple[Path, Page], tmp_path: Path) -> None:
    root, page = built
    manifest = Manifest(root, make_manifest(root).table, CLASSES)
    runs = [Run(name, seed, "crf", root / name / f"seed{seed}") for name, seed in (("beco", 0), ("single", 0))]
    sources = [LabelSource("crf", root / "labels")]
    for name in ("a.html", "b.html"):
        write_report(manifest, Results(runs, sources, [MapSource("cam", root)]), 1, root / name)
    assert (root / "a.html").read_bytes() == (root / "b.html").read_bytes()
    assert len((root / "a.html").read_bytes()) < len(page.source.encode())


def test_comparisons_are_tables_with_figures(built: tuple[Path, Page]) -> None:
    _, page = built
    assert "Parts & whole" in page.text and "IRN, ResNet-50" in page.text and "63.5" in page.text
    assert "comparison--3c-parts-3e-" in page.ids
    assert page.source.count('aria-label="IoU near the true borders') == 3  # of all, and of each comparison


def test_report_with_nothing_in_it(tmp_path: Path) -> None:
    write_report(make_manifest(tmp_path), Results([], []), 0, tmp_path / "report.html")
    assert "No result to report" in Page(tmp_path / "report.html").text


def test_worst_pictures_come_first(built: tuple[Path, Page]) -> None:
    root, _ = built
    manifest = make_manifest(root)
    scores = {
        "a": pd.Series({"t0": 0.9, "NA": 0.2, "v0": 0.5}),
        "b": pd.Series({"t0": 0.9, "NA": 0.2, "v0": 0.1}),
    }
    assert worst_first(manifest, scores) == ["NA", "v0", "t0", ODD]


def test_gains_and_losses_of_one_recipe_over_another(built: tuple[Path, Page], tmp_path: Path) -> None:
    _, page = built
    val = make_manifest(tmp_path).split("val")
    near, far = (make_run(tmp_path, val, name, 0, "crf", shift) for name, shift in (("near", 1), ("far", 3)))
    change = changes(val.ids, near, far)
    assert change.to_dict() == (picture_scores(near.folder) - picture_scores(far.folder)).to_dict()
    assert (change > 0).all() and change.is_monotonic_increasing
    assert extremes(change, 1) == extremes(-change[::-1], 1) == {change.index[-1]}
    found = results_gallery(val, [far, near], 0, "near", (near, far))
    assert found is None  # no picture of none
    found = results_gallery(val, [far, near], 4, "near", (near, far))
    assert found is not None and found.right == "prediction near" and "change+" not in found.orders
    for stage in found.stages:
        assert stage.scores["change"] == pytest.approx(stage.scores["s1"] - stage.scores["s0"])
        assert stage.note.endswith(f"near − far +{100 * change[stage.image_id]:.1f}")
    assert "largest gains of beco over single" in page.text and "largest losses" not in page.text


def test_the_room_starts_without_torch_or_matplotlib() -> None:
    code = "import sys, beco.evaluation.report.report, beco.evaluation.scores.evaluate; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "matplotlib"} & set(done.stdout.split())
