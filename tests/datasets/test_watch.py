"""Files of a dataset that change, and those that only look changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from beco.artifacts import states
from beco.config import Dataset
from beco.datasets import formats, shapes, watch
from beco.datasets.watch import PARTS, Watched
from beco.errors import UserError
from beco.exchange import watch as imports
from beco.exchange.imports import SUFFIXES
from beco.schema import Shapes

LISTS = {"train": ["a", "b"], "val": ["c"]}


def picture(path: Path, colour: int = 0, size: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (colour, 0, 0)).save(path, compress_level=0)


def made(tmp_path: Path, form: str) -> Dataset:
    """A dataset of three pictures, two of them for training, without a mask where that may be."""
    root = tmp_path / "data"
    if form == "voc":
        shapes.draw(root, Shapes(train=2, val=1, size=48))
        return Dataset(format="voc", root=str(root), classes=shapes.CLASSES)
    if form == "folder":
        for name in "abcd":
            picture(root / f"{name}.png")
        (tmp_path / "masks").mkdir()
        Image.new("P", (40, 40), 1).save(tmp_path / "masks" / "a.png")
        rows = [f"{name}.png,x,{split}\n" for split, names in LISTS.items() for name in names]
        (tmp_path / "labels.csv").write_text("image,labels,split\n" + "".join(rows), encoding="utf-8")
        return Dataset(
            format="folder", root=str(root), labels=str(tmp_path / "labels.csv"), masks=str(tmp_path / "masks")
        )
    for split, names in LISTS.items():
        entries = [
            {"id": number, "file_name": f"{name}.png", "height": 40, "width": 40} for number, name in enumerate(names)
        ]
        boxes = [
            {"image_id": number, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]], "iscrowd": 0}
            for number in range(len(names))
        ]
        content = {"images": entries, "categories": [{"id": 1, "name": "x"}], "annotations": boxes}
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        for name in names:
            picture(root / split / f"{name}.png")
    return Dataset(format="coco", root=str(root))


def listed(tmp_path: Path, dataset: Dataset) -> Path:
    """The folder of results in which the manifest of a dataset was made as the workflow does; its folder."""
    base = tmp_path / "results" / "own"
    before = Watched(dataset, str(dataset.root), base)
    assert not before.is_listed
    words = [word.partition("=")[2] for word in before.options().split("--watched ")[1:]]
    assert len(words) == len(PARTS) + 1
    formats.build(dataset, base / "manifest.csv")
    tokens = before.tokens | {watch.LISTED: before.parameter("pictures")}
    watch.record(dataset, Path(str(dataset.root)), base, tokens)
    after = Watched(dataset, str(dataset.root), base)
    assert after.is_listed and after.tokens == before.tokens  # or all would run twice
    return base


def changed(dataset: Dataset, base: Path) -> set[str]:
    """The parts that are not what the manifest was made from."""
    seen = Watched(dataset, str(dataset.root), base)
    return {part for part in PARTS if seen.tokens[part] != json.loads((base / watch.NAME).read_text())["tokens"][part]}


def later(path: Path) -> None:
    os.utime(path, ns=(1, 1))


CHANGES: list[tuple[str, str, set[str]]] = [
    ("voc", "JPEGImages/train_00000.jpg", {"pictures"}),
    ("voc", "Annotations/val_00000.xml", {"pictures"}),
    ("voc", "ImageSets/Segmentation/val.txt", {"pictures"}),
    ("voc", "SegmentationClass/train_00001.png", {"train_masks"}),
    ("voc", "SegmentationClass/val_00000.png", {"val_masks"}),
    ("folder", "a.png", {"pictures"}),
    ("folder", "../labels.csv", {"pictures"}),
    ("folder", "../masks/a.png", {"train_masks"}),
    ("folder", "d.png", set()),  # the CSV does not name it
    ("coco", "train/a.png", {"pictures"}),
    ("coco", "annotations/instances_val.json", {"pictures"}),
]


@pytest.mark.parametrize(("form", "name", "parts"), CHANGES)
def test_a_changed_file_counts_for_what_reads_it(tmp_path: Path, form: str, name: str, parts: set[str]) -> None:
    dataset = made(tmp_path, form)
    base, path = listed(tmp_path, dataset), tmp_path / "data" / name
    content = path.read_bytes()
    later(path)
    assert changed(dataset, base) == set()  # of another time alone
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as many bytes
    assert changed(dataset, base) == parts
    path.write_bytes(content)
    assert changed(dataset, base) == set()
    path.unlink()
    assert changed(dataset, base) >= parts  # a list takes its masks along


ADDED: list[tuple[str, str, set[str]]] = [
    ("voc", "SegmentationClassAug/train_00001.png", {"train_masks"}),
    ("voc", "SegmentationClassAug/val_00000.png", {"val_masks"}),
    ("voc", "SegmentationClassAug/other.png", set()),
    ("voc", "JPEGImages/other.jpg", set()),
    ("folder", "../masks/b.png", {"train_masks"}),
    ("folder", "../masks/c.png", {"val_masks"}),
    ("folder", "../masks/d.png", set()),
    ("folder", "e.png", set()),
    ("coco", "train/e.png", set()),
]


@pytest.mark.parametrize(("form", "name", "parts"), ADDED)
def test_an_added_file_counts_if_it_is_read(tmp_path: Path, form: str, name: str, parts: set[str]) -> None:
    dataset = made(tmp_path, form)
    base = listed(tmp_path, dataset)
    picture(tmp_path / "data" / name)
    assert changed(dataset, base) == parts
    assert Watched(dataset, str(dataset.root), base).is_listed  # no training again


@pytest.mark.parametrize("form", ["voc", "folder", "coco"])
def test_where_a_dataset_lies_and_how_that_is_spelt_counts_for_nothing(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = made(tmp_path, form)
    base = listed(tmp_path, dataset)
    (base / "manifest.json").write_text(json.dumps({"dataset": dataset.identity()}), encoding="utf-8")
    before = Watched(dataset, str(dataset.root), base)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("data")
    own = {"labels": "./labels.csv", "masks": "masks/"} if form == "folder" else {}

    def at(root: str) -> Watched:
        spelt = dataset.model_copy(update={"root": root, **own})
        return Watched(spelt, root, base)

    for root in ("data", "./data/", "data//", "link", f"{tmp_path}/link/../data"):
        seen = at(root)
        seen.refuse_other()
        assert seen.is_listed and seen.parameter(*PARTS) == before.parameter(*PARTS), root
        assert watch.settings(seen.dataset) == watch.settings(dataset)
    shutil.copytree("data", "moved")
    for path in (tmp_path / "moved").rglob("*.*"):
        later(path)
    shutil.rmtree("data")
    seen = at("moved")
    seen.refuse_other()
    assert seen.is_listed
    assert json.loads((base / "manifest.json").read_text())["dataset"] == seen.dataset.identity()
    if form != "coco":  # its manifest says where the masks are from the root
        assert seen.parameter(*PARTS) == before.parameter(*PARTS)
    at("moved").refuse_other()
    next(path for path in sorted((tmp_path / "moved").rglob("*a*.[jp][pn]g"))).write_bytes(b"another")
    at("moved").refuse_other()  # the same place: it is run again
    shutil.move("moved", "again")
    with pytest.raises(UserError, match="holds results of another dataset"):
        at("again").refuse_other()


def test_times_of_now_are_kept_and_files_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = made(tmp_path, "voc")
    base = listed(tmp_path, dataset)
    for path in (tmp_path / "data").rglob("*.*"):
        later(path)
    assert changed(dataset, base) == set()
    read: list[Any] = []
    monkeypatch.setattr(states, "file_hash", lambda path: read.append(path))
    assert changed(dataset, base) == set() and not read


@pytest.mark.parametrize("text", ["", "{}", '{"tokens": {}, "files": {}}', "[" * 100_000, '{"tokens": 3, "files": 3}'])
def test_a_record_that_is_none_is_made_anew(tmp_path: Path, text: str) -> None:
    dataset = made(tmp_path, "folder")
    base = listed(tmp_path, dataset)
    (base / watch.NAME).write_text(text, encoding="utf-8")
    assert not Watched(dataset, str(dataset.root), base).is_listed


def test_settings_and_a_missing_manifest_count(tmp_path: Path) -> None:
    dataset = made(tmp_path, "voc")
    base = listed(tmp_path, dataset)
    other = dataset.model_copy(update={"classes": shapes.CLASSES[::-1]})
    assert not Watched(other, str(dataset.root), base).is_listed
    (base / "manifest.csv").unlink()
    assert not Watched(dataset, str(dataset.root), base).is_listed


def test_a_dataset_that_is_not_there_has_tokens(tmp_path: Path) -> None:
    for form in ("shapes", "voc", "coco", "folder"):
        dataset = Dataset.model_validate({"format": form, "root": str(tmp_path / "gone"), "labels": "gone.csv"})
        assert set(Watched(dataset, tmp_path / "gone", tmp_path).tokens) == set(PARTS)


def test_the_embedded_dataset_has_the_same_tokens_before_and_after_it_is_drawn(tmp_path: Path) -> None:
    """The workflow plans before; a job on another machine looks after."""
    asked = Dataset(format="shapes", shapes=Shapes(train=2, val=1, size=48))
    before = Watched(asked, tmp_path / "dataset", tmp_path).tokens
    shapes.draw(tmp_path / "dataset", asked.shapes)
    after = Watched(asked, tmp_path / "dataset", tmp_path)
    assert after.tokens == before
    watch.record(asked, tmp_path / "dataset", tmp_path, {**before, watch.LISTED: after.parameter("pictures")})
    assert Watched(asked, tmp_path / "dataset", tmp_path).tokens == before
    picture(tmp_path / "dataset" / "JPEGImages" / "train_00001.jpg", 9)
    assert Watched(asked, tmp_path / "dataset", tmp_path).tokens["pictures"] != before["pictures"]


def test_masks_alone_are_listed_without_the_rule(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = made(tmp_path, "folder")
    base = listed(tmp_path, dataset)
    (base / "logs").mkdir()
    Image.new("P", (40, 40), 1).save(tmp_path / "masks" / "c.png")
    Watched(dataset, str(dataset.root), base).list_masks()
    assert "c,val,c.png,../masks/c.png," in (base / "manifest.csv").read_text()
    assert changed(dataset, base) == set() and Watched(dataset, str(dataset.root), base).is_listed
    before = (base / "manifest.csv").read_bytes()
    Image.new("P", (4, 4)).save(tmp_path / "masks" / "b.png")
    with pytest.raises(SystemExit):
        Watched(dataset, str(dataset.root), base).list_masks()
    assert "b.png: is 4×4" in capfd.readouterr().err and (base / "manifest.csv").read_bytes() == before


def test_all_tokens_are_recorded_or_none() -> None:
    words = [f"{name}=x={name}" for name in (*PARTS, watch.LISTED)]
    assert watch.parse_tokens(words)["pictures"] == "x=pictures"
    with pytest.raises(UserError, match="--watched"):
        watch.parse_tokens(words[1:])


# --- labels of another program ------------------------------------------------------------------------------


def imported(tmp_path: Path) -> tuple[Path, Path, str]:
    """A folder of labels, the folder of results that they were imported into, and the token that was recorded."""
    base = tmp_path / "results"
    manifest = "image_id,split,image,mask\na,train,a.jpg,\n000012,train,b.jpg,\nc,val,c.jpg,\n"
    for name in ("a", "12", "c"):
        picture(tmp_path / "theirs" / f"{name}.png")
    given = imports.source_token(tmp_path / "theirs", base / "own", base / "manifest.csv")
    base.mkdir()
    (base / "manifest.csv").write_text(manifest, encoding="utf-8")
    # a job of another machine plans once more, with the manifest that is there by now
    assert imports.source_token(tmp_path / "theirs", base / "own", base / "manifest.csv") == given
    imports.record(tmp_path / "theirs", base / "own", ["a", "000012"], given)
    return tmp_path / "theirs", base, given


def test_a_changed_label_counts_if_it_is_imported(tmp_path: Path) -> None:
    folder, base, given = imported(tmp_path)

    def now() -> str:
        return imports.source_token(folder, base / "own", base / "manifest.csv")

    assert now() == given
    for name in ("a", "12"):
        path = folder / f"{name}.png"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # in place, as many bytes
        assert now() != given
        path.write_bytes(content)
        assert now() == given
        path.rename(folder / "gone.txt")
        assert now() != given
        (folder / "gone.txt").rename(path)
        (folder / f"{name}.npy").write_bytes(content)  # twice: it is refused
        assert now() != given
        (folder / f"{name}.npy").unlink()
    picture(folder / "c.png", 9)  # of no training picture
    picture(folder / "stray.png")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "._a.png").write_bytes(b"x")
    assert now() == given


def test_where_labels_lie_and_how_that_is_spelt_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, base, given = imported(tmp_path)
    monkeypatch.chdir(tmp_path)
    own, manifest = base / "own", base / "manifest.csv"
    for path in ("theirs", "./theirs/", f"{tmp_path}/theirs"):
        assert imports.source_token(Path(path), own, manifest) == given
    shutil.copytree("theirs", "moved")
    for file in Path("moved").iterdir():
        later(file)
    shutil.rmtree("theirs")
    assert imports.source_token(Path("moved"), own, manifest) == given
    assert imports.source_token(Path("theirs"), own, manifest) != given
    read: list[Any] = []
    monkeypatch.setattr(states, "file_hash", lambda path: read.append(path))
    assert imports.source_token(Path("moved"), own, manifest) == given and not read  # of another time but once
    (own / watch.NAME).write_text("{", encoding="utf-8")
    assert imports.source_token(Path("moved"), own, manifest) != given


def test_every_suffix_of_a_format_is_watched() -> None:
    assert set(imports.SUFFIXES) == set(SUFFIXES)
