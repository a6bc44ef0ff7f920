"""Inference: what is merged and how, in which batches, and that speed changes no label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import SIZES, Blocks, Brightness, Column, noisy, predicted
from PIL import Image
from torch import Tensor, nn

from beco.artifacts.folders import whole_folder
from beco.artifacts.grids import fitted_size
from beco.config import Prediction
from beco.datasets.manifest import Manifest
from beco.datasets.palette import read_index_png, write_index_png
from beco.errors import UserError
from beco.stage2 import predict as prediction
from beco.training.batches import size_batches


@pytest.fixture
def pictures(tmp_path: Path) -> Manifest:
    return noisy(tmp_path)


# --- merging ------------------------------------------------------------------------------------------------

GREY = torch.ones(1, 3, 1, 2)  # a picture of one row and two columns


def merged(networks: list[nn.Module], images: Tensor = GREY, **settings: object) -> Tensor:
    return prediction.merged_scores(networks, images, Prediction.model_validate(settings), tuple(images.shape[-2:]))


def test_logits_and_softmax_of_two_networks_by_hand() -> None:
    networks = [Brightness([0.0, np.log(3)]), Brightness([0.0, -np.log(7)])]
    # means of logits: 0 and ln(3/7)/2; means of softmax: (1/4 + 7/8)/2 and (3/4 + 1/8)/2
    assert merged(networks)[0, :, 0, 0].tolist() == pytest.approx([0, np.log(3 / 7) / 2])
    assert merged(networks, merge="softmax")[0, :, 0, 1].tolist() == pytest.approx([9 / 16, 7 / 16])
    assert merged(networks[:1], merge="softmax")[0, :, 0, 0].tolist() == pytest.approx([1 / 4, 3 / 4])


def test_a_mirrored_picture_is_mirrored_back() -> None:
    network = Column([[1.0, 5.0], [0.0, 0.0]])
    assert merged([network])[0, 0, 0].tolist() == [1, 5]
    assert merged([network], flip=True)[0, 0, 0].tolist() == [3, 3]
    # softmax of (1, 0) is 0.7311 and of (5, 0) 0.9933
    assert merged([network], flip=True, merge="softmax")[0, 0, 0].tolist() == pytest.approx([0.8622, 0.8622], abs=1e-4)


def test_scales_are_averaged_or_the_largest_wins() -> None:
    images = torch.ones(2, 3, 4, 6)
    networks = [Brightness([1.0, -1.0], own_width=6), Brightness([3.0, 1.0], own_width=6)]
    # At scale s a network gives s times its weights; their mean is (2, 0) · s.
    mean = merged(networks, images, scales=[0.5, 1, 2])
    assert mean.shape == (2, 2, 4, 6)
    assert mean[:, 0].flatten().tolist() == pytest.approx([2 * 3.5 / 3] * 48)
    largest = merged(networks, images, scales=[0.5, 1, 2], merge="max")
    assert largest[:, 0].flatten().tolist() == pytest.approx([4.0] * 48)  # scale 2, mean over the networks: not 6
    low = merged([networks[0]], images, scales=[0.5, 1, 2], merge="max")
    assert low[:, 1].flatten().tolist() == pytest.approx([-0.5] * 48)  # each class by itself
    assert [shape[-2:] for shape in networks[1].seen[:3]] == [(2, 3), (4, 6), (8, 12)]


def test_the_first_network_alone(pictures: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    networks = [Brightness([0.0, 1.0, -1.0]), Brightness([0.0, -3.0, 1.0])]
    first = predicted(pictures, monkeypatch, networks, tmp_path / "first", networks="first")
    both = predicted(pictures, monkeypatch, networks, tmp_path / "both")
    assert sorted(first) == sorted(pictures.ids)
    for image_id in pictures.ids:
        red = pictures.image(image_id)[..., 0]
        assert (first[image_id] == (red > 0)).all()  # 1 where there is any red; ties at 0 go to background
        assert (both[image_id] == 0).all()  # means: 0, −1, 0, and the lower of equals is taken


def test_the_first_of_equal_scores_is_decided() -> None:
    scores = torch.randint(0, 3, (21, 40, 50), generator=torch.Generator().manual_seed(1)).float()
    label, sure = prediction.decided(scores, Prediction(merge="softmax"), True)
    assert (label == scores.numpy().argmax(0)).all() and sure is not None and (sure == scores.numpy().max(0)).all()
    assert prediction.decided(scores, Prediction(), False)[1] is None


# --- batches ------------------------------------------------------------------------------------------------


def test_only_pictures_fed_at_one_size_share_a_batch(pictures: Manifest) -> None:
    def shapes(**options: object) -> list[tuple[int, ...]]:
        found = list(size_batches(pictures, pictures.ids, None, 4, "test", **options))  # type: ignore[arg-type]
        assert sorted(name for ids, _ in found for name in ids) == sorted(pictures.ids)
        return [tuple(images.shape) for _, images in found]

    assert shapes() == [(1, 3, 9, 21), (4, 3, 12, 16), (1, 3, 12, 16), (3, 3, 16, 12)]
    assert shapes(squeeze=32) == [(4, 3, 32, 32), (4, 3, 32, 32), (1, 3, 32, 32)]
    assert shapes(most_pixels=2 * 12 * 16 + 1)[:4] == [(1, 3, 9, 21), (2, 3, 12, 16), (2, 3, 12, 16), (1, 3, 12, 16)]
    assert shapes(most_pixels=1) == [(1, 3, 9, 21)] + [(1, 3, 12, 16)] * 5 + [(1, 3, 16, 12)] * 3
    assert fitted_size(375, 500, None, 64) == (64, 64)


def test_logits_of_a_batch_are_bounded() -> None:
    assert prediction.most_pixels([1.0], 21) * 21 * 4 <= 2**29
    assert prediction.most_pixels([0.5, 2.0], 21) == prediction.most_pixels([1.0], 84)
    assert prediction.most_pixels([0.5], 21) == prediction.most_pixels([1.0], 21)  # merged at the size fed


def test_reading_ahead_is_bounded_and_ends_with_the_loop(pictures: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    image = Manifest.image
    monkeypatch.setattr(Manifest, "image", lambda self, name: (opened.append(name), image(self, name))[1])
    for batch_size, most_pixels in ((1, None), (4, 1)):  # large pictures count as much as a batch
        opened.clear()
        batches = size_batches(pictures, pictures.ids, None, batch_size, "test", most_pixels=most_pixels, threads=2)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert len(opened) <= 3


def test_a_picture_of_another_size_than_listed_is_named(pictures: Manifest) -> None:
    Image.new("RGB", (16, 13)).save(pictures.root / "2.png")
    with pytest.raises(UserError, match="p2: its picture has another size"):
        list(size_batches(pictures, pictures.ids, None, 2, "test"))


@pytest.mark.parametrize(
    "settings",
    [
        {"scales": [0.5, 1], "flip": True},
        {"resize": 32},
        {"squeeze": 32},
        {"squeeze": 36, "scales": [0.5, 1], "flip": True},
        {"squeeze": 32, "score_at": "square"},
    ],
)
def test_batches_and_threads_change_no_label(
    pictures: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict
) -> None:
    colours = [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]
    networks: list[nn.Module] = [Blocks(colours), Blocks([[0.2, 0, 0], [0.1, 0, 0], [-0.3, 0, 0]])]
    found = {}
    for batch_size, threads in ((1, 1), (8, 1), (8, 2)):
        output = tmp_path / f"{batch_size}.{threads}"
        predicted(pictures, monkeypatch, networks, output, threads, batch_size=batch_size, **settings)
        found[batch_size, threads] = {path.name: path.read_bytes() for path in output.glob("*.png")}
    assert found[1, 1] == found[8, 1] == found[8, 2] and len(found[1, 1]) == len(SIZES)
    assert len({value for data in found[1, 1] for value in read_index_png(tmp_path / "8.2" / data).flat}) > 1


def test_predictions_appear_whole_or_not_at_all(
    pictures: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (pictures.root / "8.png").write_bytes(b"none")
    for name in ("new", "old"):
        folder = tmp_path / "out" / name
        if name == "old":
            with whole_folder(folder) as written:
                write_index_png(written / "kept.png", np.zeros((2, 2), np.uint8))
        with pytest.raises(UserError, match=r"8\.png: is a text"):
            predicted(pictures, monkeypatch, [Brightness([0.0, 1.0, 0.0])], folder, batch_size=2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert [path.name for path in folder.glob("*.png")] == ["kept.png"]
