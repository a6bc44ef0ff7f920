"""Artificial boundaries on pictures small enough to write down, and against a loop over pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from torch import Tensor

from beco.stage2.boundaries import (
    Mixing,
    Opinion,
    Supervision,
    boundary_band,
    choose_classes,
    mix,
    partners,
    paste_mask,
)
from beco.training.sampling import Draws

CLASSES = 4


def grid(*rows: str) -> Tensor:
    """A label map from digits; `x` is 255."""
    return torch.tensor([[255 if char == "x" else int(char) for char in row] for row in rows])


def flags(*rows: str) -> Tensor:
    """A mask from characters; `#` is set."""
    return torch.tensor([[char == "#" for char in row] for row in rows])


ALL = flags(*["####"] * 4)


def drawn_for(pictures: int, seed: int = 0) -> Draws:
    return Draws(seed, pictures, list(range(pictures)), torch.device("cpu"))


def chosen_sets(label: Tensor, trusted: Tensor, ignore_background: bool = True) -> list[set[int]]:
    found = choose_classes(label[None], trusted[None], CLASSES, ignore_background, torch.rand(1, CLASSES + 1))
    assert found.shape == (1, CLASSES + 1) and found.dtype == torch.bool
    return [set(found[0].nonzero().flatten().tolist())]


def draws(label: Tensor, trusted: Tensor, ignore_background: bool = True, number: int = 80) -> set[frozenset[int]]:
    """The sets of classes that come up."""
    torch.manual_seed(0)
    return {frozenset(chosen_sets(label, trusted, ignore_background)[0]) for _ in range(number)}


# --- which classes ------------------------------------------------------------------------------------------


def test_candidates_are_seen_on_trusted_pixels_and_half_of_them_are_chosen() -> None:
    label = grid("0012", "0012", "33xx", "3344")
    trusted = flags("####", "####", "..##", "..##")  # class 3 is not trusted anywhere
    # candidates 1, 2, 4: two of three, and every pair of them comes up
    assert draws(label, trusted) == {frozenset({1, 2}), frozenset({1, 4}), frozenset({2, 4})}
    # with background there are four: two of them
    pairs = draws(label, trusted, ignore_background=False, number=200)
    assert pairs == {frozenset({a, b}) for a in (0, 1, 2, 4) for b in (0, 1, 2, 4) if a < b}


@pytest.mark.parametrize(
    ("rows", "trusted", "expected"),
    [
        (["0000", "0000", "0000", "0000"], ALL, set()),  # background alone
        (["xxxx", "xxxx", "xxxx", "xxxx"], ALL, set()),  # no opinion
        (["1111", "2222", "3333", "4444"], ~ALL, set()),  # nothing trusted
        (["0000", "0300", "0000", "0000"], ALL, {3}),  # the half of one, rounded up, is one
    ],
)
def test_candidates_at_the_limits(rows: list[str], trusted: Tensor, expected: set[int]) -> None:
    assert chosen_sets(grid(*rows), trusted) == [expected]


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.int64, (2, 3, 4), elements=st.sampled_from([0, 1, 2, 3, 4, 255])),
    arrays(np.bool_, (2, 3, 4)),
    st.booleans(),
)
def test_ceil_of_half_of_the_candidates(label: np.ndarray, trusted: np.ndarray, ignore: bool) -> None:
    found = choose_classes(
        torch.from_numpy(label), torch.from_numpy(trusted), CLASSES, ignore, torch.rand(2, CLASSES + 1)
    )
    for one, seen, row in zip(label, trusted, found, strict=True):
        candidates = set(one[seen].tolist()) - {255} - ({0} if ignore else set())
        chosen = set(row.nonzero().flatten().tolist())
        assert chosen <= candidates and len(chosen) == math.ceil(len(candidates) / 2)


def test_pasted_pixels_are_trusted_and_of_a_chosen_class() -> None:
    label = grid("0012", "0x12", "33xx", "3344")
    trusted = flags("##.#", "####", "#.##", "#.#.")
    chosen = torch.tensor([[False, True, False, True, True]])
    expected = flags("....", "..#.", "#...", "#.#.")
    assert torch.equal(paste_mask(label[None], trusted[None], chosen)[0], expected)


def test_the_pairing() -> None:
    assert partners(torch.arange(6)).tolist() == [3, 4, 5, 0, 1, 2]
    assert torch.equal(partners(partners(torch.arange(8))), torch.arange(8))


# --- the band -----------------------------------------------------------------------------------------------


def test_band_by_hand() -> None:
    mask = flags(".....", ".###.", ".###.", ".###.", ".....")
    assert torch.equal(boundary_band(mask[None], 1)[0], flags("#####", "#####", "##.##", "#####", "#####"))


def test_no_band_along_the_pictures_edge() -> None:
    """Where the mask meets the frame there is no cut between two pictures, and so no band."""
    mask = flags("###...", "###...", "###...", "###...")
    assert torch.equal(boundary_band(mask[None], 1)[0], flags(*["..##.."] * 4))
    for width in (1, 2, 5):
        assert not boundary_band(torch.ones(1, 4, 6, dtype=torch.bool), width).any()
        assert not boundary_band(torch.zeros(1, 4, 6, dtype=torch.bool), width).any()


@settings(max_examples=80, deadline=None)
@given(arrays(np.bool_, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9))), st.integers(0, 3))
def test_band_agrees_with_scipy(masks: np.ndarray, width: int) -> None:
    found = boundary_band(torch.from_numpy(masks), width).numpy()
    square = np.ones((2 * width + 1, 2 * width + 1), bool)
    for mask, band in zip(masks, found, strict=True):
        # outside of the picture counts for neither: it does not dilate inwards, and does not erode
        dilated = ndimage.binary_dilation(mask, square)
        eroded = ndimage.binary_erosion(mask, square, border_value=1)
        assert (band == (dilated & ~eroded)).all()


# --- mixing -------------------------------------------------------------------------------------------------

IMAGES = torch.stack([torch.full((3, 4, 4), 1.0), torch.full((3, 4, 4), 2.0)])
OFFLINE = Opinion(torch.stack([grid(*["0000"] * 4), grid(*["1111"] * 4)]), torch.stack([~ALL, ALL]))


def pair(believed: tuple[Tensor, Tensor], probability: float = 1.0, width: int = 1) -> Supervision:
    """Mixed by what is reliable of a label, as online labels are."""
    return mix(
        IMAGES, OFFLINE, Opinion(*believed), believed[1], Mixing(CLASSES, probability, True, width), drawn_for(2)
    )


def test_a_pair_by_hand() -> None:
    label = torch.stack([grid("0000", "0330", "0330", "0000"), grid("2200", "2200", "0000", "000x")])
    trusted = torch.stack([flags("####", "##.#", "####", "####"), flags(".###", "####", "####", "##.#")])
    found = pair((label, trusted))
    # picture 0 receives the trusted 2s of picture 1 and the other way round
    assert torch.equal(
        found.pasted, torch.stack([flags(".#..", "##..", "....", "...."), flags("....", ".#..", ".##.", "....")])
    )
    assert torch.equal(
        found.images[:, 0],
        torch.stack([grid("1211", "2211", "1111", "1111"), grid("2222", "2122", "2112", "2222")]).float(),
    )
    assert torch.equal(found.images[:, 1], found.images[:, 0])
    # labels are the online ones, with the partner's where it was pasted: 255 stays 255
    assert torch.equal(found.label[0], grid("0200", "2230", "0330", "0000"))
    assert torch.equal(found.label[1], grid("2200", "2300", "0330", "000x"))
    # what is not trusted in picture 0 stays so, unless a trusted pixel came to lie on it
    assert torch.equal(found.reliable[0], flags("####", "##.#", "####", "####"))
    assert torch.equal(found.reliable[1], flags(".###", "####", "####", "##.#"))
    assert torch.equal(found.band[0], flags("###.", "###.", "###.", "...."))
    assert torch.equal(found.band[1], flags("###.", "####", "####", "####"))


def test_whole_classes_are_pasted_and_stay_as_reliable_as_they_were() -> None:
    """As published for the warm-up: the region is the partner's whole label, and trust moves with the pixels."""
    label = torch.stack([grid(*["0000"] * 4), grid("33x0", "33x0", "33x0", "33x0")])
    reliable = torch.stack([flags("....", "####", "####", "####"), flags("##..", "....", "....", "....")])
    given = Opinion(label, reliable)
    found = mix(IMAGES, given, given, label != 255, Mixing(CLASSES, 1.0, True, 0), drawn_for(2))
    assert torch.equal(found.pasted, torch.stack([flags(*["##.."] * 4), ~ALL]))
    assert torch.equal(found.label[0], grid(*["3300"] * 4)) and torch.equal(found.label[1], label[1])
    assert torch.equal(found.reliable[0], flags("##..", "..##", "..##", "..##"))  # two of the eight pasted pixels
    assert torch.equal(found.reliable[1], reliable[1]) and not found.band.any()


