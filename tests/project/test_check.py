"""`beco check`: what is wrong is told at once, before hours are spent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import localiser_inputs
import pytest
import timm
import typer
import yaml
from conftest import ROOT
from own_pictures import checked, init
from PIL import Image
from plans import config as tiny_config
from safetensors.torch import save_file

from beco.cli import dataset as cli
from beco.cli import stage1
from beco.config import read_config
from beco.datasets import formats
from beco.datasets import manifest as manifests
from beco.errors import UserError
from beco.networks.segmenter import Segmenter
from beco.project import check, networks
from beco.project.weights import Found
from beco.stage1 import localisers


def test_check_finds_nothing(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = checked(init(own, masks=own / "masks"), capsys)
    assert status == 0 and "Nothing is wrong." in said
    assert "24 pictures (19 train, 5 val), 6 classes, 12 masks" in said


def test_check_tells_everything_at_once(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = init(own, masks=own / "masks")
    values = yaml.safe_load(config.read_text())
    values["classifier"]["schedule"]["precision"] = "fp16"
    values["encoders"]["own"]["weights"] = "gone.safetensors"
    values["labels"]["theirs"] = {"refine": "import", "source": {"path": "gone labels"}}
    values["labels"]["crf"]["crf"]["backend"] = "pydensecrf"
    values["labels"]["salient"] = {"source": "eps"}
    values["sources"] = {"cam": {}, "eps": {"method": "eps"}}
    values["dataset"]["saliency"] = "gone maps"
    values["compute"] = {"device": "cuda"}
    config.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: False)
    for name in ("02.jpg", "park/Tag 03.webp"):
        (own / "my pictures" / name).unlink()
    status, said = checked(config, capsys)
    lines = [line for line in said.splitlines() if "✗" in line]
    assert status == 1 and len(lines) == 8 and "To mend: 8." in said, said
    for words in [
        "02.jpg: no such picture",
        "Tag 03.webp: no such picture",
        "gone.safetensors: no such weights file",
        "gone labels: no such folder",
        "dataset.saliency: gone maps: no such folder",
        "cuda asked for, but torch sees no GPU",
        "classifier.schedule.precision: fp16 needs a GPU",
        "pydensecrf is not installed; set torch",
    ]:
        assert sum(words in line for line in lines) == 1, (words, said)


def test_check_looks_at_saliency_maps(own: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = init(own, masks=own / "masks")
    values = yaml.safe_load(config.read_text())
    values["labels"]["salient"] = {"source": "eps"}
    values["sources"] = {"cam": {}, "eps": {"method": "eps"}}
    values["dataset"]["saliency"] = str(tmp_path / "maps")
    config.write_text(yaml.safe_dump(values))
    pictures = formats.build(read_config(str(config), True).dataset, tmp_path / "manifest.csv").split("train")
    (tmp_path / "maps").mkdir()
    for image_id in pictures.ids:
        Image.new("L", pictures.size(image_id)[::-1], "white").save(tmp_path / "maps" / f"{image_id}.png")
    status, said = checked(config, capsys)
    assert status == 0 and f"dataset.saliency: {tmp_path / 'maps'}, for sources.eps" in said
    first, second, *_ = pictures.ids
    (tmp_path / "maps" / f"{first}.png").unlink()
    Image.new("L", (7, 5)).save(tmp_path / "maps" / f"{second}.png")
    status, said = checked(config, capsys)
    assert status == 1 and "To mend: 2." in said
    assert f"no saliency map of picture {first}" in said and f"{second}.png: is 7×5, its picture" in said


def test_check_looks_at_texts(own: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = init(own)
    values, path = yaml.safe_load(config.read_text()), tmp_path / "texts.safetensors"
    settings = {"encoder": localiser_inputs.clip_tower(tmp_path), "output_stride": 16}
    values["sources"] = {"cam": {}, "clip": {"method": "clip_es", "text": str(path), "classifier": settings}}
    values["labels"]["theirs"] = {"source": "clip"}

    def said(**encoder: Any) -> str:
        settings["encoder"] |= encoder
        config.write_text(yaml.safe_dump(values))
        return checked(config, capsys)[1]

    classes = formats.build(read_config(str(config), True).dataset, tmp_path / "manifest.csv").classes
    assert f"sources.clip: {path}: no such file of texts; make it with `beco text-features`" in said()
    localiser_inputs.written(path, classes[1:])
    assert f"has no text of the class `{classes[0]}`" in said()
    localiser_inputs.written(path, classes, 5)
    assert "its texts have 5 features, the image tower 8" in said()
    localiser_inputs.written(path, [*classes, "another"])
    assert f"sources.clip.text: {path}, {len(classes) + 1} classes" in said()
    assert "sources.clip: encoder.weights: null brings no projection" in said(weights=None)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        (
            "classifier",
            "frozen_stages",
            9,
            "classifier: frozen_stages: 9, but `resnet10t` has features at strides 2, 4, 8",
        ),
        ("networks", "multi_grid", [1, 2], "networks.default: multi_grid: 2 factors for 1 blocks"),
    ],
)
def test_check_builds_backbones_as_they_will_be_built(
    own: Path, capsys: pytest.CaptureFixture[str], section: str, key: str, value: Any, words: str
) -> None:
    weights = own / "weights.safetensors"
    save_file(timm.create_model("resnet10t", features_only=True).state_dict(), weights)
    config = init(own, weights=str(weights), encoder="resnet10t")
    values = yaml.safe_load(config.read_text())
    (values[section]["default"] if section == "networks" else values[section])[key] = value
    config.write_text(yaml.safe_dump(values))
    status, said = checked(config, capsys)
    assert status == 1 and words in said, said


def test_a_batch_larger_than_the_folder(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = init(own)
    config.write_text(config.read_text().replace("batch_size: 16", "batch_size: 20"))
    status, said = checked(config, capsys)
    assert status == 1 and "classifier.schedule.batch_size (20), experiments.beco.training.schedule" in said


def test_check_of_other_formats_and_wrong_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(typer.Exit) as stopped:
        cli.check(settings=(ROOT / "tests" / "tiny.yaml").read_text())
    assert stopped.value.exit_code == 0 and "24 + 10 pictures of 64 px" in capsys.readouterr().out
    (tmp_path / "wrong.yaml").write_text("datset: {}\n")
    with pytest.raises(UserError, match="datset: unknown key; did you mean `dataset`"):
        cli.check(configfile=[tmp_path / "wrong.yaml"])
    with pytest.raises(UserError, match="give --configfile FILE or --settings TEXT"):
        cli.check()


def test_estimates_by_hand(own: Path, tmp_path: Path) -> None:
    config = read_config(str(init(own)), is_file=True)
    stage1.manifest(own / "my pictures", tmp_path / "manifest.csv", config.dataset.model_dump_json())
    pictures = manifests.read(tmp_path / "manifest.csv", own / "my pictures")
    assert check.memory(config, pictures, on_gpu=True) == 2 * 2**30 + 3 * 4 * 48 * 48 * 7
    assert check.memory(config, pictures) == 2 * 2**30 + check.learning(config, pictures)  # two networks, 16 pictures
    classifier = localisers.make("cam", config.classifier.encoder, config.classifier.output_stride, 6)
    segmenter = Segmenter(next(iter(config.networks.values())), 6)
    parameters = sum(p.numel() for network in (classifier, segmenter, segmenter) for p in network.parameters())
    shown = int(pictures.split("train").labels().sum())
    pixels = 48 * 48 * (19 * 2 * 2 + 24 * 1) + 48 * 48 * shown * 2 // 16  # two recipes of labels, one run
    assert check.disk(config, pictures) == 16 * parameters + pixels  # the classifier, and two networks of `beco`
    both = config.model_copy(update={"prediction": config.prediction.model_copy(update={"networks": "both"})})
    assert check.disk(both, pictures) == 16 * parameters + pixels + 48 * 48 * 24  # and what one of them predicts


def test_check_of_an_encoder_that_cannot_be_built_on_paper() -> None:
    network = {"architecture": "segformer", "encoder": {"name": "mit_b0"}, "output_stride": 32}
    groups = check.check(tiny_config(networks={"default": network}))
    assert not any(group.problems for group in groups)


VIT = {"name": "vit_tiny_patch16_224", "options": {"depth": 4, "embed_dim": 48}}


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (
            {"architecture": "deeplabv3plus"},
            "deeplabv3plus needs features at stride 4, .* set architecture to linear or ",
        ),
        (
            {"architecture": "segformer", "output_stride": 32},
            "segformer needs .* end at 16; set architecture to linear and output_stride to 16",
        ),
        ({"architecture": "dpt", "encoder": {"name": "resnet10t"}}, "dpt wants .*; choose another, or set .* linear"),
        ({"architecture": "linear"}, ""),
        ({"architecture": "dpt"}, ""),
    ],
)
def test_check_builds_the_decoders_too(network: dict[str, Any], words: str) -> None:
    groups = check.check(
        tiny_config(networks={"default": {"encoder": VIT, "output_stride": 16, **network}}), quick=True
    )
    (weights,) = (group for group in groups if group.name == "weights")
    assert len(weights.problems) == bool(words)
    if words:
        assert re.match(f"networks.default: architecture: {words}", weights.problems[0]), weights.problems


@pytest.mark.parametrize("name", ["resnet10t", "mit_b0"])
def test_check_looks_for_layers_where_rates_decay_by_them(name: str) -> None:
    stride, by_layer = 32 if name == "mit_b0" else 16, {"optimiser": {"layer_decay": 0.8}}
    common = {"encoder": {"name": name}, "output_stride": stride}
    config = tiny_config(
        classifier={**tiny_config().classifier.model_dump(mode="json"), **common, **by_layer},
        networks={"default": {**common, "architecture": "linear"}},
        training=by_layer,
    )
    found = [line for group in check.check(config, quick=True) for line in group.problems]
    assert len(found) == 2
    assert all("optimiser.layer_decay: only a ViT or a Swin" in line for line in found)


def test_weights_to_be_downloaded_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without asking the network, and unless they were downloaded before."""
    config = tiny_config(classifier={"encoder": {"name": "resnet18", "weights": "imagenet"}})
    monkeypatch.setattr(networks, "at_hand", list)
    notes, _ = networks.look(config)
    assert "needs a network connection and was not tried here" in notes[0]
    found = Found("resnet18.a1_in1k", "apache-2.0", 1, "downloaded: here")
    monkeypatch.setattr(networks, "at_hand", lambda: [found])
    assert networks.look(config)[0][0].endswith("downloaded to this machine before")


def test_files_that_later_stages_need() -> None:
    needed = tiny_config(encoders={"tiny": {"name": "resnet10t", "weights": "w.pth"}}).needed()
    assert needed == {"classifier.encoder.weights": "w.pth"}


# --- the road -----------------------------------------------------------------------------------------------
