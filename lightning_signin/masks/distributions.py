"""How many weights each layer keeps: the distribution of a global budget over layers.

Every size-based distribution is a function ``(shapes, total) -> counts`` on exact fractions, turned into whole numbers
by one largest-remainder rounding, so that the counts sum to ``total`` exactly and no layer is left empty. The "global"
distribution has no counts of its own: the scores of all layers compete (`lightning_signin.masks.build`).
"""

from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from math import prod

Shapes = Sequence[tuple[int, ...]]


def budget(sparsity: float, size: int) -> int:
    """The number of weights to keep: (1 − sparsity) · size in exact decimal arithmetic, rounded half to even.

    Args:
        sparsity: Fraction of zeros, in [0, 1). It is read as it is printed, so 0.9 means 9/10.
        size: Number of weights.

    Raises:
        ValueError: If ``sparsity`` is outside [0, 1).

    Example:
        >>> budget(0.9, 25), budget(0.9, 35)  # 2.5 and 3.5: half to even
        (2, 4)
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"`sparsity` must be in [0, 1), got {sparsity}. Pass the fraction of zeros, e.g. 0.9.")
    return round((1 - Fraction(Decimal(repr(float(sparsity))))) * size)


def balanced(shapes: Shapes, total: int) -> list[int]:
    """The same number of non-zeros in every layer; layers with fewer weights than that are dense.

    Water-filling: the layers below the level X are filled, and X is raised for the rest until the budget is spent
    (Gadhikar, Mukherjee, Burkholz: "Why Random Pruning Is All We Need to Start Sparse", ICML 2023; the paper's
    Section 6). Reference code spreads what small layers leave over only to later layers and misses the budget.

    Args:
        shapes: Shape of every layer's weight.
        total: Number of weights to keep, at least one a layer and at most all.

    Returns:
        The number of weights to keep for each layer, with sum ``total``.

    Example:
        >>> balanced([(2, 5), (10, 10), (30, 30)], total=100)
        [10, 45, 45]
    """
    sizes = [prod(shape) for shape in shapes]
    level, rest, open_layers = Fraction(0), total, len(sizes)
    for size in sorted(sizes):
        level = Fraction(rest, open_layers)
        if level < size:
            break
        rest, open_layers = rest - size, open_layers - 1
    return _round([min(level, Fraction(size)) for size in sizes], sizes, total)


def uniform(shapes: Shapes, total: int) -> list[int]:
    """The same density in every layer. Arguments and result as in `balanced`.

    Example:
        >>> uniform([(10,), (100,)], total=11)
        [1, 10]
    """
    sizes = [prod(shape) for shape in shapes]
    return _round([Fraction(total * size, sum(sizes)) for size in sizes], sizes, total)


def erk(shapes: Shapes, total: int) -> list[int]:
    """Erdős–Rényi-kernel: density in proportion to (sum of dimensions) / (product of dimensions).

    Layers whose density would pass 1 are made dense and the rest is scaled again (Evci et al.: "Rigging the Lottery",
    ICML 2020). Arguments and result as in `balanced`.

    Example:
        >>> erk([(4, 4), (100, 10), (100, 100)], total=700)
        [16, 243, 441]
    """
    sizes = [prod(shape) for shape in shapes]
    raw = [sum(shape) for shape in shapes]  # density · size, up to the factor ε
    dense: set[int] = set()
    while len(dense) < len(sizes):
        free = [layer for layer in range(len(sizes)) if layer not in dense]
        epsilon = Fraction(total - sum(sizes[layer] for layer in dense), sum(raw[layer] for layer in free))
        densities = {layer: epsilon * raw[layer] / sizes[layer] for layer in free}
        highest = max(densities.values())
        if highest <= 1:
            break
        dense |= {layer for layer, density in densities.items() if density == highest}
    return _round(
        [Fraction(size) if layer in dense else epsilon * raw[layer] for layer, size in enumerate(sizes)], sizes, total
    )


DISTRIBUTIONS: dict[str, Callable[[Shapes, int], list[int]]] = {"balanced": balanced, "uniform": uniform, "erk": erk}


def _round(ideal: list[Fraction], sizes: list[int], total: int) -> list[int]:
    """Largest-remainder rounding to counts in [1, size] with sum ``total``; ties go to the earlier layer."""
    counts = [min(max(int(value), 1), size) for value, size in zip(ideal, sizes, strict=True)]
    step = 1 if sum(counts) < total else -1
    while (missing := total - sum(counts)) != 0:
        last = sizes if step > 0 else [1] * len(sizes)
        movable = [layer for layer, count in enumerate(counts) if count != last[layer]]
        movable.sort(key=lambda layer: step * (counts[layer] - ideal[layer]))
        for layer in movable[: abs(missing)]:
            counts[layer] += step
    return counts
