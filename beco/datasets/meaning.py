"""What masks hold against the image-level labels of their pictures: values in range can still mean something else.

Masks of 0 and 255, classes in another order, palettes that an editor has sorted anew, and masks without any opinion all
pass a look at their values, and give numbers. Labels and masks come from different files, so that one tells of the
other. A few contradictions are slips of whoever drew or labelled; where most contradict, no number would mean anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from beco.datasets.palette import voc_palette

IGNORE = 255
NAMED = 3
"""How many masks a message names."""
ORDER_SHOWN = 6
FEWEST = 2
"""Contradictions of one class from which on they can be more than a slip."""

SLIPS = 2
"""Masks that contradict up to which nothing is refused, were they all there are: tiny objects, and tiny sets."""
OFTEN = 10
"""Pictures of one class from which on some mask has to hold it."""

Colour = tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """What one mask holds."""

    values: frozenset[int]
    """Its label values, 0 and 255 among them."""
    colours: dict[int, Colour]
    """The colour of each of its values; empty without a palette."""
    edge: tuple[int, ...] = ()
    """The values along its border, that of most pixels first; empty if nobody has looked."""


def seen(label: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> Seen:
    """What an (H, W) uint8 mask holds; `palette` is (n, 3) uint8, or None for a grey one."""
    values = np.flatnonzero(np.bincount(label.ravel(), minlength=256)).tolist()
    known = [] if palette is None else [value for value in values if value < len(palette)]
    colours = {} if palette is None else {value: tuple(palette[value].tolist()) for value in known}
    border = np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]])
    counts = np.bincount(border, minlength=256)
    edge = tuple(value for value in np.argsort(-counts, kind="stable").tolist() if counts[value])
    return Seen(frozenset(values), colours, edge)


def order(classes: Sequence[str]) -> str:
    """`0 background, 1 cat, 2 dog`; of many classes the first, and the last."""
    names = [f"{value} {name}" for value, name in enumerate(["background", *classes])]
    return ", ".join(names if len(names) <= ORDER_SHOWN + 2 else [*names[:ORDER_SHOWN], "…", names[-1]])


def contradictions(
    names: Sequence[str], shown: NDArray[np.bool_], masks: Sequence[Seen], classes: Sequence[str]
) -> tuple[str, list[str]]:
    """What is wrong with masks as a whole ("" if nothing is), and what to warn of otherwise.

    Args:
        names: of the masks (N), for the messages.
        shown: (N, K) bool, the image-level labels of their pictures.
        masks: what they hold, values 0…K and 255.
        classes: the K foreground classes in label order.
    """
    if not masks:
        return "", []
    held = np.array([[value + 1 in mask.values for value in range(len(classes))] for mask in masks])
    if all(mask.values == {IGNORE} for mask in masks):
        return f"all {len(masks)} masks hold 255 (no opinion) alone; write label values ({order(classes)})", []
    sorted_anew = _sorted_anew(shown, masks, classes)
    if sorted_anew:
        return _of_palettes([names[index] for index in sorted_anew], masks[sorted_anew[0]], classes), []
    silent = _any(shown) & ~_any(held)
    void = any(is_silent and IGNORE in mask.values for mask, is_silent in zip(masks, silent, strict=True))
    if 2 * silent.sum() > _any(shown).sum() and (void or silent.sum() > SLIPS):  # a tiny object leaves 0 alone
        return _of_silent(_some(names, silent), silent, masks, classes), []
    wrong = _any(held) & ~_any(held & shown)  # no pixel of an object can be right
    if other := _other_order(shown, held):
        found = ", ".join(f"{value + 1} {classes[k]}" for k, value in other[:ORDER_SHOWN])
        found += ", …" if len(other) > ORDER_SHOWN else ""
        return f"values fit the labels of the pictures in another order ({found}); {_mend(classes)}", []
    if 2 * wrong.sum() > _any(held).sum() and wrong.sum() > SLIPS:
        what = "hold classes alone that the labels of their pictures do not name"
        return f"{_count(wrong, masks)} {what} ({_some(names, wrong)}); {_mend(classes)}", []
    if inverted := _inverted(shown, masks):
        k, count = inverted
        what = (
            f"{count} of {len(masks)} masks hold {k + 1} {classes[k]} along their border, around 0 or where labels do"
        )
        return f"{what} not name it, as if it were the background; {_mend(classes)}", []
    never = np.flatnonzero((shown.sum(0) >= OFTEN) & ~held.any(0))
    if never.size:
        what = f"labels name {classes[never[0]]} in {shown[:, never[0]].sum()} pictures with masks, and none of these"
        return f"{what} masks holds {never[0] + 1}; {_mend(classes)}", []
    if lost := _lost(shown, held, wrong):
        k, count = lost
        what = f"labels name {classes[k]} in {shown[:, k].sum()} pictures with masks, and {count} of these masks hold"
        return f"{what} other classes alone; {_mend(classes)}", []
    return "", _warnings(names, held & ~shown, silent, masks, classes)


def _other_order(shown: NDArray[np.bool_], held: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Classes and values, both from 0, that belong together by labels and masks though their numbers differ; or none.

    Of all orders the one with the fewest pictures whose labels have a class and masks do not, or the other way round;
    what is gained by it must be most of these, and more than a slip for each class.
    """
    labels, masks = shown.astype(np.float64), held.astype(np.float64)
    cost = labels.sum(0)[:, None] + masks.sum(0) - 2 * labels.T @ masks
    classes, values = linear_sum_assignment(cost - np.eye(len(cost)) / (2 * len(cost)))  # as it is, where that is equal
    moved = np.flatnonzero(classes != values)
    before, after = cost[moved, moved].sum(), cost[moved, values[moved]].sum()
    is_plain = 2 * after < before and before - after >= FEWEST * len(moved)
    return [(int(k), int(values[k])) for k in moved] if is_plain and len(moved) else []


