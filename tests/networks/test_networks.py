"""Networks of stage two: their sizes against counts by hand, their outputs, and that every part of them learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_networks import ARCHITECTURES, MIT, TINY, network
from torch import Tensor, nn
from torch.nn import functional as F

from beco.config import Encoder, Network
from beco.errors import UserError
from beco.networks import encoders, heads
from beco.networks.segmenter import Segmenter, build


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def scatter(module: nn.Module) -> None:
    """Parameters and statistics unlike fresh ones, so that none of them can be left out unnoticed."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                drawn = torch.rand(value.shape, generator=generator)
                value.copy_(drawn + 0.5 if key.endswith("running_var") else drawn - 0.4)


# --- the published networks ---------------------------------------------------------------------------------


def resnet(blocks: tuple[int, ...], deep_stem: bool) -> int:
    """Parameters of a ResNet of bottlenecks: convolutions without bias, two numbers per channel of each BN."""
    stem = [(3, 32, 9), (32, 32, 9), (32, 64, 9)] if deep_stem else [(3, 64, 49)]
    layers, before = stem, 64
    for count, width in zip(blocks, (64, 128, 256, 512), strict=True):
        layers.append((before, 4 * width, 1))  # the shortcut that widens
        for _ in range(count):
            layers += [(before, width, 1), (width, width, 9), (width, 4 * width, 1)]
            before = 4 * width
    return sum(inputs * outputs * area + 2 * outputs for inputs, outputs, area in layers)


def aspp_and_decoder(deep: int, early: int, classes: int, fusions: int) -> int:
    def dense(inputs: int, outputs: int) -> int:
        return inputs * outputs + 2 * outputs  # convolution and batch normalisation

    pyramid = dense(deep, 256) + 3 * (11 * deep + dense(deep, 256)) + dense(deep, 256) + dense(5 * 256, 256)
    fused = 11 * 304 + dense(304, 256) + (fusions - 1) * (11 * 256 + dense(256, 256))
    return pyramid + dense(early, 48) + fused + 256 * classes + classes


def mix_transformer(widths: tuple[int, ...], depths: tuple[int, ...]) -> int:
    """Parameters of MiT: overlapping patches, then blocks of attention on a reduced map and a mixing MLP."""
    total, before = 0, 3
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        patch, reduction = (7, 3, 3, 3)[stage], (8, 4, 2, 1)[stage]
        attention = 4 * (width * width + width)  # query, key, value, projection
        if reduction > 1:
            attention += reduction**2 * width**2 + width + 2 * width
        mlp = (width * 4 * width + 4 * width) + (9 * 4 * width + 4 * width) + (4 * width * width + width)
        total += patch**2 * before * width + 3 * width + depth * (attention + mlp + 4 * width) + 2 * width
        before = width
    return total


@pytest.mark.parametrize(
    ("architecture", "name", "stride", "more", "backbone", "decoder"),
    [
        ("deeplabv3plus", "resnet101d", 16, {}, 42_519_392, aspp_and_decoder(2048, 256, 21, 1)),
        ("deeplabv3plus", "resnet101d", 8, {"decoder_convolutions": 2}, 42_519_392, aspp_and_decoder(2048, 256, 21, 2)),
        ("deeplabv2", "resnet101", 8, {}, 42_500_160, 4 * (9 * 2048 * 21 + 21)),
    ],
)
def test_parameters_of_the_papers_networks(
    architecture: str, name: str, stride: int, more: dict[str, Any], backbone: int, decoder: int
) -> None:
    settings = Network.model_validate(
        {"architecture": architecture, "encoder": {"name": name}, "output_stride": stride, **more}
    )
    with torch.device("meta"):
        found = Segmenter(settings, 20)
        logits = found(torch.empty(2, 3, 65, 97))
    assert (size(found.backbone), size(found.decoder)) == (backbone, decoder)
    assert backbone == resnet((3, 4, 23, 3), deep_stem=name.endswith("d"))
    assert logits.shape == (2, 21, 65, 97)  # and nothing asked for a value on the way


@pytest.mark.parametrize(
    ("name", "widths", "depths", "backbone"),
    [
        ("mit_b0", (32, 64, 160, 256), (2, 2, 2, 2), 3_319_392),
        ("mit_b2", (64, 128, 320, 512), (3, 4, 6, 3), 24_196_288),
    ],
)
def test_parameters_of_segformer(
    name: str, widths: tuple[int, ...], depths: tuple[int, ...], backbone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "apply", lambda self, _: self)  # counted, not run: drawing the numbers takes long
    settings = Network(architecture="segformer", encoder=Encoder(name=name), output_stride=32)
    found = Segmenter(settings, 5)
    assert size(found.backbone) == backbone == mix_transformer(widths, depths)
    linear, fuse = sum(width * 768 + 768 for width in widths), 4 * 768 * 256 + 2 * 256
    assert size(found.decoder) == linear + fuse + 256 * 6 + 6
    if name == "mit_b2":
        assert size(found.decoder) == 1_577_990  # of the published head with six outputs


