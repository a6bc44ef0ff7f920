"""IRN: pairs of pixels and their lines, the losses on them, the random walk, and the network."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from beco.artifacts.grids import fitted_size
from beco.config import Encoder, Irn
from beco.errors import UserError
from beco.stage1.refine import irn_train, irn_walk
from beco.stage1.refine.irn import IrnNetwork
from beco.stage1.refine.irn_pairs import PixelPairs, line, losses, offsets, pixel_pairs
from beco.stage1.refine.irn_train import IrnTask
from beco.training.sampling import Draws

CPU = torch.device("cpu")
SMALL = Encoder(name="resnet10t", options={"channels": [8, 8, 16, 16]})
HEIGHT, WIDTH, RADIUS = 6, 7, 4
SIZE = HEIGHT * WIDTH


# --- pairs and lines ----------------------------------------------------------------------------------------


def between(first: tuple[int, int], second: tuple[int, int]) -> list[tuple[int, int]]:
    """Pixels of the box of two pixels whose centres are less than 1 away from the line through theirs."""
    (a, b), (c, d) = first, second
    box = itertools.product(range(min(a, c), max(a, c) + 1), range(min(b, d), max(b, d) + 1))
    length = math.hypot(c - a, d - b)
    return [(y, x) for y, x in box if abs((c - a) * (x - b) - (d - b) * (y - a)) / length < 1 - 1e-9]


def listed(pairs: PixelPairs) -> list[tuple[int, int, tuple[int, int], tuple[int, int]]]:
    """(offset number, pixel number, first, second) of all pairs that are in the picture."""
    found = []
    for o, i in pairs.inside.nonzero().tolist():
        y, x = divmod(i, WIDTH)
        dy, dx = pairs.offsets[o].tolist()
        found.append((o, i, (y, x), (y + dy, x + dx)))
    return found


def test_every_near_pair_comes_once() -> None:
    found = [{first, second} for _, _, first, second in listed(PixelPairs(RADIUS, HEIGHT, WIDTH, CPU))]
    pixels = list(itertools.product(range(HEIGHT), range(WIDTH)))
    expected = [{p, q} for p, q in itertools.combinations(pixels, 2) if math.dist(p, q) < RADIUS]
    assert len(found) == len(expected) and all(pair in found for pair in expected)


@pytest.mark.parametrize(("radius", "count"), [(1, 0), (2, 4), (5, 34), (10, 152)])
def test_offsets_are_half_a_disc(radius: int, count: int) -> None:
    found = offsets(radius)
    assert len(found) == len(set(found)) == count
    assert not {(-y, -x) for y, x in found} & {*found, (0, 0)}


def test_lines_by_hand() -> None:
    assert line(0, 2) == [(0, 0), (0, 1), (0, 2)]
    assert line(1, 1) == [(0, 0), (0, 1), (1, 0), (1, 1)]  # both corners: no way through a diagonal boundary
    assert line(1, -2) == [(0, -2), (0, -1), (0, 0), (1, -2), (1, -1), (1, 0)]
    assert (0, 3) not in line(3, 3) and (1, 2) in line(3, 3)


def test_maxima_on_lines_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    pairs = PixelPairs(RADIUS, HEIGHT, WIDTH, CPU)
    edges = torch.randn(2, HEIGHT, WIDTH, generator=generator).double().requires_grad_()
    found = pairs.strongest_on_lines(edges)
    assert found.shape == (2, len(offsets(RADIUS)), SIZE)
    expected, gradient = torch.zeros(2, *pairs.inside.shape), torch.zeros_like(edges)
    for b, (o, i, first, second) in itertools.product(range(2), listed(pairs)):
        value, (y, x) = max((edges[b, y, x].item(), (y, x)) for y, x in between(first, second))
        expected[b, o, i] = value
        gradient[b, y, x] += 1
    assert torch.allclose(found[:, pairs.inside].float(), expected[:, pairs.inside])
    found[:, pairs.inside].sum().backward()
    assert torch.equal(edges.grad, gradient)


def test_kinds_and_differences_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    pairs = PixelPairs(RADIUS, HEIGHT, WIDTH, CPU)
    label = torch.tensor([0, 0, 3, 5, 255])[torch.randint(5, (2, HEIGHT, WIDTH), generator=generator)].byte()
    field = torch.randn(2, 2, HEIGHT, WIDTH, generator=generator)
    kinds, moved = pairs.kinds(label), pairs.differences(field)
    expected = torch.zeros(3, 2, *pairs.inside.shape, dtype=torch.bool)
    for b, (o, i, first, second) in itertools.product(range(2), listed(pairs)):
        one, other = int(label[b][first]), int(label[b][second])
        if 255 not in (one, other):
            expected[(0 if one == 0 else 1) if one == other else 2, b, o, i] = True
        assert torch.equal(moved[b, :, o, i], field[b, :, first[0], first[1]] - field[b, :, second[0], second[1]])
    assert torch.equal(torch.stack(list(kinds)), expected)
    assert expected.any((1, 2, 3)).all()


def test_indices_stay_on_the_device() -> None:
    assert pixel_pairs(3, 4, 5, CPU) is pixel_pairs(3, 4, 5, CPU)


# --- losses -------------------------------------------------------------------------------------------------


def counted(label: Tensor, pairs: PixelPairs) -> dict[str, Tensor]:
    return {name: mask.sum().clamp(min=1).float() for name, mask in pairs.kinds(label)._asdict().items()}


def test_losses_by_hand() -> None:
    """One row of five pixels, neighbours only: background, background, class 2, class 2, no opinion."""
    pairs = PixelPairs(2, 1, 5, CPU)
    label = torch.tensor([[[0, 0, 2, 2, 255]]]).byte()
    edge = torch.tensor([[[0.1, 0.2, 0.9, 0.4, 0.99]]])
    field = torch.tensor([[[[0.0, 0.5, 9.0, 7.0, 3.0]], [[1.0, 3.0, 9.0, 7.5, 3.0]]]])  # y, x
    found = losses(edge.logit(), field, label, pairs, counted(label, pairs))
    # the one pair of background has affinity 1 − 0.2, that of class 2, 1 − 0.9, and the pair that differs, 1 − 0.9
    assert float(found["alike"]) == pytest.approx((-math.log(0.8) - math.log(0.1)) / 2)
    assert float(found["differ"]) == pytest.approx(-math.log(0.9))
    # class 2: D(i) − D(j) = (2, 1.5) where (0, 1) is wanted; background: (−0.5, −2) where nothing is
    assert float(found["field"]) == pytest.approx((2 + 0.5) / 2)
    assert float(found["still"]) == pytest.approx((0.5 + 2) / 2)


def test_displacements_to_a_common_centre_cost_nothing() -> None:
    pairs = PixelPairs(RADIUS, HEIGHT, WIDTH, CPU)
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    field, label = torch.stack([2.5 - y, 3.0 - x])[None], torch.ones(1, HEIGHT, WIDTH).byte()
    found = losses(torch.zeros(1, HEIGHT, WIDTH), field, label, pairs, counted(label, pairs))
    assert float(found["field"]) == pytest.approx(0, abs=1e-6) and float(found["still"]) == 0


def test_losses_are_means_over_pairs_of_a_kind() -> None:
    """Against the sums of a loop over pairs; and labels without any pair cost nothing and have no gradient."""
    generator = torch.Generator().manual_seed(3)
    pairs = PixelPairs(RADIUS, HEIGHT, WIDTH, CPU)
    label = torch.tensor([0, 1, 255])[torch.randint(3, (1, HEIGHT, WIDTH), generator=generator)].byte()
    edges = torch.randn(1, HEIGHT, WIDTH, generator=generator)
    found = losses(edges, torch.zeros(1, 2, HEIGHT, WIDTH), label, pairs, counted(label, pairs))
    alike: dict[int, list[float]] = {0: [], 1: []}
    differ = []
    for _, _, first, second in listed(pairs):
        one, other = int(label[0][first]), int(label[0][second])
        affinity = 1 - max(float(edges[0, y, x].sigmoid()) for y, x in between(first, second))
        if 255 not in (one, other):
            (alike[one] if one == other else differ).append(-math.log(affinity if one == other else 1 - affinity))
    assert float(found["alike"]) == pytest.approx((np.mean(alike[0]) + np.mean(alike[1])) / 2, rel=1e-4)
    assert float(found["differ"]) == pytest.approx(np.mean(differ), rel=1e-4)
    nothing, edges = torch.full_like(label, 255), (edges * 100).requires_grad_()
    silent = losses(edges, torch.zeros(1, 2, HEIGHT, WIDTH), nothing, pairs, counted(nothing, pairs))
    total = sum(silent.values())
    total.backward()
    assert total.item() == 0 and not edges.grad.any()


# --- the walk -----------------------------------------------------------------------------------------------


def dense_walk(planes: Tensor, edges: Tensor, settings: Irn) -> Tensor:
    """One picture by the authors' way: the transition matrix with columns of sum 1, squared again and again."""
    height, width = edges.shape
    pixels = list(itertools.product(range(height), range(width)))
    affinity = torch.eye(len(pixels), dtype=torch.float64)
    for (i, first), (j, second) in itertools.permutations(enumerate(pixels), 2):
        if math.dist(first, second) < settings.walk_radius:
            affinity[i, j] = 1 - max(float(edges[y, x]) for y, x in between(first, second))
    matrix = affinity**settings.beta
    matrix = matrix / matrix.sum(0, keepdim=True)
    for _ in range(settings.squarings):
        matrix = matrix @ matrix
    return ((planes**settings.cam_power * (1 - edges)).double().flatten(1) @ matrix).view_as(planes)


