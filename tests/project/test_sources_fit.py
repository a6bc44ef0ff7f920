"""What is told of sources before the first job, in place of after the training of those that they start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plans import config
from small_networks import TINY

from beco.config import Config, validate_config
from beco.project import check, preflight, sources

OTHER = {"encoder": {"name": "resnet10t", "options": {"channels": [8, 16, 32, 48]}}}


def of(**several: Any) -> Config:
    return config(
        sources=several,
        labels={name: {"source": name} for name in several},
        experiments={"single": {"recipe": "single", "labels": next(iter(several))}},
    )


@pytest.mark.parametrize(
    ("several", "told"),
    [
        ({"cam": {}, "rib": {"method": "rib", "start": "cam"}, "recam": {"method": "recam", "start": "cam"}}, []),
        ({"eps": {"method": "eps"}, "on": {"method": "recam", "start": "eps"}}, ["on: start: `eps` has no class map"]),
        ({"eps": {"method": "eps"}, "on": {"method": "rib", "start": "eps"}}, ["on: `eps`: not a network of this"]),
        ({"cam": {}, "on": {"method": "rib", "start": "cam", "classifier": OTHER}}, ["on: `cam`: not a network of"]),
        (
            {"cam": {}, "on": {"method": "recam", "start": "cam", "classifier": OTHER}},
            ["on: start: `cam` has no"],
        ),
        (
            {"cam": {}, "on": {"method": "rib", "start": "cam", "options": {"least_side": 700}}},
            ["on: options of `rib`: least_side: 700 exceeds most_side, 640; change one of them"],
        ),
        (
            {"cam": {}, "on": {"method": "rib", "start": "cam", "options": {"frozen_stages": 9}}},
            ["on: options of `rib`: frozen_stages: 9"],
        ),
        ({"clip": {"method": "clip_es", "text": "t.safetensors"}}, ["clip: encoder.name: `resnet10t` is no image"]),
    ],
)
def test_what_does_not_fit_is_told_by_its_source(several: dict[str, Any], told: list[str]) -> None:
    found = sources.misfits(of(**several))
    assert len(found) == len(told)
    assert all(line.startswith(f"sources.{words}") and "/" not in line for line, words in zip(found, told, strict=True))


def test_the_look_before_the_first_job_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    groups = check.check(of(eps={"method": "eps"}, on={"method": "recam", "start": "eps"}), quick=True)
    assert [line for group in groups for line in group.problems if line.startswith("sources.on: start: `eps`")]


@pytest.mark.parametrize("named", [True, False])
def test_networks_have_to_fit_the_classifier_that_they_start_from(named: bool) -> None:
    """Whether it is that of their labels or one that is named for all."""
    network = {"encoder": {**TINY, "weights": "classifier"}, "decoder_channels": 8, "atrous_rates": [1, 2]}
    values: dict[str, Any] = {
        "sources": {"cam": {}, "other": {"classifier": OTHER}},
        "labels": {"crf": {"source": "cam" if named else "other"}},
        "networks": {"default": {**network, "start": "other"} if named else network},
        "experiments": {"single": {"recipe": "single", "labels": "crf"}},
    }
    (found,) = sources.misfits(config(**values))
    assert found.startswith("networks.default.encoder: `other`: does not fit the encoder (") and "/" not in found
    fitting = {"default": {**network, "encoder": {**OTHER["encoder"], "weights": "classifier"}, "start": "other"}}
    assert sources.misfits(config(**{**values, "networks": fitting})) == []


def test_the_look_before_the_first_job_knows_where_networks_start() -> None:
    """Labels of another encoder's source, which the networks would not fit, but do not start from."""
    network = {"encoder": {**TINY, "weights": "classifier"}, "decoder_channels": 8, "atrous_rates": [1, 2]}
    values: dict[str, Any] = {
        "sources": {"cam": {"classifier": {"encoder": TINY}}, "other": {"classifier": OTHER}},
        "labels": {"crf": {"source": "other"}},
        "experiments": {"single": {"recipe": "single", "labels": "crf"}},
    }
    own, one = (config(**values, networks={"default": network | start}) for start in ({}, {"start": "cam"}))
    assert preflight._state(own, True) != preflight._state(one, True)
    for given, fits in ((own, False), (one, True)):
        told = validate_config(given.model_dump(mode="json"))
        assert (not sources.misfits(told)) is fits
