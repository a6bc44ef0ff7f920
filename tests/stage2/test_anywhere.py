"""A trained network on other pictures: command and Python give the workflow's label maps, and a kill costs little."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import run
from PIL import Image
from trained_networks import CLASSES, OWN, SIZES, label_maps, noise, predict, trained

import beco
from beco.config import Prediction
from beco.datasets.manifest import Manifest, read_picture
from beco.datasets.palette import read_index_png, voc_palette
from beco.stage2 import journal, looks, outputs
from beco.stage2 import predict as prediction
from beco.training.trainer import Compute


def by_the_workflow(net: Path, pictures: Path, settings: Prediction, output: Path) -> dict[str, bytes]:
    """What `beco predict-split` writes, under the names of the pictures."""
    paths = sorted(path for path in pictures.rglob("*") if path.is_file())
    rows = [[f"{i}", "val", str(path.relative_to(pictures)), ""] for i, path in enumerate(paths)]
    table = pd.DataFrame(rows, columns=["image_id", "split", "image", "mask"])
    sizes = np.array([Image.open(path).size for path in paths])
    table = table.assign(width=sizes[:, 0], height=sizes[:, 1], **dict.fromkeys(CLASSES, 1)).set_index("image_id")
    manifest = Manifest(pictures, table, CLASSES)
    prediction.predict(manifest, net / "networks.safetensors", settings, Compute("cpu"), output)
    names = {f"{i}": str(path.relative_to(pictures).with_suffix(".png")) for i, path in enumerate(paths)}
    return {names[path.stem]: path.read_bytes() for path in output.glob("*.png")}


# --- the workflow's label maps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"networks": "first"},
        {"flip": False, "merge": "max", "scales": [0.5, 1.0]},
        {"squeeze": 48, "crf": {"backend": "torch", "iterations": 2, "minimum_mass": 0.1}},
        {"squeeze": 32, "score_at": "square", "merge": "logits"},
    ],
)
def test_the_command_and_python_give_the_workflows_label_maps(
    net: Path, pictures: Path, tmp_path: Path, over: dict[str, Any]
) -> None:
    settings = Prediction.model_validate({**OWN, **over})
    expected = by_the_workflow(net, pictures, settings, tmp_path / "workflow")
    assert set(expected) == {f"{name}.png" for name in SIZES}
    predict(net, pictures, "-o", tmp_path / "out", "--settings", json.dumps(over), "--confidence")
    assert label_maps(tmp_path / "out") == expected
    assert len({value for name in SIZES for value in np.unique(read_index_png(tmp_path / f"out/{name}.png"))}) > 1
    loaded = beco.load(net, "cpu", over)
    assert loaded.classes == CLASSES and loaded.settings == settings
    for path in pictures.rglob("*.*"):
        name = path.relative_to(pictures).with_suffix(".png")
        label, sure = loaded.predict(path, confidence=True)
        assert label.dtype == np.uint8 and (label == read_index_png(tmp_path / "out" / name)).all()
        grey = np.array(Image.open(tmp_path / "out" / "confidence" / name))
        assert sure.dtype == np.float32 and np.abs(sure * 255 - grey).max() < 0.51 and sure.max() > 0.25


def test_networks_of_one_recipe_and_of_two(net: Path, pictures: Path, tmp_path: Path) -> None:
    one = trained(tmp_path / "run", {"networks": "all"}, 1)
    for name, path in (("all", net), ("first", net), ("single", one)):
        settings = f"{{merge: logits, flip: false, networks: {'first' if name == 'first' else 'all'}}}"
        predict(path, pictures, "-o", tmp_path / name, "--settings", settings)
    found = {name: label_maps(tmp_path / name) for name in ("all", "first", "single")}
    assert found["first"] == found["single"] != found["all"]  # they were drawn alike
    both = trained(tmp_path / "both", {"networks": "both"})
    predict(both, pictures, "-o", tmp_path / "of both")
    assert label_maps(tmp_path / "of both") == found["all"]
    again = predict(both, pictures, "-o", tmp_path / "of both", "--settings", "{networks: all}")
    assert f"{len(SIZES)} pictures are there and kept" in again
    assert beco.load(both, "cpu").settings == Prediction()


def test_confidence_is_the_softmax_of_the_label(net: Path, pictures: Path) -> None:
    for merge in ("logits", "softmax"):
        loaded = beco.load(net / "networks.safetensors", "cpu", {"merge": merge, "flip": False})
        label, sure = loaded.predict(pictures / "a.jpg", confidence=True)
        image = torch.from_numpy(read_picture(pictures / "a.jpg")).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            logits = [member(image)[0] for member in prediction.load(net / "networks.safetensors").networks]
        mean = sum(logits) / 2 if merge == "logits" else None
        shares = mean.softmax(0) if mean is not None else sum(one.softmax(0) for one in logits) / 2
        assert np.abs(sure - np.take_along_axis(shares.numpy(), label[None].astype(int), 0)[0]).max() < 1e-4


def test_a_crf_tells_its_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = np.array([[[0.2, 0.5]], [[0.8, 0.5]]], np.float32)
    monkeypatch.setattr(outputs, "posterior", lambda image, probabilities, settings: probabilities[::-1])
    crf = Prediction.model_validate({"crf": {"backend": "torch"}}).crf
    assert crf is not None
    picture = np.zeros((1, 2, 3), np.uint8)
    label, sure = outputs.refined_with_confidence(picture, shares, np.array([3, 7], np.uint8), crf)
    assert label.tolist() == [[3, 3]] and sure.tolist() == [[np.float32(0.8), 0.5]]
    label, sure = outputs.refined_with_confidence(picture, shares[:1], np.array([3], np.uint8), crf)
    assert label.tolist() == [[3, 3]] and sure.tolist() == [[np.float32(0.2), 0.5]]  # no CRF of one class


def test_shares_are_those_of_the_label_maps(net: Path, pictures: Path, tmp_path: Path) -> None:
    predict(net, pictures, "-o", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "shares.csv").set_index("image")
    assert list(table.columns) == ["width", "height", "background", *CLASSES]
    assert len(table) == len(SIZES) and table.index.is_monotonic_increasing
    for image, row in table.iterrows():
        label = read_index_png((tmp_path / "out" / str(image)).with_suffix(".png"))
        assert (row["height"], row["width"]) == label.shape
        for value, name in enumerate(["background", *CLASSES]):
            assert row[name] == pytest.approx((label == value).mean())


def test_an_overlay_shows_the_label_and_leaves_background(net: Path, pictures: Path, tmp_path: Path) -> None:
    picture = noise((8, 16), 1)
    label = np.zeros((8, 16), np.uint8)
    label[:, 8:] = 2
    shown = np.array(looks.overlaid(picture, label)).astype(int)
    assert (shown[:, :8] == picture[:, :8]).all()
    assert np.abs(shown[:, 8:] - (picture[:, 8:] / 2 + voc_palette()[2] / 2)).max() <= 1
    looks.write_overlay(tmp_path / "wide.jpg", np.zeros((1, 70_000, 3), np.uint8), np.zeros((1, 70_000), np.uint8))
    assert Image.open(tmp_path / "wide.jpg").width == looks.LONGEST
    predict(net, pictures, "-o", tmp_path / "out", "--overlay", "--settings", "{resize: 32}")  # which are not fed whole
    for name, size in SIZES.items():
        assert Image.open(tmp_path / "out" / "overlay" / f"{name}.jpg").size == size[::-1]


# --- a kill, and what is kept -------------------------------------------------------------------------------


def test_a_killed_run_goes_on_where_it_stood(
    net: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write, written = tmp_path / "out", outputs._write, list[str]()

    def dying(paths: dict[str, Path], *more: Any) -> np.ndarray:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(paths["label"].relative_to(out).as_posix())
        return write(paths, *more)

    predict(net, pictures, "-o", tmp_path / "undisturbed")
    arguments = (net, pictures, "-o", out, "--batch", "1")
    monkeypatch.setattr(outputs, "_write", dying)
    run(["predict", *map(str, arguments), "--device", "cpu", "--threads", "1"])
    first = list(written)
    assert len(first) == 4 and not (out / "shares.csv").exists()
    with (out / journal.NAME).open("a", encoding="utf-8") as stream:
        stream.write('{"image": "b.png", "lab')  # what a kill can leave of a line

    def counting(paths: dict[str, Path], *more: Any) -> np.ndarray:
        written.append(paths["label"].relative_to(out).as_posix())
        return write(paths, *more)

    monkeypatch.setattr(outputs, "_write", counting)
    assert "4 pictures are there and kept" in predict(*arguments)
    assert sorted(written) == sorted(f"{name}.png" for name in SIZES)  # none twice
    assert label_maps(out) == label_maps(tmp_path / "undisturbed")
    assert (out / "shares.csv").read_bytes() == (tmp_path / "undisturbed" / "shares.csv").read_bytes()
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]

    def again(*more: str) -> list[str]:
        written.clear()
        predict(*arguments, *more)
        return sorted(written)

    assert again() == []
    (pictures / "a.jpg").touch()  # its content is what it was
    assert again() == []
    Image.fromarray(noise((40, 56), 99)).save(pictures / "a.jpg")
    (out / "e.png").unlink()
    assert again() == ["a.png", "e.png"]
    shutil.copy(pictures / "f.png", pictures / "g.png")
    assert again("--batch", "3") == ["g.png"]
    assert len(again("--confidence")) == 7  # which were not made before
    assert again() == []
    (pictures / "b.png").unlink()
    (out / "b.png").unlink()
    assert again() == [] and len(pd.read_csv(out / "shares.csv")) == 6


def test_other_networks_or_settings_are_told_apart(net: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(net, pictures, "-o", out, "--overlay")
    before = label_maps(out)
    refused = predict(net, pictures, "-o", out, "--settings", "{flip: false}", status=1)
    assert f"beco: {out}: holds predictions by other settings" in refused and "--replace" in refused
    other = trained(tmp_path / "other", OWN, 1)
    assert "by other networks" in predict(other, pictures, "-o", out, status=1)
    assert label_maps(out) == before
    (out / "notes.txt").write_text("precious")
    predict(other, pictures / "trip", "-o", out, "--replace")
    assert set(label_maps(out)) == {"Tag 1.png", "deep/c.d.png"} and not (out / "overlay").exists()
    assert (out / "notes.txt").read_text() == "precious"


def test_a_file_that_does_not_say_how_to_predict(pictures: Path, tmp_path: Path) -> None:
    old = trained(tmp_path / "old", None)
    assert "does not say how" in predict(old, pictures / "a.jpg", "-o", tmp_path / "out")
    head = json.loads((tmp_path / "out" / journal.NAME).read_text().splitlines()[0])
    assert head["made_by"]["prediction"] == Prediction().model_dump(mode="json", exclude={"batch_size"})


def test_a_run_that_was_measured_otherwise_is_told(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = trained(tmp_path / "run", {"resize": 64, "networks": "both"})  # of which the average is measured there
    measured = Prediction.model_validate({"resize": 64, "batch_size": 2}).model_dump(mode="json")
    for crf, told in ((None, False), ({"iterations": 3}, True)):
        (made / "metrics.json").write_text(json.dumps({"protocol": {**measured, "crf": crf}}))
        with caplog.at_level(logging.WARNING, "beco"):
            logging.getLogger("beco").propagate = True
            caplog.clear()
            beco.load(made, "cpu")
        assert ("metrics.json: was measured with another crf" in caplog.text) == told
