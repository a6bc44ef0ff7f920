"""The libraries' own downloads of ImageNet weights, without their many words and minutes where there is no network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import timm
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import logging

FILES = ("model.safetensors", "pytorch_model.bin")
NO_HOST = ("ConnectError", "ConnectionError", "OfflineModeIsEnabled")
"""Exceptions by name: whose they are depends on the library's version."""


@contextmanager
def quiet() -> Iterator[None]:
    """The hub's library tells each of its retries; what comes of them is told by ours."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def unreachable(name: str) -> Exception | None:
    """What a single request for the weights of an encoder meets where no host answers; None where all is well.

    The library would ask six times for each of two files, for three quarters of a minute. What was downloaded before
    it finds without a network, and slow answers are left to its patience.
    """
    repository = "" if timm.is_model(name) else f"smp-hub/{name}.imagenet"
    with suppress(RuntimeError):  # of an unknown tag, which is told where the model is built
        repository = repository or getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None) or ""
    if not repository or any(isinstance(try_to_load_from_cache(repository, file), str) for file in FILES):
        return None
    try:
        get_hf_file_metadata(hf_hub_url(repository, FILES[0]))
    except Exception as error:
        return error if type(error).__name__ in NO_HOST else None
    return None
