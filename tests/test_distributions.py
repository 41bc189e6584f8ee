"""How many weights each layer keeps: exact budgets, and distributions against bisection in fractions."""

import random
import re
from math import prod

import pytest

from lightning_signin.masks import DISTRIBUTIONS, budget
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
        counts = DISTRIBUTIONS[name](shapes, total)
        assert sum(counts) == total
        assert all(1 <= count <= prod(shape) for count, shape in zip(counts, shapes, strict=True))


@EVERY_DISTRIBUTION
def test_distribution_equals_its_reference(name):
    slow = getattr(reference, name)
    for shapes, total in random_cases(60):
        assert DISTRIBUTIONS[name](shapes, total) == slow(shapes, total), (shapes, total)


@EVERY_DISTRIBUTION
@pytest.mark.parametrize("sparsity", ["0.5", "0.8", "0.9", "0.98"])
def test_distribution_on_resnet20_equals_its_reference(name, sparsity):
    total = reference.budget(sparsity, sum(map(prod, RESNET20)))
    assert DISTRIBUTIONS[name](RESNET20, total) == getattr(reference, name)(RESNET20, total)


@EVERY_DISTRIBUTION
def test_distribution_keeps_everything_at_sparsity_zero(name):
    sizes = [prod(shape) for shape in RESNET20]
    assert DISTRIBUTIONS[name](RESNET20, sum(sizes)) == sizes


@EVERY_DISTRIBUTION
def test_distribution_keeps_one_a_layer_at_the_smallest_budget(name):
    shapes = [(100, 100), (1, 1), (3, 2), (1000,)]
    assert DISTRIBUTIONS[name](shapes, len(shapes)) == [1] * 4


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_balanced_differs_by_one_between_layers_that_are_not_full(sparsity):
    sizes = [prod(shape) for shape in RESNET20]
    counts = DISTRIBUTIONS["balanced"](RESNET20, budget(float(sparsity), sum(sizes)))
    open_counts = [count for count, size in zip(counts, sizes, strict=True) if count < size]
    full = [count for count, size in zip(counts, sizes, strict=True) if count == size]
    assert max(open_counts, default=0) - min(open_counts, default=0) <= 1
    assert max(full, default=0) <= max(open_counts, default=sum(sizes))


def test_balanced_spends_in_any_order_of_layers():
    shapes = [(2, 5), (10, 10), (30, 30)]
    assert DISTRIBUTIONS["balanced"](shapes[::-1], 101) == [46, 45, 10]
    assert DISTRIBUTIONS["balanced"](shapes, 101) == [10, 46, 45]


def test_erk_density_is_sum_over_product_of_dimensions():
    shapes = [(100, 50), (40, 40), (16, 8, 3, 3)]
    sizes, raw = [prod(shape) for shape in shapes], [sum(shape) for shape in shapes]
    total = 4 * sum(raw)  # ε = 4, and no layer is full
    assert all(4 * r < size for r, size in zip(raw, sizes, strict=True))
    assert DISTRIBUTIONS["erk"](shapes, total) == [4 * r for r in raw]