def _inverted(shown: NDArray[np.bool_], masks: Sequence[Seen]) -> tuple[int, int] | None:
    """The class (from 0) that lies where background should, in most masks, and in how many; None if none does.

    Objects lie inside a picture, and background around them: a class has taken its place where it has most of the
    border though labels do not name it, or though all 0 of the mask is enclosed. Of real masks few are so (VOC: 1 in
    100); a class that fills pictures to their border, as a texture or a road does, is not meant by it.
    """
    found = Counter[int]()
    for row, mask in enumerate(masks):
        k = mask.edge[0] - 1 if mask.edge else -1
        if 0 <= k < shown.shape[1] and (not shown[row, k] or (0 in mask.values and 0 not in mask.edge)):
            found[k] += 1
    for k, count in found.most_common(1):
        if 2 * count > len(masks) and count > SLIPS:
            return k, count
    return None


def _lost(shown: NDArray[np.bool_], held: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> tuple[int, int] | None:
    """The first class (from 0) whose pictures hold other classes alone more often than it, and how often."""
    others, agree = (shown & ~held & wrong[:, None]).sum(0), (shown & held).sum(0)
    found = np.flatnonzero((others > agree) & (others >= FEWEST))
    return (int(found[0]), int(others[found[0]])) if found.size else None


def _any(matrix: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows have a True."""
    return np.asarray(matrix.any(axis=1), dtype=bool)


def _count(which: NDArray[np.bool_], masks: Sequence[Seen]) -> str:
    return f"{which.sum()} of {len(masks)} masks"


def _some(names: Sequence[str], which: NDArray[np.bool_]) -> str:
    chosen = [name for name, is_chosen in zip(names, which, strict=True) if is_chosen]
    return ", ".join(chosen[:NAMED]) + (", …" if len(chosen) > NAMED else "")


def _mend(classes: Sequence[str]) -> str:
    return f"label values follow the order of the classes ({order(classes)}); give both the same order"


def _of_silent(named: str, silent: NDArray[np.bool_], masks: Sequence[Seen], classes: Sequence[str]) -> str:
    of_255 = sum(IGNORE in mask.values for mask, is_silent in zip(masks, silent, strict=True) if is_silent)
    mend = f"write label values ({order(classes)})"
    if 2 * of_255 > silent.sum():
        mend = f"255 means no opinion, not an object: {mend}"
    what = "hold none of the classes, though the labels of their pictures name some"
    return f"{_count(silent, masks)} {what} ({named}); {mend}"


def _warnings(
    names: Sequence[str],
    strange: NDArray[np.bool_],
    silent: NDArray[np.bool_],
    masks: Sequence[Seen],
    classes: Sequence[str],
) -> list[str]:
    found = []
    if (odd := _any(strange)).any():
        rows = np.flatnonzero(odd)
        told = [f"{names[row]}: {', '.join(np.array(classes)[strange[row]])}" for row in rows[:NAMED]]
        more = "; …" if len(rows) > NAMED else ""
        what = "hold classes that the labels of their pictures do not name"
        found.append(f"{_count(odd, masks)} {what} ({'; '.join(told)}{more}); values: {order(classes)}")
    background = f"background is 0, and 255 means no opinion, which is never measured ({order(classes)})"
    if not any(0 in mask.values for mask in masks):
        found.append(f"none of the {len(masks)} masks holds any background; {background}")
    elif 2 * (void := sum(mask.edge[:1] == (IGNORE,) for mask in masks)) > len(masks):
        found.append(f"{void} of {len(masks)} masks hold 255 along most of their border; {background}")
    if silent.any():
        what = "hold none of the classes that their pictures' labels name"
        found.append(f"{_count(silent, masks)} {what} ({_some(names, silent)})")
    return found


# --- palettes -----------------------------------------------------------------------------------------------


def _sorted_anew(shown: NDArray[np.bool_], masks: Sequence[Seen], classes: Sequence[str]) -> list[int]:
    """The masks whose colours say, as one palette has them, other values than their pixels: an editor has sorted it.

    Colours count where what they say fits the labels; if there are as many masks whose values fit and colours do not,
    the colours of this dataset mean nothing. Where both fit, VOC's colours alone are no reason: the palette may be of
    one's own. The colour of 0 is one, and so is what most masks have it for.
    """
    values = [*range(len(classes) + 1), IGNORE]
    palettes = [mask.colours for mask in masks if mask.colours]
    meaning, usual = _meaning(palettes, values), _usual(palettes)
    found, against = [], 0
    for index, mask in enumerate(masks):
        meant = {value: meaning.get(colour) for value, colour in mask.colours.items()}
        if None in meant.values() or len(set(meant.values())) < len(meant) or all(a == b for a, b in meant.items()):
            continue
        labels = {int(k) + 1 for k in np.flatnonzero(shown[index])} | {0, IGNORE}
        moved = {value for value, other in meant.items() if value != other}
        is_usual = all(usual.get(mask.colours[value]) == meant[value] for value in moved)
        if set(meant.values()) <= labels and (not mask.values <= labels or 0 in moved or is_usual):
            found.append(index)
        elif mask.values <= labels:
            against += 1
    return found if len(found) > against else []


def _meaning(palettes: Sequence[dict[int, Colour]], values: Sequence[int]) -> dict[Colour, int]:
    """The value of each colour: by VOC's palette, if most masks have no other colours, or as most masks have it."""
    voc = {tuple(voc_palette()[value].tolist()): value for value in values}
    if 2 * sum(set(palette.values()) <= voc.keys() for palette in palettes) > len(palettes):
        return voc
    return _usual(palettes)


def _usual(palettes: Sequence[dict[int, Colour]]) -> dict[Colour, int]:
    """The value of each colour as most masks have it."""
    votes = Counter((colour, value) for palette in palettes for value, colour in palette.items())
    found: dict[Colour, int] = {}
    for (colour, value), _ in votes.most_common():
        if colour not in found and value not in found.values():
            found[colour] = value
    return found


def _of_palettes(names: Sequence[str], first: Seen, classes: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    held = ", ".join(f"{value} #{bytes(colour).hex()}" for value, colour in sorted(first.colours.items()))
    return (
        f"{names[0]}{more}: the palette is in another order than the values ({held}), as editors leave it; give the "
        f"colours their values back ({order(classes)})"
    )
