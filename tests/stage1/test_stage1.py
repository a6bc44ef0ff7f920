"""Stage one: class maps, what becomes of them, and that shards together are the whole."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional as F

from beco.artifacts import store
from beco.artifacts.grids import fitted_size, upsampled
from beco.artifacts.pseudolabels import MARGINS, levels_of
from beco.artifacts.shards import shard_ids
from beco.artifacts.store import Store
from beco.config import Cam, Classifier, Encoder, Labels, Shapes
from beco.config import Crf as CrfSettings
from beco.crf import refine as crf
from beco.datasets import manifest as manifests
from beco.datasets import shapes, voc
from beco.errors import UserError
from beco.networks import encoders
from beco.stage1 import localisers
from beco.stage1 import train as classifier
from beco.stage1 import views as cam
from beco.stage1.localisers.base import Localiser
from beco.stage1.merging import multi_scale_maps
from beco.stage1.refine import labels
from beco.stage1.refine.thresholds import with_background
from beco.stage1.train import LocaliserTask
from beco.training.batches import size_batches
from beco.training.sampling import Draws
from beco.training.trainer import Compute

SMALL = Encoder(name="resnet10t", options={"channels": [8, 8, 16, 16]})
NONE = torch.zeros(1, 1)  # which classes are shown does not matter to these maps


class Centre(nn.Module):
    """Class maps that are the colours themselves, one map per channel, at half the size."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.feature_info = FeatureInfo([{"num_chs": 3, "reduction": stride, "module": "x"}], (0,))
        self.stride = stride

    def view(self, images: Tensor, targets: Tensor) -> Tensor:
        return (F.avg_pool2d(images, self.stride, ceil_mode=True) - 0.25).relu()


# --- class maps ---------------------------------------------------------------------------------------------


