"""CLIP-ES: its maps against a slow second version, its invariants, and what it is given."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import localiser_inputs
import pytest
import timm
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from beco.cli import stage1 as cli
from beco.config import Cam, Encoder, Shapes
from beco.datasets import shapes, voc
from beco.errors import UserError
from beco.networks import encoders, joint
from beco.networks.weights import read_safetensors, write_safetensors
from beco.stage1 import localisers, texts
from beco.stage1.localisers import clip_es
from beco.stage1.localisers.base import Inputs, Localiser
from beco.stage1.texts import Texts
from beco.stage1.train import load

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


def content(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = read_safetensors(path)
    return tensors, json.loads(metadata["texts"])


def test_classes_are_found_by_name(tmp_path: Path) -> None:
    path = localiser_inputs.written(tmp_path / "texts.safetensors", CLASSES)
    tensors, _ = content(path)
    found = texts.read(path).of(["cow", "cat"])
    wanted = F.normalize(tensors["classes"], dim=1)[[2, 0]]
    assert torch.equal(found.classes, wanted) and found.names == ("cow", "cat") and found.scale == 10
    assert len(found.background) == 2
    with pytest.raises(UserError, match=r"texts\.safetensors: has no text of the class `bog`; did you mean `dog`\?"):
        texts.read(path).of(["cat", "bog"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": torch.ones(2, 8)}, "do not fit"),
        ({"background": torch.ones(2, 7)}, "do not fit"),
        ({"background": torch.ones(0, 8)}, "do not fit"),
        ({"scale": torch.tensor(0.0)}, "factor that is not above 0"),
        ({"classes": torch.zeros(3, 8)}, "a text without features"),
        ({"classes": torch.full((3, 8), torch.nan)}, "NaN"),
        ({"scale": None}, "no file of texts"),
        ({"metadata": None}, "no file of texts"),
    ],
)
def test_a_file_of_texts_that_is_wrong(change: dict[str, Tensor | None], said: str, tmp_path: Path) -> None:
    path = localiser_inputs.written(tmp_path / "texts.safetensors", CLASSES)
    tensors, told = content(path)
    tensors = {key: value for key, value in {**tensors, **change}.items() if value is not None and key != "metadata"}
    write_safetensors(path, tensors, {} if "metadata" in change else {"texts": json.dumps(told)})
    with pytest.raises(UserError, match=said) as caught:
        texts.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file of texts; make it with `beco text-features`"):
        texts.read(tmp_path / "texts.safetensors")
    (tmp_path / "texts.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(UserError, match="not readable as safetensors"):
        texts.read(tmp_path / "texts.safetensors")


def test_texts_of_another_tower_are_refused(tmp_path: Path) -> None:
    network = made(tmp_path)
    with pytest.raises(UserError, match="its texts have 5 features, the image tower 8"):
        network.begin(Inputs(text=texts.read(localiser_inputs.written(tmp_path / "five.safetensors", CLASSES, 5))))


def test_what_a_text_file_is_known_by(tmp_path: Path) -> None:
    one, two = (
        Inputs(text=texts.read(localiser_inputs.written(tmp_path / f"{scale}", CLASSES, scale=scale))).hashes()
        for scale in (10.0, 20.0)
    )
    assert one["text"] != two["text"]
    assert isinstance(texts.read(tmp_path / "10.0"), Texts)


# --- the making of texts ------------------------------------------------------------------------------------


def test_backgrounds_are_those_of_the_paper() -> None:
    """VOC's 25; of COCO's classes two are called by a word of theirs."""
    assert len(texts.background_of(voc.VOC_CLASSES)) == 25
    coco = ["person", "traffic light", "stop sign", "keyboard", "potted plant", "Street"]
    assert set(texts.BACKGROUND) - set(texts.background_of(coco[:-1])) == {"sign", "keyboard"}
    assert "street" not in texts.background_of(coco)


def test_what_classes_are_called(tmp_path: Path) -> None:
    assert texts.words_of(None)["person"] == ["person with clothes,people,human"]
    given = texts.words_of("{person: human, cat: [cat, kitten]}")
    assert given["person"] == ["human"] and given["cat"] == ["cat", "kitten"] and given["chair"] == ["chair seat"]
    (tmp_path / "words.yaml").write_text("cow: cattle\n")
    assert texts.words_of(str(tmp_path / "words.yaml"))["cow"] == ["cattle"]
    for wrong, said in (("[a]", "no mapping"), ("{cat: 3}", "cat: is no text"), ("{cat: []}", "cat: is no text")):
        with pytest.raises(UserError, match=said):
            texts.words_of(wrong)


def test_classes_are_named_by_text_or_file(tmp_path: Path) -> None:
    assert texts.named("hot dog, cat") == ["hot dog", "cat"]
    (tmp_path / "m.csv").write_text("image_id,split,image,mask,width,height,cat,hot dog\na,train,a.jpg,,3,3,1,0\n")
    assert texts.named(str(tmp_path / "m.csv")) == ["cat", "hot dog"]
    road = "labels: {crf: {}}\nnetworks: {default: {}}\nexperiments: {one: {recipe: single}}\n"
    (tmp_path / "c.yaml").write_text(f"dataset: {{format: voc, root: gone}}\n{road}")
    assert texts.named(str(tmp_path / "c.yaml")) == voc.VOC_CLASSES
    (tmp_path / "c.yaml").write_text(f"dataset: {{format: folder, root: gone, labels: {tmp_path}/l.csv}}\n{road}")
    (tmp_path / "l.csv").write_text("image,labels\na.jpg,dog;cat\n")
    assert texts.named(str(tmp_path / "c.yaml")) == ["cat", "dog"]
    with pytest.raises(UserError, match="a class without a name"):
        texts.named("cat,,dog")


def test_texts_are_made_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def features(prompts: list[list[str]], tower: str, weights: Path) -> tuple[Tensor, float]:
        asked.extend(prompts)
        return F.normalize(torch.randn(len(prompts), 8), dim=1), 100.0

    monkeypatch.setattr(texts, "text_features", features)
    words, path = texts.words_of("{cat: [cat, kitten]}"), tmp_path / "texts.safetensors"
    texts.make(["cat", "tvmonitor"], words, "a photo of {}.", "tower", tmp_path, path)
    assert asked[:2] == [["a photo of cat.", "a photo of kitten."], ["a photo of tvmonitor screen."]]
    assert len(asked) == 27 and asked[2] == ["a photo of ground."]
    found, (_, told) = texts.read(path), content(path)
    assert found.names == ("cat", "tvmonitor") and len(found.background) == 25 and found.scale == 100
    assert told["tower"] == "tower" and told["words"] == [["cat", "kitten"], ["tvmonitor screen"]]
    with pytest.raises(UserError, match="--template: `cat` has no place"):
        texts.make(["cat"], words, "cat", "tower", tmp_path, path)


def test_the_commands_take_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes.draw(tmp_path / "set", Shapes(train=4, val=2, size=48))
    manifest, weights = tmp_path / "manifest.csv", tmp_path / "weights.safetensors"
    voc.build(tmp_path / "set", "train", "val", shapes.CLASSES, manifest)
    encoder = localiser_inputs.clip_tower(tmp_path)

    def features(prompts: list[list[str]], tower: str, given: Path) -> tuple[Tensor, float]:
        assert (tower, given) == ("tiny", weights) and prompts[1] == ["a kitten."]
        return F.normalize(torch.randn(len(prompts), 8, generator=torch.Generator().manual_seed(0)), dim=1), 10.0

    def text_features(classes: str) -> Path:
        cli.text_features(
            classes=classes, output=tmp_path / "texts.safetensors", tower="tiny", weights=weights, template="a {}.",
            words=f"{{{shapes.CLASSES[1]}: kitten}}",
        )  # fmt: skip
        return tmp_path / "texts.safetensors"

    def train(method: str, text: Path | None) -> None:
        cli.train_classifier(
            manifest=manifest, root=tmp_path / "set", output=tmp_path / "out", method=method, text=text, device="cpu",
            settings=yaml.safe_dump({"encoder": encoder, "output_stride": SIDE}),
        )  # fmt: skip

    monkeypatch.setattr(texts, "text_features", features)
    path = text_features(str(manifest))
    with pytest.raises(UserError, match="--text: `cam` does not use it"):
        train("cam", path)
    with pytest.raises(UserError, match=r"--text: `clip_es` needs it; give a file of beco text-features"):
        train("clip_es", None)
    train("clip_es", path)
    kept = json.loads((tmp_path / "out" / "classifier.json").read_bytes())
    assert kept["inputs"] == {"text": texts.read(path).identity()} and kept["steps"] == 0 and kept["map"] is not None
    network, _ = load(tmp_path / "out" / "classifier.safetensors")
    assert torch.equal(network.texts[: len(shapes.CLASSES)], texts.read(path).classes)
    text_features(",".join(shapes.CLASSES[:-1]))
    with pytest.raises(UserError, match=f"has no text of the class `{shapes.CLASSES[-1]}`"):
        train("clip_es", path)


def test_without_openclip_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"OpenCLIP is not installed .*; pip install open_clip_torch"):
        joint.text_features([["cat"]], "ViT-B-16", tmp_path)


def test_a_text_tower_of_openclip(tmp_path: Path) -> None:
    """Both towers of a small random model: the file is made by ours, and serves the image tower, too."""
    open_clip = pytest.importorskip("open_clip", reason="OpenCLIP is an extra")
    vision = {"image_size": 64, "layers": 3, "width": 64, "patch_size": SIDE}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    (tmp_path / "tiny-tower.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "tiny-tower.json")
    torch.manual_seed(0)
    model, weights = open_clip.create_model("tiny-tower").eval(), tmp_path / "open_clip_model.safetensors"
    write_safetensors(weights, {key: value.contiguous() for key, value in model.state_dict().items()}, {})
    found, scale = joint.text_features([["a cat.", "a kitten."], ["a dog."]], "tiny-tower", weights)
    with torch.no_grad():
        cat, kitten, dog = model.encode_text(open_clip.get_tokenizer("tiny-tower")(["a cat.", "a kitten.", "a dog."]))
        mean = F.normalize(cat, dim=0) + F.normalize(kitten, dim=0)
        assert torch.allclose(found, F.normalize(torch.stack([mean, dog]), dim=1), atol=1e-5)
    assert scale == pytest.approx(1 / 0.07) and not found.requires_grad
    with pytest.raises(UserError, match="OpenCLIP has no model `tiny`"):
        joint.text_features([["a cat."]], "tiny", weights)
    with pytest.raises(UserError, match="not the weights of `ViT-B-32`"):
        joint.text_features([["a cat."]], "ViT-B-32", weights)

    path = tmp_path / "texts.safetensors"
    texts.make(CLASSES, {}, texts.TEMPLATE, "tiny-tower", weights, path)
    options = {"depth": 3, "embed_dim": 64, "num_heads": 1, "img_size": 64}
    encoder = Encoder(name="vit_base_patch16_clip_224", weights=str(weights), options=options)
    network = localisers.make("clip_es", encoder, SIDE, 3, True, {})
    encoders.prepare_backbone(network.backbone, encoder)
    network.begin(Inputs(text=texts.read(path).of(CLASSES)))
    network.eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():  # the class token in place of the mean patch, as CLIP itself has it
        body: Any = network.backbone.body
        token = body.forward_features(network.normalise(images))[:, 0]
        ours = F.linear(token, network.projection, network.shift)
        assert torch.allclose(ours, model.encode_image(network.normalise(images)), atol=1e-4)
    assert network.view(images, torch.ones(2, 3)).isfinite().all()
