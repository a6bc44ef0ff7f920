"""What is told of sources before the first job, in place of after the training of those that they start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plans import config

from beco.config import Config
from beco.project import check, sources

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