def test_widths_of_segformer_are_set_one_by_one() -> None:
    settings = network("segformer", embedding_channels=7, decoder_channels=9)
    head = heads.create_head(settings, [3, 4, 5, 6], [4, 8, 16, 32], 2)
    shapes = {key: tuple(value.shape) for key, value in head.named_parameters() if value.ndim > 1}
    assert [shape for key, shape in shapes.items() if "linear" in key] == [(7, 6), (7, 5), (7, 4), (7, 3)]
    assert [shape for shape in shapes.values() if len(shape) == 4] == [(9, 28, 1, 1), (2, 9, 1, 1)]


def test_segformer_by_hand() -> None:
    head = heads.create_head(network("segformer"), [3, 4, 5, 6], [4, 8, 16, 32], 2).eval()
    scatter(head)
    state = head.state_dict()
    features = [torch.rand(2, 3 + level, 16 >> level, 24 >> level) for level in range(4)]
    stages = []
    for number, x in enumerate(reversed(features)):  # the deepest comes first in the file's order
        weight, bias = (state[f"body.mlp_stage.{number}.linear.{key}"] for key in ("weight", "bias"))
        x = torch.einsum("bchw,oc->bohw", x, weight) + bias.view(1, -1, 1, 1)
        stages.append(F.interpolate(x, (16, 24), mode="bilinear", align_corners=False))
    x = slow(torch.cat(stages, 1), state["body.fuse_stage.0.weight"])
    mean, variance, gain, shift = (
        state[f"body.fuse_stage.1.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    x = ((x - mean) / (variance + 1e-5).sqrt() * gain + shift).clamp(min=0)
    expected = slow(x, state["classifier.weight"]) + state["classifier.bias"].view(1, -1, 1, 1)
    assert expected.std() > 1e-3
    assert torch.allclose(head(features), expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_drawn_by_anything_but_fan_in() -> None:
    torch.manual_seed(0)
    head = Segmenter(network(decoder_channels=64, decoder_convolutions=2), 20).decoder
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 500:
            expected = math.sqrt(2 / (layer.weight[0].numel()))
            assert (
                layer.weight.std().item() == pytest.approx(expected, rel=0.12)
                and abs(layer.weight.mean()) < expected / 8
            )
            assert layer.bias is None or not layer.bias.any()


# --- outputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "stride"),
    [(name, stride) for name in ("deeplabv2", "deeplabv3plus") for stride in (8, 16, 32)] + [("segformer", 32)],
)
@pytest.mark.parametrize("sides", [(64, 96), (65, 47), (33, 70), (1, 5)])
def test_logits_have_the_size_of_the_pictures(architecture: str, stride: int, sides: tuple[int, int]) -> None:
    settings = network(architecture, output_stride=stride)
    torch.manual_seed(0)
    found = Segmenter(settings, 5).eval()
    images = torch.rand(2, 3, *sides)
    with torch.no_grad():
        logits = found(images)
        assert logits.shape == (2, 6, *sides) and logits.dtype == torch.float32
        deepest = found.backbone(torch.rand(1, 3, 64, 96))
        assert deepest[-1].shape[-2:] == (64 // stride, 96 // stride)
        expected = stride if architecture == "deeplabv2" else 4
        assert found.decoder(deepest).shape == (1, 6, 64 // expected, 96 // expected)
        # as if the picture went on in the mean colour, to the next multiple of the stride
        height, width = (math.ceil(side / stride) * stride for side in sides)
        framed = found.normalise.mean.repeat(2, 1, height, width)
        framed[..., : sides[0], : sides[1]] = images
        assert torch.allclose(found(framed)[..., : sides[0], : sides[1]], logits, atol=1e-5)
        assert torch.allclose(found(images[1:]), logits[1:], atol=1e-5)


def test_the_encoders_mean_and_deviation_are_applied() -> None:
    found = Segmenter(network(encoder={**TINY, "mean": (0.5, 0.25, 0), "std": (0.5, 2, 1)}), 3)
    images = torch.rand(1, 3, 32, 32)
    by_hand = (images - torch.tensor([0.5, 0.25, 0]).view(3, 1, 1)) / torch.tensor([0.5, 2, 1]).view(3, 1, 1)
    assert torch.allclose(found.normalise(images), by_hand, atol=1e-6)
    assert not any("normalise" in key for key in found.state_dict())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_and_channels_last(architecture: str) -> None:
    torch.manual_seed(0)
    found = Segmenter(network(architecture), 4).eval()
    scatter(found.decoder)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = found(images)
        found, images = found.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
        assert torch.allclose(found(images), expected, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rough = found(images)
    assert rough.dtype == torch.float32
    assert (rough - expected).abs().mean() < 0.05 * expected.std() + 0.02 * expected.abs().mean()


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "segformer"])
def test_the_compiler_sees_one_graph(architecture: str) -> None:
    found = Segmenter(network(architecture), 4)  # in training mode: statistics of the batch, draws of dropout
    images = torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    expected = found(images)
    torch.manual_seed(0)
    assert torch.allclose(torch.compile(found, backend="eager", fullgraph=True)(images), expected, atol=1e-5)


# --- heads against sums by hand -----------------------------------------------------------------------------


def slow(features: Tensor, weight: Tensor, dilation: int = 1, groups: bool = False) -> Tensor:
    """A convolution as a sum of shifted maps, zero outside."""
    reach = dilation * (weight.shape[-1] // 2)
    height, width = features.shape[2:]
    total = torch.zeros(())
    framed = torch.zeros(*features.shape[:2], height + 2 * reach, width + 2 * reach)
    framed[..., reach : reach + height, reach : reach + width] = features
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            part = framed[..., row * dilation : row * dilation + height, column * dilation : column * dilation + width]
            tap = weight[:, :, row, column]
            total = total + (part * tap.view(1, -1, 1, 1) if groups else torch.einsum("bchw,oc->bohw", part, tap))
    return total


def test_deeplabv2_is_the_sum_of_its_branches() -> None:
    head = heads.DeepLabV2(3, (1, 2, 6), 4)
    scatter(head)
    features = torch.rand(2, 3, 7, 5)
    pairs = zip(head.branches, (1, 2, 6), strict=True)
    expected = sum(slow(features, branch.weight, rate) + branch.bias.view(1, -1, 1, 1) for branch, rate in pairs)
    assert torch.allclose(head([torch.rand(2, 9, 14, 10), features]), expected, atol=1e-5)


@pytest.mark.parametrize("convolutions", [1, 2])
def test_deeplabv3plus_by_hand(convolutions: int) -> None:
    head = heads.DeepLabV3Plus(network(decoder_convolutions=convolutions), 1, 5, 7, 4).eval()
    scatter(head)
    state = head.state_dict()
    features = [torch.rand(2, 3, 24, 16), torch.rand(2, 5, 12, 8), torch.rand(2, 7, 3, 2)]

    def block(x: Tensor, name: str, dilation: int = 1, groups: bool = False, norm: str | None = None) -> Tensor:
        x = slow(x, state[f"{name}.weight" if norm else f"{name}.0.weight"], dilation, groups)
        norm = norm or f"{name}.1"
        mean, variance, gain, shift = (
            state[f"{norm}.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (variance + 1e-5).sqrt() * gain + shift).clamp(min=0)

    def two(x: Tensor, name: str, dilation: int = 1) -> Tensor:
        return block(block(x, f"{name}.0", dilation, True), f"{name}.1")

    deep = features[2]
    mean = deep.sum((2, 3), keepdim=True) / 6
    pooled = block(mean, "aspp.pooling.project", norm="aspp.pooling.norm").repeat(1, 1, 3, 2)
    rates = [two(deep, f"aspp.branches.{number}", number) for number in (1, 2, 3)]  # the rates are 1, 2, 3 as well
    context = block(torch.cat([block(deep, "aspp.branches.0"), *rates, pooled], 1), "aspp.project")
    context = F.interpolate(context, (12, 8), mode="bilinear", align_corners=False)
    x = torch.cat([context, block(features[1], "low_level")], 1)
    for number in range(convolutions):
        x = two(x, f"fuse.{number}")
    expected = slow(x, state["classifier.weight"]) + state["classifier.bias"].view(1, -1, 1, 1)
    assert expected.std() > 1e-3
    assert torch.allclose(head(features), expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_where_it_belongs() -> None:
    channels = [5, 7, 9, 11]
    features, others = ([torch.rand(4, c, 32 >> i, 32 >> i) for i, c in enumerate(channels)] for _ in range(2))
    # all of it dropped, DeepLabV3+ knows the early features alone and SegFormer nothing
    head = heads.create_head(network(dropout=1), channels, [4, 8, 16, 32], 3)
    assert torch.equal(head(features), head([features[0], *others[1:]]))
    assert not torch.equal(head(features), head([others[0], *features[1:]]))
    head = heads.create_head(network("segformer", dropout=1), channels, [4, 8, 16, 32], 3)
    assert not head(features).any()
    # single values there, whole channels here
    torch.manual_seed(0)
    for architecture, place, whole in (("deeplabv3plus", "aspp.dropout", False), ("segformer", "dropout", True)):
        head = heads.create_head(network(architecture, dropout=0.5), channels, [4, 8, 16, 32], 3)
        kept = head.get_submodule(place)(torch.ones(4, 8, 6, 6)).flatten(2) / 2
        assert 0.3 < kept.mean() < 0.7 and (kept.amin(2) == kept.amax(2)).all() == whole
        assert len([m for m in head.modules() if "Dropout" in type(m).__name__]) == 1
    assert not any("Dropout" in type(m).__name__ for m in Segmenter(network("deeplabv2"), 3).modules())


# --- learning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_learns_and_the_loss_falls(architecture: str) -> None:
    torch.manual_seed(1)
    found = Segmenter(network(architecture), 2)
    images = torch.rand(2, 3, 64, 64) * 0.3
    label = torch.zeros(2, 64, 64, dtype=torch.long)
    for number, side in ((1, slice(8, 32)), (2, slice(36, 60))):
        images[:, number, side, side] += 0.6
        label[:, side, side] = number
    optimiser = torch.optim.Adam(found.parameters(), 0.01)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = F.cross_entropy(found(images), label)
        loss.backward()
        assert not [key for key, p in found.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert {id(p) for p in found.parameters()} == {
        id(p) for m in (found.backbone, found.decoder) for p in m.parameters()
    }


def test_other_encoders_under_each_decoder() -> None:
    """Any encoder with maps at the strides that the decoder wants, timm's under SegFormer and MiT under DeepLab."""
    for architecture, encoder in (("segformer", TINY), ("segformer", {"name": "pvt_v2_b0"}), ("deeplabv3plus", MIT)):
        found = Segmenter(network(architecture, encoder=encoder, output_stride=32), 2)
        found(torch.rand(2, 3, 32, 40)).sum().backward()
        assert all(p.grad is not None for p in found.parameters())


def test_one_picture_cannot_be_normalised() -> None:
    found = Segmenter(network(), 3)
    with pytest.raises(UserError, match=r"training\.schedule\.batch_size: deeplabv3plus cannot train on one") as caught:
        found(torch.rand(1, 3, 32, 32))
    assert "\n" not in str(caught.value)
    assert found.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 4, 32, 32)
    for architecture in ("deeplabv2", "segformer"):
        assert Segmenter(network(architecture), 3)(torch.rand(1, 3, 32, 32)).shape == (1, 4, 32, 32)


# --- starting weights and what does not fit -----------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_reach_the_backbone_and_nothing_else(architecture: str, tmp_path: Any) -> None:
    settings = network(architecture)
    source = Segmenter(settings, 3).backbone
    scatter(source)
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pth")
    encoder = settings.encoder.model_copy(update={"weights": str(tmp_path / "w.pth")})
    torch.manual_seed(2)
    found = build(settings.model_copy(update={"encoder": encoder}), 3)
    torch.manual_seed(2)
    fresh = build(settings, 3)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in found.backbone.state_dict().items())
    assert all(torch.equal(v, fresh.decoder.state_dict()[k]) for k, v in found.decoder.state_dict().items())


def test_what_cannot_be_built_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, message in (
        ({"name": "resnet1000"}, "encoder.name: timm has no model `resnet1000`"),
        ({"name": "resnet10t", "options": {"chanels": 3}}, "encoder.options of `resnet10t`"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            build(Network(encoder=Encoder.model_validate(wrong)), 3)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="output_stride: `mit_b0` cannot be dilated"):
        build(network(encoder=MIT), 3)
    with pytest.raises(
        UserError, match=r"needs features at stride 4, and `resnet10t` has strides 8, 16; set architecture to"
    ):
        heads.create_head(network(), [8, 8], [8, 16], 3)
    monkeypatch.setattr(encoders, "feature_strides", lambda _: [2, 4, 8, 16, 32])
    with pytest.raises(UserError, match="output_stride: the features of `resnet10t` end at stride 32, not 16"):
        build(network(), 3)
