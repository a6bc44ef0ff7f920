"""`beco predict` into the output of an earlier call: what is there describes the pictures as they are now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import run
from PIL import Image
from trained_networks import CLASSES, label_maps, noise, predict

from beco.datasets.palette import read_index_png, voc_palette
from beco.stage2 import anywhere, journal


@pytest.fixture
def three(tmp_path: Path) -> Path:
    folder = tmp_path / "three"
    folder.mkdir()
    for number, name in enumerate("xyz"):
        Image.fromarray(noise((24, 40), number)).save(folder / f"{name}.jpg")
    return folder


def another(path: Path) -> None:
    Image.fromarray(noise((32, 48), 77)).save(path)


def rows(out: Path) -> list[str]:
    """The pictures of `shares.csv`, each of whose rows is that of its label map."""
    table = pd.read_csv(out / "shares.csv")
    assert {str(Path(name).with_suffix(".png")) for name in table["image"]} == set(label_maps(out))
    for row in table.to_dict("records"):
        label = read_index_png((out / row["image"]).with_suffix(".png"))
        assert (row["height"], row["width"]) == label.shape
        for value, name in enumerate(["background", *CLASSES]):
            assert row[name] == pytest.approx((label == value).mean())
    return table["image"].tolist()


def test_what_has_changed_leaves_nothing_behind(net: Path, three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(net, three, "-o", out, "--confidence", "--overlay")
    assert rows(out) == ["x.jpg", "y.jpg", "z.jpg"]
    (three / "x.jpg").write_bytes((three / "x.jpg").read_bytes()[:200])
    (three / "y.jpg").unlink()
    (three / "z.jpg").unlink()
    another(three / "z.webp")
    said = predict(net, three, "-o", out)
    assert "2 label maps removed" in said and rows(out) == ["y.jpg", "z.webp"]
    assert pd.read_csv(out / "skipped.csv")["image"].tolist() == ["x.jpg"]
    for what in ("confidence", "overlay"):
        assert [path.stem for path in (out / what).iterdir()] == ["y"]
    predict(net, three, "-o", tmp_path / "anew")
    assert label_maps(tmp_path / "anew")["z.png"] == label_maps(out)["z.png"]
    assert "1 pictures are there and kept" in predict(net, three, "-o", out)


def test_what_is_added_keeps_what_is_there(net: Path, three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(net, three, "-o", out, "--overlay")
    predict(net, three, "-o", out, "--confidence")
    assert "3 pictures are there and kept" in predict(net, three, "-o", out, "--overlay", "--confidence")
    another(three / "x.jpg")
    predict(net, three, "-o", out)  # of neither is anything left of the picture of before
    assert sorted(path.name for path in out.glob("*/*")) == ["y.jpg", "y.png", "z.jpg", "z.png"]


def test_folders_add_up_unless_two_pictures_want_one_label(net: Path, three: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    another(other / "w.jpg")
    predict(net, three, "-o", out)
    predict(net, other, "-o", out)
    assert rows(out) == ["w.jpg", "x.jpg", "y.jpg", "z.jpg"]
    before = label_maps(out)
    for name in ("x.jpg", "x.webp"):
        another(other / name)
        said = predict(net, other, "-o", out, status=1)
        assert f"beco: {other / name}: what is made of it would be called x.png in {out}, as that of {three}" in said
        assert "--replace" in said and label_maps(out) == before
        (other / name).unlink()
    shutil.rmtree(three)  # that its pictures are gone gives nobody their names
    another(other / "x.jpg")
    assert "as that of" in predict(net, other, "-o", out, status=1)
    predict(net, other, "-o", out, "--replace")
    assert rows(out) == ["w.jpg", "x.jpg"]


def test_a_folder_that_was_moved_is_the_same(net: Path, three: Path, tmp_path: Path) -> None:
    predict(net, three, "-o", tmp_path / "out")
    three.rename(tmp_path / "moved")
    assert "3 pictures are there and kept" in predict(net, tmp_path / "moved", "-o", tmp_path / "out")
    another(tmp_path / "moved" / "x.jpg")
    assert "2 pictures are there and kept" in predict(net, tmp_path / "moved", "-o", tmp_path / "out")
    assert rows(tmp_path / "out") == ["x.jpg", "y.jpg", "z.jpg"]


def test_files_of_several_kinds_are_told_apart(net: Path, three: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    predict(net, three, "-o", out, "--confidence")
    (other / "confidence").mkdir(parents=True)
    another(other / "confidence" / "x.jpg")  # whose label map would be the confidence of x
    assert "confidence/x.png" in predict(net, other, "-o", out, status=1)
    shutil.rmtree(other)
    (other / "x.png").mkdir(parents=True)
    another(other / "x.png" / "a.jpg")
    assert "x.png/a.png" in predict(net, other, "-o", out, status=1)


def test_a_disk_that_fails_for_a_moment_costs_no_label(
    net: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measure = tmp_path / "out", anywhere.measure

    def failing(found: list[Any], *rest: Any) -> Any:
        manifest, bad = measure(found[1:], *rest)
        return manifest, bad | {"x.jpg": "x.jpg: cannot be read (Input/output error)"}

    predict(net, three, "-o", out)
    monkeypatch.setattr(anywhere, "measure", failing)
    predict(net, three, "-o", out)
    assert rows(out) == ["x.jpg", "y.jpg", "z.jpg"] and not (out / "skipped.csv").exists()


def test_a_kill_leaves_no_table_of_before(
    net: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    predict(net, three, "-o", out)
    another(three / "x.jpg")

    def killed(self: journal.Journal, *_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(journal.Journal, "note", killed)
        run(["predict", str(net), str(three), "-o", str(out), "--device", "cpu"])
    assert not (out / "shares.csv").exists() and (out / "x.png").exists()  # which is not noted
    other.mkdir()
    another(other / "w.jpg")
    predict(net, other, "-o", out)
    assert rows(out) == ["w.jpg", "y.jpg", "z.jpg"]
    predict(net, three, "-o", out)
    assert rows(out) == ["w.jpg", "x.jpg", "y.jpg", "z.jpg"]


def test_a_journal_of_before_is_gone_on_with(net: Path, three: Path, tmp_path: Path) -> None:
    predict(net, three, "-o", tmp_path / "out")
    path = tmp_path / "out" / journal.NAME
    head, *lines = map(json.loads, path.read_text().splitlines())
    for line in lines:
        assert Path(line.pop("source")) == three / line["image"]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in (head, *lines)))
    assert "3 pictures are there and kept" in predict(net, three, "-o", tmp_path / "out")


def test_a_journal_that_was_cut_within_a_letter_costs_one_picture(net: Path, tmp_path: Path) -> None:
    for name in ("a.png", "laté.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    predict(net, tmp_path, "-o", tmp_path / "out")
    path = tmp_path / "out" / journal.NAME
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex("é".encode()) + 1])
    assert "1 pictures are there and kept" in predict(net, tmp_path, "-o", tmp_path / "out")
    noted = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert [line["image"] for line in noted] == ["a.png", "laté.png"]


def test_the_legend_is_of_the_label_maps(net: Path, three: Path, tmp_path: Path) -> None:
    predict(net, three, "-o", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "legend.csv")
    assert table["value"].tolist() == [0, 1, 2, 3] and table["name"].tolist() == ["background", *CLASSES]
    assert table["colour"].tolist() == ["#000000", "#800000", "#008000", "#808000"]
    with Image.open(tmp_path / "out" / "x.png") as shown:
        assert (np.array(shown.getpalette())[:12] == voc_palette()[:4].ravel()).all()