WALKS = [Irn(walk_radius=4, beta=3, squarings=3), Irn(), Irn(walk_radius=9, squarings=0), Irn(cam_power=1.3)]


@pytest.mark.parametrize("settings", WALKS)
def test_the_walk_is_the_power_of_the_dense_matrix(settings: Irn) -> None:
    generator = torch.Generator().manual_seed(4)
    planes, edges = torch.rand(2, 3, 5, 6, generator=generator), torch.rand(2, 5, 6, generator=generator)
    found = irn_walk.walk(planes, edges, settings)
    assert found.shape == (2, 3, 5, 6)
    for one, plane, edge in zip(found, planes, edges, strict=True):
        assert torch.allclose(one.double(), dense_walk(plane, edge, settings), atol=2e-4)


def test_a_power_before_the_walk_changes_which_class_wins() -> None:
    planes = torch.tensor([0.9, 0.1, 0.6, 0.6]).reshape(1, 2, 1, 2)  # one class peaks, the other does not
    edges = torch.zeros(1, 1, 2)
    plain, raised = (irn_walk.walk(planes, edges, Irn(cam_power=power))[0, :, 0, 0] for power in (1, 3))
    assert plain.tolist() == pytest.approx([0.5, 0.6]) and raised.tolist() == pytest.approx([0.365, 0.216])


