"""CLIP-ES: its maps against a slow second version, its invariants, and what it is given."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import localiser_inputs
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beco.config import Cam, Encoder
from beco.errors import UserError
from beco.networks import encoders, joint
from beco.networks.weights import read_safetensors, write_safetensors
from beco.stage1 import localisers, texts
from beco.stage1.localisers import clip_es
from beco.stage1.localisers.base import Inputs, Localiser

CLASSES = ["cat", "dog", "cow"]
SIDE = 16
"""Of a patch."""


def made(folder: Path, classes: list[str] | None = None, **options: Any) -> Localiser:
    """A network of a small random tower, in double precision."""
    classes = classes or CLASSES
    encoder = Encoder.model_validate(localiser_inputs.clip_tower(folder))
    network = localisers.make("clip_es", encoder, SIDE, len(classes), True, options)
    encoders.prepare_backbone(network.backbone, encoder)
    network.begin(Inputs(text=texts.read(localiser_inputs.written(folder / "texts.safetensors", classes))))
    return network.eval().double()


# --- a slow second version ----------------------------------------------------------------------------------


def whole_tower(network: Localiser) -> Any:
    """timm's own model with its head, whose attention says what it is."""
    body = timm.create_model(
        network.encoder.name, num_classes=localiser_inputs.WIDTH, dynamic_img_size=True, **network.encoder.options
    )
    body.load_state_dict(read_safetensors(Path(str(network.encoder.weights)))[0])
    for block in body.blocks:
        block.attn.fused_attn = False
    return body.eval().double()


def slow_map(network: Localiser, image: Tensor, shown: list[int], of: int) -> Tensor:
    """The map (h, w) of the class `of` in a picture (3, H, W) that shows the classes `shown`: plain loops, and one
    gradient through the whole tower.
    """
    body, options = whole_tower(network), network.options
    seen: dict[Any, Tensor] = {}

    def keep(name: Any) -> Any:
        def hook(module: nn.Module, given: Any, found: Tensor) -> None:
            seen[name] = found

        return hook

    for number, block in enumerate(body.blocks):
        block.attn.attn_drop.register_forward_hook(keep(number))
    body.blocks[-1].norm1.register_forward_hook(keep("normed"))
    rows, columns = (-(-side // SIDE) for side in image.shape[1:])
    fed = F.interpolate(image[None], (rows * SIDE, columns * SIDE), mode="bilinear", antialias=True)
    final = body.forward_features(network.normalise(fed))[0, 1:]
    vector = sum(body.head(token) for token in final) / len(final)
    unit = vector / vector.norm()
    competing = [*shown, *range(network.classes, len(network.texts))]
    powers = {k: torch.exp(network.scale * sum(a * b for a, b in zip(unit, network.texts[k], strict=True)))
              for k in competing}  # fmt: skip
    probability = powers[of] / sum(powers.values())
    if options["gradient_of"] == "odds":
        probability = torch.log(powers[of] / sum(power for k, power in powers.items() if k != of))
    (gradient,) = torch.autograd.grad(probability, seen["normed"])
    activations, count = seen["normed"][0, 1:].detach(), rows * columns
    weights = [sum(gradient[0, 1 + at, c] for at in range(count)) / count for c in range(activations.shape[1])]
    scores = [max(float(sum(w * a for w, a in zip(weights, one, strict=True))), 0.0) for one in activations]
    cam = slow_stretch(scores)
    if options["affinity"]:
        cam = slow_stretch(slow_carried([float(one) for one in cam], seen, body, options, columns))
    return torch.tensor(cam, dtype=torch.float64).view(rows, columns)


def slow_stretch(scores: list[float]) -> list[float]:
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low + clip_es.EVEN) if high > low else 0.0 for score in scores]


