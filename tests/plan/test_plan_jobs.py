"""The plan's jobs are the workflow's, and their work and networks are those counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Checkout
from plans import FEW, ROADS, TINY, config, plan, works

from beco.config import Config, validate_config
from beco.plan import networks, room
from beco.plan.jobs import jobs


def counted(of: Config) -> dict[str, int]:
    found: dict[str, int] = {}
    for job in jobs(of, FEW):
        found[job.rule] = found.get(job.rule, 0) + 1
    return found


@pytest.mark.parametrize("changes", ROADS, ids=["tiny", "irn"])
def test_the_jobs_are_those_of_the_workflow(changes: dict[str, Any], tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    values = yaml.safe_load(TINY.read_text()) | changes
    (tmp_path / "tests" / "tiny.yaml").write_text(yaml.safe_dump(values))
    assert counted(validate_config(values)) == checkout.planned()


def test_jobs_that_share_a_file_are_one() -> None:
    found = counted(config(**ROADS[1]))
    assert found["train_irn"] == 2  # `same` takes the scores of `own`
    assert found["random_walk"] == 2 * 3
    assert found["make_pairs"] == 4  # `own` learns from the labels of `crf`, of the same settings
    assert found["sweep_labels"] == 4  # one for each IRN, for the CRF, and for none
    assert found["infer_cams"] == 3 and found["train_classifier"] == 1
    assert found["train_segmenter"] == found["predict"] == found["evaluate"] == 4


def test_every_job_comes_after_those_that_it_needs() -> None:
    for changes in ROADS:
        listed = jobs(config(**changes), FEW)
        done: set[str] = set()
        for job in listed:
            assert set(job.needs) <= done, job
            done.add(job.name)
        assert len(done) == len(listed)


def test_work_by_hand() -> None:
    of = config()
    spec = networks.classifier(of.classifier, 6)
    one = networks.forward(spec, 64, 64)
    training = works(of, "train_classifier")
    assert (training["train"].count, training["train"].each) == (6, 8 * 3 * one)
    assert training["load"].count == 6 * 8 and training["infer"].count == 10
    cams = works(of, "infer_cams.2-of-2", replace(FEW, train=23))
    assert (cams["infer"].count, cams["infer"].each) == (11, 2 * one)  # every second of 23; and its mirror image
    labels = works(of, "make_labels.crf.1-of-2")
    assert labels["crf"].count == 2 * 12 and labels["crf"].each == 64 * 64 * 2  # two runs of two iterations
    assert labels["crf"].what[1] == 3  # of two classes and the background
    assert "crf" not in works(of, "make_labels.cam.1-of-2")
    network = networks.segmenter(of.networks["default"], 6)
    step = networks.forward(network, 64, 64)
    single = works(of, "train_segmenter.crf.single.seed0")["train"]
    assert (single.count, single.each) == (2 * 24 // 8, 8 * 3 * step)
    beco = works(of, "train_segmenter.crf.beco.seed0")["train"]
    assert beco.each == 8 * 2 * (3 + 1) * step  # two networks, which are asked for labels first
    warm = 6 / 80  # steps of the warm-up, which ask for none
    assert beco.count * beco.each == pytest.approx(8 * 2 * step * (4 * (6 - warm) + 3 * warm))


def test_a_test_time_crf_weighs_all_classes() -> None:
    of = config(prediction={"crf": {"iterations": 5}, "scales": [1.0, 0.5], "flip": True})
    found = works(of, "predict.crf.beco.seed0")
    assert (found["crf"].count, found["crf"].each, found["crf"].what[1]) == (10, 64 * 64 * 5, 7)
    spec = networks.segmenter(of.networks["default"], 6)
    both = networks.forward(spec, 64, 64) + networks.forward(spec, 32, 32)
    assert found["infer"].each == 2 * 2 * both  # networks, mirror images
    first = works(config(prediction={"networks": "first"}), "predict.crf.beco.seed0")["infer"]
    assert first.each == networks.forward(spec, 64, 64)


def test_where_squeezed_pictures_are_scored() -> None:
    spec = networks.segmenter(config().networks["default"], 6)
    pictures = replace(FEW, height=40, width=100)
    runs = sum(len(experiment.seeds) for experiment in config().experiments.values())
    pixels = {}
    for where, squared in (("picture", 40 * 100), ("square", 96 * 96)):
        of = config(prediction={"squeeze": 96, "score_at": where, "crf": {"iterations": 5}})
        found = works(of, "predict.crf.beco.seed0", pictures)
        assert found["infer"].each == 2 * networks.forward(spec, 96, 96)  # fed alike
        assert found["write"].each == squared and found["crf"].each == 5 * squared
        assert found["merge"].each == 2 * squared * 7
        pixels[where] = plan(of, found=pictures).disk()
    assert pixels["square"] - pixels["picture"] == runs * FEW.val * (96 * 96 - 40 * 100)


# --- networks -------------------------------------------------------------------------------------------------


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images))


def test_a_network_of_two_convolutions_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks.Spec, "build", lambda spec: Two())
    spec = networks.Spec("segmenter", "two", 3)
    by_hand = 2 * 10 * 12 * (3 * 8 * 9 + 8 * 4)
    assert networks.forward(spec, 10, 12) == by_hand
    assert networks.step(spec, 10) == 3 * by_hand * 10 // 12
    assert networks.parameters(spec) == 3 * 8 * 9 + 8 + 8 * 4 + 4
    assert networks.saved_bytes(spec, 10, 10) == 4 * 10 * 10 * (3 + 8)  # what the two convolutions are given


def test_the_frozen_backbone_of_irn_learns_nothing() -> None:
    of = config()
    spec, plain = networks.irn(of.classifier, 6), networks.classifier(of.classifier, 6)
    whole, backbone = networks.forward(spec, 64, 64), networks.forward(plain, 64, 64)
    width = 64  # channels that the classifier's 1×1 convolution reads, at stride 16
    backbone -= 2 * 4 * 4 * width * 6
    assert networks.step(spec, 64) == backbone + 3 * (whole - backbone)


def test_frozen_stages_learn_nothing_and_keep_nothing() -> None:
    """Stem and layer1 by hand: 7×7 or 3×3 kernels at strides 2 and 4 of a picture of 64²."""
    of = config(classifier={"encoder": {"name": "resnet18", "options": {"layers": [1, 1, 1, 1]}}})
    half = of.classifier.model_copy(update={"frozen_stages": 1})
    free, spec = networks.classifier(of.classifier, 6), networks.classifier(half, 6)
    frozen = 2 * (32 * 32 * 64 * 3 * 49 + 2 * 16 * 16 * 64 * 64 * 9)
    assert networks.forward(free, 64, 64) == networks.forward(spec, 64, 64)
    assert networks.step(free, 64) - networks.step(spec, 64) == 2 * frozen
    assert networks.saved_bytes(spec, 64, 64) < 0.6 * networks.saved_bytes(free, 64, 64)
    assert networks.parameters(spec) == networks.parameters(free)


def test_the_plan_builds_what_the_presets_train() -> None:
    plain = config().classifier
    other = plain.model_copy(update={"dilate": False, "batch_norm": "fixed"})
    for make in (networks.classifier, networks.irn):
        built = make(other, 6).build()
        assert built.backbone.get_submodule("layer4.0.conv2").dilation == (1, 1)
        assert make(plain, 6).build().backbone.get_submodule("layer4.0.conv2").dilation == (2, 2)
        assert not built.train().backbone.get_submodule("layer4.0.bn1").training


def test_encoders_that_cannot_be_built_on_paper() -> None:
    network = {"architecture": "segformer", "encoder": {"name": "mit_b0"}, "output_stride": 32}
    of = config(networks={"default": network})
    spec = networks.segmenter(of.networks["default"], 6)
    assert networks.forward(spec, 64, 64) > 1e6 and networks.saved_bytes(spec, 64, 64) > 1e5


def test_memory_of_a_training_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks.Spec, "build", lambda spec: Two())
    of, spec = config(), networks.Spec("segmenter", "by hand", 3)
    schedule, optimiser = of.training.schedule, of.training.optimiser  # float32, AdamW
    one = 4 * 4 * networks.parameters(spec) + 8 * (4 * 100 * 11 + 3 * 4 * 4 * 100)
    assert room.training(spec, 10, 8, schedule, optimiser, 2) == 2 * one
