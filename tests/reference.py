"""Slow, obvious second implementations, in exact or float64 arithmetic."""

import itertools
import re
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from math import gcd, prod

import numpy as np
import torch
from torch import Tensor


def factorize(theta: float, beta: float) -> tuple[float, float]:
    """m² is the positive root of x² − βx − θ² = 0, found in 60 digits, and w = θ / m."""
    with localcontext() as context:
        context.prec = 60
        t, b = Decimal(theta), Decimal(beta)
        m = ((b + (b * b + 4 * t * t).sqrt()) / 2).sqrt()
        return float(m), float(t / m)


def product_step(theta: float, beta: float, gradient: float, lr: float) -> float:
    """θ after one SGD step on both factors, with the θ-gradient ``gradient``."""
    m, w = factorize(theta, beta)
    return (m - lr * gradient * w) * (w - lr * gradient * m)


def decayed_sum(values: Sequence[Tensor], decay: float) -> Tensor:
    """SGD's momentum buffer after these gradients."""
    total = torch.zeros_like(values[0])
    for value in values:
        total = decay * total + value
    return total


def budget(sparsity: str, size: int) -> int:
    """(1 − sparsity) · size, rounded half to even, in decimals."""
    return int(((1 - Decimal(sparsity)) * size).quantize(Decimal(1), ROUND_HALF_EVEN))


def uniform(shapes: Sequence[tuple[int, ...]], total: int) -> list[int]:
    return _of_single_weights([prod(shape) for shape in shapes], shapes, total)


def balanced(shapes: Sequence[tuple[int, ...]], total: int) -> list[int]:
    return _of_single_weights([1 for _ in shapes], shapes, total)


def erk(shapes: Sequence[tuple[int, ...]], total: int) -> list[int]:
    """The densities are in proportion to (sum of dimensions) / (product of dimensions)."""
    return _of_single_weights([sum(shape) for shape in shapes], shapes, total)


def _of_single_weights(shares: Sequence[int], shapes: Sequence[tuple[int, ...]], total: int) -> list[int]:
    sizes = [prod(shape) for shape in shapes]
    return largest_remainder(water_fill(shares, [1 for _ in shapes], sizes, total), sizes, total)


def water_fill(shares: Sequence[int], least: Sequence[int], most: Sequence[int], total: int) -> list[Fraction]:
    """The level is found by bisection: a share times the level, cut at the bounds, sums up to the total."""

    def filled(level: Fraction) -> list[Fraction]:
        return [min(max(level * s, Fraction(a)), Fraction(b)) for s, a, b in zip(shares, least, most, strict=True)]

    low, high = Fraction(0), Fraction(max(most))
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(filled(middle)) < total else (low, middle)
    # The level is a fraction of whole numbers of this problem, so its denominator is small: the nearest one is exact.
    return filled(high.limit_denominator(10**6))


def rounding_errors(counts: Sequence[int], ideal: Sequence[Fraction], total: int) -> tuple[int, Fraction]:
    """How far the sum is from the total, and Σ |count − ideal|."""
    return abs(sum(counts) - total), sum((abs(c - x) for c, x in zip(counts, ideal, strict=True)), Fraction(0))


def least_rounding_errors(
    ideal: Sequence[Fraction], units: Sequence[int], capacities: Sequence[int], total: int
) -> tuple[int, Fraction]:
    """The least of all `rounding_errors`: the nearest sum first."""
    choices = [range(unit, capacity + 1, unit) for unit, capacity in zip(units, capacities, strict=True)]
    return min(rounding_errors(counts, ideal, total) for counts in itertools.product(*choices))


def distance_of_nearest_sum(units: Sequence[int], capacities: Sequence[int], total: int) -> int:
    """How far the nearest sum of whole units is from the total; the sums that can be made are the bits of a number."""
    divisor, sums = gcd(*units), 1
    for unit in set(units):
        more, part = sum(c // u - 1 for u, c in zip(units, capacities, strict=True) if u == unit), 1
        while more:
            part = min(part, more)
            sums |= sums << (part * unit // divisor)
            more, part = more - part, 2 * part
    wanted = total - sum(units)
    place = wanted // divisor
    below = (sums & ((1 << (place + 1)) - 1)).bit_length() - 1
    above = sums >> (place + 1)
    lowest = (above & -above).bit_length() + place
    return min(wanted - divisor * below, divisor * lowest - wanted) if above else wanted - divisor * below


def largest_remainder(ideal: Sequence[Fraction], sizes: Sequence[int], total: int) -> list[int]:
    """Round down to at least 1, then move one weight at a time where the count is furthest off."""
    counts = [min(max(int(value), 1), size) for value, size in zip(ideal, sizes, strict=True)]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        can_move = [i for i, size in enumerate(sizes) if 1 <= counts[i] + step <= size]
        furthest = max(can_move, key=lambda i: (step * (ideal[i] - counts[i]), -i))
        counts[furthest] += step
    return counts


def top(scores: Sequence[float], count: int) -> set[int]:
    """Indices of the highest scores; of equal ones the first."""
    return set(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def groups(mask: np.ndarray, size: int) -> list[int]:
    """How many are kept of each group along the inputs, at each place of the kernel; the last may be shorter."""
    rows = np.moveaxis(mask, 1, -1).reshape(-1, mask.shape[1])
    return [int(row[start : start + size].sum()) for row in rows for start in range(0, len(row), size)]


def blocks(mask: np.ndarray, rows: int, columns: int) -> list[int]:
    """How many are kept of each block, at each place of the kernel."""
    places = mask.reshape(*mask.shape[:2], -1)
    starts = itertools.product(range(0, mask.shape[0], rows), range(0, mask.shape[1], columns), range(places.shape[2]))
    return [int(places[row : row + rows, column : column + columns, place].sum()) for row, column, place in starts]


def in_pattern(name: str) -> Callable[[np.ndarray], bool]:
    """Whether a mask is in a pattern."""
    if name == "unstructured":
        return lambda mask: True
    if name == "constant-fan-in":
        return lambda mask: len({int(row.sum()) for row in mask}) == 1
    first, second = map(int, re.findall(r"\d+", name))
    if name.endswith("-block"):
        return lambda mask: set(blocks(mask, first, second)) <= {0, first * second}
    if name.endswith("-cap"):
        return lambda mask: max(groups(mask, second)) <= first
    return lambda mask: set(groups(mask, second)) <= {0, first}


def unpack(values: Sequence[float], mask: Tensor) -> Tensor:
    """Values written into the True places of a mask, one by one."""
    flat, rest = [0.0] * mask.numel(), list(values)
    for i, keep in enumerate(mask.flatten().tolist()):
        if keep:
            flat[i] = rest.pop(0)
    assert not rest
    return torch.tensor(flat, dtype=torch.float64).view(mask.shape)


def rescale_epochs(every: int, epochs: int, stop: float) -> list[int]:
    """Algorithm 1: the epochs i with i mod p = 0 and i < T₂."""
    return [i for i in range(1, epochs) if i % every == 0 and i < stop]
