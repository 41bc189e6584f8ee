"""Rounding to whole units against every combination there is, and against all sums there are."""

import itertools
import random
from fractions import Fraction
from functools import partial
from math import prod

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_signin.masks.distributions import DISTRIBUTIONS, allocate, budget
from lightning_signin.masks.rounding import round_to_units
from lightning_signin.masks.structures import parse_structure
from tests import reference
from tests.counting import lines_run

UNITS = [[1], [5], [1, 6], [6, 10, 15], [6, 10, 15, 1], [4, 16], [3, 9, 27], [8, 12, 20]]
STRUCTURES = ["unstructured", "2:4", "2:4-cap", "4x4-block", "8x1-block", "constant-fan-in", "mixed"]


def random_cases(choices: list[int], count: int):
    """Units and capacities, many of them tight, and a budget, often at its bounds."""
    generator = random.Random(0)
    for _ in range(count):
        units = [generator.choice(choices) for _ in range(generator.randint(1, 4))]
        capacities = [unit * generator.choice([1, 2, 3, generator.randint(1, 9)]) for unit in units]
        bounds = sum(units), sum(capacities)
        yield units, capacities, generator.choice([*bounds, generator.randint(*bounds), generator.randint(*bounds)])


@pytest.mark.parametrize("choices", UNITS, ids=str)
def test_counts_have_the_nearest_sum_and_then_the_least_distance(choices):
    generator = random.Random(1)
    for units, capacities, total in random_cases(choices, 100):
        shares = [generator.randint(1, 50) for _ in units]
        ideal = reference.water_fill(shares, units, capacities, total)
        for counts in (round_to_units(ideal, units, capacities, total), allocate(shares, units, capacities, total)):
            assert all(count in range(u, c + 1, u) for count, u, c in zip(counts, units, capacities, strict=True))
            least = reference.least_rounding_errors(ideal, units, capacities, total)
            assert reference.rounding_errors(counts, ideal, total) == least, (shares, units, capacities, total)


def test_distance_of_nearest_sum_equals_trying_all():
    for units, capacities, total in itertools.chain(*(random_cases(choices, 60) for choices in UNITS)):
        ideal = [Fraction(unit) for unit in units]
        least, _ = reference.least_rounding_errors(ideal, units, capacities, total)
        assert reference.distance_of_nearest_sum(units, capacities, total) == least


def test_counts_of_single_weights_equal_largest_remainder_rounding():
    for units, capacities, total in random_cases([1], 300):
        ideal = reference.water_fill([3, 7, 2, 5][: len(units)], units, capacities, total)
        expected = reference.largest_remainder(ideal, capacities, total)
        assert round_to_units(ideal, units, capacities, total) == expected


def test_equal_remainders_go_up_in_the_earlier_layer():
    assert round_to_units([Fraction(5, 2)] * 4, [1] * 4, [9] * 4, total=10) == [3, 3, 2, 2]


def test_what_coarse_layers_cannot_make_is_dealt_out_in_turn():
    assert allocate([10, 1, 1], [100, 1, 1], [1000, 500, 500], total=349) == [300, 25, 24]
    assert allocate([10, 1, 1], [100, 1, 1], [1000, 20, 500], total=349) == [300, 20, 29]


@pytest.mark.parametrize(
    ("units", "rooms", "total"),
    [
        ([9, 9, 27, 27, 3], [10**5, 10**5, 10**5, 10**5, 1], 10**6 + 7),  # only 3 modulo 9
        ([6, 10, 15, 4], [1, 10**6, 10**6, 1], 10**7 + 3),  # only multiples of 5
        ([1000, 2048, 64, 1024], [9, 512, 1, 3], 10**5 + 4),
    ],
)
def test_sums_out_of_reach_are_left_without_trying_all(units, rooms, total):
    capacities = [unit * room for unit, room in zip(units, rooms, strict=True)]
    counts, _ = lines_run(partial(allocate, [1] * len(units), units, capacities, total), at_most=6_000_000)  # 657,664
    assert abs(sum(counts) - total) == reference.distance_of_nearest_sum(units, capacities, total) > 0


def shapes_of(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(part.weight.shape) for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]


@pytest.fixture(scope="module", params=["resnet50", "deit_small_patch16_224", "mobilenet_v2"])
def shapes(request):
    with torch.device("meta"):
        deit = request.param.startswith("deit")
        return shapes_of(timm.create_model(request.param) if deit else getattr(torchvision.models, request.param)())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_allocation_of_large_networks_is_exact_and_quick(shapes, structure):
    def bounds(shape: tuple[int, ...], name: str) -> tuple[int, int]:
        pattern = parse_structure(name)
        try:
            return pattern.unit(shape), pattern.capacity(shape)
        except ValueError:
            return 1, prod(shape)

    names = itertools.cycle(STRUCTURES[:-1] if structure == "mixed" else [structure])
    units, capacities = zip(*map(bounds, shapes, names), strict=True)
    for share, sparsity in itertools.product(DISTRIBUTIONS.values(), (0.6, 0.9)):
        total = budget(sparsity, sum(map(prod, shapes)))
        shares = [share(shape) for shape in shapes]
        counts, _ = lines_run(partial(allocate, shares, units, capacities, total), at_most=40_000_000)  # 4,553,667
        assert abs(sum(counts) - total) == reference.distance_of_nearest_sum(units, capacities, total)
        assert all(0 < n <= c and n % u == 0 for n, u, c in zip(counts, units, capacities, strict=True))
