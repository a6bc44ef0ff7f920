"""The classifier trained as IRN trains it: each of its settings does what it says, and together they are its loop.

`by_hand` is a second implementation of that loop in plain torch: its own forward pass, detached after stage two, its
own loss, schedule and optimiser, over tensors by name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from beco.config import Classifier, Encoder, Network, Shapes
from beco.datasets import shapes, voc
from beco.errors import UserError
from beco.networks import encoders
from beco.networks import segmenter as networks
from beco.networks.frozen import freeze
from beco.stage1 import train as classifier
from beco.stage1.localisers.base import Localiser
from beco.stage1.train import LocaliserTask
from beco.training.engine import Output, Plan, fit
from beco.training.sampling import Draws
from beco.training.trainer import Compute, make_optimiser

PLAIN = {"name": "resnet26", "options": {"layers": [1, 1, 1, 2], "channels": [8, 8, 12, 16]}}
SMALL = {"name": "resnet10t", "options": {"channels": [8, 16, 24, 32]}}
CLASSES, PICTURES, STEPS = 3, 4, 3
AS_IRN = {
    "encoder": PLAIN,
    "dilate": False,
    "frozen_stages": 2,
    "batch_norm": "fixed",
    "schedule": {"steps": STEPS, "batch_size": PICTURES},
}
OTHERWISE: list[dict[str, Any]] = [
    {"dilate": True},
    {"frozen_stages": None},
    {"frozen_stages": 1},
    {"frozen_stages": 3},
    {"batch_norm": "batch"},
    {"optimiser": {"momentum": 0.9}},
]


class Pictures(Dataset[dict[str, Tensor]]):
    """Noise and labels, the same at every visit; a batch is all of them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.image = torch.randint(0, 256, (PICTURES, 3, 64, 64), generator=generator, dtype=torch.uint8)
        self.target = (torch.rand(PICTURES, CLASSES, generator=generator) < 0.5).float()

    def __len__(self) -> int:
        return PICTURES

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return {"image": self.image[key[0]], "target": self.target[key[0]]}


def network(settings: Classifier) -> Localiser:
    """A network whose batch norm has statistics, scales and shifts unlike fresh ones."""
    torch.manual_seed(1)
    built = classifier.build("cam", settings, CLASSES, {})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in built.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for value, low in ((layer.running_var, 0.5), (layer.weight, 0.5), (layer.running_mean, -0.2)):
                    value.copy_(torch.rand(value.shape, generator=generator) + low)
                layer.bias.copy_(torch.rand(layer.bias.shape, generator=generator) - 0.5)
    return built


def trained(settings: Classifier, folder: Path, task: type[LocaliserTask] = LocaliserTask) -> dict[str, Tensor]:
    built = network(settings)
    plan, output = Plan(settings.schedule, settings.optimiser, 0), Output(folder, {}, "classifier")
    fit(task(built, settings.colour), Pictures(), plan, output, Compute("cpu"))
    return built.state_dict()


# --- the second implementation --------------------------------------------------------------------------------


def logits(images: Tensor, state: dict[str, Tensor]) -> Tensor:
    """A ResNet of bottlenecks whose last stage has stride 1 and no dilation; nothing before stage 3 has a gradient."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * scale[:, None, None] + shift[:, None, None]

    def bottleneck(x: Tensor, name: str, stride: int) -> Tensor:
        y = norm(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
        y = norm(F.conv2d(y, state[f"{name}.conv2.weight"], None, stride, 1), f"{name}.bn2").relu()
        y = norm(F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in state:
            x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], None, stride), f"{name}.downsample.1")
        return (x + y).relu()

    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = F.conv2d((images / 255 - mean) / std, state["backbone.conv1.weight"], None, 2, 3)
    x = F.max_pool2d(norm(x, "backbone.bn1").relu(), 3, 2, 1)
    x = bottleneck(x, "backbone.layer1.0", 1)
    x = bottleneck(x, "backbone.layer2.0", 2).detach()
    x = bottleneck(x, "backbone.layer3.0", 2)
    x = bottleneck(bottleneck(x, "backbone.layer4.0", 1), "backbone.layer4.1", 1)
    return F.conv2d(x, state["head.weight"]).mean((2, 3))


def by_hand(start: dict[str, Tensor]) -> dict[str, Tensor]:
    """IRN's loop: lr 0.1 (ten times that for the head), decay 1e-4, momentum 1e-4, poly 0.9."""
    state = {key: value.clone() for key, value in start.items()}
    learns = [key for key in state if key.endswith((".weight", ".bias"))]
    motion: dict[str, Tensor] = {}
    pictures = Pictures()
    for step in range(STEPS):
        for key in learns:
            state[key] = state[key].detach().requires_grad_()
        share = torch.sigmoid(logits(pictures.image.float(), state))
        right = pictures.target * share + (1 - pictures.target) * (1 - share)
        (-right.log().mean()).backward()
        rate = 0.1 * (1 - step / STEPS) ** 0.9
        for key in learns:
            value, gradient = state[key].detach(), state[key].grad
            if gradient is None:  # as SGD does: neither a step nor decay
                state[key] = value
                continue
            motion[key] = 1e-4 * motion.get(key, 0) + gradient + 1e-4 * value
            state[key] = value - rate * (10 if key.startswith("head") else 1) * motion[key]
    return state


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((value.double() - other[key].double()).abs().max()) for key, value in one.items())


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return by_hand(network(Classifier.model_validate(AS_IRN)).state_dict())