def slow_carried(
    cam: list[float], seen: dict[Any, Tensor], body: Any, options: dict[str, Any], columns: int
) -> list[float]:
    count, blocks = len(cam), list(range(len(body.blocks)))[-options["affinity_blocks"] :]
    matrix = [
        [sum(float(seen[b][0, :, 1 + i, 1 + j].detach().mean()) for b in blocks) / len(blocks) for j in range(count)]
        for i in range(count)
    ]
    for _ in range(options["sinkhorn"]):
        sums = [sum(row[j] for row in matrix) for j in range(count)]
        matrix = [[row[j] / sums[j] for j in range(count)] for row in matrix]
        matrix = [[value / sum(row) for value in row] for row in matrix]
    matrix = [[(matrix[i][j] + matrix[j][i]) / 2 for j in range(count)] for i in range(count)]
    for _ in range(options["squarings"]):
        matrix = [[sum(row[k] * matrix[k][j] for k in range(count)) for j in range(count)] for row in matrix]
    kept = slow_boxes(cam, columns, options["box_threshold"])
    return [sum(matrix[i][j] * cam[j] for j in range(count) if j in kept) for i in range(count)]


def slow_boxes(cam: list[float], columns: int, threshold: float) -> set[int]:
    """Cells within the boxes of regions, each grown from a cell by all that touch it."""
    high = {divmod(at, columns) for at, score in enumerate(cam) if score > threshold * max(cam)}
    kept: set[int] = set()
    while high:
        region, new = set[tuple[int, int]](), {high.pop()}
        while new:
            region |= new
            new = {(y, x) for y, x in high if any(abs(y - a) <= 1 and abs(x - b) <= 1 for a, b in new)}
            high -= new
        tall, wide = ([cell[axis] for cell in region] for axis in (0, 1))
        for y, x in itertools.product(range(min(tall), max(tall) + 1), range(min(wide), max(wide) + 1)):
            kept.add(y * columns + x)
    return kept


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (64, 64)),
        ({"gradient_of": "probability"}, (40, 75)),
        ({"affinity": False}, (33, 48)),
        ({"affinity_blocks": 1, "sinkhorn": 1, "squarings": 0, "box_threshold": 0.7}, (50, 66)),
        ({"affinity_blocks": 2, "squarings": 2, "box_threshold": 0.0}, (48, 30)),
    ],
)
def test_maps_are_those_of_a_slow_version(options: dict[str, Any], size: tuple[int, int], tmp_path: Path) -> None:
    network = made(tmp_path, **options)
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1)).double()
    shown = [[0, 2], [1], []]
    targets = torch.zeros(3, 3)
    for one, present in zip(targets, shown, strict=True):
        one[present] = 1
    found = network.view(images, targets)
    assert found.shape == (3, 3, -(-size[0] // SIDE), -(-size[1] // SIDE))
    for picture, k in itertools.product(range(3), range(3)):
        wanted = slow_map(network, images[picture], shown[picture], k) if k in shown[picture] else 0
        assert (found[picture, k] - wanted).abs().max() < 1e-5, (picture, k)
    assert all(found[picture, k].max() > 0.9 for picture, k in ((0, 0), (0, 2)))


# --- invariants ---------------------------------------------------------------------------------------------


def test_equal_texts_tell_nothing_apart(tmp_path: Path) -> None:
    network, images = made(tmp_path), torch.rand(2, 3, 48, 48).double()
    network.texts[:] = network.texts[0].clone()
    assert torch.allclose(network(images).exp(), torch.full((2, 3), 1 / 5, dtype=torch.float64))
    tokens, _ = network._before_last(images)
    raw = [maps for _, _, maps in network._gradcam(tokens, torch.ones(2, 3, dtype=torch.bool))]
    assert len(raw) == 3 and all(maps.max() < 1e-12 for maps in raw)


def test_only_what_a_picture_shows_competes(tmp_path: Path) -> None:
    network, images = made(tmp_path), torch.rand(1, 3, 48, 64).double()
    targets = torch.tensor([[1.0, 1.0, 0.0]])
    before = network.view(images, targets)
    network.texts[2] = F.normalize(torch.randn(8).double(), dim=0)
    assert torch.equal(network.view(images, targets), before)
    for place in (1, 3):  # the other class, and a background
        network.texts[place] = F.normalize(torch.randn(8).double(), dim=0)
        after = network.view(images, targets)
        assert not torch.allclose(after[0, 0], before[0, 0])
        before = after


def test_the_gradient_of_odds_is_that_of_the_probability_and_outlives_it(tmp_path: Path) -> None:
    """A softmax that rounds to 1 or 0 has none."""
    images, shown = torch.rand(4, 3, 48, 64).double(), torch.ones(4, 3, dtype=torch.bool)
    network, original = made(tmp_path), made(tmp_path, gradient_of="probability")
    tokens, _ = network._before_last(images)
    chance = network._logits(tokens, network._last.norm1(tokens)).softmax(1)
    for number, ((*_, odds), (*_, plain)) in enumerate(
        zip(network._gradcam(tokens, shown), original._gradcam(tokens, shown), strict=True)
    ):
        p = chance[:, number, None]
        assert torch.allclose(plain, p * (1 - p) * odds, rtol=1e-6, atol=1e-15) and odds.any()
    for one in (network, original):
        one.scale.fill_(2000.0)
    before, after = (one.float().view(images.float(), shown).amax((2, 3)) for one in (original, network))
    assert before.max() < 0.1 and after.min() > 0.9


@pytest.mark.parametrize("squarings", [0, 1, 3])
def test_attention_to_itself_leaves_the_boxes(squarings: int, tmp_path: Path) -> None:
    network = made(tmp_path, squarings=squarings)
    maps = torch.rand(2, 4, 5).double()
    carrying = clip_es.transition(torch.eye(20).double().expand(2, 20, 20), 3, squarings)
    found = network._carried(carrying, maps)
    within = clip_es.in_boxes(maps, 0.4)
    assert torch.allclose(found, (maps * within).flatten(1))


def test_what_is_carried_is_doubly_stochastic() -> None:
    attention = torch.rand(12, 12).double().softmax(1)
    for squarings in (0, 1, 2):
        found = clip_es.transition(attention, 200, squarings)
        assert torch.allclose(found.sum(0), torch.ones(12).double()) and torch.allclose(found, found.T)
        assert torch.allclose(found.sum(1), torch.ones(12).double())
    few = clip_es.transition(attention, 3, 0)
    assert not torch.equal(few, clip_es.transition(attention, 1, 0)) and (few.sum(0) - 1).abs().max() < 0.01


def test_boxes_about_regions_that_touch() -> None:
    maps = torch.tensor([[
        [0.9, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0, 0.5],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.4, 0.0, 0.0, 0.6],
    ]])  # fmt: skip
    boxes = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert clip_es.in_boxes(maps, 0.4)[0].int().tolist() == boxes  # 0.4 of the maximum is not above it
    assert clip_es.in_boxes(maps, 0.7)[0].sum() == 4 and not clip_es.in_boxes(torch.zeros(1, 2, 2), 0.4).any()


def planted(folder: Path) -> Localiser:
    """A tower made by hand: a patch's tokens are its mean colour, whose last block attends to patches of that colour
    and adds what it finds.
    """
    options = {"depth": 2, "embed_dim": 6, "num_heads": 1, "img_size": 64}
    encoder = Encoder(name="vit_base_patch16_clip_224", options=options, mean=(0.5,) * 3, std=(0.5,) * 3)
    network = localisers.make("clip_es", encoder, SIDE, 2, True, {})
    body = network.backbone.body
    for name, parameter in body.named_parameters():
        parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for channel in range(3):  # each colour, and its opposite, so that the mean over channels is 0
        body.patch_embed.proj.weight[channel, channel] = 1 / SIDE**2
        body.patch_embed.proj.weight[channel + 3, channel] = -1 / SIDE**2
    last = body.blocks[-1].attn
    last.qkv.weight[:] = torch.cat([2 * torch.eye(6), 2 * torch.eye(6), torch.eye(6)])
    last.proj.weight[:] = torch.eye(6)
    network.projection, network.shift, network.scale = torch.eye(6), torch.zeros(6), torch.tensor(10.0)
    colours = [plain(1, 0, 0), plain(0, 1, 0), plain(0, 0, 1)]
    own = [directions(network, colour[None])[0] for colour in colours]
    network.texts = torch.stack(own)
    return network.eval()


def plain(*colour: float) -> Tensor:
    return torch.tensor(colour).float()[:, None, None].expand(3, 64, 64).clone()


def directions(network: Localiser, images: Tensor) -> Tensor:
    """Where pictures lie in the space of texts."""
    tokens, _ = network._before_last(images)
    network.texts = torch.eye(6)
    return F.normalize(network._logits(tokens, network._last.norm1(tokens)), dim=1)


@pytest.mark.parametrize("affinity", [False, True])
def test_a_text_in_the_direction_of_an_object_maps_it(affinity: bool, tmp_path: Path) -> None:
    """A picture of blue with a red and a green object, whose texts are what pictures of one colour look like."""
    network = planted(tmp_path)
    network.options = {**network.options, "affinity": affinity}
    image = plain(0, 0, 1)
    image[:, 16:48, :16] = plain(1, 0, 0)[:, 16:48, :16]
    image[:, 32:, 48:] = plain(0, 1, 0)[:, 32:, 48:]
    found = network.view(image[None], torch.ones(1, 2))[0]
    objects = torch.zeros(2, 4, 4, dtype=torch.bool)
    objects[0, 1:3, 0] = objects[1, 2:, 3] = True
    assert found[objects].min() > 0.9 and found[~objects].max() < 0.2
    straight = network.score(image[None], torch.ones(1, 2), ["a"], Cam(scales=[1.0], flip=False))
    both = network.score(image[None], torch.ones(1, 2), ["a"], Cam(scales=[1.0], flip=True))
    assert straight.shape == (1, 2, 16, 16) and (straight - both).abs().max() < 1e-4  # nothing here knows its place
    assert straight[0, 0, 6:10, :2].min() > 0.9 and straight[0, 0, :, 8:].max() < 0.2


def test_memory_is_that_of_one_class_at_a_time(tmp_path: Path) -> None:
    """No gradient is larger than the tokens of the pictures, whatever the number of classes."""
    names = [f"class {number}" for number in range(30)]
    network = made(tmp_path, names)
    tokens, _ = network._before_last(torch.rand(2, 3, 32, 32).double())
    shown = torch.zeros(2, 30, dtype=torch.bool)
    shown[0], shown[1, [3, 7]] = True, True
    parts = [(pictures.tolist(), classes.tolist()) for pictures, classes, _ in network._gradcam(tokens, shown)]
    assert parts[:3] == [([0, 1], [0, 3]), ([0, 1], [1, 7]), ([0], [2])] and len(parts) == 30


# --- what it is given ---------------------------------------------------------------------------------------


def test_a_network_is_kept_whole(tmp_path: Path) -> None:
    network = made(tmp_path)
    other = localisers.make("clip_es", network.encoder.model_copy(update={"weights": None}), SIDE, 3, True, {})
    other.load_state_dict(network.state_dict())
    images, targets = torch.rand(1, 3, 48, 48), torch.ones(1, 3)
    assert torch.equal(other.eval().view(images, targets), network.float().view(images, targets))


def test_projections_in_every_naming(tmp_path: Path) -> None:
    encoder = Encoder.model_validate(localiser_inputs.clip_tower(tmp_path))
    path = Path(str(encoder.weights))
    state, _ = read_safetensors(path)
    weight, bias = state["head.weight"], state["head.bias"]
    found = joint.image_projection(encoder)
    assert torch.equal(found[0], weight) and torch.equal(found[1], bias)
    for names in (
        {"visual.proj": weight.T.half()},
        {"module.visual.proj": weight.T},
        {"visual.head.proj.weight": weight, "visual.trunk.norm.weight": torch.ones(3)},
    ):
        write_safetensors(path, {key: value.contiguous() for key, value in names.items()}, {})
        one, other = joint.image_projection(encoder)
        assert torch.allclose(one, weight, atol=1e-3) and one.dtype == torch.float32 and not other.any()
    write_safetensors(path, {"norm.weight": torch.ones(3)}, {})
    with pytest.raises(UserError, match="has no projection to the space of texts"):
        joint.image_projection(encoder)
    with pytest.raises(UserError, match=r"encoder\.weights: null brings no projection"):
        joint.image_projection(encoder.model_copy(update={"weights": None}))


@pytest.mark.parametrize("name", ["resnet10t", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"])
def test_another_encoder_is_refused(name: str) -> None:
    stride = {"resnet10t": 16, "eva02_tiny_patch14_224": 14}.get(name, 32)
    with pytest.raises(UserError, match=rf"encoder\.name: `{name}` is no image tower of CLIP"):
        localisers.make("clip_es", Encoder(name=name), stride, 3)


def test_texts_of_another_tower_are_refused(tmp_path: Path) -> None:
    network = made(tmp_path)
    with pytest.raises(UserError, match="its texts have 5 features, the image tower 8"):
        network.begin(Inputs(text=texts.read(localiser_inputs.written(tmp_path / "five.safetensors", CLASSES, 5))))
