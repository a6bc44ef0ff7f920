"""The dense CRF in PyTorch: the lattice's geometry, the properties of mean field, and the results of pydensecrf."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from beco.config import Crf
from beco.crf import mean_field as densecrf
from beco.crf import permutohedral
from beco.crf import refine as crf
from beco.crf.permutohedral import Lattice
from beco.errors import UserError
from beco.schema.stage2 import InferenceCrf

SIZES = [(1, 1), (1, 7), (9, 1), (5, 5), (13, 18), (31, 43)]
SETTINGS = {
    "labels": Crf(),
    "inference": InferenceCrf(),
    "one iteration": Crf(iterations=1),
    "narrow": Crf(gaussian_sxy=0.05, bilateral_sxy=0.7, bilateral_srgb=0.2),
    "wide": Crf(gaussian_sxy=500, bilateral_sxy=1000, bilateral_srgb=500),
    "weak": Crf(gaussian_compat=0.01, bilateral_compat=0.01),
    "strong": Crf(gaussian_compat=40, bilateral_compat=60),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(height: int, width: int, kind: str = "scene", seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    if kind == "constant":
        return np.full((height, width, 3), 90, np.uint8)
    if kind == "noise":
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    slope = np.add.outer(np.arange(height) * 4, np.arange(width) * 2)[..., None]
    return np.clip(slope + random.integers(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def probabilities(classes: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random((classes, height, width), dtype=np.float32) ** 3
    return values / values.sum(0)


def on(backend: str, values: Crf) -> Crf:
    return values.model_copy(update={"backend": backend})


def points(dimensions: int, count: int, seed: int = 0) -> Tensor:
    return torch.randn(dimensions, count, generator=torch.Generator().manual_seed(seed)) * 2


def dense(rows: permutohedral.Rows, columns: int) -> Tensor:
    found = torch.zeros(len(rows.starts) - 1, columns)
    for row, (first, last) in enumerate(zip(rows.starts[:-1], rows.starts[1:], strict=True)):
        found[row].index_add_(0, rows.indices[first:last].long(), rows.weights[first:last])
    return found


# --- the lattice --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_every_point_is_the_weighted_mean_of_its_simplex(dimensions: int) -> None:
    elevated = permutohedral._elevate(points(dimensions, 200))
    assert elevated.sum(0).abs().max() < 1e-4
    cells, ranks, weights = permutohedral._simplex(elevated)
    size = dimensions + 1
    assert torch.equal(ranks.sort(0).values, torch.arange(size, dtype=torch.int8)[:, None].expand(size, 200))
    assert weights.min() > -1e-5 and torch.allclose(weights.sum(0), torch.ones(200))
    mean = torch.zeros_like(elevated)
    for remainder in range(size):
        vertex = size * (cells - (ranks > dimensions - remainder).float()) + remainder
        assert not vertex.sum(0).any()
        mean += weights[remainder] * vertex
    assert torch.allclose(mean, elevated, atol=1e-4)


def test_elevation_keeps_angles() -> None:
    """All distances grow by the one factor √(2/3)·(d+1)."""
    features = points(5, 50)
    elevated = permutohedral._elevate(features)
    assert torch.allclose(torch.pdist(elevated.T), 6 * (2 / 3) ** 0.5 * torch.pdist(features.T), rtol=1e-4)


@pytest.mark.parametrize(("dimensions", "count"), [(1, 30), (2, 60), (5, 41)])
def test_the_filter_against_one_with_vertices_in_a_dictionary(dimensions: int, count: int) -> None:
    """Splat, blur and slice with the coordinates of vertices as keys, as the paper tells it."""
    features, values = points(dimensions, count), torch.rand(count, 3)
    size = dimensions + 1
    simplices = permutohedral._simplex(permutohedral._elevate(features))

    def corners(point: int) -> Iterator[tuple[tuple[int, ...], float]]:
        cell, rank, weight = (part[:, point] for part in simplices)
        for remainder in range(size):
            below = (rank > dimensions - remainder).float()
            yield tuple((size * (cell - below) + remainder).int().tolist()), float(weight[remainder])

    held: dict[tuple[int, ...], Tensor] = {}
    for point in range(count):
        for vertex, weight in corners(point):
            held[vertex] = held.get(vertex, torch.zeros(3)) + weight * values[point]
    for vertex, _ in corners_of_origin(size) if count % 4 else ():
        held.setdefault(vertex, torch.zeros(3))
    for axis in range(size):
        step = np.full(size, -1)
        step[axis] = dimensions
        before = {vertex: value.clone() for vertex, value in held.items()}
        for vertex, sign in product(before, (1, -1)):
            held[vertex] += 0.5 * before.get(tuple((vertex + sign * step).tolist()), torch.zeros(3))
    gain = 1 / (1 + 2.0**-dimensions)
    wanted = torch.stack([sum((w * held[v] for v, w in corners(point)), torch.zeros(3)) for point in range(count)])
    lattice = permutohedral.build(features)
    assert (lattice.points, lattice.vertices) == (count, len(held))
    assert torch.allclose(lattice.filter(values), wanted * gain, atol=1e-5)


def corners_of_origin(size: int) -> Iterator[tuple[tuple[int, ...], float]]:
    for remainder in range(size):
        yield tuple(remainder - size * (place > size - 1 - remainder) for place in range(size)), 0.0


@pytest.mark.parametrize("count", [24, 25])
def test_tables_of_the_lattice(count: int) -> None:
    lattice = permutohedral.build(points(5, count))
    splat, slices = dense(lattice.splat, count), dense(lattice.slices, lattice.vertices)
    gain = 1 / (1 + 2**-5)
    assert torch.allclose(slices, splat.T * gain, atol=1e-6)  # one is the other's transpose
    constant = lattice.slices @ torch.full((lattice.vertices, 2), 3.0)
    assert torch.allclose(constant, torch.full((count, 2), 3 * gain))
    assert torch.allclose((lattice.splat @ torch.ones(count, 1)).sum(), torch.tensor(float(count)))
    for rows in lattice.blurs:
        blur = dense(rows, lattice.vertices)
        assert torch.equal(blur, blur.T) and (blur.diagonal() == 1).all() and blur.sum(1).max() <= 2


def test_the_filter_resembles_a_gaussian() -> None:
    side = torch.arange(33).float()
    features = torch.stack(torch.meshgrid(side, side, indexing="ij")).view(2, -1) / 3
    impulse = torch.zeros(33 * 33, 1)
    impulse[16 * 33 + 16] = 1
    found = permutohedral.build(features).filter(impulse).view(-1)
    wanted = torch.exp(-0.5 * (features - features[:, 16 * 33 + 16 : 16 * 33 + 17]).square().sum(0))
    assert float(torch.corrcoef(torch.stack([found, wanted]))[0, 1]) > 0.98


def test_wide_keys_are_the_same_lattice() -> None:
    """One point far away makes the keys 64-bit; the others' lattice stays what it was."""
    near = points(5, 40)
    far = torch.cat([near, torch.full((5, 4), 4000.0)], 1)
    assert permutohedral._keys(*permutohedral._simplex(permutohedral._elevate(far))[:2])[0].dtype == torch.int64
    assert permutohedral._keys(*permutohedral._simplex(permutohedral._elevate(near))[:2])[0].dtype == torch.int32
    values = torch.rand(44, 2)
    assert torch.equal(permutohedral.build(far).filter(values)[:40], permutohedral.build(near).filter(values[:40]))


