"""How many weights each layer keeps: the distribution of a budget over layers.

Every distribution gives each layer a share. The shares are scaled by one factor until the budget is spent, while no
layer exceeds its capacity or falls below one unit of its structure (water-filling), all in exact fractions; then the
counts are rounded to whole units whose sum is the budget, or the nearest possible sum. The "global" distribution has
no shares: the scores of all layers compete (`global_counts`).
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import prod

import torch
from torch import Tensor

from lightning_signin.core.numbers import exact, number
from lightning_signin.masks.largest import kth_largest
from lightning_signin.masks.rounding import round_to_units


def budget(sparsity: float, size: int) -> int:
    """The number of weights to keep: (1 − sparsity) · size in exact decimal arithmetic, rounded half to even.

    Args:
        sparsity: Fraction of zeros, in [0, 1). Its printed decimal form is what counts: 0.9 means 9/10.
        size: Number of weights.

    Returns:
        The number of weights, from 0 to ``size``.

    Raises:
        SignInError: If ``sparsity`` is outside [0, 1).

    Example:
        >>> budget(0.9, 25), budget(0.9, 35)  # 2.5 and 3.5: half to even
        (2, 4)
    """
    return round((1 - exact(check_sparsity(sparsity))) * size)


def check_sparsity(sparsity: object, argument: str = "sparsity") -> float:
    """A sparsity as a plain number in [0, 1); see `number`."""
    return number(argument, sparsity, "[0, 1)", "Pass the fraction of zeros, e.g. 0.9.")


def balanced(shape: tuple[int, ...]) -> int:
    """The same number of non-zeros for every layer; layers with fewer weights than that are dense.

    (Gadhikar, Mukherjee, Burkholz: "Why Random Pruning Is All We Need to Start Sparse", ICML 2023; the paper's
    Section 6.) Reference code gives what small layers leave over only to later layers, and misses the budget.

    Args:
        shape: Shape of a layer's weight.

    Returns:
        The layer's share.

    Example:
        >>> allocate([balanced(shape) for shape in [(2, 5), (10, 10), (30, 30)]], [1, 1, 1], [10, 100, 900], total=100)
        [10, 45, 45]
    """
    return 1


def uniform(shape: tuple[int, ...]) -> int:
    """The same density for every layer. Argument and result as in `balanced`."""
    return prod(shape)


def erk(shape: tuple[int, ...]) -> int:
    """Erdős–Rényi-kernel: density in proportion to (sum of dimensions) / (product of dimensions).

    Layers whose density would exceed 1 are dense, and the rest is scaled again (Evci et al.: "Rigging the Lottery",
    ICML 2020). Argument and result as in `balanced`.

    Returns:
        The layer's part of the budget before caps, up to a common factor.

    Example:
        >>> shapes = [(4, 4), (100, 10), (100, 100)]
        >>> allocate([erk(shape) for shape in shapes], [1, 1, 1], [16, 1000, 10000], total=700)
        [16, 243, 441]
    """
    return sum(shape)


DISTRIBUTIONS: dict[str, Callable[[tuple[int, ...]], int]] = {"balanced": balanced, "uniform": uniform, "erk": erk}


def allocate(
    shares: Sequence[int],
    units: Sequence[int],
    capacities: Sequence[int],
    total: int,
    least: Sequence[int] | None = None,
) -> list[int]:
    """Spread a budget over layers in proportion to their shares, within bounds, in whole units.

    Args:
        shares: Each layer's share, positive.
        units: Each layer's count must be a positive multiple of this.
        capacities: The most that each layer can keep, a multiple of its unit.
        total: The budget, between the sum of ``least`` and the sum of ``capacities``.
        least: The least that each layer keeps, a multiple of its unit. Default: one unit.

    Returns:
        The counts. Their sum is ``total``, or the nearest that whole units allow; the counts are those nearest to the
        exact shares (for single weights: largest-remainder rounding); of tied layers the earlier one is rounded up.
    """
    # λ ↦ Σ clamp(λ · share, least, capacity) rises from Σ least to Σ capacities, with a kink wherever a layer meets a
    # bound. It is linear between kinks, so λ is found exactly.
    layers = zip(shares, least or units, capacities, strict=True)
    bounds = [(share, Fraction(low), Fraction(capacity)) for share, low, capacity in layers]

    def spent(level: Fraction) -> Fraction:
        return sum((min(max(level * share, low), cap) for share, low, cap in bounds), Fraction(0))

    bends = sorted({Fraction(bound, share) for share, *both in bounds for bound in both})
    first, last = 0, len(bends) - 1
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if spent(bends[middle]) <= total else (first, middle)
    level, rise = bends[first], spent(bends[last]) - spent(bends[first])
    if rise:
        level += (bends[last] - bends[first]) * (total - spent(level)) / rise
    ideal = [min(max(level * share, low), cap) for share, low, cap in bounds]
    return round_to_units(ideal, units, capacities, total)


def global_counts(
    values: Sequence[Tensor],
    units: Sequence[int],
    capacities: Sequence[int],
    total: int,
    least: Sequence[int] | None = None,
) -> tuple[list[int], list[int]]:
    """Let the units of all layers compete: the highest values are kept, and the best of each layer in any case.

    Args:
        values: The value of each unit of each layer, comparable across layers.
        units: The number of weights in one unit of each layer.
        capacities: The most that each layer can keep.
        total: The budget in weights.
        least: The least that each layer keeps, a multiple of its unit. Default: one unit.

    Returns:
        The counts, rounded like those of `allocate`, and the layers that would have kept nothing.
    """
    least = least or units
    ideal = _best_units(values, units, total)
    empty = [layer for layer, count in enumerate(ideal) if count < units[layer]]
    if any(count < low for count, low in zip(ideal, least, strict=True)):
        layers = zip(values, units, least, strict=True)
        others = [_without_the_best(value.flatten(), low // unit) for value, unit, low in layers]
        ideal = [low + more for low, more in zip(least, _best_units(others, units, total - sum(least)), strict=True)]
    return round_to_units([Fraction(count) for count in ideal], units, capacities, total), empty


def _best_units(values: Sequence[Tensor], units: Sequence[int], total: int) -> list[int]:
    """How many weights each layer has among the best units; the remainder counts for the layer of the next unit."""
    flat = torch.cat([value.flatten() for value in values])
    sizes = [value.numel() for value in values]
    if len(set(units)) == 1:
        count = min(round(Fraction(total, units[0])), len(flat))
        if count == 0:
            return [0] * len(units)
        threshold = kth_largest(flat, count)
        above = [int((part > threshold).sum()) for part in flat.split(sizes)]
        ties = [int((part == threshold).sum()) for part in flat.split(sizes)]
        for layer, tied in enumerate(ties):  # among equal values, earlier layers come first
            above[layer] += min(tied, count - sum(above))
        return [number * unit for number, unit in zip(above, units, strict=True)]
    layers = torch.repeat_interleave(torch.arange(len(values)), torch.tensor(sizes))
    costs = torch.tensor(units)[layers]
    order = flat.cpu().argsort(descending=True, stable=True)
    taken = int((costs[order].cumsum(0) <= total).sum())
    counts = (torch.bincount(layers[order[:taken]], minlength=len(values)) * torch.tensor(units)).tolist()
    if taken < len(order):
        counts[int(layers[order[taken]])] += total - sum(counts)
    return counts


def _without_the_best(value: Tensor, number: int) -> Tensor:
    if number == 1:  # without sorting
        best = int(value.argmax())
        return torch.cat([value[:best], value[best + 1 :]])
    return value[value.argsort(descending=True, stable=True)[number:]]
