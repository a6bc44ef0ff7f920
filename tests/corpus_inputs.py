"""A sound folder of data, the commands that read it, and ways to spoil it; `corpus.py` puts them together."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from beco.artifacts import pseudolabels
from beco.artifacts.store import create
from beco.datasets.palette import read_index_png, voc_palette, write_index_png

SIZE = (16, 24)  # height, width
CLASSES = ["cat", "dog"]
SETTINGS = "{format: voc, root: data, classes: [cat, dog]}"

Harm = Callable[[Path], None]
Command = Callable[[Path], list[str]]


# --- a sound folder, and the commands -----------------------------------------------------------------------


def picture() -> np.ndarray:
    """(16, 24, 3) uint8, smooth, so that JPEG keeps it within a few levels."""
    rows, columns = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    return np.stack([rows * 12, columns * 8, 128 + 0 * rows], axis=2).astype(np.uint8)


def sound(folder: Path) -> None:
    """Two training pictures and one for validation in VOC layout, with the artifacts that later stages read."""
    data = folder / "data"
    for name, kind in (("a", "cat"), ("b", "dog"), ("v", "cat")):
        add(data, name, kind)
    lists(data, train="a\nb\n", val="v\n")
    table = ["image_id,split,image,mask,width,height,cat,dog"]
    for name, split, cat in (("a", "train", 1), ("b", "train", 0), ("v", "val", 1)):
        table.append(f"{name},{split},JPEGImages/{name}.jpg,SegmentationClass/{name}.png,24,16,{cat},{1 - cat}")
    (folder / "m.csv").write_text("\n".join([*table, ""]))
    (folder / "labels.csv").write_text("image,labels\na.jpg,cat\nb.jpg,dog\nv.jpg,cat\n")
    coco_list(folder, "train", a=1, b=2)
    coco_list(folder, "val", v=1)
    with create(folder / "labels.h5", labels={}, cams={}, classes=CLASSES) as writer:
        for name in ("a", "b"):
            pseudolabels.put(writer, name, np.zeros(SIZE, np.uint8), np.zeros(SIZE))
    write_index_png(folder / "predictions" / "v.png", np.zeros(SIZE, np.uint8))


def add(data: Path, name: str, kind: str) -> None:
    for below in ("JPEGImages", "Annotations"):
        (data / below).mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture()).save(data / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
    xml = f"<annotation><object><name>{kind}</name></object></annotation>"
    (data / "Annotations" / f"{name}.xml").write_text(xml)
    mask = np.zeros(SIZE, np.uint8)
    mask[4:9, 5:12] = CLASSES.index(kind) + 1
    write_index_png(data / "SegmentationClass" / f"{name}.png", mask)


def coco_list(folder: Path, name: str, **shown: int) -> None:
    """A list in COCO layout of pictures that are there in VOC's, each with one box of a category."""
    (folder / "data" / name).mkdir(parents=True)
    for picture_name in shown:
        shutil.copy(folder / "data" / "JPEGImages" / f"{picture_name}.jpg", folder / "data" / name)
    box = [[5, 4, 12, 4, 12, 9, 5, 9]]
    content = {
        "images": [
            {"id": k, "file_name": f"{file}.jpg", "height": SIZE[0], "width": SIZE[1]} for k, file in enumerate(shown)
        ],
        "annotations": [
            {"id": k, "image_id": k, "category_id": kind, "segmentation": box} for k, kind in enumerate(shown.values())
        ],
        "categories": [{"id": k, "name": kind} for k, kind in enumerate(CLASSES, 1)],
    }
    path = folder / "data" / "annotations" / f"instances_{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def lists(data: Path, **content: str) -> None:
    folder = data / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (folder / f"{name}.txt").write_bytes(text.encode())


