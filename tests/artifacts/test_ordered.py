"""Work in threads, in order, and how many threads a command may use."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from beco.artifacts.ordered import allowed_threads, in_order


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order_and_not_far_ahead(threads: int) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (item % 3))  # those that come first end last
        with lock:
            running -= 1
        return item * item

    assert list(in_order(work, range(20), threads, "test")) == [item * item for item in range(20)]
    assert most <= max(threads, 1)


def test_the_first_error_ends_it() -> None:
    done = []

    def work(item: int) -> int:
        if item == 5:
            raise KeyError(item)
        done.append(item)
        return item

    with pytest.raises(KeyError):
        list(in_order(work, range(1000), 2, "test"))
    assert set(range(5)) <= set(done) and len(done) < 50


@pytest.mark.parametrize(("given", "expected"), [("1", 1), ("3", 3), ("2,1", 2), ("0", 1)])
def test_a_job_uses_the_threads_it_was_given(monkeypatch: pytest.MonkeyPatch, given: str, expected: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert allowed_threads() == expected


@pytest.mark.parametrize("given", [None, "", "many"])
def test_else_what_the_machine_has(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert allowed_threads() == min(8, len(os.sched_getaffinity(0)))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert allowed_threads() == 8


def test_a_reader_may_be_collected_by_a_thread_of_its_own() -> None:
    """The collector runs in whatever thread it likes, and what it raises there would be printed and lost."""
    held: list[Iterator[int]] = []
    go, done = threading.Event(), threading.Event()
    heard: list[object] = []

    def work(item: int) -> int:
        if item == 3:
            go.wait(5)
            held.pop()  # the last reference: its end runs here
            done.set()
        return item

    reader = in_order(work, range(8), 1, "test", ahead=4)
    assert next(reader) == 0
    held.append(reader)
    before, sys.unraisablehook = sys.unraisablehook, heard.append
    try:
        del reader
        go.set()
        assert done.wait(5) and not heard and not held
    finally:
        sys.unraisablehook = before
