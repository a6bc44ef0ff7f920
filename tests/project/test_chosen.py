"""What `beco init` chooses: sizes, batches, rates and steps for the pictures, the machine and the starting weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_pictures import CPU, GPU, LIGHT, PHOTOS, SCRATCH, TRAINED

from beco.config import Encoder, read_config
from beco.project import init as project
from beco.project.init import Facts
from beco.project.start import Machine, Start

VIT = Start(Encoder(name="vit_tiny_patch16_224"), 16, own_stride=True, coarse=True, layered=True)
TRANSFORMERS = [
    VIT,
    replace(VIT, encoder=Encoder(name="vit_small_patch14_dinov2", weights="/w.pth"), output_stride=14),
    Start(Encoder(name="swin_tiny_patch4_window7_224"), 32, own_stride=True, layered=True),
    Start(Encoder(name="mit_b0", weights="imagenet"), 32, own_stride=True),
]


@settings(max_examples=150, deadline=None)
@given(
    train=st.integers(2, 100_000),
    median=st.integers(16, 6000),
    more=st.integers(0, 6000),
    masks=st.integers(0, 5),
    gpu=st.none() | st.floats(2, 80),
    begin=st.sampled_from([SCRATCH, TRAINED, LIGHT, *TRANSFORMERS]),
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


@pytest.mark.parametrize(
    "begin",
    [SCRATCH, TRAINED, LIGHT, Start(Encoder(name="convnext_nano", weights="/w.pth"), 32), *TRANSFORMERS],
)
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
    assert ("From scratch" in text) == (not begin.pretrained)


# --- init ---------------------------------------------------------------------------------------------------


def test_weights_need_fewer_steps() -> None:
    few = replace(PHOTOS, train=200)
    trained, scratch = (project.choose(few, CPU, begin) for begin in (TRAINED, SCRATCH))
    assert (trained["classifier_steps"], trained["steps"]) == (400, 800)  # 20 and 30 passes would be 250 and 750
    assert (scratch["classifier_steps"], scratch["steps"]) == (1200, 1500)


@pytest.mark.parametrize("begin", TRANSFORMERS)
def test_transformers_get_a_decoder_that_fits_and_low_rates(tmp_path: Path, begin: Start) -> None:
    config = project.write(tmp_path, {"root": "p", "labels": "l.csv", "val_share": 0.2}, PHOTOS, CPU, begin)
    network, optimiser = config.networks["default"], config.experiments["beco"].training.optimiser
    assert network.architecture == ("linear" if begin.coarse else "deeplabv3plus")
    assert network.output_stride == config.classifier.output_stride == begin.output_stride
    assert (optimiser.layer_decay < 1) == begin.layered
    assert optimiser.lr <= (0.0001 if begin.pretrained else 0.0005)
    assert config.classifier.optimiser.lr <= (0.0001 if begin.pretrained else 0.001)


@pytest.mark.parametrize(
    ("train", "on", "begin", "pays"),
    [
        (40, CPU, LIGHT, False),
        (4000, CPU, LIGHT, True),
        (40, CPU, TRAINED, True),  # ResNet-50 on a processor
        (40, GPU, LIGHT, False),
        (40_000, GPU, LIGHT, True),
    ],
)
def test_a_plan_is_offered_where_it_takes_less_than_the_run(train: int, on: Machine, begin: Start, pays: bool) -> None:
    known = replace(PHOTOS, train=train)
    assert project.plan_pays(project.choose(known, on, begin), on, begin) == pays
