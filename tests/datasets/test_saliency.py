"""Saliency maps: which file is whose, what is refused, and what they are known by."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beco.cli.stage1 import train_classifier
from beco.config import Crop
from beco.datasets import manifest as manifests
from beco.datasets import saliency, shapes, voc
from beco.datasets.manifest import Manifest
from beco.datasets.matching import by_name
from beco.errors import UserError
from beco.exchange.watch import record, source_token
from beco.schema import Shapes
from beco.training.augment import SalientPictures


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=3, val=1, size=48))
    return voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv").split("train")


def filled(folder: Path, pictures: Manifest, suffix: str = ".png") -> Path:
    """A map of each picture: a ramp to the right, of another step each."""
    folder.mkdir()
    for number, image_id in enumerate(pictures.ids):
        height, width = pictures.size(image_id)
        ramp = np.tile(np.arange(width, dtype=np.uint8) * (number + 1), (height, 1))
        Image.fromarray(ramp).save(folder / f"{image_id}{suffix}")
    return folder


def test_a_map_is_read_from_whatever_pillow_reads(drawn: Manifest, tmp_path: Path) -> None:
    folder = filled(tmp_path / "maps", drawn, ".tif")
    first, second, third = drawn.ids
    (folder / f"{third}.tif").unlink()
    colours = np.zeros((48, 48, 3), np.uint8) + np.array([68, 70, 73], np.uint8)  # a grey, but for a JPEG's rounding
    Image.fromarray(colours).save(folder / f"{third}.png")
    (folder / "notes.txt").write_text("of whom they are", encoding="utf-8")
    found = saliency.in_folder(folder, drawn)
    assert np.array_equal(found.plane(drawn, second)[5], np.arange(48) * 2)
    assert (found.plane(drawn, third) == 70).all() and found.plane(drawn, first).dtype == np.uint8


def test_pictures_in_folders_have_maps_in_folders(tmp_path: Path) -> None:
    rows = "".join(f"{one},train,{two}.png,,4,3,1\n" for one, two in (("a__b", "a/b"), ("c", "c"), ("12", "12")))
    table = tmp_path / "manifest.csv"
    table.write_text(f"image_id,split,image,mask,width,height,x\n{rows}", encoding="utf-8")
    for name in ("a/b.png", "c.jpg", "0000012.bmp"):
        (tmp_path / "maps" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), 200).save(tmp_path / "maps" / name)
    found = saliency.in_folder(tmp_path / "maps", manifests.read(table, tmp_path)).files
    assert found is not None
    assert {name: path.name for name, path in found.items()} == {"a__b": "b.png", "c": "c.jpg", "12": "0000012.bmp"}


def test_all_that_is_wrong_is_told_together(drawn: Manifest, tmp_path: Path) -> None:
    folder = filled(tmp_path / "maps", drawn)
    first, second, third = drawn.ids
    (folder / f"{first}.png").unlink()
    Image.new("L", (48, 47)).save(folder / f"{second}.png")
    Image.new("L", (48, 48)).save(folder / f"{third}.bmp")
    with pytest.raises(UserError) as caught:
        saliency.in_folder(folder, drawn)
    text = str(caught.value)
    assert f"no saliency map of picture {first}; put it there, such as {first}.png" in text
    assert f"{second}.png: is 48×47, its picture 48×48 (width×height)" in text
    assert f"{third}.bmp and {third}.png are both of picture {third}; keep one" in text
    with pytest.raises(UserError, match=r"no such folder; set dataset\.saliency"):
        saliency.in_folder(tmp_path / "gone", drawn)


@pytest.mark.parametrize("value", [np.uint8(1), np.uint16(255), np.uint16(1000), np.uint8(25)])
def test_maps_of_0_and_1_are_not_taken_for_dark_ones(drawn: Manifest, tmp_path: Path, value: np.generic) -> None:
    read = int(value) // (1 if value.dtype == np.uint8 else 256)
    folder = filled(tmp_path / "maps", drawn)
    for image_id in drawn.ids[1:]:
        Image.fromarray(np.full((48, 48), value)).save(folder / f"{image_id}.png")
    saliency.in_folder(folder, drawn)
    Image.fromarray(np.full((48, 48), value)).save(folder / f"{drawn.ids[0]}.png")
    with pytest.raises(UserError, match=f"none of 3 saliency maps looked at is brighter than {read} of 255"):
        saliency.in_folder(folder, drawn)


def test_a_map_is_grey_and_without_holes(drawn: Manifest, tmp_path: Path) -> None:
    folder = filled(tmp_path / "maps", drawn)
    first, second, third = (folder / f"{image_id}.png" for image_id in drawn.ids)
    grey = Image.open(first).convert("L")
    mask = grey.point(lambda value: value > 20).convert("P")
    mask.putpalette([0, 0, 0, 128, 0, 0])
    mask.save(first)
    Image.merge("LA", (Image.new("L", grey.size, 255), grey)).save(second)
    Image.merge("RGBA", (grey, grey, grey, Image.new("L", grey.size, 255))).save(third)  # as some programs save greys
    with pytest.raises(UserError) as caught:
        saliency.in_folder(folder, drawn)
    assert f"{first}: holds colours, as a mask of classes does" in str(caught.value)
    assert f"{second}: is transparent in places" in str(caught.value) and third.name not in str(caught.value)


def test_a_damaged_map_is_said_to_be_one(drawn: Manifest, tmp_path: Path) -> None:
    folder = filled(tmp_path / "maps", drawn)
    path = folder / f"{drawn.ids[0]}.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="truncated or damaged"):
        saliency.in_folder(folder, drawn)


@pytest.mark.parametrize("text", ["{}", "[]", '{"dataset": 3}'])
def test_a_file_beside_the_manifest_that_does_not_say_what_it_is_of(drawn: Manifest, tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="stands for the true objects of the embedded dataset"):
        saliency.given(Path("shapes"), drawn, tmp_path / "manifest.csv")


def test_a_map_that_changes_later_is_refused_when_it_is_read(drawn: Manifest, tmp_path: Path) -> None:
    found = saliency.in_folder(filled(tmp_path / "maps", drawn), drawn)
    Image.new("L", (40, 48)).save(tmp_path / "maps" / f"{drawn.ids[0]}.png")
    with pytest.raises(UserError, match="is 40×48, its picture 48×48"):
        found.plane(drawn, drawn.ids[0])


def test_the_objects_of_the_embedded_dataset_and_of_no_other(drawn: Manifest, tmp_path: Path) -> None:
    listed = tmp_path / "manifest.csv"
    with pytest.raises(UserError, match="--saliency: `shapes` stands for the true objects of the embedded dataset"):
        saliency.given(Path("shapes"), drawn, listed)
    for form in ("voc", "shapes"):
        listed.with_suffix(".json").write_text(json.dumps({"dataset": {"format": form}}), encoding="utf-8")
        if form == "voc":
            with pytest.raises(UserError, match=r"which .* is not of"):
                saliency.given(Path("shapes"), drawn, listed)
    found = saliency.given(Path("shapes"), drawn, listed)
    assert found.identity() == "true objects of shapes"
    mask = drawn.mask(drawn.ids[0])
    plane = found.plane(drawn, drawn.ids[0])
    assert {(int(m > 0) + (m == 255), int(p)) for m, p in zip(mask.flat, plane.flat, strict=True)} == {
        (0, 0),
        (1, 255),
        (2, 128),
    }


def test_it_is_known_by_its_content(drawn: Manifest, tmp_path: Path) -> None:
    folder = filled(tmp_path / "maps", drawn)
    before = saliency.in_folder(folder, drawn).identity()
    shutil.copytree(folder, tmp_path / "copied")
    (tmp_path / "copied" / "other.png").write_bytes(b"")
    assert saliency.in_folder(tmp_path / "copied", drawn).identity() == before
    Image.new("L", (48, 48), 9).save(folder / f"{drawn.ids[1]}.png")
    assert saliency.in_folder(folder, drawn).identity() != before


def test_the_folder_is_watched(drawn: Manifest, tmp_path: Path) -> None:
    folder, base = filled(tmp_path / "maps", drawn), tmp_path / "classifier"
    base.mkdir()
    manifest = drawn.root.with_name("manifest.csv")

    def token(place: Path = folder) -> str:
        return source_token(place, base, manifest, by_name)

    given = token()
    record(folder, base, drawn.ids, given, by_name)
    (folder / "stranger.png").write_bytes(b"")
    os.utime(folder / f"{drawn.ids[0]}.png", (1, 1))
    shutil.copytree(folder, tmp_path / "copied")
    assert token() == token(tmp_path / "copied") == given
    Image.new("L", (48, 48), 9).save(folder / f"{drawn.ids[0]}.png")
    assert token() != given
    assert token(tmp_path / "gone") != given


def test_the_command_takes_a_folder_and_records_it(drawn: Manifest, tmp_path: Path) -> None:
    folder, manifest = filled(tmp_path / "maps", drawn), drawn.root.with_name("manifest.csv")
    (tmp_path / "settings.yaml").write_text(
        "{encoder: {name: resnet10t, options: {channels: [8, 8, 16, 16]}}, crop: {size: 32}, "
        "schedule: {steps: 1, batch_size: 2}}"
    )

    def train(method: str, place: Path, token: str | None = None) -> None:
        train_classifier(
            manifest=manifest, root=drawn.root, output=tmp_path / "out", settings=str(tmp_path / "settings.yaml"),
            method=method, saliency=place, watched=token, device="cpu", train_split="train", val_split="val",
        )  # fmt: skip

    with pytest.raises(UserError, match="--saliency: `cam` does not use it"):
        train("cam", folder)
    with pytest.raises(UserError, match="`shapes` stands for the true objects of the embedded dataset"):
        train("eps", Path("shapes"))
    given = source_token(folder, tmp_path / "out", manifest, by_name)
    train("eps", folder, given)
    kept = json.loads((tmp_path / "out" / "classifier.json").read_bytes())
    assert kept["inputs"] == {"saliency": saliency.in_folder(folder, drawn).identity()}
    os.utime(folder / f"{drawn.ids[0]}.png", (1, 1))
    assert source_token(folder, tmp_path / "out", manifest, by_name) == given


@pytest.mark.parametrize("crop", [{"rescale": [1, 1], "size": 64}, {"rescale": [1, 1], "size": 32}])
def test_maps_stay_under_their_pictures(drawn: Manifest, tmp_path: Path, crop: dict[str, object]) -> None:
    """The map is the picture's red; then both are the same wherever the crop lies within it."""
    (tmp_path / "maps").mkdir()
    for image_id in drawn.ids:
        Image.fromarray(drawn.image(image_id)[..., 0]).save(tmp_path / "maps" / f"{image_id}.png")
    pictures = SalientPictures(
        drawn, saliency.in_folder(tmp_path / "maps", drawn), Crop.model_validate(crop), (0.2, 0.2, 0.2)
    )
    seen = set()
    for draw in range(8):
        item = pictures[draw % 3, draw]
        red = (item["saliency"] * 255).round().to(torch.uint8)
        assert torch.equal(red[item["inside"]], item["image"][0][item["inside"]])
        assert (item["saliency"][~item["inside"]] == 0).all() and (item["image"][0][~item["inside"]] == 51).all()
        seen.add(int(item["inside"].sum()))
    assert seen == {min(int(str(crop["size"])), 48) ** 2}


def test_a_map_is_resized_and_mirrored_with_its_picture(drawn: Manifest, tmp_path: Path) -> None:
    """A ramp to the right stays one to the right, or is one to the left where the picture is mirrored."""
    found = saliency.in_folder(filled(tmp_path / "maps", drawn), drawn)
    ways = {
        bool(SalientPictures(drawn, found, Crop(size=32))[0, draw]["saliency"][0].diff()[4:].sum() > 0)
        for draw in range(8)
    }
    assert ways == {True, False}