@pytest.mark.parametrize("far", [1e6, float("nan"), float("inf"), 1e5])
def test_points_too_far_apart(far: float) -> None:
    features = points(5, 8)
    features[:, 0] = far
    with pytest.raises(UserError, match="too small"):
        permutohedral.build(features)


def test_kernels_too_narrow() -> None:
    with pytest.raises(UserError, match="bilateral_srgb is too small"):
        crf.posterior(picture(9, 9, "noise"), probabilities(2, 9, 9), Crf(backend="torch", bilateral_srgb=1e-4))


# --- agreement with pydensecrf ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["constant", "noise", "scene"])
@pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS)
def test_posteriors_are_those_of_pydensecrf(size: tuple[int, int], kind: str, values: Crf) -> None:
    image = picture(*size, kind)
    for classes in (1, 2, 21):
        given = probabilities(classes, *size)
        theirs, ours = (crf.posterior(image, given, on(backend, values)) for backend in ("pydensecrf", "torch"))
        assert ours.shape == theirs.shape and ours.dtype == np.float32
        assert np.abs(ours - theirs).mean() < 1e-6 and np.abs(ours - theirs).max() < 1e-3
        best = np.sort(theirs, axis=0)
        clear = np.ones(size, bool) if classes == 1 else best[-1] - best[-2] > 1e-3
        assert np.array_equal(ours.argmax(0)[clear], theirs.argmax(0)[clear])


@pytest.mark.parametrize("labels", [2, 3, 21])
def test_refinements_are_those_of_pydensecrf(labels: int) -> None:
    image = picture(37, 50)
    label = np.random.default_rng(3).integers(0, labels, (37, 50))
    theirs, ours = (crf.refine(image, label, labels, on(backend, Crf())) for backend in ("pydensecrf", "torch"))
    assert np.abs(ours - theirs).max() < 1e-4


