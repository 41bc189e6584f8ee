"""The results of a grid's cells, and their means."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_signin.errors import SignInError
from lightning_signin.sweep.grid import Cell

DEFAULT_METRICS = ("test_acc", "val_acc")


@dataclass(frozen=True)
class Result:
    """The result of a cell.

    Attributes:
        cell: The cell.
        folder: The folder of its last run, relative to that of the sweep.
        measured: The last value of each metric that the run logged; None if it has not ended, or failed.
        error: Why it failed.
        seconds: How long it took.
        warnings: Its warnings; None if it has not ended.
        weight_decay: What decayed its sparse weights, in words; None if it is not known.
    """

    cell: Cell
    folder: str
    measured: dict[str, float] | None = None
    error: str | None = None
    seconds: float | None = None
    warnings: list[str] | None = None
    weight_decay: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether it ended, successfully or not."""
        return self.measured is not None or self.error is not None

    def trouble(self, metric: str) -> str | None:
        """Why there is no value of the metric, or None if there is one."""
        if self.error is not None:
            return self.error
        if self.measured is None:
            return "not finished"
        if metric not in self.measured:
            return f"logged no {metric}"
        return None if math.isfinite(self.measured[metric]) else f"{metric} is {self.measured[metric]}"


@dataclass(frozen=True)
class Mean:
    """The mean of some numbers.

    Attributes:
        value: The mean.
        half: Half of its 95 % interval, by Student's t, since seeds are few; None for a single number.
        count: The number of values.
    """

    value: float
    half: float | None
    count: int


def mean(values: Sequence[float]) -> Mean:
    """The mean of at least one number, with its interval.

    Returns:
        The mean; its interval is None for a single number.

    Example:
        >>> mean([1.0, 2.0, 3.0]).value, round(mean([1.0, 2.0, 3.0]).half, 3)
        (2.0, 2.484)
    """
    from scipy.stats import t as student

    count = len(values)
    if count == 1:
        return Mean(values[0], None, 1)
    half = student.ppf(0.975, count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Mean(statistics.fmean(values), float(half), count)


def choose_metric(results: Iterable[Result], asked_for: str | None) -> str:
    """The requested metric, or the first of `DEFAULT_METRICS` that a run has logged.

    Returns:
        The name of the metric.

    Raises:
        SignInError: If runs logged values, but none of that metric.
    """
    logged = {name for result in results for name in result.measured or {}}
    wanted = DEFAULT_METRICS if asked_for is None else (asked_for,)
    found = next((name for name in wanted if name in logged), None)
    if found is None and logged:
        raise SignInError(
            f"`--metric` must be something that a run logs, but none has {' or '.join(wanted)}. They have "
            f"{', '.join(sorted(logged))}: pass one of these; finished runs are not repeated."
        )
    return found or wanted[0]