@pytest.mark.parametrize(("made", "fed"), [(None, None), (None, 100), (60, None), (60, 200)])
def test_class_maps_of_other_sizes_are_laid_on_the_walks_cells(made: int | None, fed: int | None) -> None:
    """Maps that say which row and column of the picture their cells are at say the same afterwards."""
    picture = (75, 50)
    small, large = (fitted_size(*picture, side) for side in (made, fed))
    given, wanted = (torch.Size(math.ceil(side / 4) for side in sides) for sides in (small, large))
    along = zip(given, picture, small, strict=True)
    places = [(torch.arange(count) + 0.5) * 4 * side / one for count, side, one in along]
    planes = torch.stack(torch.meshgrid(*places, indexing="ij"))
    sides = irn_walk.relative_sides(given, made, wanted, fed, picture)
    found = irn_walk.stacked([planes[:0], planes], [sides, sides], wanted)
    assert found.shape == (2, 2, *wanted) and not found[0].any()
    for axis, (count, side, one) in enumerate(zip(wanted, picture, large, strict=True)):
        expected = (torch.arange(count) + 0.5) * 4 * side / one
        inner = (expected > places[axis][0]) & (expected < places[axis][-1])
        assert torch.allclose(found[1, axis].select(1 - axis, 3)[inner], expected[inner], atol=1e-3)