def test_normalise_by_hand(network: Localiser) -> None:
    planes = torch.tensor([[[0.0, 2.0], [4.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = network.normalised(planes)
    assert found[0].tolist() == [
        [0, pytest.approx(0.5, abs=1e-5)],
        [pytest.approx(1, abs=1e-5), pytest.approx(0.25, abs=1e-5)],
    ]
    assert float(found[0].max()) < 1  # 1e-5 is added below the line
    assert not found[1].any()  # and a map without any activation stays empty
    assert network.normalised(torch.zeros(0, 2, 3)).shape == (0, 2, 3)


@pytest.mark.parametrize("size", [(64, 48), (65, 47), (33, 34)])
@pytest.mark.parametrize("flip", [True, False])
def test_the_grid_is_a_quarter_of_the_picture_rounded_up(size: tuple[int, int], flip: bool) -> None:
    found = multi_scale_maps(Centre(), torch.rand(2, 3, *size), NONE, Cam(scales=[1, 0.5], flip=flip))
    assert found.shape == (2, 3, math.ceil(size[0] / 4), math.ceil(size[1] / 4))


def test_maps_of_one_scale_by_hand() -> None:
    images = torch.zeros(1, 3, 8, 8)
    images[:, 0, :, 4:] = 1.25  # the map is 1 in the right half, −0.25 elsewhere: ReLU gives 0
    straight = multi_scale_maps(Centre(), images, NONE, Cam(scales=[1], flip=False))
    assert straight[0, 0].tolist() == [[0, 1], [0, 1]] and not straight[0, 1:].any()
    both = multi_scale_maps(Centre(), images, NONE, Cam(scales=[1], flip=True))
    assert torch.equal(both, 2 * straight)  # a sum, and the mirrored map is mirrored back
    assert torch.equal(multi_scale_maps(Centre(), images, NONE, Cam(scales=[1, 1, 1], flip=False)), 3 * straight)


@pytest.mark.parametrize("size", [(64, 96), (81, 100), (75, 61), (83, 66)])
@pytest.mark.parametrize("stride", [4, 8, 14, 16])
@pytest.mark.parametrize("scales", [[1.0], [2.0], [0.5, 1.0, 1.5]])
@pytest.mark.parametrize("flip", [True, False])
def test_class_maps_lie_where_the_picture_shows_them(
    size: tuple[int, int], stride: int, scales: list[float], flip: bool
) -> None:
    """A picture that says where each of its places is, by cells that are its averages: cell j is at 4j + 2 pixels."""
    rows, columns = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    images = torch.stack([rows, columns, torch.ones_like(rows)])[None]
    found = multi_scale_maps(Centre(stride), images, NONE, Cam(scales=scales, flip=flip))[0]
    found = found[:2] / (len(scales) * (1 + flip)) + 0.25
    edge = math.ceil(stride / min(scales) / 4) + 1  # the first and last cells are the mean of less, or their own end
    for axis, count in enumerate(found.shape[1:]):
        along = found[axis].select(1 - axis, found.shape[2 - axis] // 2)
        expected = torch.arange(count) * 4 + 2.0
        assert torch.allclose(along[edge:-edge], expected[edge:-edge], atol=0.3)


@pytest.fixture(scope="module")
def network() -> Localiser:
    torch.manual_seed(1)
    return localisers.make("cam", SMALL, 16, 4).eval()


@pytest.mark.parametrize("scales", [[1.0], [0.5, 1.5, 1.0]])
def test_a_mirrored_picture_has_mirrored_maps(network: Localiser, scales: list[float]) -> None:
    images = torch.rand(2, 3, 64, 48)
    settings = Cam(scales=scales, flip=True)
    one, other = (multi_scale_maps(network, views, NONE, settings) for views in (images, images.flip(-1)))
    assert float(one.std()) > 1e-3
    assert torch.allclose(one.flip(-1), other, atol=1e-5 * float(one.max()))
    alone = multi_scale_maps(network, images, NONE, Cam(scales=scales, flip=False))
    mirrored = multi_scale_maps(network, images.flip(-1), NONE, Cam(scales=scales, flip=False))
    assert torch.allclose(one, alone + mirrored.flip(-1), atol=1e-5 * float(one.max()))


def test_the_logit_is_the_mean_of_the_map(network: Localiser) -> None:
    images = torch.rand(2, 3, 64, 48)
    maps = network.maps(images)
    assert maps.shape == (2, 4, 4, 3)
    assert torch.allclose(network(images), maps.flatten(2).mean(2), atol=1e-6)


# --- labels -------------------------------------------------------------------------------------------------


def test_labels_from_scores_by_hand() -> None:
    scores = np.array([[[0.3, 0.3, 0.3]], [[0.9, 0.1, 0.3]], [[0.2, 0.8, 0.1]]], np.float32)
    label, doubt = labels.from_scores(scores, np.array([4, 20]))
    assert label.tolist() == [[4, 20, 0]] and label.dtype == np.uint8  # background wins a tie
    assert doubt[0] == pytest.approx([0.4, 0.5, 1]) and doubt.dtype == np.float64


def test_confidence_stays_within_zero_and_one_where_scores_do_not() -> None:
    scores = np.array([[[3.0, 4.0, 0.2]], [[0.5, 0.5, 0.2]]])
    _, doubt = labels.from_scores(scores, np.array([1]))
    assert doubt.tolist() == [[-1.5, -2.5, 1]]  # which tells the first two apart
    assert MARGINS[levels_of(doubt)].tolist() == [[1, 1, 0]]


def test_background_plane() -> None:
    planes = np.array([[[0.1, 0.9]]], np.float32)
    found = with_background(planes, 0.25)
    assert found.tolist() == [[[0.25, 0.25]], planes[0].tolist()] and found.dtype == np.float32
    none = with_background(np.zeros((0, 2, 3), np.float32), 0.25)
    assert none.shape == (1, 2, 3) and (none == 0.25).all()
    label, doubt = labels.from_scores(none, np.array([]))
    assert not label.any() and not doubt.any() and label.dtype == np.uint8


def test_upsampling_keeps_centres_and_range() -> None:
    small = np.array([[[0, 1], [0.5, 0.25]]], np.float16)
    found = upsampled(small, 8, 8)
    assert found.shape == (1, 8, 8) and found.min() == 0 and found.max() == 1
    # torch's bilinear without aligned corners is the same rule, written by others; a smaller picture ends in the cell
    other = F.interpolate(torch.from_numpy(small).float()[None], (8, 8), mode="bilinear", align_corners=False)[0]
    for height, width in ((8, 8), (7, 5)):
        expected = other[:, :height, :width].numpy()
        assert upsampled(small, height, width) == pytest.approx(expected, abs=1e-5)
    assert upsampled(small[:0], 6, 5).shape == (0, 6, 5)


def test_two_crf_runs_and_what_they_agree_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pixels: a class in both runs, a class in the second run only, background in both, a class in the first."""
    high = np.array([[[0.1, 0.6, 0.8, 0.3]], [[0.2, 0.3, 0.1, 0.1]], [[0.7, 0.1, 0.1, 0.6]]], np.float32)
    low = np.array([[[0.1, 0.2, 0.7, 0.6]], [[0.1, 0.7, 0.2, 0.1]], [[0.8, 0.1, 0.1, 0.3]]], np.float32)
    plane = np.array([[[0.04, 0.1, 0.0, 0.5]], [[0.5, 0.2, 0.01, 0.4]]], np.float32)
    image, seen = np.zeros((1, 4, 3), np.uint8), []

    def refine(picture: np.ndarray, label: np.ndarray, count: int, settings: CrfSettings) -> np.ndarray:
        assert picture is image and count == 3 and settings.iterations == 4
        seen.append(label.tolist())
        return (high, low)[len(seen) - 1]

    monkeypatch.setattr(crf, "refine", refine)
    recipe = Labels(foreground_threshold=0.3, background_threshold=0.05, crf=CrfSettings(iterations=4))
    label, doubt = labels.from_crf(image, plane, np.array([6, 9]), recipe)
    assert seen == [[[2, 0, 0, 1]], [[2, 2, 0, 1]]]  # with background 0.3, then with 0.05
    assert label.tolist() == [[9, 255, 0, 9]] and label.dtype == np.uint8
    # margins of the mean of both runs: .75 − .15, nothing, .75 − .15, .45 − .45 (background against class 9)
    assert doubt[0] == pytest.approx([0.4, 1, 0.4, 1], abs=1e-6)


def test_a_picture_without_classes_is_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crf, "refine", None)
    label, doubt = labels.from_crf(np.zeros((2, 3, 3), np.uint8), np.zeros((0, 2, 3)), np.array([]), Labels())
    assert label.shape == doubt.shape == (2, 3) and not label.any() and not doubt.any()


def test_the_crf_moves_the_label_to_the_colour_edge() -> None:
    image = np.full((24, 32, 3), 40, np.uint8)
    image[:, 18:] = (200, 60, 90)
    label = np.zeros((24, 32), int)
    label[:, 14:] = 1  # four pixels too early
    posterior = crf.refine(image, label, 2, CrfSettings())
    assert posterior.shape == (2, 24, 32) and posterior.dtype == np.float32
    assert posterior.sum(0) == pytest.approx(1, abs=1e-5)
    expected = np.zeros((24, 32), int)
    expected[:, 18:] = 1
    assert (posterior.argmax(0) == expected).all()
    blind = crf.refine(image, label, 2, CrfSettings(bilateral_compat=1e-6))
    assert (blind.argmax(0) == label).all()  # it is the colours that moved it


def test_the_crf_reads_rows_as_rows() -> None:
    """Height and width are told apart, and a third label nobody sees stays away."""
    image = np.zeros((12, 30, 3), np.uint8)
    image[3:] = 255
    label = np.zeros((12, 30), int)
    label[5:] = 1
    found = crf.refine(image, label, 3, CrfSettings()).argmax(0)
    assert (found[3:] == 1).all() and not found[:3].any()


# --- shards -------------------------------------------------------------------------------------------------


@given(st.lists(st.text("abc", min_size=1), unique=True, max_size=20), st.integers(1, 8))
def test_shards_are_a_partition_of_like_sizes(ids: list[str], count: int) -> None:
    parts = [shard_ids(ids, f"{k}-of-{count}") for k in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == sorted(ids)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", ["", "1", "0-of-2", "3-of-2", "a-of-2", "1-of-", "1/2", "-1-of-2", "1-of-2-of-3"])
def test_shards_that_are_not(shard: str) -> None:
    with pytest.raises(UserError, match="--shard"):
        shard_ids(["a"], shard)


def test_fitted_size() -> None:
    assert fitted_size(375, 500, None) == (375, 500)
    assert fitted_size(375, 500, 250) == (188, 250) and fitted_size(500, 100, 50) == (50, 10)
    assert fitted_size(1, 1000, 100) == (1, 100)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> manifests.Manifest:
    """Six pictures, one of another size and one without any class."""
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=6, val=1))
    built = voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv")
    table = built.table.copy()
    table.loc["train_00004", shapes.CLASSES] = 0
    path = folder / "set" / "JPEGImages" / "train_00003.jpg"
    Image.open(path).crop((0, 0, 50, 61)).save(path)
    table.loc["train_00003", ["width", "height"]] = 50, 61
    return manifests.Manifest(built.root, table, built.classes).split("train")


def test_pictures_of_one_size_come_together(pictures: manifests.Manifest) -> None:
    found = list(size_batches(pictures, pictures.ids, None, 2, "test"))
    assert [len(ids) for ids, _ in found] == [1, 2, 2, 1]
    assert sorted(name for ids, _ in found for name in ids) == sorted(pictures.ids)
    for ids, images in found:
        for image_id, image in zip(ids, images, strict=True):
            assert (image.permute(1, 2, 0) * 255).round().byte().numpy().tolist() == pictures.image(image_id).tolist()
    resized = {ids[0]: images.shape[-2:] for ids, images in size_batches(pictures, pictures.ids, 32, 6, "test")}
    assert resized["train_00003"] == (32, 26) and resized["train_00000"] == (32, 32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: manifests.Manifest) -> Path:
    """A classifier of random weights, in the package's own file."""
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    torch.manual_seed(2)
    metadata = {"encoder": SMALL.model_dump_json(), "output_stride": "16", "classes": json.dumps(pictures.classes)}
    encoders.save_network(localisers.make("cam", SMALL, 16, len(pictures.classes)), path, metadata)
    return path


def gathered(folder: Path, name: str, shards: int, make) -> Path:  # type: ignore[no-untyped-def]
    parts = [folder / f"{name}.{k}.h5" for k in range(1, shards + 1)]
    for k, part in enumerate(parts, 1):
        make(f"{k}-of-{shards}", part)
    store.gather(parts, folder / f"{name}.h5")
    return folder / f"{name}.h5"


def test_shards_together_are_the_whole(pictures: manifests.Manifest, trained: Path, tmp_path: Path) -> None:
    chosen, recipe = Cam(scales=[1, 0.5], batch_size=2), Labels(crf=CrfSettings(iterations=2))
    found: dict[int, list[Store]] = {}
    for shards in (1, 3):
        folder = tmp_path / str(shards)
        cams = gathered(folder, "cams", shards, lambda k, p: cam.infer(pictures, trained, chosen, Compute("cpu"), k, p))
        made = gathered(folder, "labels", shards, lambda k, p, c=cams: labels.make(pictures, c, recipe, k, p))
        found[shards] = [Store(cams), Store(made)]
    one, three = found[1], found[3]
    assert one[0].attributes == three[0].attributes and one[0].attributes["classes"] == pictures.classes
    assert one[1].attributes["supervision"] == ["image labels", "unknown"]  # of a network that does not say
    for image_id in pictures.ids:
        present, (height, width) = pictures.present(image_id), pictures.size(image_id)
        planes, others = (stores[0].get("cam", image_id) for stores in (one, three))
        assert planes.shape == (len(present), math.ceil(height / 4), math.ceil(width / 4))
        assert planes.dtype == np.float16 and np.isfinite(planes).all()
        assert one[0].attribute("cam", image_id, "classes").tolist() == present
        # batches differ in size, and so may the last bit of half precision
        assert planes.astype(float) == pytest.approx(others.astype(float), abs=2e-3)
        label, confidence = one[1].get("label", image_id), one[1].get("confidence", image_id)
        assert label.shape == confidence.shape == (height, width)
        assert set(label.flat) <= {0, 255, *present} and not confidence[label == 255].any()
        assert (label == three[1].get("label", image_id)).mean() > 0.98
    assert sorted(three[1].ids("label")) == sorted(pictures.ids)


def test_the_planes_are_those_of_the_pictures_classes(
    pictures: manifests.Manifest, trained: Path, tmp_path: Path
) -> None:
    cam.infer(pictures, trained, Cam(scales=[1]), Compute("cpu"), "1-of-1", tmp_path / "cams.h5")
    network, _ = classifier.load(trained)
    stored = Store(tmp_path / "cams.h5")
    for image_id in pictures.ids:
        image = torch.from_numpy(pictures.image(image_id)).permute(2, 0, 1)[None] / 255
        maps = multi_scale_maps(network.eval(), image, NONE, Cam(scales=[1]))[0]
        for plane, value in zip(stored.get("cam", image_id), pictures.present(image_id), strict=True):
            one = maps[value - 1]
            assert plane.astype(float) == pytest.approx((one / (one.max() + 1e-5)).numpy(), abs=2e-3)


def test_a_classifier_of_other_classes(pictures: manifests.Manifest, trained: Path, tmp_path: Path) -> None:
    other = manifests.Manifest(pictures.root, pictures.table, pictures.classes[::-1])
    with pytest.raises(UserError, match="trained for other classes"):
        cam.infer(other, trained, Cam(), Compute("cpu"), "1-of-1", tmp_path / "cams.h5")
    assert not (tmp_path / "cams.h5").exists()


def test_a_classifier_of_another_program(tmp_path: Path) -> None:
    save_file({"head.weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"foreign\.safetensors"):
        classifier.load(tmp_path / "foreign.safetensors")


# --- learning -----------------------------------------------------------------------------------------------


def test_a_task_learns_colours() -> None:
    """Class k is there if and only if channel k is bright: the loss has to fall to nearly nothing."""
    torch.manual_seed(0)
    task = LocaliserTask(localisers.make("cam", SMALL, 16, 3), colour=False)
    (backbone, first), (head, second) = task.parameter_groups()
    assert (first, second) == (False, True) and [value.shape for value in head] == [(3, 16, 1, 1)]
    assert sorted(map(id, backbone + head)) == sorted(map(id, task.parameters()))
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(16, 3, generator=generator) < 0.5).float()
    noise = torch.randint(0, 40, (16, 3, 32, 32), generator=generator)
    image = (noise + 200 * target[:, :, None, None]).to(torch.uint8)
    optimiser = torch.optim.AdamW(task.parameters(), lr=0.01)
    losses, draws = [], Draws(0, 16, list(range(16)), torch.device("cpu"))
    for step in range(40):
        loss = task({"image": image, "target": target}, step, 40, draws)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    expected = -(F.logsigmoid(torch.zeros(1))).item()
    assert losses[0] == pytest.approx(expected, abs=0.2) and losses[-1] < 0.1


def test_scores_of_the_classifier(pictures: manifests.Manifest, network: Localiser) -> None:
    """Average precision by hand: the logits are set to rank the pictures perfectly, or upside down."""
    truth = torch.tensor(pictures.labels())

    class Oracle(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            rows = [next(n for n, name in enumerate(pictures.ids) if self.is_it(name, image)) for image in images]
            signs = torch.ones(truth.shape[1])
            signs[0] = -1
            return truth[rows] * signs + torch.tensor(rows)[:, None] * 1e-3

        def is_it(self, name: str, image: Tensor) -> bool:
            stored = torch.from_numpy(pictures.image(name)).permute(2, 0, 1) / 255
            return stored.shape == image.shape and bool(torch.allclose(stored, image))

    result = classifier.evaluate(Oracle(), pictures, Classifier(encoder=SMALL), Compute("cpu"))
    assert list(result["ap"]) == pictures.classes
    for column, (name, value) in enumerate(result["ap"].items()):
        positives = int(truth[:, column].sum())
        if positives == 0:
            assert value is None, name
        elif column:
            assert value == pytest.approx(1), name
        else:  # all the negatives come first
            negatives = len(truth) - positives
            assert value == pytest.approx(np.mean([n / (negatives + n) for n in range(1, positives + 1)]), abs=1e-6)
    known = [value for value in result["ap"].values() if value is not None]
    assert result["map"] == pytest.approx(np.mean(known), abs=1e-6)
