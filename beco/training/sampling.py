"""Which pictures a step sees and what is drawn for them: functions of (seed, step) alone.

Every random draw of a training follows from the run's seed and the number of the step: the order of the pictures, each
picture's crop, and what is mixed and coloured. A run that is resumed needs no stored generator state, and a batch that
is spread over processes or cut into parts is drawn exactly as it would be in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from beco.errors import UserError

Item = tuple[int, int]


def mixed_seed(seed: int, number: int, purpose: int) -> int:
    """A 63-bit seed from the run's seed, a counter and a purpose (splitmix64, Steele et al. 2014)."""
    state = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + purpose * 0x94D049BB133111EB) % 2**64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return (state ^ (state >> 31)) >> 1


def part_slots(batch_size: int, parts: int, part: int) -> list[int]:
    """Positions in the batch that one of its `parts` holds, such that slots i and i + B/2, a pair, stay together.

    Within a part of n slots the partner of slot i is again i + n/2. One part is the batch in its order.
    """
    if parts == 1:
        return list(range(batch_size))
    if batch_size % (2 * parts):
        raise UserError(
            f"schedule.batch_size: {batch_size} pictures cannot be cut into {parts} equal parts of whole pairs "
            f"(processes times schedule.accumulate); choose a multiple of {2 * parts}"
        )
    half = batch_size // (2 * parts)
    first = range(part * half, (part + 1) * half)
    return [*first, *(slot + batch_size // 2 for slot in first)]


class StepSampler(Sampler[list[Item]]):
    """Batches of (picture index, draw seed) from `first` step to the last; the same for every way of getting there.

    Each epoch is a permutation drawn from (seed, epoch); the epoch's remainder that fills no batch is dropped. The
    draw seed belongs to the position in the whole run, so that no two visits of a picture share their crop, and no
    two processes either. `slots` restricts every batch to some of its positions, one process's share.
    """

    def __init__(
        self, pictures: int, batch_size: int, steps: int, seed: int, first: int = 0, slots: list[int] | None = None
    ) -> None:
        self.pictures, self.batch_size, self.steps, self.seed, self.first = pictures, batch_size, steps, seed, first
        self.slots = list(range(batch_size)) if slots is None else slots
        self.per_epoch = pictures // batch_size
        if self.per_epoch == 0:
            raise UserError(
                f"schedule.batch_size: {batch_size} exceeds the {pictures} training pictures; make it smaller"
            )

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[Item]]:
        epoch, order = -1, []
        for step in range(self.first, self.steps):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch, 1))
                order = torch.randperm(self.pictures, generator=generator).tolist()
            start = (step % self.per_epoch) * self.batch_size
            yield [
                (order[start + slot], mixed_seed(self.seed, step * self.batch_size + slot, 2)) for slot in self.slots
            ]


class Draws:
    """Uniform random numbers for the pictures of one step, or of a part of it.

    Numbers are drawn on the device for the whole batch and the part takes its own, so that they do not depend on how
    the batch is spread. Draws of several parts agree if each part asks for the same shapes in the same order.
    """

    def __init__(self, seed: int, batch_size: int, slots: list[int], device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.batch_size, self.whole = batch_size, len(slots) == batch_size
        # from pinned memory the copy of a few numbers does not wait for the device
        index = torch.tensor(slots)
        self.slots = index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index

    def uniform(self, *shape: int) -> Tensor:
        """(pictures of the part, *shape) float32 in [0, 1)."""
        numbers = torch.rand(self.batch_size, *shape, generator=self.generator, device=self.generator.device)
        return numbers if self.whole else numbers[self.slots]
