"""A trained network on other pictures: command and Python give the workflow's label maps, and a kill costs little."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import run
from PIL import Image
from small_networks import network
from torch import nn

import beco
from beco.config import Prediction
from beco.datasets.manifest import Manifest, read_picture
from beco.datasets.palette import read_index_png, voc_palette
from beco.errors import UserError
from beco.networks.encoders import save_network
from beco.networks.segmenter import Segmenter, build
from beco.stage2 import journal, looks, outputs
from beco.stage2 import predict as prediction
from beco.training import batches
from beco.training.trainer import Compute

CLASSES = ["cat", "dog", "bird"]
OWN = {"flip": True, "merge": "softmax"}
SIZES = {"a": (40, 56), "b": (56, 40), "trip/Tag 1": (40, 56), "trip/deep/c.d": (33, 47), "e": (40, 56), "f": (56, 40)}


def trained(run: Path, protocol: dict[str, Any] | None, count: int = 2) -> Path:
    """A run's folder with networks of random weights, of whose classes each has its turn."""
    made = [build(network(), len(CLASSES)).eval() for _ in range(count)]
    images = torch.from_numpy(noise((64, 64), 0)).permute(2, 0, 1)[None] / 255
    for number, member in enumerate(made):
        torch.manual_seed(3 + number)
        for parameter in member.parameters():
            nn.init.normal_(parameter, 0.0, 0.25)
        last = [one for one in member.decoder.modules() if isinstance(one, nn.Conv2d)][-1]
        assert last.bias is not None and last.out_channels == len(CLASSES) + 1
        with torch.no_grad():
            logits = member(images)
            last.bias -= logits.mean((0, 2, 3))
    metadata = {"network": network().model_dump_json(), "classes": json.dumps(CLASSES), "count": str(count)}
    if protocol is not None:
        metadata["prediction"] = Prediction.model_validate(protocol).model_dump_json()
    save_network(nn.ModuleList(made), run / "networks.safetensors", metadata)
    return run


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"), OWN)


def noise(size: tuple[int, int], seed: int) -> np.ndarray:
    """Blocks of colours, (*size, 3) uint8."""
    rows, columns = (n // 8 + 1 for n in size)
    blocks = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for number, (name, size) in enumerate(SIZES.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(size, number)).save(folder / f"{name}.{'png' if number % 2 else 'jpg'}")
    return folder


def predict(*arguments: str | Path, status: int = 0) -> str:
    found, error = run(["predict", *map(str, arguments), "--device", "cpu", "--threads", "1"])
    assert found == status and "Traceback" not in error, error
    return error


def label_maps(output: Path) -> dict[str, bytes]:
    """The PNGs of a folder by their names, without those of confidence."""
    names = {path.relative_to(output).as_posix(): path for path in output.rglob("*.png")}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("confidence/")}


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