COMMANDS: dict[str, Command] = {
    "manifest": lambda at: ["manifest", *put(at, "root", "data"), "--settings", SETTINGS, *out(at, "new.csv")],
    "folder": lambda at: [
        "manifest", *put(at, "root", "data/JPEGImages"), "--settings",
        f"{{format: folder, labels: {at / 'labels.csv'}}}", *out(at, "new.csv"),
    ],
    "coco": lambda at: ["manifest", *put(at, "root", "data"), "--settings", "{format: coco}", *out(at, "new.csv")],
    "settings": lambda at: [
        "manifest", *put(at, "root", "data"), "--settings", settings_of(at), *out(at, "new.csv"),
    ],
    "evaluate": lambda at: [
        "evaluate", *reads(at), *put(at, "predictions", "predictions"), "--threads", "1", *out(at, "scores"),
    ],
    "evaluate-labels": lambda at: [
        "evaluate-labels", *reads(at), *put(at, "labels", "labels.h5"), "--threads", "1", *out(at, "scores"),
    ],
    "import-labels": lambda at: ["import-labels", str(at / "foreign"), *reads(at), *out(at, "imported.h5")],
    "train-classifier": lambda at: [
        "train-classifier", *reads(at), "--device", "cpu", *out(at, "classifier"), "--settings",
        f"{{encoder: {{name: resnet10t, options: {{channels: [8, 8, 8, 8]}}, weights: {next(at.glob('w.*'))}}}, "
        "schedule: {steps: 1, batch_size: 2}, crop: {size: 32}}",
    ],
    "tables": lambda at: ["tables", "--runs", f"one:0:crf={at / 'run'}", *out(at, "tables")],
}  # fmt: skip


def put(at: Path, option: str, name: str) -> list[str]:
    return [f"--{option}", str(at / name)]


def out(at: Path, name: str) -> list[str]:
    return ["--output", str(at / "out" / name)]


def reads(at: Path) -> list[str]:
    return [*put(at, "manifest", "m.csv"), *put(at, "root", "data")]


def settings_of(at: Path) -> str:
    return str(at / "s.yaml")


# --- generators ---------------------------------------------------------------------------------------------


def jpeg(content: bytes | Callable[[bytes], bytes]) -> Harm:
    """Put bytes in the place of a training picture."""

    def harm(at: Path) -> None:
        path = at / "data" / "JPEGImages" / "a.jpg"
        path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))

    return harm


def as_picture(make: Callable[[], Image.Image], form: str) -> Harm:
    """Put a picture of another kind in the place of a training picture, with a mask of its size."""

    def harm(at: Path) -> None:
        image = make()
        image.save(at / "data" / "JPEGImages" / "a.jpg", format=form)
        if image.size != SIZE[::-1]:
            write_index_png(at / "data" / "SegmentationClass" / "a.png", np.ones(image.size[::-1], np.uint8))

    return harm


def as_mask(make: Callable[[], Image.Image], form: str = "PNG") -> Harm:
    return lambda at: make().save(at / "data" / "SegmentationClass" / "a.png", format=form)


def all_masks(values: dict[int, int], colours: dict[int, int] | None = None) -> Harm:
    """Other values in all masks; `colours` goes on to show, by value, the colour of another one."""

    def harm(at: Path) -> None:
        table, palette = np.arange(256, dtype=np.uint8), voc_palette()
        table[list(values)] = list(values.values())
        if colours:
            palette[list(colours)] = voc_palette()[list(colours.values())]
        for path in (at / "data" / "SegmentationClass").iterdir():
            image = Image.fromarray(table[read_index_png(path)])
            image.putpalette(palette.tobytes())
            image.save(path)

    return harm


def pictures_as_masks(at: Path) -> None:
    """Grey ones, as files that are called masks."""
    for name in "abv":
        with Image.open(at / "data" / "JPEGImages" / f"{name}.jpg") as image:
            image.convert("L").save(at / "data" / "SegmentationClass" / f"{name}.png", format="JPEG")


def png_header(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that claims to be as large as it likes; its pixels would be zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def text(name: str, content: str | bytes) -> Harm:
    """A file below the folder with this content."""

    def harm(at: Path) -> None:
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return harm


def xml(content: str | bytes) -> Harm:
    return text("data/Annotations/a.xml", content)


def train_list(content: str | bytes) -> Harm:
    return text("data/ImageSets/Segmentation/train.txt", content)


def cells(*shown: str) -> Harm:
    """Other cells in the column `labels` of the pictures a, b and v."""

    def harm(at: Path) -> None:
        with (at / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["image", "labels"], *zip(["a.jpg", "b.jpg", "v.jpg"], shown, strict=True)])

    return harm


