"""`checkpoint.pt`: where a training stands, with all that it takes to go on from there."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beco.artifacts.files import refusal, text_hash, whole
from beco.errors import UserError

log = logging.getLogger("beco")

KEYS = {"fingerprint", "identity", "module", "optimiser", "precision", "state"}


@dataclass
class State:
    """Where a training stands; everything that a checkpoint holds beside tensors."""

    step: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds of this epoch in which the loop waited for the loader."""
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    """The best validation score so far, and the epoch that had it."""
    best_epoch: int | None = None
    is_writer: bool = True
    """Whether this process writes the results; one process does."""


class Checkpoint:
    """Tensors, optimiser, loss scale and `State`, written whole or not at all and readable with weights_only.

    `identity` is everything that determines the result of the training. Generator states are not needed: see
    `beco.training.sampling`.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.fingerprint, self.identity = path, text_hash(identity), identity

    def save(self, task: nn.Module, optim: torch.optim.Optimizer, precision: Any, state: State) -> None:
        """Write the checkpoint; `precision` is Fabric's plugin, which owns the loss scale."""
        content = {
            "fingerprint": self.fingerprint,
            "identity": {key: str(value) for key, value in self.identity.items()},
            "module": task.state_dict(),
            "optimiser": optim.state_dict(),
            "precision": precision.state_dict(),
            "state": {key: value for key, value in vars(state).items() if key != "is_writer"},
        }
        with whole(self.path) as temporary:
            torch.save(content, temporary)

    def load(
        self, task: nn.Module, optim: torch.optim.Optimizer, precision: Any, device: torch.device, replace: bool
    ) -> State:
        """The state to go on from, its tensors loaded; a fresh one without a checkpoint.

        A checkpoint of another identity, or a damaged one, is an error, or is dropped if `replace` is set.
        """
        if not self.path.exists():
            return State()
        try:
            content = torch.load(self.path, map_location=device, weights_only=True)
            if not isinstance(content, dict) or not content.keys() >= KEYS:
                raise ValueError("not a checkpoint of this program")
            state = State(**content["state"])
        except Exception as error:
            if said := refusal(self.path, error):  # it may be sound
                raise UserError(f"{self.path}: {said}") from error
            if not replace:
                raise UserError(f"{self.path}: damaged checkpoint; remove it to start this training anew") from error
            log.warning("%s: damaged checkpoint, starting anew", self.path)
            return State()
        if content["fingerprint"] != self.fingerprint:
            changed = [key for key, value in self.identity.items() if content["identity"].get(key) != str(value)]
            if not replace:
                raise UserError(
                    f"{self.path}: belongs to a training with other {', '.join(changed) or 'settings'}; "
                    "choose another --output or give --replace to start anew"
                )
            log.warning("%s: checkpoint of other %s dropped, starting anew", self.path, ", ".join(changed))
            return State()
        task.load_state_dict(content["module"])
        optim.load_state_dict(content["optimiser"])
        precision.load_state_dict(content["precision"])
        return state
