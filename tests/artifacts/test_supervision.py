"""What artifacts say of what they were made from, and how it is handed on."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from torch import nn

from beco.artifacts import store, supervision
from beco.datasets.saliency import Saliency
from beco.networks.encoders import save_network
from beco.stage1.localisers.base import Inputs


def labels(folder: Path, *words: str) -> Path:
    """A store that says so, or nothing."""
    said = {supervision.KEY: list(words)} if words else {}
    with store.create(folder / "labels.h5", **said):
        pass
    return folder / "labels.h5"


def network(folder: Path, *words: str) -> Path:
    said = {supervision.KEY: json.dumps(words)} if words else {}
    save_network(nn.Linear(1, 1), folder / "classifier.safetensors", said)
    return folder / "classifier.safetensors"


def test_words_come_once_and_in_order() -> None:
    assert supervision.together(["a", "b"], [], ["b", "c", "a"]) == ["a", "b", "c"]


def test_what_says_nothing_is_unknown(tmp_path: Path) -> None:
    assert supervision.of_store(labels(tmp_path)) == supervision.of_network(network(tmp_path)) == ["unknown"]
    assert supervision.said_by({}) == ["unknown"]


@pytest.mark.parametrize(
    ("of_labels", "of_start", "salient", "said"),
    [
        ((), (), None, "image labels"),
        ((), (), Saliency({}), "image labels + saliency"),
        ((), (), Saliency(None), "image labels + true objects"),
        (("image labels",), (), None, "image labels"),
        (("image labels", "saliency"), (), None, "image labels + saliency"),
        (("imported",), (), None, "image labels + imported"),
        ((), ("image labels", "true objects"), None, "image labels + true objects"),
        (("imported",), ("image labels", "saliency"), Saliency({}), "image labels + imported + saliency"),
    ],
)
def test_a_localiser_has_its_own_and_that_of_all_it_goes_on_from(
    tmp_path: Path, of_labels: tuple[str, ...], of_start: tuple[str, ...], salient: Saliency | None, said: str
) -> None:
    given = {
        "labels": labels(tmp_path, *of_labels) if of_labels else None,
        "start": network(tmp_path, *of_start) if of_start else None,
        "saliency": salient,
    }
    assert " + ".join(Inputs(**given).supervision()) == said  # type: ignore[arg-type]


def test_every_input_says_what_it_was_made_from() -> None:
    assert all("supervision" in one.metadata for one in fields(Inputs))