def test_a_pasted_pixel_is_trusted_where_the_receivers_was_not() -> None:
    label = torch.stack([grid(*["0000"] * 4), grid("3000", "0000", "0000", "0000")])
    found = pair((label, torch.stack([~ALL, ALL])))
    assert torch.equal(found.reliable[0], flags("#...", "....", "....", "....")) and found.reliable[1].all()


def test_unmixed_pictures_keep_the_offline_label_and_mask() -> None:
    online = (torch.stack([grid(*["3333"] * 4)] * 2), torch.stack([ALL, ALL]))
    found = pair(online, probability=0)
    assert torch.equal(found.images, IMAGES)
    assert torch.equal(found.label, OFFLINE[0]) and torch.equal(found.reliable, OFFLINE[1])
    assert not found.pasted.any() and not found.band.any()


def test_mixed_pictures_switch_to_online_labels_even_if_nothing_is_pasted() -> None:
    online = (torch.stack([grid(*["3333"] * 4), grid(*["0000"] * 4)]), torch.stack([~ALL, ALL]))
    found = pair(online)
    assert torch.equal(found.images, IMAGES) and not found.pasted.any() and not found.band.any()
    assert torch.equal(found.label, online[0]) and torch.equal(found.reliable, online[1])


def test_each_picture_of_a_pair_takes_part_for_itself_and_as_often_as_asked() -> None:
    online = Opinion(torch.full((400, 1, 1), 2), torch.ones(400, 1, 1, dtype=torch.bool))
    offline = Opinion(torch.zeros(400, 1, 1, dtype=torch.long), torch.zeros(400, 1, 1, dtype=torch.bool))
    given = torch.zeros(400, 3, 1, 1), offline, online, online.reliable
    mixed = mix(*given, Mixing(CLASSES, 0.3, True, 1), drawn_for(400)).label.flatten() == 2
    assert 0.2 < mixed.float().mean() < 0.4  # four standard deviations
    one, other = mixed[:200], mixed[200:]
    assert {(bool(a), bool(b)) for a, b in zip(one, other, strict=True)} == {
        (a, b) for a in (True, False) for b in (True, False)
    }


