"""COCO's instances: outlines to masks by hand, the manifest, what is refused, and the road on a small set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from coco_sets import CORNER, LEFT, LISTS, SIZE, TOP, build, instance, write_set
from conftest import ROOT, Checkout
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle_masks

from beco.artifacts.files import read_json
from beco.config import Coco, validate_config
from beco.datasets import coco, instances, manifest, outlines
from beco.datasets.palette import read_index_png
from beco.datasets.shapes import CLASSES
from beco.datasets.shapes_drawing import draw_picture
from beco.errors import UserError
from beco.evaluation.scores.evaluate import evaluate_predictions
from beco.evaluation.tables.tables import protocol_text

NAMES = ["traffic light", "dog", "cat"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training pictures and two for validation, one of each without an instance."""
    folder = tmp_path / "coco"
    write_set(folder, "train2014", [instance(3, LEFT), instance(17, TOP), instance(9, CORNER, crowd=1)])
    write_set(folder, "val2014", [instance(9, LEFT, 4)], (3, 4))
    return folder


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        build(root)
    assert not (root.parent / "manifest.csv").exists()
    return str(caught.value)


def edited(root: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """What the set is refused with after a change of the training list."""
    path = root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    message = refusal(root)
    assert "\n" not in message and "instances_train2014.json" in message
    return message


def drawn(root: Path, annotations: list[dict[str, Any]], **settings: Any) -> list[list[int]]:
    """The label map of picture 1 with these annotations."""
    write_set(root, "train2014", annotations)
    return coco.label_map(instances.read(root, "train2014"), 1, Coco(**settings)).tolist()


# --- outlines to masks --------------------------------------------------------------------------------------


def test_a_polygon_and_an_rle_by_hand(root: Path) -> None:
    # corners of the polygon lie between pixels: (1, 1)-(3, 3) holds columns 1-2 and rows 1-2
    square = [[1, 1, 3, 1, 3, 3, 1, 3]]
    expected = [[0, 0, 0, 0, 0, 0], [0, 3, 3, 0, 0, 0], [0, 3, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert drawn(root, [instance(17, square)]) == expected
    # runs go down the columns: 5 pixels off, 2 on, 2 off, 2 on, 13 off
    runs = {"size": list(SIZE), "counts": [5, 2, 2, 2, 13]}
    assert drawn(root, [instance(17, runs)]) == expected
    packed = rle_masks.encode(np.asfortranarray(np.array(expected, np.uint8) // 3))
    assert drawn(root, [instance(17, {"size": list(SIZE), "counts": packed["counts"].decode()})]) == expected
    two = [[1, 1, 2, 1, 2, 3, 1, 3], [2, 1, 3, 1, 3, 3, 2, 3]]
    assert drawn(root, [instance(17, two)]) == expected  # the parts of one instance


def test_overlap_in_the_order_of_the_file_or_of_size(root: Path) -> None:
    pair = [instance(17, CORNER), instance(3, LEFT), instance(9, TOP)]  # 1, 12 and 12 pixels
    by_file = [[2] * 6, [2] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert drawn(root, pair) == by_file
    by_area = [[3, 2, 2, 2, 2, 2], *by_file[1:]]  # the corner comes up; of equal ones the later is on top
    assert drawn(root, pair, overlap="area") == by_area


def test_crowds_are_background_or_left_out_below_every_instance(root: Path) -> None:
    crowd = [instance(17, CORNER), instance(9, TOP, crowd=1)]
    background = [[3, 0, 0, 0, 0, 0], *[[0] * 6] * 3]
    assert drawn(root, crowd) == background
    ignored = [[3, *[255] * 5], [255] * 6, *[[0] * 6] * 2]
    assert drawn(root, crowd, crowd="ignore") == ignored
    assert drawn(root, crowd[::-1], crowd="ignore", overlap="area") == ignored


def test_outlines_without_area_draw_nothing(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    line, point = [[0, 0, 6, 4]], [[1, 1]]  # four numbers would be a box to pycocotools
    with caplog.at_level("WARNING", "beco"):
        flat = [instance(17, line), instance(17, point), instance(3, [])]
        assert drawn(root, [*flat, instance(9, LEFT, image=2)]) == [[0] * 6] * 4
    assert "3 instances enclose no area" in caplog.text
    assert build(root).labels()[0].tolist() == [1, 0, 1]


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=40))
def test_run_lengths_agree_with_pycocotools(rows: list[list[bool]]) -> None:
    mask = np.asfortranarray(rows, dtype=np.uint8)
    packed = rle_masks.encode(mask)
    runs = outlines.run_lengths(packed["counts"].decode())
    assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs), mask.ravel(order="F"))


# --- manifest -----------------------------------------------------------------------------------------------


def test_the_manifest(root: Path) -> None:
    built = build(root)
    assert built.classes == NAMES  # by category id, with the space
    assert (root.parent / "manifest.csv").read_text().splitlines()[0].endswith(",traffic light,dog,cat")
    assert built.split("val").ids == ["COCO_val2014_000000000003", "COCO_val2014_000000000004"]
    assert built.labels().tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert built.size(built.ids[0]) == SIZE and built.image(built.ids[2]).shape == (*SIZE, 3)
    assert build(root, Coco(crowd_labels=True)).labels()[0].tolist() == [1, 1, 1]
    assert build(root, classes=["cat", "dog", "traffic light"]).labels()[0].tolist() == [1, 0, 1]


def test_the_masks_of_the_manifest_are_those_that_are_rendered(root: Path) -> None:
    built = build(root)
    with pytest.raises(UserError, match="no such mask"):
        built.mask(built.ids[0])
    coco.render(root, *LISTS, None, Coco(), root.parent / "masks", threads=2)
    assert built.mask(built.ids[0]).tolist() == [[3] * 6, [3] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert not built.mask(built.ids[1]).any() and built.mask(built.ids[3])[:, :3].tolist() == [[2] * 3] * 4
    assert sorted(path.name for path in (root.parent / "masks").iterdir()) == [
        *(f"{name}.png" for name in built.ids),
        "rule.json",
    ]


def test_a_killed_render_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, drawn = root.parent / "masks", []

    def until_the_third(path: Path, label: np.ndarray) -> None:
        drawn.append(path.stem)
        if len(drawn) == 3:
            path.with_name(f".{path.stem}.77.tmp.png").write_bytes(b"half")
        if len(drawn) >= 3:  # of a killed process no thread goes on either
            raise KeyboardInterrupt
        write(path, label)

    write = coco.write_index_png
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(coco, "write_index_png", until_the_third)
        coco.render(root, *LISTS, None, Coco(), masks)
    before = {path.name: path.stat().st_mtime_ns for path in masks.glob("*.png")}
    assert len(before) == 3  # two masks, and half of one under its temporary name
    coco.render(root, *LISTS, None, Coco(), masks)
    after = {path.name: path.stat().st_mtime_ns for path in masks.glob("*.png")}
    assert len(after) == 4 and sum(before.get(name) == time for name, time in after.items()) == 2


def test_another_rule_replaces_the_masks_and_foreign_files_stay(root: Path) -> None:
    masks = root.parent / "masks"
    coco.render(root, *LISTS, None, Coco(), masks)
    first = masks / "COCO_train2014_000000000001.png"
    assert read_index_png(first)[0, 0] == 3
    write_set(root, "train2014", [instance(9, TOP)])
    coco.render(root, *LISTS, None, Coco(), masks)
    assert read_index_png(first)[0, 0] == 2
    (masks / "rule.json").unlink()
    with pytest.raises(UserError, match="PNGs that were not drawn here"):
        coco.render(root, *LISTS, None, Coco(), masks)
    assert first.is_file()


def test_the_rule_stands_in_the_protocol(root: Path) -> None:
    built, masks = build(root), root.parent / "masks"
    coco.render(root, *LISTS, None, Coco(crowd="ignore", overlap="area"), masks)
    metrics = evaluate_predictions(built.split("val"), masks, root.parent / "scores", {"flip": False})
    assert metrics["miou"] == 1 and metrics["pictures"] == 2
    assert read_json(root.parent / "scores" / "metrics.json")["protocol"]["masks"] == {
        "overlap": "area", "crowd": "ignore"}  # fmt: skip
    words = protocol_text(metrics["protocol"])
    assert words == "no flip, masks with the smaller instance on top and crowds left out"


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([[0, 0, 9, 0, 9, 4]], "from (0, 0) to (9, 4), outside of the 6×4 picture"),
        ([[-5, 0, 3, 0, 3, 4]], "outside of the 6×4 picture"),
        ([[0, 0, 3, 0, 3]], "not pairs of numbers"),
        ([[0, 0, "3", 0, 3, 4]], "not pairs of numbers"),
        ([7], "not pairs of numbers"),
        ([[0, 0, float("nan"), 0, 3, 4]], "not pairs of numbers"),
        ({"size": [6, 4], "counts": [24]}, "an RLE of size [6, 4] in a picture of [4, 6]"),
        ({"size": [4, 6], "counts": [20]}, "do not fill the 24 pixels"),  # pycocotools would read past its end
        ({"size": [4, 6], "counts": [-1, 25]}, "do not fill the 24 pixels"),
        ({"size": [4, 6], "counts": "5"}, "do not fill the 24 pixels"),
        ({"size": [4, 6], "counts": "abc"}, "do not fill"),
        ({"size": [4, 6], "counts": "\u00e4"}, "do not fill"),
        ({"size": [4, 6]}, "do not fill"),
    ],
)
def test_outlines_that_cannot_be_right(root: Path, segmentation: Any, words: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = segmentation

    message = edited(root, change)
    assert words in message and "annotation 100 of picture 1: " in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["annotations"][1].update(category_id=4), "annotation 101 is of category 4, which the file does"),
        (lambda c: c["annotations"][1].update(image_id=8), "annotation 101 belongs to picture 8, which the file does"),
        (lambda c: c["images"].append(c["images"][0]), "lists picture 1 (COCO_train2014_000000000001.jpg) twice"),
        (lambda c: c["images"][0].update(width=0), "picture 1 has no area"),
        (lambda c: c.pop("annotations"), "has no list `annotations`"),
        (lambda c: c.update(images=[]), "has no list `images`"),
        (lambda c: c["images"][1].pop("height"), "images[1] lacks a valid `height`"),
        (lambda c: c["annotations"].append(3), "annotations[3] lacks a valid `image_id`"),
        (lambda c: c["categories"].append({"id": 3, "name": "cow"}), "defines a category id twice"),
        (lambda c: c["annotations"][0].update(id=[1]), "annotations[0] lacks a valid `id`"),
        (lambda c: c["annotations"][0].update(segmentation=None), "annotations[0] lacks a valid `segmentation`"),
    ],
)
def test_lists_that_contradict_themselves(root: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    assert words in edited(root, change)


def test_several_problems_are_one_refusal(root: Path) -> None:
    write_set(root, "train2014", [instance(4, LEFT), instance(3, LEFT, 8), instance(3, [[50, 50, 60, 60, 50, 60]])])
    assert "3 problems" in refusal(root).splitlines()[0]


def test_damaged_and_missing_files(root: Path) -> None:
    path = root / "annotations" / "instances_val2014.json"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert "instances_val2014.json: not readable as JSON" in refusal(root)
    path.write_text("[]")
    assert "has no list `images`" in refusal(root)
    path.unlink()
    assert "instances_val2014.json: no such file; the folder has train2014" in refusal(root)
    path.write_text(whole)
    (root / "val2014" / "COCO_val2014_000000000004.jpg").unlink()
    assert "COCO_val2014_000000000004.jpg: no such picture" in refusal(root)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "val2014" / "COCO_val2014_000000000004.jpg")
    assert "000000000004.jpg: is 5×5, its annotation 6×4 (width×height)" in refusal(root)
    with pytest.raises(UserError, match=r"set dataset\.root to the folder that holds annotations"):
        instances.read(root / "nowhere", "val2014")


