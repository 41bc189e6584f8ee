"""Means of a few seeds with their 95 % intervals, by Student's t."""

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student

Interval = tuple[float, float]  # a mean, and half of its 95 % interval


def interval(values: Sequence[float]) -> Interval:
    """The mean of two or more values, and half of its 95 % interval.

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


def shown(found: Interval) -> str:
    """As in a table of values."""
    return f"{found[0]:.2f} ± {found[1]:.2f}"


def signed(found: Interval) -> str:
    """As in a table of differences."""
    return f"{found[0]:+.2f} ± {found[1]:.2f}".replace("-", "−")
