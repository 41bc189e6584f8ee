"""How many weights each layer keeps: exact budgets, shares against bisection in fractions, and layers that compete."""

import random
import re
from fractions import Fraction
from math import prod

import pytest
import torch

from lightning_signin.masks import DISTRIBUTIONS, budget
from lightning_signin.masks.distributions import allocate, global_counts
from tests import reference

RESNET20 = [
    (16, 3, 3, 3),
    *[(16, 16, 3, 3)] * 6,
    (32, 16, 3, 3),
    *[(32, 32, 3, 3)] * 5,
    (64, 32, 3, 3),
    *[(64, 64, 3, 3)] * 5,
    (10, 64),
]
SPARSITIES = ["0", "0.1", "0.3", "0.5", "0.7", "0.75", "0.8", "0.9", "0.95", "0.98", "0.99"]
EVERY_DISTRIBUTION = pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))


def spread(name: str, shapes: list[tuple[int, ...]], total: int) -> list[int]:
    """The counts of single weights."""
    return allocate([DISTRIBUTIONS[name](shape) for shape in shapes], [1] * len(shapes), list(map(prod, shapes)), total)


def random_cases(count: int):
    """Lists of shapes, many with layers far smaller than others, each with a budget of at least one weight a layer."""
    generator = random.Random(0)
    for _ in range(count):
        dimensions = [generator.randint(1, 4) for _ in range(generator.randint(1, 7))]
        shapes = [tuple(generator.randint(1, 9) for _ in range(dimension)) for dimension in dimensions]
        size = sum(map(prod, shapes))
        yield shapes, max(budget(float(generator.choice(SPARSITIES)), size), len(shapes))


@pytest.mark.parametrize("sparsity", [*SPARSITIES, "0.123", "0.333333", "1e-3", "0.9995"])
def test_budget_equals_decimal_arithmetic(sparsity):
    for size in [*range(1, 201), 270_896, 25_502_912]:
        assert budget(float(sparsity), size) == reference.budget(sparsity, size)


@pytest.mark.parametrize(
    ("sparsity", "size", "kept"),
    [(0.9, 25, 2), (0.9, 35, 4), (0.9, 45, 4), (0.7, 15, 4), (0.7, 5, 2), (0.5, 3, 2), (0.5, 5, 2), (0, 7, 7)],
)
def test_budget_rounds_half_to_even(sparsity, size, kept):
    assert budget(sparsity, size) == kept


@pytest.mark.parametrize("sparsity", [90, -0.1, 1.0, 1, float("nan"), float("inf")])
def test_budget_refuses_what_is_no_fraction(sparsity):
    text = f"`sparsity` must be in [0, 1), got {sparsity}. Pass the fraction of zeros, e.g. 0.9."
    with pytest.raises(ValueError, match=re.escape(text)):
        budget(sparsity, 100)


@EVERY_DISTRIBUTION
def test_distribution_spends_the_budget_exactly(name):
    for shapes, total in random_cases(300):
        counts = spread(name, shapes, total)
        assert sum(counts) == total
        assert all(1 <= count <= prod(shape) for count, shape in zip(counts, shapes, strict=True))


@EVERY_DISTRIBUTION
def test_distribution_equals_its_reference(name):
    slow = getattr(reference, name)
    for shapes, total in random_cases(60):
        assert spread(name, shapes, total) == slow(shapes, total), (shapes, total)


@EVERY_DISTRIBUTION
@pytest.mark.parametrize("sparsity", ["0.5", "0.8", "0.9", "0.98"])
def test_distribution_on_resnet20_equals_its_reference(name, sparsity):
    total = reference.budget(sparsity, sum(map(prod, RESNET20)))
    assert spread(name, RESNET20, total) == getattr(reference, name)(RESNET20, total)


@EVERY_DISTRIBUTION
def test_distribution_keeps_everything_at_sparsity_zero(name):
    sizes = [prod(shape) for shape in RESNET20]
    assert spread(name, RESNET20, sum(sizes)) == sizes


@EVERY_DISTRIBUTION
def test_distribution_keeps_one_a_layer_at_the_smallest_budget(name):
    shapes = [(100, 100), (1, 1), (3, 2), (1000,)]
    assert spread(name, shapes, len(shapes)) == [1] * 4


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_balanced_differs_by_one_between_layers_that_are_not_full(sparsity):
    sizes = [prod(shape) for shape in RESNET20]
    counts = spread("balanced", RESNET20, budget(float(sparsity), sum(sizes)))
    open_counts = [count for count, size in zip(counts, sizes, strict=True) if count < size]
    full = [count for count, size in zip(counts, sizes, strict=True) if count == size]
    assert max(open_counts, default=0) - min(open_counts, default=0) <= 1
    assert max(full, default=0) <= max(open_counts, default=sum(sizes))


