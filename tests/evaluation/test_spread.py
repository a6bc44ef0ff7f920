"""How far labels spread over their pictures: by hand, against a loop, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from beco.evaluation.scores.spread import result, spread_of, warnings

EMPTY, FULL, HALF = (np.full((4, 4), value, np.uint8) for value in (0, 1, 255))
HALF[:2], HALF[2] = 0, 2  # 8 of background, 4 of an object, 4 without an opinion


def total(*labels: np.ndarray) -> np.ndarray:
    return np.sum([spread_of(label, shows=True) for label in labels], axis=0)


def test_by_hand() -> None:
    assert spread_of(HALF, True).tolist() == [1, 0, 0, 8, 12]
    assert result(total(EMPTY, FULL, HALF, HALF)) == {
        "pictures": 4, "all_background": 1 / 4, "all_object": 1 / 4, "background": 32 / 56,
    }  # fmt: skip
    assert not spread_of(EMPTY, shows=False).any()  # a picture of background is right to be all of it
    assert not spread_of(np.full((4, 4), 255, np.uint8), True).any()
    assert result(np.zeros(5, np.int64))["background"] is None


@given(st.lists(arrays(np.uint8, (3, 5), elements=st.sampled_from([0, 0, 1, 2, 255])), max_size=4))
def test_as_a_loop_counts(labels: list[np.ndarray]) -> None:
    expected = [0] * 5
    for label in labels:
        known = [value for value in label.ravel().tolist() if value != 255]
        if known:
            background = known.count(0)
            counted = [1, background == len(known), background == 0, background, len(known)]
            expected = [one + other for one, other in zip(expected, counted, strict=True)]
    found = np.sum([np.zeros(5, np.int64), *(spread_of(label, True) for label in labels)], axis=0)
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([HALF], []),
        ([], []),
        ([HALF, FULL, FULL, FULL], ["flood"]),  # by pixels and by pictures
        ([HALF, HALF, FULL], ["flood"]),  # by pictures alone
        ([HALF, HALF, EMPTY], ["missed"]),
        ([HALF, EMPTY, FULL], ["flood", "missed"]),
    ],
)
def test_what_is_warned_of(labels: list[np.ndarray], words: list[str]) -> None:
    found = np.sum([np.zeros(5, np.int64), *(spread_of(label, True) for label in labels)], axis=0)
    lines = warnings(result(found))
    assert len(lines) == len(words)
    assert all(word in line and "; " in line and "\n" not in line for word, line in zip(words, lines, strict=True))