def test_a_constant_stays_and_nothing_grows() -> None:
    edges = torch.rand(1, 8, 9, generator=torch.Generator().manual_seed(5)) * 0.9
    step = irn_walk.transition(edges, 5, 10)
    assert torch.allclose((step @ torch.full((72, 1), 0.7)).flatten(), torch.full((72,), 0.7), atol=1e-5)
    walked = irn_walk.walk(torch.rand(1, 2, 8, 9), edges, Irn())
    assert float(walked.min()) >= 0 and float(walked.max()) <= 1


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_seed_floods_its_side_of_a_wall(diagonal: bool) -> None:
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    side = x - y if diagonal else x - 8
    edges = (side == 0).float()[None] * 0.999
    seed = torch.zeros(1, 1, 16, 16)
    seed[0, 0, 13, 2] = 1
    walked = irn_walk.walk(seed, edges, Irn(squarings=9))[0, 0]
    assert float(walked[side > 0].max()) < 1e-6 * float(walked[side < 0].min())
    assert float(walked[side < 0].max()) < 3 * float(walked[side < 0].min())  # and nearly evenly
    free = irn_walk.walk(seed, torch.zeros_like(edges), Irn(squarings=9))[0, 0]
    assert float(free[side > 0].min()) > 0.1 * float(free.max())


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (7, 4)])
def test_maps_smaller_than_the_radius_walk(size: tuple[int, int]) -> None:
    walked = irn_walk.walk(torch.rand(2, 2, *size), torch.rand(2, *size), Irn())
    assert walked.shape == (2, 2, *size) and bool(walked.isfinite().all())
    assert irn_walk.walk(torch.rand(2, 0, *size), torch.rand(2, *size), Irn()).shape == (2, 0, *size)


# --- the network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [SMALL, Encoder(name="mobilenetv1_100", options={"pad_type": "same"})])
@pytest.mark.parametrize("size", [(64, 48), (33, 50), (5, 9)])
def test_maps_at_a_quarter_of_any_size(encoder: Encoder, size: tuple[int, int]) -> None:
    network = IrnNetwork(encoder, 16).eval()
    edges, field = network.infer(torch.rand(2, 3, *size))
    quarter = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert edges.shape == (2, *quarter) and field.shape == (2, 2, *quarter)
    assert float(edges.min()) >= 0 and float(edges.max()) <= 1


@pytest.mark.parametrize("size", [(64, 48), (33, 50), (61, 35), (5, 9)])
def test_maps_are_those_of_the_picture_continued_to_whole_cells(size: tuple[int, int]) -> None:
    """So that no map is stretched: its last cells reach beyond the picture, and the mirror image's do the same."""
    torch.manual_seed(3)
    network = IrnNetwork(SMALL, 16).eval()
    images = torch.rand(2, 3, *size)
    rows, columns = (torch.arange(math.ceil(side / 16) * 16).clamp(max=side - 1) for side in size)
    whole = images[..., rows, :][..., columns]
    quarter = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    for found, expected in zip(network.infer(images), network.infer(whole), strict=True):
        assert found.shape[-2:] == quarter
        assert torch.allclose(found, expected[..., : quarter[0], : quarter[1]], atol=1e-5)
    for found, expected in zip(network(images), network(whole), strict=True):
        assert torch.allclose(found, expected[..., : quarter[0], : quarter[1]], atol=1e-5)


def test_groups_and_widths_of_the_branches() -> None:
    """Those of the authors' program, whose five stages are the ResNet-50's."""
    with torch.device("meta"):
        network = IrnNetwork(Encoder(name="resnet50"), 16)
    norms = [stage.norm for stage in network.displacement.stages]
    norms += [network.displacement.deep.norm, network.displacement.joined.norm]
    found = [(norm.num_groups, norm.num_channels) for norm in norms]
    assert found == [(8, 64), (16, 128), (16, 256), (16, 256), (16, 256), (16, 256), (16, 256)]
    assert [(stage.norm.num_groups, stage.norm.num_channels) for stage in network.boundary.stages] == [(4, 32)] * 5


