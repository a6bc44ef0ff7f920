"""Around the recipes of stage two: starting weights, what is read for training, and prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from beco.artifacts import store
from beco.artifacts.pseudolabels import UNCERTAIN, PseudoLabels, put
from beco.config import Crop, Network, Prediction, Shapes, Training
from beco.datasets import manifest as manifests
from beco.datasets import shapes, voc
from beco.datasets.palette import read_index_png
from beco.errors import UserError
from beco.networks import encoders
from beco.networks.segmenter import Segmenter
from beco.stage2 import predict as prediction
from beco.stage2 import recipes
from beco.stage2 import train as training
from beco.stage2.recipes.base import Recipe
from beco.training import augment
from beco.training.augment import LabelledPictures
from beco.training.checkpoint import State
from beco.training.trainer import Compute

SMALL = {"encoder": {"name": "resnet10t", "options": {"channels": [8, 16, 24, 32]}}, "decoder_channels": 8}
NETWORK = Network.model_validate({**SMALL, "atrous_rates": [1, 2, 3]})


# --- networks -----------------------------------------------------------------------------------------------


def test_parameters_are_the_encoders_or_the_decoders() -> None:
    networks = [Segmenter(NETWORK, 3) for _ in range(2)]
    (encoder, first), (decoder, second) = recipes.make("beco", networks, Training(), 3).parameter_groups()
    assert (first, second) == (False, True)
    assert sorted(map(id, encoder + decoder)) == sorted(id(p) for n in networks for p in n.parameters())
    assert {id(p) for n in networks for p in n.backbone.parameters()} == set(map(id, encoder))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> manifests.Manifest:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=4, val=3))
    path = folder / "set" / "JPEGImages" / "val_00001.jpg"
    Image.open(path).resize((50, 61)).save(path)
    (folder / "set" / "SegmentationClass" / "val_00001.png").unlink()
    Image.new("L", (50, 61)).save(folder / "set" / "SegmentationClass" / "val_00001.png")
    return voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv")


def started(
    pictures: manifests.Manifest, recipe: str, seed: int, output: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> list[dict[str, Tensor]]:
    """The networks as `train` hands them to the training loop, which is left out."""
    kept: list[dict[str, Tensor]] = []

    def fit(task: Recipe, *_: Any) -> State:
        kept.extend({key: value.clone() for key, value in n.state_dict().items()} for n in task.networks)
        return State(step=1)

    monkeypatch.setattr(training, "fit", fit)
    network = Network.model_validate({**NETWORK.model_dump(), **more.pop("network", {})})
    settings = Training.model_validate({"schedule": {"steps": 1, "batch_size": 2, **more}})
    wanted = training.Wanted(recipe, network, settings, seed, prediction=Prediction(resize=48))
    training.train(pictures.split("train"), pictures.split("val"), wanted, Compute("cpu"), output, False)
    return kept


def test_the_two_networks_share_the_encoder_and_not_the_decoder(
    pictures: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "w.safetensors"
    encoders.save_network(encoders.create_backbone(NETWORK.encoder, 16), weights, {})
    given = {"encoder": {**NETWORK.encoder.model_dump(), "weights": str(weights)}}
    one, other = started(pictures, "beco", 0, tmp_path / "a", monkeypatch, network=given)
    built = Segmenter(NETWORK, 3)
    inside = {id(value) for value in built.backbone.state_dict(keep_vars=True).values()}
    backbone = {key for key, value in built.state_dict(keep_vars=True).items() if id(value) in inside}
    encoder = {key for key in one if key in backbone}
    assert encoder and all(torch.equal(one[key], other[key]) for key in encoder)
    drawn = [key for key in one if key not in encoder and one[key].ndim == 4]
    assert len(drawn) > 8 and not any(torch.equal(one[key], other[key]) for key in drawn)
    # the same seed starts from the same numbers, another one and no recipe's second network from others
    again = started(pictures, "beco", 0, tmp_path / "b", monkeypatch, network=given)
    assert all(torch.equal(a[key], b[key]) for a, b in zip((one, other), again, strict=True) for key in a)
    (single,) = started(pictures, "single", 0, tmp_path / "c", monkeypatch, network=given)
    assert all(torch.equal(single[key], one[key]) for key in one)
    (later,) = started(pictures, "single", 1, tmp_path / "d", monkeypatch, network=given)
    assert not torch.equal(later[drawn[0]], one[drawn[0]])
    # and what was saved is what is loaded
    trained = training.load(tmp_path / "a" / "networks.safetensors")
    assert trained.classes == pictures.classes and not any(member.training for member in trained.networks)
    assert trained.prediction == Prediction(resize=48)
    for member, state in zip(trained.networks, (one, other), strict=True):
        assert all(torch.equal(value, state[key]) for key, value in member.state_dict().items())
    assert json.loads((tmp_path / "a" / "training.json").read_text())["recipe"] == "beco"


@pytest.mark.parametrize(
    "given",
    [
        {"architecture": "deeplabv2", "encoder": SMALL["encoder"], "output_stride": 8, "atrous_rates": [1]}
        | {"contract_dilation": True},
        {"architecture": "segformer", "encoder": SMALL["encoder"], "output_stride": 32}
        | {"embedding_channels": 6, "decoder_channels": 6},
    ],
)
def test_networks_of_before_a_setting_are_read_as_what_they_are(given: dict[str, Any], tmp_path: Path) -> None:
    network = Network.model_validate(given)
    made = [Segmenter(network, 2).eval()]
    for parameter in made[0].parameters():
        nn.init.normal_(parameter, 0.1, 0.2)  # fresh blocks add nothing: their last gain is zero
    written = json.loads(network.model_dump_json())
    del written["contract_dilation"], written["embedding_channels"]
    metadata = {"network": json.dumps(written), "classes": json.dumps(["a", "b"]), "count": "1"}
    encoders.save_network(nn.ModuleList(made), tmp_path / "networks.safetensors", metadata)
    (found,) = training.load(tmp_path / "networks.safetensors").networks
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(found(images), made[0](images))


def test_pairs_need_an_even_batch(
    pictures: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"batch_size: pairs are mixed, so it must be even"):
        started(pictures, "beco", 0, tmp_path / "a", monkeypatch, batch_size=3)
    assert len(started(pictures, "single", 0, tmp_path / "b", monkeypatch, batch_size=3)) == 1


def test_labels_that_do_not_belong_to_the_pictures(pictures: manifests.Manifest, tmp_path: Path) -> None:
    train = pictures.split("train")
    with store.create(tmp_path / "some.h5", classes=pictures.classes) as writer:
        writer.put("label", train.ids[0], np.zeros((64, 64), np.uint8))
    with pytest.raises(UserError, match=r"some\.h5: no label for train_00001 and 2 more"):
        training._checked_labels(train, tmp_path / "some.h5")
    with store.create(tmp_path / "other.h5", classes=pictures.classes[::-1]) as writer:
        for image_id in train.ids:
            writer.put("label", image_id, np.zeros((64, 64), np.uint8))
    with pytest.raises(UserError, match=r"other\.h5: its classes .* are not the manifest's"):
        training._checked_labels(train, tmp_path / "other.h5")
    bare = manifests.Manifest(train.root, train.table.assign(mask=""), train.classes)
    with pytest.raises(UserError, match="the training split has no masks"):
        training._checked_labels(bare, None)


class Halves:
    """A manifest of one picture whose colours say what its label and its confidence are."""

    ids = ("a",)
    classes = ("one", "two")
    truth = np.repeat(np.array([[0, 1, 255, 2]], np.uint8), 16, 1).repeat(48, 0)
    sure = np.arange(48)[:, None].repeat(64, 1) < 24

    def size(self, image_id: str) -> tuple[int, int]:
        return 48, 64

    def mask(self, image_id: str) -> np.ndarray:
        return self.truth

    def image(self, image_id: str) -> np.ndarray:
        return np.stack([self.truth, np.uint8(200) * self.sure, self.truth], 2)


@pytest.mark.parametrize("truth", [True, False])
def test_label_and_mask_are_cropped_and_mirrored_with_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truth: bool
) -> None:
    with store.create(tmp_path / "labels.h5") as writer:
        put(writer, "a", Halves.truth, np.where(Halves.sure, 0.1, 0.9))
    crop, labels = Crop(size=32, area=(0.3, 0.8)), None if truth else PseudoLabels(tmp_path / "labels.h5")
    dataset = LabelledPictures(Halves(), labels, 0.5, crop)  # type: ignore[arg-type]
    monkeypatch.setattr(augment, "KEEP_BYTES", 0)
    large = LabelledPictures(Halves(), labels, 0.5, crop)  # type: ignore[arg-type]
    mirrored, place = set(), {0: 0, 1: 1, UNCERTAIN: 2, 2: 3}
    for draw in range(12):
        item = dataset[0, draw]
        image, label, reliable = item["image"], item["label"], item["reliable"]
        assert image.shape == (3, 32, 32) and image.dtype == label.dtype == torch.uint8 and reliable.dtype == torch.bool
        planes = torch.stack([label.float(), reliable.float()])[None]
        # away from edges, also from those that the crop has just cut off
        flat = (F.max_pool2d(planes, 5, 1, 2) == -F.max_pool2d(-planes, 5, 1, 2)).all(1)[0]
        flat[:3] = flat[-3:] = flat[:, :3] = flat[:, -3:] = False
        assert flat.float().mean() > 0.3
        assert torch.equal(image[0][flat], label[flat])
        expected = label != UNCERTAIN if truth else (image[1] > 100) & (label != UNCERTAIN)
        assert torch.equal(reliable[flat], expected[flat])
        mirrored.add(place[int(label[0, 0])] > place[int(label[0, -1])])
        # a function of the key alone, whether the picture was kept or read again
        for again in (dataset[0, draw], large[0, draw]):
            assert all(torch.equal(again[key], item[key]) for key in item)
    assert mirrored == {True, False}
    assert not torch.equal(dataset[0, 0]["image"], dataset[0, 1]["image"])


# --- prediction ---------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Logits by hand: one weight per class on the first channel, and a slope from left to right."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.weights = torch.tensor(weights).view(1, -1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        slope = torch.linspace(0.1, 1, images.shape[-1]).view(1, 1, 1, -1)
        return (images[:, :1] + slope) * self.weights


def test_logits_are_averaged_over_networks_flips_and_scales() -> None:
    images = torch.rand(2, 3, 6, 8)
    one, other = Linear([1.0, 2.0, -1.0]), Linear([0.0, 3.0, 5.0])
    sizes = (6, 8)
    mean = prediction.merged_scores([one, other], images, Prediction(), sizes)
    assert torch.allclose(mean, (one(images) + other(images)) / 2, atol=1e-6)
    flipped = prediction.merged_scores([one], images, Prediction(flip=True), sizes)
    assert torch.allclose(flipped, (one(images) + one(images.flip(-1)).flip(-1)) / 2, atol=1e-6)
    mirrored = prediction.merged_scores([one], images.flip(-1), Prediction(flip=True), sizes)
    assert torch.allclose(mirrored.flip(-1), flipped, atol=1e-6)
    double = F.interpolate(images, (12, 16), mode="bilinear", align_corners=False)
    larger = F.interpolate(one(double), sizes, mode="bilinear", align_corners=False)
    scaled = prediction.merged_scores([one], images, Prediction(scales=[1, 2]), sizes)
    assert torch.allclose(scaled, (one(images) + larger) / 2, atol=1e-6)
    assert prediction.merged_scores([one, other], images, Prediction(flip=True, scales=[0.5, 1]), (9, 5)).shape == (
        2, 3, 9, 5,
    )  # fmt: skip


@pytest.mark.parametrize("resize", [None, 32])
def test_predictions_have_the_pictures_own_sizes(
    pictures: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resize: int | None
) -> None:
    val = pictures.split("val")
    weights = (torch.arange(len(val.classes) + 1) - 2.4).pow(2)  # largest for class 6, smallest for class 2
    networks = [Linear(weights.tolist()), Linear((-2 * weights).tolist())]  # the mean is −weights / 2
    seen: list[tuple[int, int]] = []
    for network in networks:
        network.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[-2:])))
    monkeypatch.setattr(prediction, "load", lambda _: training.Trained(networks, val.classes, None))
    for members, expected in (("all", 2), ("first", 6)):
        output = tmp_path / members
        settings = Prediction(resize=resize, networks=members, batch_size=2)
        prediction.predict(val, tmp_path / "none", settings, Compute("cpu"), output)
        assert sorted(path.name for path in output.glob("[!.]*")) == [f"{name}.png" for name in sorted(val.ids)]
        for image_id in val.ids:
            label = read_index_png(output / f"{image_id}.png")
            assert label.shape == val.size(image_id)
            assert (label == expected).all()
    assert set(seen) == ({(64, 64), (61, 50)} if resize is None else {(32, 32), (32, 26)})
    with pytest.raises(UserError, match="trained for other classes"):
        monkeypatch.setattr(prediction, "load", lambda _: training.Trained(networks, val.classes[1:], None))
        prediction.predict(val, tmp_path / "none", Prediction(), Compute("cpu"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
