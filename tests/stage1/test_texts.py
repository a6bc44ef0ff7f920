"""Files of texts: read whatever they hold, made of the names of classes, and of a text tower of OpenCLIP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import localiser_inputs
import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from beco.cli import stage1 as cli
from beco.config import Encoder, Shapes
from beco.datasets import shapes, voc
from beco.errors import UserError
from beco.networks import encoders, joint
from beco.networks.weights import read_safetensors, write_safetensors
from beco.stage1 import localisers, texts
from beco.stage1.localisers.base import Inputs
from beco.stage1.train import load

CLASSES = ["cat", "dog", "cow"]
SIDE = 16


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


def test_what_a_text_file_is_known_by(tmp_path: Path) -> None:
    one, two = (
        Inputs(text=texts.read(localiser_inputs.written(tmp_path / f"{scale}", CLASSES, scale=scale))).hashes()
        for scale in (10.0, 20.0)
    )
    assert one["text"] != two["text"]


# --- the making of texts ------------------------------------------------------------------------------------


def test_backgrounds_are_those_of_the_paper() -> None:
    """VOC's 25; of COCO's classes two are called by a word of theirs."""
    assert len(texts.background_of(voc.VOC_CLASSES)) == 25
    coco = ["person", "traffic light", "stop sign", "keyboard", "potted plant", "Street"]
    assert set(texts.BACKGROUND) - set(texts.background_of(coco[:-1])) == {"sign", "keyboard"}
    assert "street" not in texts.background_of(coco)


def test_what_classes_are_called(tmp_path: Path) -> None:
    known = ["cat", "chair", "cow", "person"]
    assert texts.words_of(None, known)["person"] == ["person with clothes,people,human"]
    given = texts.words_of("{person: human, cat: [cat, kitten]}", known)
    assert given["person"] == ["human"] and given["cat"] == ["cat", "kitten"] and given["chair"] == ["chair seat"]
    (tmp_path / "words.yaml").write_text("cow: cattle\n")
    assert texts.words_of(str(tmp_path / "words.yaml"), known)["cow"] == ["cattle"]
    for wrong, said in (
        ("[a]", "no mapping"),
        ("{cat: 3}", "cat: is no text"),
        ("{cat: []}", "cat: is no text"),
        ("{catt: kitty}", "no class `catt`; did you mean `cat`"),
    ):
        with pytest.raises(UserError, match=said):
            texts.words_of(wrong, known)


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
    for wrong, said in (("cat,,dog", "2 of 3 has no name"), ("cat,cat", "twice"), ("cat,background", "label 0")):
        with pytest.raises(UserError, match=said):
            texts.named(wrong)


def test_texts_are_made_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def features(prompts: list[list[str]], tower: str, weights: Path) -> tuple[Tensor, float]:
        asked.extend(prompts)
        return F.normalize(torch.randn(len(prompts), 8), dim=1), 100.0

    monkeypatch.setattr(texts, "text_features", features)
    words, path = texts.words_of("{cat: [cat, kitten]}", ["cat", "tvmonitor"]), tmp_path / "texts.safetensors"
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
