"""Supervision: what people wrote or drew that a result was made from, which artifacts say of themselves.

Each has the words of all that it was made from, so that tables tell apart what is not to be compared: a method that
learns from saliency maps has seen masks, if of other pictures. Weights to start from are not counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import safe_open

from beco.artifacts.store import Store

KEY = "supervision"
"""The attribute of a store and the metadata of a network."""
IMAGE_LABELS = "image labels"
SALIENCY = "saliency"
TRUE_OBJECTS = "true objects"
"""Of the embedded dataset, in place of saliency maps: masks, if without classes."""
CAPTIONS = "captions"
"""Of other pictures, which a text tower has learnt from."""
MASKS = "masks"
IMPORTED = "imported"
"""Of another program, which does not say."""
UNKNOWN = "unknown"


def together(*parts: Iterable[str]) -> list[str]:
    """The words of several, each once."""
    return list(dict.fromkeys(chain(*parts)))


def said_by(attributes: Mapping[str, Any]) -> list[str]:
    """What a store's attributes, a network's metadata or a `metrics.json` say; older ones say nothing: unknown."""
    said = attributes.get(KEY) or [UNKNOWN]
    return list(json.loads(said)) if isinstance(said, str) else list(said)


def of_store(path: Path) -> list[str]:
    """What class maps or labels were made from."""
    with Store(path) as store:
        return said_by(store.attributes)


def of_network(path: Path) -> list[str]:
    """What a network of ours, a sound file, was made from."""
    with safe_open(path, "np") as file:
        return said_by(file.metadata() or {})
