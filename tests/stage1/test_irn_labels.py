"""IRN on the way from CAMs to labels: the commands in a row, what they refuse, and what the workflow plans."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Checkout
from safetensors.torch import load_file, save_file
from torch import Tensor

from beco.artifacts.files import file_hash
from beco.artifacts.pseudolabels import PseudoLabels
from beco.artifacts.store import Store, create
from beco.cli import stage1 as cli
from beco.config import Crop, Encoder, Irn, Labels, Shapes
from beco.datasets import manifest as manifests
from beco.datasets import shapes, voc
from beco.errors import UserError
from beco.networks import encoders
from beco.stage1 import localisers
from beco.stage1.maps import CELLS
from beco.stage1.refine import irn, irn_train, irn_walk, labels
from beco.training.trainer import Compute

SMALL = Encoder(name="resnet10t", options={"channels": [8, 8, 16, 16]})


# --- from CAMs to labels ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight drawn pictures, one without a class, a classifier of random weights, and random CAMs of two sizes."""
    folder = tmp_path_factory.mktemp("irn")
    shapes.draw(folder / "set", Shapes(train=8, val=1))
    built = voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv")
    table = built.table.copy()
    table.loc["train_00003", shapes.CLASSES] = 0
    manifests.write(table.reset_index(), folder / "manifest.csv")
    torch.manual_seed(2)
    metadata = {"encoder": SMALL.model_dump_json(), "output_stride": "16", "classes": json.dumps(built.classes)}
    metadata["supervision"] = '["image labels", "true objects"]'
    encoders.save_network(
        localisers.make("cam", SMALL, 16, len(built.classes)), folder / "classifier.safetensors", metadata
    )
    pictures, generator = read(folder), np.random.default_rng(3)
    with create(folder / "cams.h5", classes=built.classes, supervision=["image labels", "saliency"], **CELLS) as writer:
        for image_id in pictures.ids:
            present = pictures.present(image_id)
            plane = generator.random((len(present), 16, 16)).astype(np.float16)
            writer.put("cam", image_id, plane, classes=present)
    return folder


def read(folder: Path) -> manifests.Manifest:
    return manifests.read(folder / "manifest.csv", folder / "set").split("train")


SETTINGS = Irn(
    crop=Crop(size=64, area=(0.5, 1.0)),
    schedule={"steps": 4, "batch_size": 4},
    optimiser={"name": "adamw", "lr": 0.005},
    radius=4,
    squarings=3,
)


@pytest.fixture(scope="module")
def walked(folder: Path) -> Path:
    """All commands in a row, as a person would give them."""

    common = {"manifest": folder / "manifest.csv", "root": folder / "set"}
    crf, recipe = Labels(crf={"iterations": 2}).model_dump_json(), SETTINGS.model_dump_json()
    cli.labels(**common, cams=folder / "cams.h5", settings=crf, output=folder / "pairs.h5")
    given = {"classifier": folder / "classifier.safetensors", "labels": folder / "pairs.h5"}
    cli.train_irn(**common, **given, settings=recipe, device="cpu", output=folder / "irn")
    given = {"cams": folder / "cams.h5", "irn": folder / "irn" / "irn.safetensors"}
    cli.refine(**common, **given, settings=recipe, device="cpu", output=folder / "scores.h5")
    made = "{refine: irn, background: 0.4}"
    cli.labels(**common, cams=folder / "scores.h5", settings=made, output=folder / "labels.h5")
    return folder


def test_the_commands_make_scores_and_labels(walked: Path) -> None:
    scores, made, pictures = Store(walked / "scores.h5"), Store(walked / "labels.h5"), read(walked)
    for image_id in pictures.ids:
        planes, present = scores.get("cam", image_id), pictures.present(image_id)
        assert planes.shape == (len(present), 16, 16) and planes.dtype == np.float16
        assert scores.attribute("cam", image_id, "classes").tolist() == present
        assert not present or float(planes.max()) == 1
        label, confidence = made.get("label", image_id), made.get("confidence", image_id)
        assert label.shape == confidence.shape == pictures.size(image_id)
        assert set(label.flat) <= {0, *present}  # never 255
        assert not present or label.any()
    assert made.attributes["labels"] == {"refine": "irn", "background": 0.4}
    together = ["image labels", "saliency", "true objects"]  # of the maps, and of the network that walks
    assert made.attributes["supervision"] == scores.attributes["supervision"] == together
    assert made.attributes["cams"] == file_hash(walked / "scores.h5")
    assert scores.attributes["walk"] == {"walk_radius": 5, "beta": 10, "squarings": 3, "resize": None}
    summary = json.loads((walked / "irn" / "irn.json").read_text())
    assert summary["steps"] == 4 and summary["loss"] > 0 and "walk_radius" not in summary["settings"]


