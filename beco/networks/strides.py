"""Encoders whose maps end at a stride of their own, which no dilation changes."""

from __future__ import annotations

from typing import get_args

from beco.config import Classifier
from beco.errors import UserError

STRIDES: tuple[int, ...] = get_args(Classifier.model_fields["output_stride"].annotation)
"""What `output_stride` may be; that of a network of stage two may be the same."""


class OwnStride(UserError):
    """The user's line for an encoder that was to end elsewhere; `stride` is where its maps end."""

    def __init__(self, line: str, name: str, stride: int) -> None:
        super().__init__(line)
        self.name, self.stride = name, stride