def test_balanced_spends_in_any_order_of_layers():
    shapes = [(2, 5), (10, 10), (30, 30)]
    assert spread("balanced", shapes[::-1], 101) == [46, 45, 10]
    assert spread("balanced", shapes, 101) == [10, 46, 45]


def test_erk_density_is_sum_over_product_of_dimensions():
    shapes = [(100, 50), (40, 40), (16, 8, 3, 3)]
    sizes, raw = [prod(shape) for shape in shapes], [sum(shape) for shape in shapes]
    total = 4 * sum(raw)  # ε = 4, and no layer is full
    assert all(4 * r < size for r, size in zip(raw, sizes, strict=True))
    assert spread("erk", shapes, total) == [4 * r for r in raw]


def test_uniform_gives_every_layer_the_same_density():
    assert spread("uniform", [(10, 10), (20, 30), (5, 4)], 180) == [25, 150, 5]


def sorted_units(values: list[torch.Tensor]) -> list[int]:
    """The layer of every unit, the best unit first; of equal ones the earlier layer's."""
    found = [(-value, layer) for layer, units in enumerate(values) for value in units.flatten().tolist()]
    return [layer for _, layer in sorted(found)]


def random_values(generator: random.Random) -> list[torch.Tensor]:
    """Values of one to four layers, with many ties, some of them −∞."""
    among = generator.choice([[0.0, 1.0], [-float("inf"), 0.0, 0.5], [generator.random() for _ in range(99)]])
    sizes = [generator.randint(1, 8) for _ in range(generator.randint(1, 4))]
    return [torch.tensor([generator.choice(among) for _ in range(size)], dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("unit", [1, 4])
def test_global_counts_equal_sorting_all_units(unit):
    generator = random.Random(0)
    for _ in range(300):
        values = random_values(generator)
        capacities = [unit * len(value) for value in values]
        total = unit * generator.randint(len(values), sum(map(len, values)))
        counts, empty = global_counts(values, [unit] * len(values), capacities, total)
        ranked = sorted_units(values)
        best = [ranked[: total // unit].count(layer) for layer in range(len(values))]
        assert empty == [layer for layer, number in enumerate(best) if number == 0]
        if empty:  # the best unit of each layer comes first
            rest = list(ranked)
            for layer in range(len(values)):
                rest.remove(layer)
            best = [1 + rest[: total // unit - len(values)].count(layer) for layer in range(len(values))]
        assert counts == [unit * number for number in best]


def test_global_counts_of_mixed_units_are_next_to_sorting_all_units():
    generator = random.Random(0)
    for _ in range(200):
        values = random_values(generator)
        units = [generator.choice([1, 2, 6, 10, 15]) for _ in values]
        capacities = [unit * len(value) for unit, value in zip(units, values, strict=True)]
        total = generator.randint(sum(units), sum(capacities))
        counts, empty = global_counts(values, units, capacities, total)
        if empty:
            values = [value.clone() for value in values]
            for value in values:
                value[value.argmax()] = float("inf")
        ideal = [0] * len(values)
        for layer in sorted_units(values):
            ideal[layer] += min(units[layer], total - sum(ideal))
            if ideal[layer] % units[layer]:
                break  # the first unit that the budget does not cover gets what is left
        exact = [Fraction(count) for count in ideal]
        least = reference.least_rounding_errors(exact, units, capacities, total)
        assert reference.rounding_errors(counts, exact, total) == least, (values, units, total)


def test_global_counts_give_ties_to_the_earlier_layer():
    assert global_counts([torch.ones(4), torch.ones(4)], [1, 1], [4, 4], 5) == ([4, 1], [])
    assert global_counts([torch.zeros(2), torch.ones(2), torch.zeros(2)], [1] * 3, [2] * 3, 4) == ([1, 2, 1], [2])


def test_global_counts_read_values_of_any_float_type():
    values = [torch.tensor([0.5, 2.0, 1.0]), torch.tensor([0.75, 0.25])]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert global_counts([value.to(dtype) for value in values], [1, 1], [3, 2], 3) == ([2, 1], [])
