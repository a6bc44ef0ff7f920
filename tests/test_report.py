"""Evaluation of a split, the tables joined from it, and the report, on tiny folders written here."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from beco.config import InferenceCrf, Prediction
from beco.datasets.manifest import Manifest
from beco.datasets.palette import write_index_png
from beco.errors import UserError
from beco.evaluation.evaluate import evaluate_predictions
from beco.evaluation.gallery import change_rows, error_index, picture_scores, unsqueezed, worst_first
from beco.evaluation.quality import evaluate_labels
from beco.evaluation.report import summary, write_report
from beco.evaluation.table_files import write_tables
from beco.evaluation.tables import LabelSource, Run, mean_std, percent, protocol_text, run_table
from beco.files import read_json, write_json
from beco.store import create

SIZE = 24
CLASSES = ["cat & dog", "b|rd$x$"]
ODD = "<b>odd&1"
PROTOCOL = {"scales": [1.0, 0.5], "flip": True, "resize": None, "networks": "all"}


def truth_of(index: int) -> np.ndarray:
    truth = np.zeros((SIZE, SIZE), dtype=np.uint8)
    truth[4:14, 4 : 12 + index] = 1 + index % 2
    truth[0] = 255
    return truth


def make_manifest(root: Path, masks: bool = True) -> Manifest:
    """Two training and two evaluation pictures, one of them with a name that HTML would take for a tag."""
    rows = []
    for index, image_id in enumerate(["t0", "NA", "v0", ODD]):
        picture = np.random.default_rng(index).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / f"{index}.png")
        write_index_png(root / f"{index}_mask.png", truth_of(index))
        rows.append(
            {
                "image_id": image_id,
                "split": "train" if index < 2 else "val",
                "image": f"{index}.png",
                "mask": f"{index}_mask.png" if masks else "",
                "width": SIZE,
                "height": SIZE,
                CLASSES[0]: int(index % 2 == 0),
                CLASSES[1]: int(index % 2 == 1),
            }
        )
    return Manifest(root, pd.DataFrame(rows).set_index("image_id"), CLASSES)


def make_run(root: Path, manifest: Manifest, experiment: str, seed: int, labels: str, shift: int) -> Run:
    """A run whose predictions are the true masks pushed to the right by `shift` pixels."""
    folder = root / experiment / f"seed{seed}"
    val = manifest.split("val")
    for index, image_id in enumerate(val.ids):
        moved = np.roll(np.where(truth_of(index + 2) == 255, 0, truth_of(index + 2)), shift, axis=1)
        write_index_png(folder / "predictions" / f"{image_id}.png", moved.astype(np.uint8))
    evaluate_predictions(val, folder / "predictions", folder, PROTOCOL)
    history = pd.DataFrame({"epoch": [0, 0, 1], "step": [1, 2, 3], "loss": [2.0, 1.0, 0.5], "share_on": 0.5})
    history.to_csv(folder / "history.csv", index=False)
    write_json(
        folder / "training.json",
        {"recipe": experiment, "seed": seed, "commit": "abc1234", "device": "cpu", "seconds": 7.0, "note": "<i>"},
    )
    return Run(experiment, seed, labels, folder)


def make_labels(root: Path, manifest: Manifest) -> LabelSource:
    """Labels that miss the first column of each object and have no opinion in one row."""
    folder = root / "labels"
    with create(folder / "labels.h5", settings={"refine": "crf"}, classes=CLASSES) as writer:
        for index, image_id in enumerate(manifest.split("train").ids):
            label = np.where(truth_of(index) == 255, 0, truth_of(index)).astype(np.uint8)
            label[:, 4] = 0
            label[20] = 255
            confidence = np.linspace(0.1, 1, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.float16)
            confidence[:, 4] = 0  # knows its mistakes
            writer.put("label", image_id, label)
            writer.put("confidence", image_id, confidence)
    evaluate_labels(manifest.split("train"), folder / "labels.h5", folder / "quality")
    return LabelSource("crf", folder)


def make_cams(root: Path, manifest: Manifest) -> Path:
    with create(root / "cams.h5", settings={"scales": [1.0]}) as writer:
        for image_id in manifest.split("train").ids:
            values = np.array(manifest.present(image_id))
            cam = np.full((len(values), 6, 6), 0.5, dtype=np.float16)
            writer.put("cam", image_id, cam, classes=values)
    return root / "cams.h5"


def make_classifier(root: Path) -> Path:
    folder = root / "classifier"
    write_json(folder / "classifier.json", {"map": 0.625, "ap": {CLASSES[0]: 0.5, CLASSES[1]: 0.75}})
    pd.DataFrame({"epoch": [0, 1], "loss": [1.0, 0.5]}).to_csv(folder / "history.csv", index=False)
    return folder


# --- one split ----------------------------------------------------------------------------------------------


def test_predictions_are_measured(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    run = make_run(tmp_path, manifest, "beco", 0, "crf", shift=1)
    metrics = read_json(run.folder / "metrics.json")
    # v0: an object of 10×10, moved by 1: 90 of 110; the other: 10×11: 100 of 120.
    assert metrics["iou"] == {
        "background": pytest.approx((2 * 23 * 24 - 210 - 20) / (2 * 23 * 24 - 190)),
        CLASSES[0]: pytest.approx(90 / 110),
        CLASSES[1]: pytest.approx(100 / 120),
    }
    assert metrics["split"] == "val" and metrics["pictures"] == 2 and metrics["protocol"] == PROTOCOL
    assert re.fullmatch("[0-9a-f]{16}", metrics["manifest"])
    per_class = pd.read_csv(run.folder / "per_class.csv")
    assert per_class["class"].tolist() == ["background", *CLASSES]
    assert per_class["iou"].tolist() == pytest.approx(list(metrics["iou"].values()))
    assert pd.read_csv(run.folder / "per_image.csv")["image_id"].tolist() == ["v0", ODD]
    counts = pd.read_csv(run.folder / "per_image_class.csv")
    assert counts["image_id"].tolist() == ["v0", "v0", ODD, ODD] and counts["value"].tolist() == [0, 1, 0, 2]
    assert counts.loc[1, ["truth", "predicted", "both"]].tolist() == [100, 100, 90]
    assert counts.loc[3, ["truth", "predicted", "both"]].tolist() == [110, 110, 100]


def test_threads_change_nothing(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    run = make_run(tmp_path, manifest, "beco", 0, "crf", shift=2)
    for threads in (1, 4):
        evaluate_predictions(manifest.split("val"), run.folder / "predictions", tmp_path / f"{threads}", {}, threads)
    for name in ("metrics.json", "per_class.csv", "per_image.csv", "per_image_class.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "4" / name).read_bytes()


def test_a_missing_prediction_is_named(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    with pytest.raises(UserError, match=r"v0\.png: no such prediction"):
        evaluate_predictions(manifest.split("val"), tmp_path / "none", tmp_path / "out", {})


def test_labels_are_measured_with_their_trust(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)
    metrics = make_labels(tmp_path, manifest).metrics()
    # The objects are 10 rows high and 8 and 9 columns wide; the first column is missed.
    assert metrics["iou"][CLASSES[0]] == 7 / 8 and metrics["iou"][CLASSES[1]] == 8 / 9
    assert metrics["precision"][CLASSES[0]] == 1.0 and metrics["recall"][CLASSES[0]] == 7 / 8
    assert metrics["uncertain"] == 1 / SIZE
    assert metrics["protocol"] == {"reliable_fraction": 0.5}
    assert metrics["reliable"]["share"] == pytest.approx(0.5 * 23 / 24, abs=0.01)
    assert metrics["reliable"]["accuracy_inside"] == 1.0
    assert metrics["reliable"]["accuracy_outside"] < 1.0
    wrong = sum(row["error"] * row["pixels"] for row in metrics["border_error"] if row["pixels"])
    assert wrong == pytest.approx(20)


def test_a_split_without_masks_is_no_error(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, masks=False)
    run = make_run(tmp_path, manifest, "beco", 0, "crf", shift=1)
    source = make_labels(tmp_path, manifest)
    assert run.metrics()["miou"] is None and "no masks" in run.metrics()["reason"]
    assert source.metrics()["miou"] is None and source.metrics()["uncertain"] == 1 / SIZE
    assert (run.folder / "per_class.csv").read_text().count("\n") == 1  # the header
    assert (run.folder / "per_image.csv").read_text() == "image_id,pixel_accuracy,miou\n"
    write_tables([run], [source], None, tmp_path / "tables")
    assert pd.read_csv(tmp_path / "tables" / "recipes.csv")["miou"].isna().all()
    write_report(manifest, "train", "val", None, [source], [run], None, 2, tmp_path / "report.html")
    assert "No result to report: split val has no masks" in Page(tmp_path / "report.html").text


# --- tables -------------------------------------------------------------------------------------------------


def write_metrics(folder: Path, miou: float, boundary: float) -> None:
    numbers = {"miou": miou, "boundary_iou": boundary, "pixel_accuracy": 0.9, "protocol": PROTOCOL}
    write_json(folder / "metrics.json", numbers)
    (folder / "per_class.csv").write_text(f"value,class,iou\n0,background,{miou}\n1,null,\n")


def test_tables_of_two_seeds_by_hand(tmp_path: Path) -> None:
    runs = [Run("beco", 0, "crf", tmp_path / "a"), Run("beco", 1, "crf", tmp_path / "b")]
    runs.append(Run("full", 0, "truth", tmp_path / "c"))
    for run, miou in zip(runs, (0.50, 0.54, 0.8), strict=True):
        write_metrics(run.folder, miou, miou / 2)
    write_metrics(tmp_path / "labels" / "quality", 0.47, 0.3)
    write_tables(runs, [LabelSource("crf", tmp_path / "labels")], None, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "recipes.csv", index_col="experiment")
    assert table.loc["beco", "miou"] == pytest.approx(0.52)
    assert table.loc["beco", "miou_std"] == pytest.approx(0.02 * 2**0.5)  # (0.02² + 0.02²) / (2 − 1)
    assert table.loc["beco", "seeds"] == 2
    assert table.loc["beco", "difference"] == pytest.approx(0.05)
    assert table.loc["full", ["miou_std", "labels_miou", "difference"]].isna().all()
    text = (tmp_path / "out" / "recipes.md").read_text()
    assert (
        "| beco | crf | 52.0 ± 2.8 | 2 |  |  |  | 26.0 | 90.0 | 47.0 | +5.0 "
        "| scales 1+0.5, flip, own size, all networks |\n" in text
    )
    assert "| full | truth | 80.0 | 1 |  |  |  | 40.0 | 90.0 | – | – |" in text
    classes = pd.read_csv(tmp_path / "out" / "per_class.csv", keep_default_na=False)
    assert classes["class"].tolist() == ["background", "null"]
    assert classes.columns.tolist() == ["class", "labels crf", "beco", "full"]
    assert classes["beco"].astype(str).tolist() == ["0.52", ""]
    assert pd.read_csv(tmp_path / "out" / "runs.csv")["folder"].tolist() == [str(run.folder) for run in runs]


def test_tables_of_nothing(tmp_path: Path) -> None:
    write_tables([], [], None, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        f"{name}.{kind}"
        for name in ("recipes", "differences", "pseudo_labels", "classifier")
        for kind in ("csv", "md", "tex")
    } | {
        "per_class.csv",
        "runs.csv",
    }


def test_a_metrics_file_without_metrics_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"loss": 1})
    with pytest.raises(UserError, match=r"metrics\.json: holds no metrics"):
        write_tables([Run("beco", 0, "crf", tmp_path)], [], None, tmp_path / "out")


def test_numbers_in_words() -> None:
    assert percent(0.12345) == "12.3" and percent(None) == percent(float("nan")) == "–"
    assert percent(-0.05, signed=True) == "−5.0" and percent(0.05, signed=True) == "+5.0"
    assert mean_std(0.5, float("nan")) == "50.0"


def test_protocols_in_words() -> None:
    old = {"scales": [1.0], "flip": False, "resize": 512, "networks": "first"}  # as metrics.json once kept it
    assert protocol_text(old) == "scale 1, no flip, long side 512 px, first network"
    plain = Prediction().model_dump(mode="json")
    assert protocol_text(plain, "last") == (
        "scale 1, no flip, logits averaged, own size, all networks, no CRF, last epoch"
    )
    assert "own size, 2 networks," in protocol_text(plain | {"networks": 2})
    assert protocol_text(plain | {"networks": 1}) == "scale 1, no flip, own size, 1 network, no CRF"
    assert protocol_text(plain | {"networks": "first"}) == "scale 1, no flip, own size, first network, no CRF"
    chosen = Prediction(
        scales=[0.5, 1],
        flip=True,
        merge="max",
        squeeze=512,
        crf=InferenceCrf(image="official-code", minimum_mass=0.01, backend="torch"),
    ).model_dump(mode="json")
    assert protocol_text(chosen, "best") == (
        "scales 0.5+1, flip, max over scales, squeezed to 512×512, all networks, "
        "CRF (picture as in the official code, classes up to 0.01 left out), best epoch on val"
    )
    for merge, scales, said in (("max", [1.0], "logits averaged"), ("softmax", [1.0], "softmax averaged")):
        assert said in protocol_text(plain | {"merge": merge, "scales": scales, "crf": InferenceCrf().model_dump()})
    assert protocol_text(plain | {"crf": InferenceCrf().model_dump()}).endswith("all networks, CRF")


def test_the_epoch_is_part_of_the_protocol(tmp_path: Path) -> None:
    run = Run("beco", 0, "crf", tmp_path)
    write_metrics(tmp_path, 0.5, 0.25)
    assert run_table([run])["protocol"].item() == "scales 1+0.5, flip, own size, all networks"
    write_json(tmp_path / "training.json", {"settings": {"choose": "best"}})
    assert run_table([run])["protocol"].item().endswith("all networks, best epoch on val")


def test_squeezed_predictions_are_shown_at_the_pictures_shape() -> None:
    label = np.repeat(np.array([[1], [2]], np.uint8), 2, axis=1)
    assert unsqueezed(label, (4, 6)).tolist() == [[1] * 6] * 2 + [[2] * 6] * 2
    assert unsqueezed(label, (2, 2)) is label
    assert unsqueezed(np.zeros((512, 512), np.uint8), (192, 256)).shape == (192, 256)


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
    assert "best of 2 weakly supervised recipes is `single` with 50.0 ± 1.0 % mIoU over 2 seeds" in said
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


class Page(HTMLParser):
    """What a browser would see: text, tags, ids and addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.parts: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(self.source)
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    root = tmp_path_factory.mktemp("results")
    manifest = make_manifest(root)
    runs = [make_run(root, manifest, name, seed, labels, shift) for name, seed, labels, shift in (
        ("single", 0, "crf", 3), ("single", 1, "crf", 2), ("beco", 0, "crf", 1), ("beco", 1, "crf", 2),
        ("full", 0, "truth", 0))]  # fmt: skip
    output = root / "report.html"
    write_report(
        manifest, "train", "val", make_cams(root, manifest), [make_labels(root, manifest)], runs,
        make_classifier(root), 8, output, title="Tiny <set>",
    )  # fmt: skip
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
    assert sum(address.startswith("data:image/") for address in page.addresses) >= 2 * (2 + 3 * 2) + 2 * 5


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
        write_report(manifest, "train", "val", root / "cams.h5", sources, runs, None, 1, root / name)
    assert (root / "a.html").read_bytes() == (root / "b.html").read_bytes()
    assert len((root / "a.html").read_bytes()) < len(page.source.encode())