# --- mean field ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(1, 5),
    st.builds(
        Crf,
        backend=st.just("torch"),
        iterations=st.integers(1, 5),
        gaussian_sxy=st.floats(0.1, 100),
        gaussian_compat=st.floats(0.01, 200),
        bilateral_sxy=st.floats(0.5, 500),
        bilateral_srgb=st.floats(0.5, 500),
        bilateral_compat=st.floats(0.01, 200),
    ),
    st.integers(0, 10**6),
)
def test_a_posterior_is_a_distribution(size: tuple[int, int], classes: int, values: Crf, seed: int) -> None:
    found = crf.posterior(picture(*size, "noise", seed), probabilities(classes, *size, seed), values)
    assert np.isfinite(found).all() and found.min() >= 0
    assert found.sum(0) == pytest.approx(np.ones(size), abs=1e-5)


def test_classes_in_another_order() -> None:
    image, given, order = picture(20, 17), probabilities(6, 20, 17), [3, 0, 5, 1, 4, 2]
    one = crf.posterior(image, given, Crf(backend="torch"))
    other = crf.posterior(image, given[order], Crf(backend="torch"))
    assert other == pytest.approx(one[order], abs=1e-5)


def test_a_class_without_probability_gets_none() -> None:
    given = probabilities(3, 15, 16)
    given[1] = 0
    given /= given.sum(0)
    found = crf.posterior(picture(15, 16), given, Crf(backend="torch"))
    assert found[1].max() < 1e-3 and np.isfinite(found).all()


def test_energies_count_by_their_differences_alone() -> None:
    image, energies = picture(12, 14), -np.log(probabilities(3, 12, 14) + 1e-3)
    one = densecrf.mean_field(image, energies, Crf())
    other = densecrf.mean_field(image, energies + 500, Crf())  # where exp(-energy) is 0 in float32
    assert other == pytest.approx(one, abs=1e-3)


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[0.0, 300.0, 1.0], [0.0, -1.0, -2.0]])
    wanted = logits.softmax(1)
    assert torch.equal(densecrf._softmax(logits.clone()), wanted)
    small = logits / 10
    assert torch.allclose(densecrf._softmax(small.clone()), small.softmax(1))


def problem(classes: int) -> tuple[Tensor, list[Lattice]]:
    image = torch.from_numpy(picture(30, 21))
    kernels = [densecrf.smoothness(30, 21, 2.0, 3.0, "cpu"), densecrf.appearance(image, Crf())]
    return -torch.from_numpy(probabilities(classes, 30, 21)).clamp(1e-5).log().view(classes, -1).T.contiguous(), kernels


@pytest.mark.parametrize("budget", [1, 40_000, 200_000])
def test_classes_in_parts(budget: int) -> None:
    energies, kernels = problem(7)
    kept = energies.clone()
    whole = densecrf.infer(energies, kernels, 5)
    assert torch.allclose(densecrf.infer(energies, kernels, 5, chunk_bytes=budget), whole, atol=1e-6)
    assert torch.equal(energies, kept)


def test_the_same_every_time_and_for_any_number_of_threads() -> None:
    image, given = picture(211, 173), probabilities(3, 211, 173)
    found = []
    for threads in (1, 1, 2, 3):
        torch.set_num_threads(threads)
        densecrf.smoothness.cache_clear()
        found.append(crf.posterior(image, given, Crf(backend="torch", iterations=4)))
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_the_smoothness_kernel_is_remembered() -> None:
    densecrf.smoothness.cache_clear()
    for seed in range(3):
        crf.posterior(picture(8, 9, "noise", seed), probabilities(2, 8, 9), Crf(backend="torch"))
    assert densecrf.smoothness.cache_info().misses == 1
    crf.posterior(picture(9, 8), probabilities(2, 9, 8), Crf(backend="torch"))
    assert densecrf.smoothness.cache_info().misses == 2


def test_arrays_that_may_not_be_written() -> None:
    image, given = picture(6, 9), probabilities(2, 9, 6).transpose(0, 2, 1)  # nor contiguous
    image.setflags(write=False)
    given.setflags(write=False)
    found = crf.posterior(image, given, Crf(backend="torch"))
    assert found == pytest.approx(crf.posterior(image, given, Crf()), abs=1e-5)


# --- the choice ---------------------------------------------------------------------------------------------


def test_the_backend_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    image, given = picture(4, 5), probabilities(2, 4, 5)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    assert crf.posterior(image, given, Crf(backend="torch")).shape == (2, 4, 5)
    with pytest.raises(UserError, match=r"crf\.backend: pydensecrf is not installed"):
        crf.posterior(image, given, Crf(backend="pydensecrf"))


def test_probabilities_are_clipped_as_pydensecrf_does() -> None:
    from pydensecrf.utils import unary_from_softmax

    given = np.array([[[0, 1e-7, 0.25]], [[1, 1, 0.75]]], np.float32)
    wanted = densecrf.mean_field(picture(1, 3), unary_from_softmax(given).reshape(2, 1, 3), Crf())
    assert np.array_equal(crf.posterior(picture(1, 3), given, Crf(backend="torch")), wanted)


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="shape"):
        densecrf.mean_field(picture(4, 5), probabilities(2, 5, 4), Crf())