def test_the_displacements_of_the_training_pictures_have_mean_zero(walked: Path) -> None:
    network, classes = irn.load(walked / "irn" / "irn.safetensors")
    pictures = read(walked)
    images = torch.stack([torch.from_numpy(pictures.image(name)).permute(2, 0, 1) for name in pictures.ids]) / 255
    assert classes == shapes.CLASSES
    assert network.mean_displacement.any()
    assert network.infer(images)[1].mean((0, 2, 3)).abs().max() < 1e-4


def test_trained_again_it_is_the_same(walked: Path, tmp_path: Path) -> None:
    given = (read(walked), walked / "classifier.safetensors", walked / "pairs.h5", SETTINGS, Compute("cpu"))
    irn_train.train(*given, tmp_path, False)
    (one, about), (other, _) = (encoders.load_network(path / "irn.safetensors") for path in (walked / "irn", tmp_path))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert json.loads(about["classes"]) == shapes.CLASSES
    stamp = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    irn_train.train(*given, tmp_path, False)  # finished: nothing is trained twice
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == stamp


def test_the_label_by_hand(tmp_path: Path, folder: Path) -> None:
    """Scores are divided by the maximum over both classes; background is a constant plane, confidence the margin."""
    pictures = read(folder)
    image_id = next(name for name in pictures.ids if len(pictures.present(name)) == 2)
    first, second = pictures.present(image_id)
    one = manifests.Manifest(pictures.root, pictures.table.loc[[image_id]], pictures.classes)
    planes = np.full((2, 16, 16), [[[0.5]], [[0.375]]], np.float16)
    with create(tmp_path / "scores.h5", walk={}, classes=one.classes, **CELLS) as writer:
        writer.put("cam", image_id, planes, classes=[first, second])
    labels.make(one, tmp_path / "scores.h5", Labels(refine="irn", background=0.25), "1-of-1", tmp_path / "labels.h5")
    made = PseudoLabels(tmp_path / "labels.h5").picture(image_id)
    assert (made.label == first).all()
    assert (made.confidence() == 0.25).all()  # 1 − 0.75


def test_files_that_are_for_something_else(walked: Path, tmp_path: Path) -> None:
    pictures, output = read(walked), tmp_path / "out.h5"
    with pytest.raises(UserError, match=r"cams\.h5: holds the CAMs of beco cams; give the scores of beco refine"):
        labels.make(pictures, walked / "cams.h5", Labels(refine="irn"), "1-of-1", output)
    with pytest.raises(UserError, match=r"scores\.h5: holds the scores of beco refine .*; give the CAMs of beco cams"):
        labels.make(pictures, walked / "scores.h5", Labels(refine="crf"), "1-of-1", output)
    with pytest.raises(UserError, match=r"give the irn\.safetensors of beco train-irn"):
        irn.load(walked / "classifier.safetensors")
    other = manifests.Manifest(pictures.root, pictures.table, pictures.classes[::-1])
    network = walked / "irn" / "irn.safetensors"
    with pytest.raises(UserError, match="trained for other classes"):
        irn_walk.infer(other, walked / "cams.h5", network, Irn(), Compute("cpu"), "1-of-1", output)
    with pytest.raises(UserError, match=r"pairs\.h5: its classes"):
        classifier = walked / "classifier.safetensors"
        irn_train.train(other, classifier, walked / "pairs.h5", SETTINGS, Compute("cpu"), tmp_path, False)
    assert not output.exists()


# --- what the backbone starts from --------------------------------------------------------------------------


def classifier_of(folder: Path, name: str, seed: int, **changes: str) -> Path:
    """A classifier of random weights whose encoder starts from a file of other random weights, undilated."""
    torch.manual_seed(11)
    weights = folder / "encoder.safetensors"
    if not weights.exists():
        save_file(encoders.create_backbone(SMALL, 16).state_dict(), weights)
    torch.manual_seed(seed)
    encoder = SMALL.model_copy(update={"weights": str(weights)})
    metadata = {"encoder": encoder.model_dump_json(), "output_stride": "16", "classes": json.dumps(shapes.CLASSES)}
    path = folder / f"{name}.safetensors"
    network = localisers.make("cam", SMALL, 16, len(shapes.CLASSES), dilate=False)
    encoders.save_network(network, path, metadata | {"dilate": "false"} | changes)
    return path


