"""Pictures and folders as people have them: bad ones are listed, unusual ones read, and no file of others is lost."""

from __future__ import annotations

import json
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
from trained_networks import SIZES, label_maps, noise, predict

import beco
from beco.datasets.manifest import read_picture
from beco.datasets.palette import read_index_png
from beco.errors import UserError
from beco.networks.segmenter import Segmenter
from beco.stage2 import journal
from beco.training import batches


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
    assert (
        status == 1
        and "beco: --device: cuda asked for, but torch sees no GPU" in said
        and not (tmp_path / "out").exists()
    )


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


def test_names_that_are_no_text_are_listed_readably(net: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copy(pictures / "a.jpg", os.fsdecode(os.fsencode(pictures) + b"/raw\xe9.jpg"))
    shutil.copy(pictures / "a.jpg", pictures / "two\nlines.jpg")
    for _ in range(2):
        assert "2 pictures cannot be read" in predict(net, pictures, "-o", tmp_path / "out")
        table = pd.read_csv(tmp_path / "out" / "skipped.csv")
        assert table["image"].tolist() == [r"raw\xe9.jpg", r"two\nlines.jpg"]
        reason = f"{pictures}/raw\\xe9.jpg: holds characters that no text has; rename it"
        assert table["reason"][0] == reason
        assert set(label_maps(tmp_path / "out")) == {f"{name}.png" for name in SIZES}


def test_a_folder_whose_name_is_no_text(
    net: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/K\xe4se"))
    pictures.rename(odd)
    assert r"K\xe4se/a.jpg: holds characters" in predict(net, odd, "-o", tmp_path / "none", status=1)
    monkeypatch.chdir(odd)
    for kept in ("", f"{len(SIZES)} pictures are there and kept"):
        assert kept in predict(net, ".", "-o", tmp_path / "out")
    (tmp_path / "more").mkdir()
    shutil.copy("a.jpg", tmp_path / "more")
    predict(net, ".", tmp_path / "more", "-o", tmp_path / "several")  # names begin with the folder's
    assert set(label_maps(tmp_path / "several")) == {"more/a.png"}


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
    with pytest.raises(UserError, match=r"^device: no device `gpu`; known: auto, cpu, cuda"):
        beco.load(net, device="gpu")


@pytest.mark.filterwarnings("error")
def test_what_pillow_has_opened(net: Path, pictures: Path, tmp_path: Path) -> None:
    loaded = beco.load(net, "cpu")
    with Image.open(pictures / "a.jpg") as opened:
        alike = np.asarray(opened)
    assert not alike.flags.writeable and (loaded.predict(alike) == loaded.predict(pictures / "a.jpg")).all()
    (tmp_path / "cut.jpg").write_bytes((pictures / "a.jpg").read_bytes()[:-200])
    for closed in (False, True):
        with Image.open(tmp_path / "cut.jpg" if not closed else pictures / "a.jpg") as opened:
            if closed:
                opened.close()
            with pytest.raises(UserError, match=r"\.jpg: cannot be decoded \(.+\); copy it again"):
                loaded.predict(opened)


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
