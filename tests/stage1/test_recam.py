"""Class re-activation maps: the second classifier's loss by hand, what it starts from, and its maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import TINY
from torch import Tensor
from torch.nn import functional as F

from beco.config import Classifier, Encoder, Shapes
from beco.datasets import shapes, voc
from beco.errors import UserError
from beco.networks.encoders import save_network
from beco.stage1 import localisers, train
from beco.stage1.localisers.base import Inputs
from beco.stage1.localisers.recam import pooled
from beco.training.sampling import Draws
from beco.training.trainer import Compute, make_optimiser

DRAWS = Draws(0, 1, [0], torch.device("cpu"))
ENCODER = Encoder.model_validate(TINY)
BRIEF = {"steps": 1, "batch_size": 4}


def network(classes: int = 3, name: str = "recam", **options: Any) -> Any:
    torch.manual_seed(1)
    return localisers.make(name, ENCODER, 16, classes, options=options).eval()


def drawn(batch: int, classes: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(batch, 3, 48, 32, generator=generator),
        "target": (torch.rand(batch, classes, generator=generator) < 0.5).float(),
    }


@torch.no_grad()
def by_hand(net: Any, images: Tensor, target: Tensor) -> tuple[float, float]:
    """Both losses, one picture, class and cell after the other, in float64."""
    features = net.backbone(net.normalise(images))[-1].double().numpy()
    first, second = (layer.weight.detach().double().flatten(1).numpy() for layer in (net.head, net.second))
    whole, apart = 0.0, 0.0
    for picture, shown in zip(features, target.numpy(), strict=True):
        logits = (first @ picture.reshape(len(picture), -1)).mean(1)
        probabilities = 1 / (1 + np.exp(-logits))
        whole -= float(np.log(np.where(shown == 1, probabilities, 1 - probabilities)).mean())
        of_classes = []
        for k in np.flatnonzero(shown):
            plane = np.maximum(np.tensordot(first[k], picture, 1), 0)
            plane = plane / (plane.max() + 1e-5)
            vector = np.zeros(len(picture))
            for y, x in np.ndindex(*plane.shape):
                vector += plane[y, x] * picture[:, y, x] / plane.size
            scores = second @ vector
            of_classes.append(np.log(np.exp(scores).sum()) - scores[k])
        apart += float(np.mean(of_classes)) if of_classes else 0.0
    return whole / len(images), apart / len(images)


@pytest.mark.parametrize("case", range(8))
def test_the_losses_are_those_of_each_picture_and_class(case: int) -> None:
    classes = case % 4 + 1
    net, batch = network(classes, weight=0.5), drawn(3, classes, case)
    batch["target"][0] = 0  # a picture without classes has nothing to tell apart
    found = net.losses(batch["image"], batch, 0, 1, DRAWS)
    whole, apart = by_hand(net, batch["image"], batch["target"])
    assert found["first"].item() == pytest.approx(whole, rel=1e-4)
    assert found["second"].item() == pytest.approx(apart, rel=1e-4, abs=1e-6)
    assert found["loss"].item() == pytest.approx(whole + 0.5 * apart, rel=1e-4)


def test_gradients_go_through_maps_and_features() -> None:
    """As in a version that holds each class's weighted features, from the second loss alone."""
    torch.manual_seed(3)
    features, weight, target = torch.rand(2, 5, 3, 4), torch.randn(3, 5), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    second = torch.randn(3, 5)

    def gradients(form: Any) -> list[Tensor]:
        inputs = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
        maps = torch.einsum("kd,bdhw->bkhw", inputs[1], inputs[0])
        scores = (form(inputs[0], maps) @ second.T).log_softmax(2).diagonal(dim1=1, dim2=2)
        return list(torch.autograd.grad((scores * target).sum(), inputs))

    def held(features: Tensor, maps: Tensor) -> Tensor:
        shares = maps.relu() / (maps.relu().flatten(2).max(2).values[..., None, None] + 1e-5)
        return (shares[:, :, None] * features[:, None]).mean((3, 4))

    for one, other in zip(gradients(pooled), gradients(held), strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0


def test_an_even_map_pools_the_mean_and_one_class_still_teaches() -> None:
    features = torch.rand(2, 5, 3, 4)
    torch.testing.assert_close(pooled(features, torch.full((2, 1, 3, 4), 7.0))[:, 0], features.mean((2, 3)))
    assert pooled(features, -torch.ones(2, 1, 3, 4)).abs().sum() == 0
    net, batch = network(), drawn(2, 3, 0)
    torch.nn.init.ones_(net.head.weight)  # a map that is above 0 somewhere
    batch["target"] = torch.tensor([[0.0, 1, 0], [0, 1, 0]])
    (gradient,) = torch.autograd.grad(net.losses(batch["image"], batch, 0, 1, DRAWS)["second"], [net.second.weight])
    assert gradient.abs().sum(1).gt(0).all()  # the softmax is over all classes


def test_without_weight_it_is_the_classifier() -> None:
    net, batch = network(weight=0), drawn(2, 3, 4)
    plain = F.multilabel_soft_margin_loss(net(batch["image"]).float(), batch["target"])
    assert net.losses(batch["image"], batch, 0, 1, DRAWS)["loss"].item() == plain.item()
    assert network(weight=1).losses(batch["image"], batch, 0, 1, DRAWS)["loss"] != plain


@torch.no_grad()
def test_maps_are_of_the_product_of_both_weights() -> None:
    net, batch = network(), drawn(2, 3, 5)
    torch.nn.init.ones_(net.second.weight)
    cam = net.maps(batch["image"]).relu()
    torch.testing.assert_close(net.view(batch["image"], batch["target"]), cam)
    net.second.weight[1] = -1
    net.second.weight[2] = 3
    found = net.view(batch["image"], batch["target"])
    torch.testing.assert_close(found[:, 2], 3 * cam[:, 2])
    torch.testing.assert_close(found[:, 1], (-net.maps(batch["image"])[:, 1]).relu())
    first, second = (network(maps=which) for which in ("first", "second"))
    torch.testing.assert_close(first.view(batch["image"], batch["target"]), first.maps(batch["image"]).relu())
    second.second.weight.copy_(second.head.weight.flatten(1))
    torch.testing.assert_close(second.view(batch["image"], batch["target"]), second.maps(batch["image"]).relu())


def test_a_batch_in_parts_has_the_loss_of_the_whole() -> None:
    net, batch = network(), drawn(4, 3, 6)
    whole = net.losses(batch["image"], batch, 0, 1, DRAWS)["loss"].item()
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    assert sum(net.losses(half["image"], half, 0, 1, DRAWS)["loss"].item() for half in halves) / 2 == pytest.approx(
        whole, rel=1e-5
    )


def test_the_second_classifier_alone_has_the_heads_rate() -> None:
    net, settings = network(), Classifier().optimiser
    first, second = make_optimiser(net, settings).param_groups
    assert second["params"] == [net.second.weight] and second["factor"] == settings.head_lr_factor != 1
    assert first["factor"] == 1 and any(one is net.head.weight for one in first["params"])
    assert len(first["params"]) + 1 == len(list(net.parameters()))


# --- what it starts from ----------------------------------------------------------------------------------------


def started(folder: Path, name: str = "cam", classes: int = 3) -> Path:
    """The file of a network with weights and statistics unlike fresh ones."""
    net = network(classes, name)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value += 0.125
    names = [f"class{number}" for number in range(classes)]
    metadata = {"encoder": ENCODER.model_dump_json(), "classes": str(names).replace("'", '"'), "output_stride": "16"}
    save_network(net, folder / "start.safetensors", metadata)
    return folder / "start.safetensors"


def test_it_goes_on_from_the_other_network(tmp_path: Path) -> None:
    path, net = started(tmp_path), network()
    before = net.second.weight.clone()
    net.begin(Inputs(start=path))
    for key, value in network(name="cam").state_dict().items():
        wanted = value + 0.125 if value.is_floating_point() else value
        assert torch.equal(net.state_dict()[key], wanted), key
    assert torch.equal(net.second.weight, before)


@pytest.mark.parametrize(("name", "classes"), [("amn", 3), ("cam", 2)])
def test_a_network_without_such_maps_is_refused(tmp_path: Path, name: str, classes: int) -> None:
    with pytest.raises(UserError, match=r"start: .*start\.safetensors has no class map for each class"):
        network().begin(Inputs(start=started(tmp_path, name, classes)))


def test_a_network_of_other_classes_is_refused(tmp_path: Path) -> None:
    shapes.draw(tmp_path / "set", Shapes(train=4, val=1))
    pictures = voc.build(tmp_path / "set", "train", "val", shapes.CLASSES, tmp_path / "manifest.csv")
    settings = Classifier.model_validate({"encoder": TINY, "crop": {"size": 32}, "schedule": BRIEF})
    wanted = train.Wanted(settings, "recam", {"weight": 1.0}, Inputs(start=started(tmp_path)))
    with pytest.raises(UserError, match=r"start\.safetensors: trained for other classes"):
        train.train(pictures.split("train"), pictures.split("val"), wanted, Compute("cpu"), tmp_path / "out", False)