def train_irn(folder: Path, classifier: Path, output: Path, start: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    settings = SETTINGS.model_copy(update={"start": start})
    irn_train.train(read(folder), classifier, folder / "pairs.h5", settings, Compute("cpu"), output, False)
    assert irn.load(output / "irn.safetensors")[0].backbone.layer4[0].conv1.dilation == (1, 1)  # as the classifier
    return encoders.load_network(output / "irn.safetensors")


def test_the_backbone_starts_from_the_classifier_or_its_encoder(walked: Path, tmp_path: Path) -> None:
    one, other = (classifier_of(tmp_path, f"classifier{seed}", seed) for seed in (1, 2))
    weights = tmp_path / "encoder.safetensors"
    for start, from_one, from_other in (("classifier", one, other), ("encoder", weights, weights)):
        (first, about), (second, _) = (
            train_irn(walked, path, tmp_path / f"{start} {path.stem}", start) for path in (one, other)
        )
        given = load_file(from_one)
        for key, value in first.items():
            if key.startswith("backbone."):
                assert torch.equal(value, given[key if start == "classifier" else key.removeprefix("backbone.")]), key
        assert about["start"] == start and about["weights"] == file_hash(from_one)
        assert all(torch.equal(value, second[key]) for key, value in first.items()) == (from_one == from_other)
        summary = json.loads((tmp_path / f"{start} {one.stem}" / "irn.json").read_text())
        assert summary["settings"]["start"] == start and summary["weights"] == about["weights"]


def test_a_start_that_would_be_random(walked: Path, tmp_path: Path) -> None:
    classifier = classifier_of(tmp_path, "classifier", 1, encoder=SMALL.model_dump_json())
    with pytest.raises(UserError, match=r"start: encoder, but .*classifier\.safetensors starts from random weights"):
        irn.starting_from(classifier, "encoder")


def test_classifiers_from_before_are_dilated(walked: Path) -> None:
    network, metadata = irn.starting_from(walked / "classifier.safetensors", "classifier")
    assert metadata["dilate"] == "true" and network.backbone.get_submodule("layer4.0.conv2").dilation == (2, 2)
    state, _ = encoders.load_network(walked / "classifier.safetensors")
    assert all(torch.equal(value, state[f"backbone.{key}"]) for key, value in network.backbone.state_dict().items())


# --- settings and the workflow ------------------------------------------------------------------------------


def test_each_stage_has_its_own_settings() -> None:
    plain, raised = Irn(), Irn(cam_power=1.3)
    assert raised.training_keys() | raised.walk_keys() == set(Irn.model_fields)
    assert not raised.training_keys() & raised.walk_keys() and "start" in plain.training_keys()
    assert raised.training_keys() == plain.training_keys() and raised.walk_keys() - plain.walk_keys() == {"cam_power"}
    assert Labels(refine="none").label_keys() == {"refine", "background"} == Labels(refine="irn").label_keys()
    crf = {"refine", "foreground_threshold", "background_threshold", "crf"}
    assert Labels(refine="crf").label_keys() == crf == Labels(refine="irn").for_pairs().label_keys()


@pytest.mark.road
def test_the_workflow_plans_irn(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    base = checkout.planned()
    small = "irn: {radius: 4, crop: {size: 64}}"

    def added(recipes: str) -> dict[str, int]:
        planned = checkout.planned("--config", f"labels={{{recipes}}}")
        return {rule: count - base.get(rule, 0) for rule, count in planned.items() if count != base.get(rule, 0)}

    one = {"make_labels": 2, "gather_labels": 1, "evaluate_labels": 1, "train_irn": 1, "random_walk": 2}
    one["gather_scores"] = 1
    crf = "crf: {iterations: 2, bilateral_sxy: 10}"  # as the recipe `crf`, whose labels serve for the pairs then
    assert added(f"shared: {{refine: irn, {crf}, {small}}}") == one
    assert added(f"own: {{refine: irn, {small}}}") == {**one, "make_pairs": 2, "gather_pairs": 1}
    # recipes that differ in the background alone share one IRN and its walk
    sweep = (
        f"low: {{refine: irn, {crf}, {small}, background: 0.2}}, high: {{refine: irn, {crf}, {small}, background: 0.4}}"
    )
    again = {"make_labels": 4, "gather_labels": 2, "evaluate_labels": 2}
    assert added(sweep) == {**one, **again}
    # an IRN that does not start from the classifier's weights is another one, and still waits for its CAMs
    started = checkout.planned(
        "--config",
        "encoders={tiny: {weights: config.yaml}}",  # any file that is there
        f"labels={{a: {{refine: irn, {crf}, {small}}}, b: {{refine: irn, {crf}, irn: {{start: encoder}}}}}}",
    )
    assert started["train_irn"] == 2 and started["train_classifier"] == 1 and "make_pairs" not in started
