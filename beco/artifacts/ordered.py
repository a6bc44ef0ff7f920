"""Work on many items in threads, its results in order."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")


def allowed_threads() -> int:
    """How many threads a command that is not told may use: OMP_NUM_THREADS, which Snakemake sets to the threads of a
    job, or as many as there are processors for it, up to eight.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.strip().isdigit():
        return max(int(given), 1)
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return min(8, len(affinity(0)) if affinity else os.cpu_count() or 1)


def in_order(
    work: Callable[[T], R],
    items: Sequence[T],
    threads: int,
    name: str,
    ahead: int | None = None,
    weight: Callable[[T], float] = lambda _: 1,
) -> Iterator[R]:
    """`work` of every item, in order, under a progress bar called `name`.

    Threads suffice for pictures: decoding, resizing and filtering release the GIL. They run at most `ahead` items
    (four a thread, if not given) ahead of the reader, which bounds the memory; large ones can count as several by their
    `weight`. The first error ends it, and nothing is at work any more when it is raised.
    """
    threads = max(threads, 1)
    ahead = 4 * threads if ahead is None else ahead
    waiting: deque[tuple[Future[R], float]] = deque()
    weighs = 0.0
    pool = ThreadPoolExecutor(threads, name)
    with tqdm(total=len(items), desc=name, unit="picture", disable=not sys.stderr.isatty(), leave=False) as bar:
        try:
            for item in items:
                waiting.append((pool.submit(work, item), weight(item)))
                weighs += waiting[-1][1]
                while weighs > ahead:
                    future, less = waiting.popleft()
                    weighs -= less
                    yield future.result()
                    bar.update()
            while waiting:
                yield waiting.popleft()[0].result()
                bar.update()
        finally:
            # where a reader that was given up is collected by one of the pool's own threads, that one cannot wait for
            # itself; by then the pool takes nothing more, and what was not begun is dropped
            with suppress(RuntimeError):
                pool.shutdown(cancel_futures=True)