def test_files_of_others_are_not_written_over(net: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_text("precious")
    assert "holds other files (a.png)" in predict(net, pictures, "-o", out, status=1)
    (out / "a.png").unlink()
    predict(net, pictures / "b.png", "-o", out)
    (out / "a.png").write_text("precious")  # put beside ours later
    assert "another's (a.png)" in predict(net, pictures, "-o", out, status=1)
    assert (out / "a.png").read_text() == "precious"
    lines = (out / journal.NAME).read_text().splitlines()
    head = json.loads(lines[0])
    head["files"].append("../pictures/a.jpg")
    head["made_by"]["networks"] = "0"
    (out / journal.NAME).write_text("\n".join([json.dumps(head), *lines[1:], ""]))
    (out / "a.png").unlink()
    predict(net, pictures, "-o", out, "--replace")
    assert (pictures / "a.jpg").exists()


# --- which pictures -----------------------------------------------------------------------------------------


def test_what_counts_as_a_picture(net: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures)
    shutil.copy("a.jpg", "IMG_1")  # told by its content
    shutil.copy("a.jpg", "h.jfif")
    for name in (".hidden.jpg", "._a.jpg", ".thumbnails/a.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy("a.jpg", name)
    Path("notes.txt").write_text("BM, GIF8 and other texts", encoding="utf-8")
    Path("empty").touch()
    os.mkfifo("pipe")
    Path("trip/back").symlink_to(pictures, target_is_directory=True)  # a loop
    Path("linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy("a.jpg", tmp_path / "elsewhere" / "k.jpg")
    expected = {f"{name}.png" for name in (*SIZES, "IMG_1", "h", "linked/k")}
    for _ in range(2):  # the second time the output lies there, too
        predict(net, ".", "-o", "out")
        assert set(label_maps(Path("out"))) == expected
    predict(net, ".", "-o", "out2")
    assert set(label_maps(Path("out2"))) == expected


def test_several_folders_and_files(net: Path, pictures: Path, tmp_path: Path) -> None:
    predict(net, pictures / "trip", pictures / "a.jpg", pictures / "trip" / "deep" / "c.d.png", "-o", tmp_path / "out")
    assert set(label_maps(tmp_path / "out")) == {"trip/Tag 1.png", "trip/deep/c.d.png", "a.png"}


def test_two_pictures_of_one_name_are_refused(net: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copy(pictures / "b.png", pictures / "a.png")
    refused = predict(net, pictures, "-o", tmp_path / "out", status=1)
    assert all(str(pictures / name) in refused for name in ("a.jpg", "a.png")) and "rename one" in refused
    assert refused.count("\n") == 1 and not (tmp_path / "out").exists()
    (pictures / "a.png").unlink()
    (pictures / "overlay").mkdir()
    shutil.copy(pictures / "a.jpg", pictures / "overlay" / "a.jpg")
    predict(net, pictures, "-o", tmp_path / "out", "--overlay")  # one is a JPEG, the other a PNG
    (pictures / "overlay").rename(pictures / "confidence")
    refused = predict(net, pictures, "-o", tmp_path / "more", "--confidence", status=1)
    assert "confidence/a.png" in refused and "rename one" in refused


def test_a_label_map_where_a_folder_is_to_be(net: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.png").mkdir()
    shutil.copy(pictures / "b.png", pictures / "a.png" / "b.png")
    refused = predict(net, pictures, "-o", tmp_path / "out", status=1)
    assert f"{pictures / 'a.jpg'}: a.png would be a folder and a file" in refused and not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_is_begun_without_the_device(net: Path, pictures: Path, tmp_path: Path) -> None:
    status, said = run(["predict", str(net), str(pictures), "-o", str(tmp_path / "out"), "--device", "cuda"])
    assert status == 1 and "torch sees no GPU" in said and not (tmp_path / "out").exists()


def test_inputs_that_are_not_there(net: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    assert "no such picture or folder" in predict(net, tmp_path / "none", "-o", tmp_path / "out", status=1)
    assert "no picture there" in predict(net, tmp_path / "bare", "-o", tmp_path / "out", status=1)
    shutil.copytree(net, tmp_path / "runs" / "seed0")
    said = predict(tmp_path / "runs", pictures, "-o", tmp_path / "out", status=1)
    assert f"did you mean {tmp_path / 'runs' / 'seed0'}?" in said
    assert "name a run's folder" in predict(tmp_path / "bare", pictures, "-o", tmp_path / "out", status=1)
    assert not (tmp_path / "out").exists()


# --- bad pictures, and unusual ones -------------------------------------------------------------------------


def spoil(folder: Path) -> dict[str, str]:
    """Add one of each bad kind, and return the words of the reader."""
    whole = (folder / "a.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "trip" / "text.png").write_text("not a picture")
    (folder / "empty.tif").touch()
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "numbers.tif")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.png").symlink_to("/dev/zero")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    bad = {}
    for name in (
        "cut.jpg",
        "trip/text.png",
        "empty.tif",
        "numbers.tif",
        "gone.jpg",
        "huge.png",
        "pipe.jpg",
        "device.png",
    ):
        with pytest.raises(UserError) as error:
            read_picture(folder / name)
        bad[name] = str(error.value)
    return bad


def test_bad_pictures_are_left_out_and_listed(net: Path, pictures: Path, tmp_path: Path) -> None:
    bad, out = spoil(pictures), tmp_path / "out"
    said = predict(net, pictures, "-o", out)
    assert set(label_maps(out)) == {f"{name}.png" for name in SIZES}
    table = pd.read_csv(out / "skipped.csv")
    assert dict(zip(table["image"], table["reason"], strict=True)) == bad
    assert all(reason in said for reason in bad.values()) and "8 pictures cannot be read" in said
    refused = predict(net, pictures, "-o", tmp_path / "none", "--refuse-bad", status=1)
    assert "8 problems" in refused and all(reason in refused for reason in bad.values())
    assert not (tmp_path / "none").exists()
    for name in bad:
        (pictures / name).unlink()
    predict(net, pictures, "-o", out, "--refuse-bad")
    assert not (out / "skipped.csv").exists()
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.png").write_text("not a picture")
    assert "none of 1 pictures could be read" in predict(net, tmp_path / "only", "-o", tmp_path / "none", status=1)


def test_unusual_pictures_are_read_as_elsewhere(net: Path, tmp_path: Path) -> None:
    folder, colours = tmp_path / "unusual", noise((24, 40), 5)
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture = Image.fromarray(colours)
    picture.save(folder / "turned.jpg", exif=exif)
    picture.save(folder / "turned_late.png", exif=exif)
    picture.convert("L").save(folder / "grey.png")
    picture.convert("CMYK").save(folder / "print.jpg")
    picture.convert("P").save(folder / "palette.gif")
    Image.fromarray(np.dstack([colours, colours[..., :1]])).save(folder / "alpha.png")
    Image.fromarray(colours[..., 0].astype(np.uint16) * 256).save(folder / "deep.png")
    picture.save(folder / "moving.webp", save_all=True, append_images=[Image.fromarray(noise((24, 40), 6))])
    predict(net, folder, "-o", tmp_path / "out", "--refuse-bad")
    loaded = beco.load(net, "cpu")
    shapes = {path.stem: read_picture(path).shape[:2] for path in folder.iterdir()}
    assert shapes["turned"] == shapes["turned_late"] == (40, 24) and len(shapes) == 8
    for path in folder.iterdir():
        label = read_index_png(tmp_path / "out" / f"{path.stem}.png")
        assert label.shape == shapes[path.stem]
        with Image.open(path) as opened:
            given = [path, str(path), read_picture(path), opened]
            assert all((loaded.predict(one) == label).all() for one in given)


def test_what_python_is_given_is_a_picture(net: Path, tmp_path: Path) -> None:
    loaded = beco.load(net, "cpu")
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB"):
            loaded.predict(wrong)
    with pytest.raises(ValueError, match="not 0×5 of them"):
        loaded.predict(Image.new("RGB", (0, 5)))
    with pytest.raises(UserError, match="settings: expected keys and values, found int"):
        beco.load(net, "cpu", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not int"):
        loaded.predict(3)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="no such picture"):
        loaded.predict(tmp_path / "none.png")
    with pytest.raises(UserError, match="unknown key"):
        beco.load(net, "cpu", {"flop": True})
    with pytest.raises(UserError, match="no such file"):
        beco.load(tmp_path / "none.safetensors")


def test_pictures_beyond_the_memory_are_left_out(
    net: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = Segmenter.coarse

    def too_much(self: Segmenter, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-2:] == (33, 47):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return coarse(self, images)

    monkeypatch.setattr(Segmenter, "coarse", too_much)
    predict(net, pictures, "-o", tmp_path / "out")
    (row,) = pd.read_csv(tmp_path / "out" / "skipped.csv").itertuples()
    assert row.image == "trip/deep/c.d.png" and "47×33" in row.reason and "resize" in row.reason
    assert len(label_maps(tmp_path / "out")) == len(SIZES) - 1
    assert "47×33" in predict(net, pictures, "-o", tmp_path / "none", "--refuse-bad", status=1)


# --- what the networks' file says ---------------------------------------------------------------------------


def test_a_size_to_be_fed_beyond_the_memory_is_told(
    net: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 90 GB")

    monkeypatch.setattr(batches, "as_fed", none)
    said = predict(net, pictures / "a.jpg", "-o", tmp_path / "out", "--settings", "{resize: 100000}", status=1)
    assert "100000" in said and "take more memory than there is" in said


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