def test_lists_that_contradict_each_other(root: Path) -> None:
    path = root / "annotations" / "instances_val2014.json"
    path.write_text(path.read_text().replace('"dog"', '"wolf"'))
    assert "instances_val2014.json: its categories are not the classes asked for (dog, wolf in one alone)" in refusal(
        root
    )
    (root / "annotations" / "instances_val2014.json").write_bytes(
        (root / "annotations" / "instances_train2014.json").read_bytes()
    )
    assert "lists COCO_train2014_000000000001, which is in train2014 too" in refusal(root)


def test_a_configuration_without_a_root() -> None:
    values = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text())
    with pytest.raises(UserError, match=r"dataset\.root: missing"):
        validate_config(values | {"dataset": {"format": "coco"}})


# --- the road -----------------------------------------------------------------------------------------------


def draw_set(root: Path, name: str, count: int, seed: int) -> None:
    """Pictures of the embedded dataset as COCO has them: overlapping instances, RLE and polygons, and a crowd."""
    images, annotations = [], []
    (root / name).mkdir(parents=True)
    for number in range(1, count + 1):
        picture = draw_picture(np.random.default_rng([seed, number]), 64)
        file = f"COCO_{name}_{number:012d}.jpg"
        Image.fromarray(picture.image).save(root / name / file, quality=95)
        images.append({"id": number, "file_name": file, "height": 64, "width": 64})
        for owner, label in enumerate(picture.objects):
            rows, columns = np.nonzero(picture.owner == owner)
            box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            if owner % 2:  # its bounding box, which overlaps the others
                segmentation: Any = [[box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]]
            else:
                packed = rle_masks.encode(np.asfortranarray(picture.owner == owner, dtype=np.uint8))
                segmentation = {"size": [64, 64], "counts": packed["counts"].decode()}
            annotations.append({"id": len(annotations), **instance(label, segmentation, number)})
        if number == 1:
            crowd = {"size": [64, 64], "counts": [0, 128, 64 * 64 - 128]}
            annotations.append({"id": len(annotations), **instance(1, crowd, number, crowd=1)})
    categories = [{"id": k, "name": f"a {kind}"} for k, kind in enumerate(CLASSES, 1)]
    path = root / "annotations" / f"instances_{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


