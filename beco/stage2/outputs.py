"""From a picture's scores to its PNG: the CRF after the networks, and the pool that runs it and writes.

pydensecrf holds the GIL while it infers, so it runs in processes of one thread each. This module is all that they
import, and it does without torch.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beco.config import InferenceCrf
from beco.crf.refine import posterior
from beco.datasets.palette import write_index_png
from beco.stage2.looks import write_confidence, write_overlay

# Of the official test script, RGB in 0-255 units; it is not the mean (`Encoder.mean`) that its networks subtract.
MEAN_COLOUR = np.array([122.675, 116.669, 104.008], dtype=np.float32)


def refined(
    picture: NDArray[np.uint8], probabilities: NDArray[np.float32], classes: NDArray[np.uint8], settings: InferenceCrf
) -> NDArray[np.uint8]:
    """The label map (H, W) uint8 of largest CRF posterior.

    `picture` (H, W, 3) uint8 RGB; `probabilities` (C, H, W) float32 in [0, 1] of the label values `classes` (C,)
    uint8. They need not sum to 1: a factor common to the classes of a pixel leaves the posterior as it is.
    """
    return refined_with_confidence(picture, probabilities, classes, settings)[0]


def refined_with_confidence(
    picture: NDArray[np.uint8], probabilities: NDArray[np.float32], classes: NDArray[np.uint8], settings: InferenceCrf
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """As `refined`, and the posterior of each label, (H, W) float32; where one class is left, what it was before."""
    if len(classes) == 1:
        return np.full(probabilities.shape[1:], classes[0]), probabilities[0]
    seen = wrapped_picture(picture) if settings.image == "official-code" else picture
    found = posterior(seen, probabilities, settings)
    return classes[found.argmax(0)], found.max(0)


def wrapped_picture(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What BECO's test script lets the CRF see: the picture less `MEAN_COLOUR`, cast to 8 bits.

    The cast of a negative float is undefined in C. This is what compilers for x86 make of it: cut towards zero, then
    the lowest 8 bits, so that -1.5 becomes 255 and colours just below the mean are as far as can be from those just
    above it. (H, W, 3) uint8 RGB to the same.
    """
    cut = np.trunc(picture.astype(np.float32) - MEAN_COLOUR).astype(np.int32)
    return (cut & 255).astype(np.uint8)


@dataclass(frozen=True)
class More:
    """What is written of a picture beside its label map, in folders of these names."""

    confidence: bool = False
    overlay: bool = False

    def files(self, image_id: str) -> dict[str, str]:
        """All files of a picture, by what they are, relative to the folder of all."""
        asked = {"confidence": self.confidence, "overlay": self.overlay}
        names = {"confidence": f"confidence/{image_id}.png", "overlay": f"overlay/{image_id}.jpg"}
        return {"label": f"{image_id}.png", **{what: names[what] for what, wanted in asked.items() if wanted}}


Counts = NDArray[np.int64]
"""(256,) pixels of each label value in a picture."""


class Outputs:
    """Writes label maps into a folder, in the background and with a bounded number of pictures in flight.

    With `crf`, `threads` processes (or, for a CRF of torch, one thread: torch spreads the work itself) run it;
    without, `threads` threads write. What is written depends on neither. Leaving the block waits for all of it; the
    first error of a picture is raised at a later call or there. `done` is told of each picture that is written.
    """

    def __init__(
        self,
        folder: Path,
        crf: InferenceCrf | None,
        threads: int,
        more: More | None = None,
        done: Callable[[str, Counts], None] | None = None,
    ) -> None:
        self.folder, self.crf, self.most = folder, crf, 2 * threads
        self.more, self.done = more or More(), done
        self.pending: deque[tuple[str, Future[Counts]]] = deque()
        self.pool: Executor
        if crf is not None and crf.backend == "pydensecrf":
            # Spawned, not forked: a fork would copy torch's threads and the GPU's context in whatever state they are.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(threads, context, _start_worker)
        else:
            self.pool = ThreadPoolExecutor(1 if crf else threads, "outputs")

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.pool.shutdown(cancel_futures=True)

    def write(
        self,
        image_id: str,
        label: NDArray[np.uint8],
        confidence: NDArray[np.float32] | None = None,
        picture: NDArray[np.uint8] | None = None,
    ) -> None:
        """Write an (H, W) uint8 label map as `<image_id>.png`, and what else is asked for (`more`).

        `confidence` (H, W) in [0, 1] and `picture` (H, W, 3) uint8 are of its size, and may be None where not asked.
        """
        self._submit(_write, image_id, label, confidence, picture)

    def refine(
        self,
        image_id: str,
        picture: NDArray[np.uint8],
        probabilities: NDArray[np.float32],
        classes: NDArray[np.uint8],
    ) -> None:
        """Write what `refined` makes of them."""
        assert self.crf is not None
        self._submit(partial(_write_refined, self.crf), image_id, picture, probabilities, classes)

    def wait(self) -> None:
        """Return when everything is written."""
        while self.pending:
            self._take()

    def _take(self) -> None:
        image_id, future = self.pending.popleft()
        counts = future.result()
        if self.done is not None:
            self.done(image_id, counts)

    def _submit(self, work: Callable[..., Counts], image_id: str, *arguments: Any) -> None:
        while len(self.pending) >= self.most:
            self._take()
        paths = {what: self.folder / name for what, name in self.more.files(image_id).items()}
        self.pending.append((image_id, self.pool.submit(work, paths, *arguments)))


def _write_refined(
    settings: InferenceCrf,
    paths: dict[str, Path],
    picture: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    classes: NDArray[np.uint8],
) -> Counts:
    return _write(paths, *refined_with_confidence(picture, probabilities, classes, settings), picture)


def _write(
    paths: dict[str, Path],
    label: NDArray[np.uint8],
    confidence: NDArray[np.float32] | None,
    picture: NDArray[np.uint8] | None,
) -> Counts:
    """Write what `paths` name of a picture; pixels of each label value."""
    write_index_png(paths["label"], label)
    if "confidence" in paths:
        assert confidence is not None
        write_confidence(paths["confidence"], confidence)
    if "overlay" in paths:
        assert picture is not None
        write_overlay(paths["overlay"], picture, label)
    return np.bincount(label.ravel(), minlength=256)


def _start_worker() -> None:
    """One thread a process; and a process that outlives a killed parent would wait for ever, so it watches it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if (parent := multiprocessing.parent_process()) is not None:
        Thread(target=_end_with, args=[parent], daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
