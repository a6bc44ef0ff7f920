"""How far pseudo-labels spread over their pictures: what tells that they went wrong where there is no mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from beco.artifacts.pseudolabels import UNCERTAIN

LITTLE = 0.01
"""Share of a picture's pixels with an opinion below which background, or objects, count as none of it."""
FLOODED = 0.3
"""Share of background that photographs exceed as a whole: of 828 pictures of VOC 74 % is, by their masks."""
MANY = 0.2
"""Share of pictures that is more than a few odd ones; of those 828 3 % are background alone, 0.5 % objects alone."""
MEND = (
    "{0} its recipe's `background` (refine: none or irn), `foreground_threshold` and `background_threshold` (crf); "
    "if a rule such as otsu finds the score, write a number in its place, or {0} `foreground_margin` and {1} "
    "`background_margin` (crf)"
)


def spread_of(label: NDArray[np.uint8], shows: bool) -> NDArray[np.int64]:
    """(5,) int64 of a picture's label (H, W), to be added up; zeros where it shows no class, and is to be background.

    Pictures, those that are background alone, those that are objects alone; pixels of background, and with an opinion.
    """
    opinion = int(np.count_nonzero(label != UNCERTAIN))
    background = int(np.count_nonzero(label == 0))
    if not shows or not opinion:
        return np.zeros(5, dtype=np.int64)
    share = background / opinion
    return np.array([1, share > 1 - LITTLE, share < LITTLE, background, opinion], dtype=np.int64)


def result(total: NDArray[np.int64]) -> dict[str, Any]:
    """The sum of `spread_of` as `metrics.json` has it: shares of the pictures and pixels; None of nothing."""
    pictures, empty, full, background, opinion = (int(number) for number in total)
    return {
        "pictures": pictures,
        "all_background": empty / pictures if pictures else None,
        "all_object": full / pictures if pictures else None,
        "background": background / opinion if opinion else None,
    }


def warnings(found: dict[str, Any]) -> list[str]:
    """What to say of a `result` that no data set of photographs has: a line each with its mend."""
    if not found["pictures"]:
        return []
    lines = []
    if found["background"] < FLOODED or found["all_object"] > MANY:
        lines.append(
            f"the class maps flood the pictures: {found['background']:.0%} of the pixels are background, and "
            f"{found['all_object']:.0%} of the pictures have none; {MEND.format('raise', 'lower')}"
        )
    if found["all_background"] > MANY:
        lines.append(
            f"objects are missed: {found['all_background']:.0%} of the pictures that show a class are background "
            f"alone; {MEND.format('lower', 'raise')}"
        )
    return lines
