"""The times of two calls, in turn: dense and on the non-zeros."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

GAIN = 1.1  # a layer runs on its non-zeros if it is faster by this factor, so that noise does not decide
_MOST = 100  # pairs of runs


@dataclass
class Compared:
    """Median seconds of one call, dense and on the non-zeros."""

    dense: float = 0.0
    sparse: float = 0.0

    @property
    def gain(self) -> float:
        """The speedup of the non-zeros over dense."""
        return self.dense / self.sparse


def compare(dense: Callable[[], object], sparse: Callable[[], object], seconds: float, least: int = 5) -> Compared:
    """Time two calls alternately, after one warm-up call of each.

    Args:
        dense: One call.
        sparse: The other.
        seconds: How long to go on beyond the least number of pairs.
        least: That number.

    Returns:
        The medians.
    """
    runs: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    dense(), sparse()
    while len(runs[0]) < least or (len(runs[0]) < _MOST and time.perf_counter() < end):
        for call, times in zip((dense, sparse), runs, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return Compared(median(runs[0]), median(runs[1]))
