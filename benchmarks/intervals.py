"""Means of a few seeds with their 95 % intervals, by Student's t."""

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student

Interval = tuple[float, float]  # a mean, and half of its 95 % interval


def interval(values: Sequence[float]) -> Interval:
    """The mean of two or more values, and half of its 95 % interval.

    Returns:
        The mean, and half the width of its 95 % interval.

    Example:
        >>> middle, half = interval([1.0, 2.0, 3.0])
        >>> middle, round(half, 3)
        (2.0, 2.484)
    """
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(half)


def difference(better: Sequence[float], base: Sequence[float]) -> Interval:
    """That of the differences, paired by position: the same seed, start, data."""
    return interval([a - b for a, b in zip(better, base, strict=True)])


def above(found: Interval, bound: float = 0.0) -> bool:
    """Whether the whole interval is above."""
    return found[0] - found[1] > bound


def below(found: Interval, bound: float = 0.0) -> bool:
    """Whether the whole interval is below."""
    return found[0] + found[1] < bound


def shown(found: Interval) -> str:
    """As in a table of values."""
    return f"{found[0]:.2f} ± {found[1]:.2f}"


def signed(found: Interval) -> str:
    """As in a table of differences."""
    return f"{points(found[0])} ± {found[1]:.2f}"


def points(gain: float) -> str:
    """A difference without its interval, as the paper's are.

    Returns:
        The difference with its sign and two decimals.

    Example:
        >>> points(-0.5)
        '−0.50'
    """
    return f"{gain:+.2f}".replace("-", "−")