def test_report_with_nothing_in_it(tmp_path: Path) -> None:
    write_report(make_manifest(tmp_path), "train", "val", None, [], [], None, 0, tmp_path / "report.html")
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
    root, page = built
    val = make_manifest(root).split("val")
    near, far = (make_run(tmp_path, val, name, 0, "crf", shift) for name, shift in (("near", 1), ("far", 3)))
    gains, losses = change_rows(val, near, far, 5)
    change = picture_scores(near.folder) - picture_scores(far.folder)
    expected = change.sort_values(ascending=False)
    assert [row.image_id for row in gains] == list(expected.index) and not losses
    assert [row.note for row in gains] == [f"+{100 * value:.1f} points" for value in expected]
    assert [len(row.columns) for row in gains] == [3, 3]  # the picture and the two recipes
    again = change_rows(val, far, near, 1)
    assert not again[0] and [row.image_id for row in again[1]] == [expected.index[0]]
    assert "Largest gains of beco over single" in page.text and "Largest losses" not in page.text


def test_kinds_of_error() -> None:
    prediction, truth = np.array([[0, 0, 1, 2, 255, 1]], np.uint8), np.array([[0, 1, 0, 1, 1, 255]], np.uint8)
    assert error_index(prediction, truth).tolist() == [[0, 1, 2, 3, 1, 4]]


def test_the_room_starts_without_torch_or_matplotlib() -> None:
    code = "import sys, beco.evaluation.report, beco.evaluation.evaluate; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "matplotlib"} & set(done.stdout.split())