def test_three_steps_are_those_of_a_plain_loop(tmp_path: Path, expected: dict[str, Tensor]) -> None:
    settings = Classifier.model_validate(AS_IRN)
    start, found = network(settings).state_dict(), trained(settings, tmp_path)
    assert furthest(found, expected) < 2e-5 < 1e-3 < furthest(found, start)
    for key, value in found.items():
        learns = key.startswith(("backbone.layer3", "backbone.layer4", "head")) and key.endswith(("weight", "bias"))
        assert torch.equal(value, start[key]) != learns, key  # decay does not move what is frozen


@pytest.mark.parametrize("change", OTHERWISE, ids=str)
def test_without_one_of_the_settings_it_is_another_training(
    tmp_path: Path, expected: dict[str, Tensor], change: dict[str, Any]
) -> None:
    assert furthest(trained(Classifier.model_validate(AS_IRN | change), tmp_path), expected) > 1e-3


class Broken(LocaliserTask):
    """Does not survive the last step."""

    def forward(self, batch: dict[str, Tensor], step: int, steps: int, draws: Draws) -> dict[str, Tensor]:
        if step == STEPS - 1:
            raise InterruptedError
        return super().forward(batch, step, steps, draws)


@pytest.mark.parametrize("change", [{}, *OTHERWISE], ids=str)
def test_a_broken_training_goes_on_to_the_bit(tmp_path: Path, change: dict[str, Any]) -> None:
    often = {"schedule": AS_IRN["schedule"] | {"checkpoint_minutes": 1e-12}}
    settings = Classifier.model_validate(AS_IRN | change | often)
    with pytest.raises(InterruptedError):
        trained(settings, tmp_path / "broken", Broken)
    assert (tmp_path / "broken" / "checkpoint.pt").exists()
    found, whole = trained(settings, tmp_path / "broken"), trained(settings, tmp_path / "whole")
    assert all(torch.equal(value, whole[key]) for key, value in found.items())


# --- what learns ----------------------------------------------------------------------------------------------


def frozen(name: str, stages: int, **options: Any) -> set[str]:
    """Blocks of a backbone in which nothing learns; no block may learn in part."""
    encoder = Encoder(name=name, options=options)
    backbone = encoders.create_backbone(encoder, 16 if "mit" not in name else 32)
    freeze(backbone, stages, name)
    learns: dict[str, set[bool]] = {}
    for key, parameter in backbone.named_parameters():
        parts = key.split(".")
        block = ".".join(parts[:2]) if parts[0] in ("blocks",) else parts[0]
        learns.setdefault(block, set()).add(parameter.requires_grad)
    assert all(len(kinds) == 1 for kinds in learns.values()), learns
    assert backbone.training and all(module.training for module in backbone.modules())
    return {block for block, kinds in learns.items() if kinds == {False}}