def test_inference_averages_the_mirror_and_takes_the_mean_off() -> None:
    torch.manual_seed(6)
    network = IrnNetwork(SMALL, 16).eval()
    images = torch.rand(2, 3, 64, 64)
    edges, field = network.infer(images)
    other, _ = network.infer(images.flip(-1))
    assert torch.allclose(edges.flip(-1), other, atol=1e-5) and float(edges.std()) > 1e-3
    network.mean_displacement.copy_(torch.tensor([1.0, -2.0]))
    shifted = network.infer(images)[1]
    assert torch.allclose(shifted, field - torch.tensor([1.0, -2.0])[:, None, None], atol=1e-5)


def test_an_encoder_without_fine_features() -> None:
    with pytest.raises(UserError, match=r"encoder\.name: `resnet10t` has features at strides 8, 16, 16;"):
        IrnNetwork(Encoder(name="resnet10t", options={"out_indices": [2, 3, 4]}), 16)


def drawn(count: int, size: int = 64) -> dict[str, Tensor]:
    """Pictures of two colours that meet at a random column, background and class 1, on either side of it."""
    generator = torch.Generator().manual_seed(7)
    column = torch.randint(size // 4, 3 * size // 4, (count, 1, 1), generator=generator)
    right = torch.arange(size).expand(count, size, size) >= column
    right = right ^ (torch.arange(count) % 2 == 0)[:, None, None]
    colours = torch.tensor([[60, 90, 120], [180, 130, 40]])
    image = colours[right.long()].permute(0, 3, 1, 2) + torch.randint(
        -20, 20, (count, 3, size, size), generator=generator
    )
    return {"image": image.byte(), "label": right.byte()}


def trained(steps: int) -> tuple[IrnTask, dict[str, Tensor], list[float]]:
    torch.manual_seed(8)
    task, batch = IrnTask(IrnNetwork(SMALL, 16), 4), drawn(4)
    optimiser = torch.optim.AdamW([p for group, _ in task.parameter_groups() for p in group], lr=0.005)
    history = []
    for step in range(steps):
        task.train()
        scalars = task(batch | task.totals(batch), step, steps, Draws(0, 4, list(range(4)), CPU))
        optimiser.zero_grad()
        scalars["loss"].backward()
        optimiser.step()
        history.append(scalars["loss"].item())
    return task, batch, history


def test_training_finds_the_boundary_and_leaves_the_backbone() -> None:
    torch.manual_seed(8)
    before = IrnNetwork(SMALL, 16).backbone.state_dict()
    task, batch, history = trained(40)
    assert history[-1] < 0.6 * history[0]
    assert history == trained(40)[2]  # and again the same
    for key, value in task.network.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key  # weights and batch statistics
    edges, _ = task.network.eval().infer(batch["image"].float() / 255)
    side = irn_train.coarse(batch["label"])
    for k in range(4):
        seed = torch.zeros(1, 1, 16, 16)
        seed[0, 0, 8, 1] = 1
        flooded = irn_walk.walk(seed, edges[k : k + 1], Irn())[0, 0]
        here = side[k] == side[k, 8, 1]
        assert float(flooded[here].mean()) > 3 * float(flooded[~here].mean())


def test_a_batch_in_parts_has_the_loss_of_the_whole() -> None:
    torch.manual_seed(9)
    task, batch = IrnTask(IrnNetwork(SMALL, 16), 3), drawn(8)
    batch["label"][:3] = 255  # so that the parts have very different numbers of pairs
    totals = task.totals(batch)
    whole = task(batch | totals, 0, 1, Draws(0, 8, list(range(8)), CPU))
    halves = [
        task(
            {key: value[part] for key, value in batch.items()} | {key: value / 2 for key, value in totals.items()},
            0,
            1,
            Draws(0, 8, list(range(4)), CPU),
        )
        for part in (slice(0, 4), slice(4, 8))
    ]
    for key, value in whole.items():
        assert value.item() == pytest.approx((halves[0][key] + halves[1][key]).item() / 2, rel=1e-4)


def test_coarse_labels_are_the_pixels_at_the_centres() -> None:
    label = torch.arange(64).view(1, 8, 8).byte()
    assert irn_train.coarse(label).tolist() == [[[18, 22], [50, 54]]]
    assert irn_train.coarse(label[:, :5, :7]).shape == (1, 2, 2)
