"""Small configurations, and what is said of wrong ones."""

from __future__ import annotations

from typing import Any

import pytest

from beco.config import (
    validate_config,
)
from beco.errors import UserError


def minimal() -> dict[str, Any]:
    """The least that is a configuration; each test breaks its own copy."""
    return {
        "labels": {"crf": {}},
        "networks": {"default": {}},
        "experiments": {"one": {"recipe": "beco"}},
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """The minimal configuration with one dotted key set."""
    *sections, last = path.split(".")
    config = section = minimal()
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return config


def refusal(values: Any) -> str:
    with pytest.raises(UserError) as caught:
        validate_config(values)
    message = str(caught.value)
    assert "\n" not in message
    return message