def test_an_odd_batch_is_refused() -> None:
    three = Opinion(torch.zeros(3, 2, 2, dtype=torch.long), torch.ones(3, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="even"):
        mix(torch.zeros(3, 3, 2, 2), three, three, three.reliable, Mixing(CLASSES, 1, True, 1), drawn_for(3))


# --- properties ---------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    size = (draw(st.sampled_from([2, 4])), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    labels = arrays(np.int64, size, elements=st.sampled_from([0, 1, 2, 3, 4, 255]))
    masks = arrays(np.bool_, size)
    return {
        # every picture and pixel has a value of its own, so that its origin can be told
        "images": torch.arange(math.prod(size)).reshape(size).unsqueeze(1).repeat(1, 3, 1, 1).float(),
        "offline": Opinion(torch.from_numpy(draw(labels)), torch.from_numpy(draw(masks))),
        "believed": Opinion(torch.from_numpy(draw(labels)), torch.from_numpy(draw(masks))),
        "region": torch.from_numpy(draw(masks)),
        "how": Mixing(CLASSES, draw(st.sampled_from([0.0, 0.5, 1.0])), draw(st.booleans()), draw(st.integers(0, 2))),
    }


def slow_pixel(batch: dict[str, Any], found: Supervision, mixed: bool, at: tuple[int, int, int]) -> tuple[Any, ...]:
    """What label, mask and picture one pixel has to have, given whether its picture was mixed and it was pasted on."""
    i, y, x = at
    j = (i + len(batch["images"]) // 2) % len(batch["images"])
    if not mixed:
        return int(batch["offline"][0][at]), bool(batch["offline"][1][at]), float(batch["images"][i, 0, y, x])
    source = j if found.pasted[at] else i
    label, mask = batch["believed"]
    return int(label[source, y, x]), bool(mask[source, y, x]), float(batch["images"][source, 0, y, x])


@settings(max_examples=150, deadline=None)
@given(batches(), st.integers(0, 1000))
def test_every_pixel_comes_from_where_it_should(batch: dict[str, Any], seed: int) -> None:
    before = {key: [t.clone() for t in value] for key, value in batch.items() if key in ("offline", "believed")}
    found = mix(**batch, draws=drawn_for(len(batch["images"]), seed))
    for i in range(len(found.images)):
        j = (i + len(found.images) // 2) % len(found.images)
        # `mixed` is not handed out: it has to be one of the two for the whole picture
        fits = []
        for mixed in (False, True):
            pixels = [(i, y, x) for y in range(found.label.shape[1]) for x in range(found.label.shape[2])]
            fits.append(
                all(
                    slow_pixel(batch, found, mixed, at)
                    == (int(found.label[at]), bool(found.reliable[at]), float(found.images[at[0], 0, at[1], at[2]]))
                    for at in pixels
                )
            )
        assert any(fits)
        if batch["how"].probability != 0.5:
            assert fits[int(batch["how"].probability)]
        pasted = found.pasted[i]
        donor_label, donor_region = batch["believed"].label[j], batch["region"][j]
        values = set(donor_label[pasted].tolist())
        assert 255 not in values and (not batch["how"].ignore_background or 0 not in values)
        assert donor_region[pasted].all()
        # of a class either every pixel of the region is pasted or none
        for value in values:
            assert torch.equal(pasted & (donor_label == value), donor_region & (donor_label == value))
        if batch["how"].probability == 1:
            candidates = (
                set(donor_label[donor_region].tolist()) - {255} - ({0} if batch["how"].ignore_background else set())
            )
            assert len(values) == math.ceil(len(candidates) / 2)
        if not pasted.any():
            assert not found.band[i].any()
    assert torch.equal(found.band, boundary_band(found.pasted, batch["how"].band_width))
    assert (found.images == found.images[:, :1]).all()  # all channels alike
    for key, tensors in before.items():  # the inputs are not written into
        assert all(torch.equal(one, other) for one, other in zip(tensors, batch[key], strict=True))


@settings(max_examples=40, deadline=None)
@given(batches(), st.integers(0, 1000))
def test_identical_pictures_stay_as_they_are(batch: dict[str, Any], seed: int) -> None:
    half = len(batch["images"]) // 2
    twice = {key: value[:half].repeat(2, 1, 1, 1) for key, value in batch.items() if key == "images"}
    for key in ("offline", "believed"):
        twice[key] = Opinion(*(tensor[:half].repeat(2, 1, 1) for tensor in batch[key]))
    twice["region"] = batch["region"][:half].repeat(2, 1, 1)
    found = mix(**{**batch, **twice, "how": batch["how"]._replace(probability=1.0)}, draws=drawn_for(2 * half, seed))
    assert torch.equal(found.images, twice["images"])
    assert torch.equal(found.label, twice["believed"][0]) and torch.equal(found.reliable, twice["believed"][1])