def coco(change: Callable[[dict[str, Any]], Any], *names: str) -> Harm:
    """A change of the lists in COCO layout, of training alone unless others are named."""

    def harm(at: Path) -> None:
        for name in names or ("train",):
            path = at / "data" / "annotations" / f"instances_{name}.json"
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))

    return harm


def renamed(name: str, other: str) -> Harm:
    return lambda at: (at / name).rename(at / other) and None


def yaml(content: str | bytes) -> Harm:
    return text("s.yaml", content)


def cell(column: str, value: str) -> Harm:
    """Another value in the first row of the manifest."""

    def harm(at: Path) -> None:
        lines = [line.split(",") for line in (at / "m.csv").read_text().splitlines()]
        lines[1][lines[0].index(column)] = value
        (at / "m.csv").write_text("\n".join([*(",".join(line) for line in lines), ""]))

    return harm


def table(change: Callable[[bytes], bytes]) -> Harm:
    return lambda at: (at / "m.csv").write_bytes(change((at / "m.csv").read_bytes())) and None


def loop(name: str) -> Harm:
    """A symbolic link that leads to itself."""

    def harm(at: Path) -> None:
        (at / name).unlink()
        (at / name).symlink_to(at / name)

    return harm


def link(name: str, target: str) -> Harm:
    """A symbolic link in the place of a file."""

    def harm(at: Path) -> None:
        (at / name).unlink()
        (at / name).symlink_to(target)

    return harm


def folder(name: str) -> Harm:
    def harm(at: Path) -> None:
        (at / name).unlink()
        (at / name).mkdir()

    return harm


def named(name: str) -> Harm:
    def harm(at: Path) -> None:
        add(at / "data", name, "cat")
        lists(at / "data", train=f"{name}\nb\n")

    return harm


def eps(at: Path) -> None:
    code = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n({at}/trap) (w) file closefile\nshowpage\n"
    (at / "data" / "JPEGImages" / "a.jpg").write_text(code)


def tiny(at: Path) -> None:
    Image.new("RGB", (1, 1), (9, 8, 7)).save(at / "data" / "JPEGImages" / "a.jpg", quality=100)
    write_index_png(at / "data" / "SegmentationClass" / "a.png", np.ones((1, 1), np.uint8))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def trapped(name: str, zipped: bool) -> Harm:
    def harm(at: Path) -> None:
        content = {"weight": torch.ones(2), "more": Trap(at / "trap")}
        if zipped:
            torch.save(content, at / name)
        else:
            (at / name).write_bytes(pickle.dumps(content, protocol=2))

    return harm


def weights(name: str, value: float) -> Harm:
    def harm(at: Path) -> None:
        state = {"conv1.weight": torch.tensor([1.0, value])}
        save_file(state, at / name) if name.endswith("safetensors") else torch.save(state, at / name)

    return harm


def tensor(make: Callable[[], object]) -> Harm:
    """A .pth whose one weight is this."""
    return lambda at: torch.save({"conv1.weight": make()}, at / "w.pth")


def labels(change: Callable[[h5py.File], None]) -> Harm:
    def harm(at: Path) -> None:
        with h5py.File(at / "labels.h5", "a") as file:
            change(file)

    return harm


def replaced(file: h5py.File, name: str, array: np.ndarray) -> None:
    del file[name]
    file.create_dataset(name, data=array, chunks=array.shape, fletcher32=True)


def other_size(file: h5py.File, name: str) -> None:
    replaced(file, f"label/{name}", np.zeros((3, 3), np.uint8))
    replaced(file, f"confidence/{name}", np.zeros((3, 3), np.uint8))
    file[f"confidence/{name}"].attrs["steps"] = np.zeros((0, 4), np.uint8)


def prediction(array: np.ndarray) -> Harm:
    return lambda at: write_index_png(at / "predictions" / "v.png", array)


def foreign(name: str, content: bytes) -> Harm:
    return text(f"foreign/{name}", content)