@pytest.mark.road
def test_the_whole_road(tmp_path: Path) -> None:
    checkout, root = Checkout(tmp_path / "checkout"), tmp_path / "coco"
    draw_set(root, "train2014", 16, 0)
    draw_set(root, "val2014", 6, 1)
    settings = yaml.safe_load((checkout.folder / "tests" / "tiny.yaml").read_text())
    del settings["labels"]["crf"]
    published = "beco/coco14/val/deeplabv3plus-resnet101d"
    settings["experiments"] = {
        "single": {"recipe": "single", "labels": "cam"},
        "beco": {"recipe": "beco", "labels": "cam", "published": published},
    }
    settings["comparisons"] = {"both": {"experiments": ["single", "beco"]}}
    settings["dataset"] = {"name": "coco", "format": "coco", "root": str(root), "train": LISTS[0], "val": LISTS[1]}
    (checkout.folder / "tests" / "tiny.yaml").write_text(yaml.safe_dump(settings))
    done = checkout.snakemake("--config", "dataset={coco: {crowd: ignore}}")
    assert done.returncode == 0, done.stdout + done.stderr
    base = checkout.folder / "results" / "coco"
    pictures = manifest.read(base / "manifest.csv", root)
    assert pictures.classes == [f"a {name}" for name in CLASSES] and len(pictures) == 22
    assert (pictures.mask("COCO_train2014_000000000001") == 255).any()
    for folder in ("quality", "beco/seed0"):
        metrics = read_json(base / "cam" / folder / "metrics.json")
        assert metrics["miou"] > 0 and metrics["protocol"]["masks"] == {"overlap": "file", "crowd": "ignore"}
    table = (base / "comparisons" / "both.md").read_text()
    assert "45.1" in table and "masks with the later instance on top and crowds left out" in table
    assert (base / "report.html").stat().st_size > 50_000
    # another rule for the masks draws them again and measures, but leaves the manifest and all that is trained on it
    planned = checkout.planned("--config", "dataset={coco: {crowd: background}}")
    measured = {"render_masks": 1, "evaluate_labels": 1, "evaluate": 2, "tabulate": 1, "compare": 1, "report": 1}
    assert planned == measured
