"""What is known of the cells of a grid, and what their numbers are together."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_signin.sweep.grid import Cell

DEFAULT_METRICS = ("test_acc", "val_acc")


@dataclass(frozen=True)
class Result:
    """What is known of a cell.

    Attributes:
        cell: It.
        folder: Of its last run, below that of the sweep.
        measured: The last value of all that the run logged; None if it has not ended, or failed.
        error: Why it failed.
        seconds: How long it took.
        warnings: What it warned of; None if it has not ended.
    """

    cell: Cell
    folder: str
    measured: dict[str, float] | None = None
    error: str | None = None
    seconds: float | None = None
    warnings: list[str] | None = None

    @property
    def is_finished(self) -> bool:
        """Whether it ended, well or not."""
        return self.measured is not None or self.error is not None

    def trouble(self, metric: str) -> str | None:
        """Why there is no number to count, or None."""
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
        value: It.
        half: Half of its 95 % interval, by Student's t, since seeds are few; None of a single number.
        count: Of how many numbers.
    """

    value: float
    half: float | None
    count: int


def mean(values: Sequence[float]) -> Mean:
    """The mean of at least one number, with its interval.

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
    """The metric that was asked for, or the first of `DEFAULT_METRICS` that a run has logged.

    Raises:
        ValueError: If runs logged numbers, and none that one.
    """
    logged = {name for result in results for name in result.measured or {}}
    wanted = DEFAULT_METRICS if asked_for is None else (asked_for,)
    found = next((name for name in wanted if name in logged), None)
    if found is None and logged:
        raise ValueError(
            f"`--metric` must be something that a run logs, and none has {' or '.join(wanted)}. They have "
            f"{', '.join(sorted(logged))}: pass one of these; finished runs are not run again."
        )
    return found or wanted[0]