@pytest.mark.parametrize(
    ("name", "stages", "blocks"),
    [
        ("resnet26", 0, {"conv1", "bn1"}),
        ("resnet26", 1, {"conv1", "bn1", "layer1"}),
        ("resnet26", 2, {"conv1", "bn1", "layer1", "layer2"}),
        ("resnet26", 4, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        ("mobilenetv1_100", 0, {"conv_stem", "bn1", "blocks.0"}),
        ("mobilenetv1_100", 2, {"conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"}),
        ("convnext_atto", 2, {"stem_0", "stem_1", "stages_0", "stages_1"}),
        ("mit_b0", 2, {"patch_embed1", "block1", "norm1", "patch_embed2", "block2", "norm2"}),
    ],
)
def test_the_first_stages_of_any_encoder(name: str, stages: int, blocks: set[str]) -> None:
    assert frozen(name, stages) == blocks


def test_stages_that_are_not() -> None:
    with pytest.raises(
        UserError, match=r"frozen_stages: 5, but `resnet10t` .* 2, 4, 8, 16, 16, .* the stem, and 1 to 4"
    ):
        frozen("resnet10t", 5)
    with pytest.raises(
        UserError, match=r"frozen_stages: 0, but `convnext_atto` .* 4, 8, 16, 16, .* stages are 1 to 4;"
    ):
        frozen("convnext_atto", 0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimiser_is_not_given_what_is_frozen(name: str) -> None:
    settings = Classifier.model_validate(AS_IRN | {"optimiser": {"name": name}})
    built = network(settings)
    optimiser = make_optimiser(LocaliserTask(built, colour=False), settings.optimiser)
    held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    names = {key.split(".")[1] for key, parameter in built.named_parameters() if id(parameter) in held}
    assert names == {"layer3", "layer4", "weight"}
    assert [group["factor"] for group in optimiser.param_groups] == [1, 10]
    head_alone = network(settings.model_copy(update={"frozen_stages": 4}))
    assert len(make_optimiser(LocaliserTask(head_alone, False), settings.optimiser).param_groups) == 1


def test_fixed_statistics_stay_and_their_scale_learns() -> None:
    built = network(Classifier.model_validate(AS_IRN | {"frozen_stages": None}))
    task = LocaliserTask(built, colour=False)
    for mode in (True, False, True):
        task.train(mode)
        norms = [layer for layer in built.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert norms and not any(layer.training for layer in norms) and built.training is mode
    before = {key: value.clone() for key, value in built.state_dict().items()}
    pictures = Pictures()
    batch = {"image": pictures.image, "target": pictures.target}
    task(batch, 0, 1, Draws(0, 4, [0, 1, 2, 3], torch.device("cpu")))["loss"].backward()
    assert all(layer.weight.grad.any() and layer.bias.grad.any() for layer in norms)
    assert all(torch.equal(value, before[key]) for key, value in built.state_dict().items())
    free = network(Classifier.model_validate(AS_IRN | {"batch_norm": "batch"})).train()
    assert all(layer.training for layer in free.modules())


# --- a stride without dilation --------------------------------------------------------------------------------


def test_the_last_stage_without_its_stride_by_hand() -> None:
    plain, found, dilated = (
        network(Classifier(encoder=Encoder.model_validate(PLAIN), output_stride=stride, dilate=dilate)).backbone.eval()
        for stride, dilate in ((32, True), (16, False), (16, True))
    )
    assert furthest(found.state_dict(), plain.state_dict()) == furthest(found.state_dict(), dilated.state_dict()) == 0
    block: Any = plain.get_submodule("layer4.0")
    block.conv2.stride = block.downsample[0].stride = (1, 1)
    images = torch.rand(2, 3, 70, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected, ours, other = plain(images), found(images), dilated(images)
    assert [maps.shape for maps in ours] == [maps.shape for maps in expected] == [maps.shape for maps in other]
    assert all(torch.equal(one, two) for one, two in zip(ours, expected, strict=True))
    assert not torch.allclose(ours[-1], other[-1], atol=1e-3)
    assert encoders.feature_strides(found)[-1] == 16


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize(
    "encoder",
    [
        {"name": "resnet10t"},
        {"name": "mobilenetv1_100", "options": {"pad_type": "same"}},
        {"name": "mobilenetv1_100"},
        {"name": "efficientnet_b0"},
        {"name": "convnext_atto"},  # halves its maps with kernels of 2×2
        {"name": "regnety_002"},
        {"name": "skresnet18"},  # has dilated convolutions of its own
    ],
    ids=str,
)
def test_encoders_reach_a_stride_without_dilation(encoder: dict[str, Any], stride: int) -> None:
    chosen = Encoder.model_validate(encoder)
    with torch.device("meta"):
        found = encoders.create_backbone(chosen, stride, dilate=False)
        dilated, plain = (encoders.create_backbone(chosen, one) for one in (stride, 32))
        maps, others = found(torch.empty(2, 3, 64, 96)), dilated(torch.empty(2, 3, 64, 96))
    assert [one.shape for one in maps] == [one.shape for one in others]
    assert maps[-1].shape[-2:] == (64 // stride, 96 // stride)

    def dilations(backbone: nn.Module) -> list[Any]:
        return [layer.dilation for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]

    assert dilations(found) == dilations(plain) != dilations(dilated)


def test_the_same_is_drawn_with_dilation_and_without() -> None:
    one, other = (network(Classifier.model_validate(AS_IRN | {"dilate": dilate})) for dilate in (True, False))
    assert furthest(one.state_dict(), other.state_dict()) == 0


def test_an_encoder_whose_stride_cannot_be_taken() -> None:
    for name in ("mit_b0", "pvt_v2_b0"):
        with pytest.raises(UserError, match=f"output_stride: `{name}` cannot be dilated; set 32"):
            encoders.create_backbone(Encoder(name=name), 16, dilate=False)


# --- files and commands ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shapes.draw(folder / "set", Shapes(train=8, val=2))
    voc.build(folder / "set", "train", "val", shapes.CLASSES, folder / "manifest.csv")
    return folder


def command(dataset: Path, output: Path, *more: str, **changes: Any) -> Path:
    """`beco train-classifier` on the drawn pictures, as IRN but for `changes`; its network's file."""
    small = {"encoder": SMALL, "crop": {"size": 64, "long_side": [48, 80]}, "schedule": {"steps": 3, "batch_size": 4}}
    done = subprocess.run(
        [str(Path(sys.executable).parent / "beco"), "train-classifier", "--manifest", str(dataset / "manifest.csv"),
         "--root", str(dataset / "set"), "--settings", yaml.safe_dump(AS_IRN | small | changes), "--device", "cpu",
         "--output", str(output), *more],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return output / "classifier.safetensors"


@pytest.fixture(scope="module")
def made(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return command(dataset, tmp_path_factory.mktemp("classifier"))


def dilations(backbone: nn.Module) -> set[Any]:
    return {layer.dilation for layer in backbone.modules() if isinstance(layer, nn.Conv2d)}


def test_the_file_knows_how_its_network_was_built(made: Path, tmp_path: Path) -> None:
    found, classes = classifier.load(made)
    assert classes == shapes.CLASSES and dilations(found.backbone) == {(1, 1)}
    state, metadata = encoders.load_network(made)
    assert metadata["dilate"] == "false"
    older = {key: value for key, value in metadata.items() if key != "dilate"}
    encoders.save_network(found, tmp_path / "older.safetensors", older)  # those were all dilated
    again, _ = classifier.load(tmp_path / "older.safetensors")
    assert dilations(again.backbone) == {(1, 1), (2, 2)} and furthest(again.state_dict(), state) == 0


def test_stage_two_takes_its_weights_and_dilates_them(made: Path) -> None:
    settings = Network.model_validate({"encoder": {**SMALL, "weights": "classifier"}, "decoder_channels": 8})
    found, state = networks.build(settings, 6, made), encoders.load_network(made)[0]
    assert dilations(found.backbone) == {(1, 1), (2, 2)}
    assert all(torch.equal(value, state[f"backbone.{key}"]) for key, value in found.backbone.state_dict().items())


def test_two_processes_train_as_one(dataset: Path, made: Path, tmp_path: Path) -> None:
    """Parameters without a gradient do not keep the processes waiting, and statistics stay where they were."""
    found, _ = encoders.load_network(command(dataset, tmp_path, "--devices", "2"))
    assert furthest(found, encoders.load_network(made)[0]) < 1e-4
    one, other = (pd.read_csv(folder / "history.csv")["loss"] for folder in (tmp_path, made.parent))
    assert one.tolist() == pytest.approx(other.tolist(), rel=1e-4)
    summary = json.loads((tmp_path / "classifier.json").read_text())
    assert summary["settings"]["optimiser"]["momentum"] == 1e-4 and summary["settings"]["frozen_stages"] == 2
