"""Results kept between folders (`--cache`): what is taken from there is the same, and what differs is not taken."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from conftest import Checkout

pytestmark = pytest.mark.road


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout that has walked to the labels once, with a folder for what is kept."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    (checkout.folder / "kept").mkdir()
    checkout.environment["SNAKEMAKE_OUTPUT_CACHE"] = str(checkout.folder / "kept")
    labels(checkout, "tiny")
    return checkout


def labels(checkout: Checkout, dataset: str, *config: str, to: str = "cam/labels.h5") -> tuple[Path, int]:
    """Walk to the labels, or `to`, under a name of the dataset; its folder, and how many entries that added."""
    before = len(list((checkout.folder / "kept").iterdir()))
    entries = ["--config", f"dataset={{name: {dataset}}}", *config]
    done = checkout.snakemake("--cache", *entries, "--", f"results/{dataset}/{to}")
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout.folder / "results" / dataset, len(list((checkout.folder / "kept").iterdir())) - before


def test_another_folder_takes_what_is_kept(kept: Checkout) -> None:
    first, (other, added) = kept.folder / "results" / "tiny", labels(kept, "other")
    assert added == 0 and (other / "cam" / "classifier" / "classifier.safetensors").is_symlink()
    assert (other / "cam" / "classifier" / "history.csv").is_file() and not (
        other / "cam" / "classifier" / "checkpoint.pt"
    ).exists()
    for name in ("cam/cams.h5", "cam/labels.h5"):
        assert (other / name).read_bytes() == (first / name).read_bytes()
    with h5py.File(other / "cam" / "cams.h5") as file:  # two shards are two entries, not one twice
        assert len(file["cam"]) == 24
    assert (
        not list((other / "benchmarks").glob("train_classifier*")) and (other / "benchmarks" / "manifest.tsv").exists()
    )


def test_another_setting_is_made_anew_from_where_it_counts(kept: Checkout) -> None:
    changed, added = labels(kept, "changed", "cam={scales: [0.5]}")
    assert (
        changed / "cam" / "classifier" / "classifier.safetensors"
    ).is_symlink() and added == 2 + 2  # CAMs and labels
    cams = (folder / "cam" / "cams.h5" for folder in (changed, kept.folder / "results" / "tiny"))
    assert len({path.read_bytes() for path in cams}) == 2


def test_other_pictures_are_no_hit(kept: Checkout) -> None:
    drawn = "dataset={name: drawn, shapes: {seed: 1}}"
    _, added = labels(kept, "drawn", drawn, to="cam/classifier/classifier.json")
    assert added == 3  # its weights, scores and history
