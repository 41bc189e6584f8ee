"""Slow, obvious second implementations, in exact or float64 arithmetic."""

from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from math import prod

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
    sizes = [prod(shape) for shape in shapes]
    return largest_remainder([Fraction(total, sum(sizes)) * size for size in sizes], sizes, total)


def balanced(shapes: Sequence[tuple[int, ...]], total: int) -> list[int]:
    """The water level is found by bisection."""
    sizes = [prod(shape) for shape in shapes]

    def filled(level: Fraction) -> list[Fraction]:
        return [min(level, Fraction(size)) for size in sizes]

    return largest_remainder(_fill(filled, total, max(sizes)), sizes, total)


def erk(shapes: Sequence[tuple[int, ...]], total: int) -> list[int]:
    """The scale ε of the densities ε · (sum of dimensions) / (product of dimensions), cut at 1, found by bisection."""
    sizes = [prod(shape) for shape in shapes]

    def filled(epsilon: Fraction) -> list[Fraction]:
        return [min(epsilon * sum(shape), Fraction(size)) for shape, size in zip(shapes, sizes, strict=True)]

    return largest_remainder(_fill(filled, total, max(sizes)), sizes, total)


def _fill(filled: Callable[[Fraction], list[Fraction]], total: int, high: int) -> list[Fraction]:
    low, top = Fraction(0), Fraction(high)
    for _ in range(100):
        middle = (low + top) / 2
        low, top = (middle, top) if sum(filled(middle)) < total else (low, middle)
    # The level is a fraction of whole numbers of this problem, so its denominator is small: the nearest one is exact.
    return filled(top.limit_denominator(10**6))


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
