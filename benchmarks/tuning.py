"""Learning rates: the best of tuning runs, and tables whose cells are each tuned and then tested at their own rate."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.jobs import Stages


class Outcome(NamedTuple):
    """What a cell of a table comes to.

    Attributes:
        rate: Its own learning rate.
        at_edge: Whether that is the first or last of its grid.
        accuracies: Of the test seeds, in percent.
    """

    rate: float
    at_edge: bool
    accuracies: list[float]


def best_rates(
    tuning: Mapping[Any, Iterable[float]], cell_and_rate: Callable[[Any], tuple[Hashable, float]]
) -> dict[Any, float]:
    """Of every cell the learning rate with the best mean, the smallest of several.

    Args:
        tuning: Accuracies on held-out data by settings.
        cell_and_rate: What settings are tuned for, and at which rate; all accuracies of both count together.

    Returns:
        The learning rate of every cell.

    Example:
        >>> best_rates({("plain", 0.1): [90, 92], ("plain", 0.2): [91, 91], ("signin", 0.1): [80]}, lambda key: key)
        {'plain': 0.1, 'signin': 0.1}
    """
    found: dict[Hashable, dict[float, list[float]]] = {}
    for settings, accuracies in tuning.items():
        cell, rate = cell_and_rate(settings)
        found.setdefault(cell, {}).setdefault(rate, []).extend(accuracies)
    return {cell: max(sorted(rates), key=lambda rate: mean(rates[rate])) for cell, rates in found.items()}


def tune_and_test(
    folder: Path,
    run_job: Callable[[tuple[Any, ...]], dict[str, Any]],
    rates: Mapping[tuple[Any, ...], Sequence[float]],
    tuning_seeds: Sequence[int],
    test_seeds: Sequence[int],
    chunk: int = 8,
) -> dict[tuple[Any, ...], Outcome]:
    """Tune every cell on held-out data, then test it at its own rate; what a stopped run has done is not done again.

    Args:
        folder: Of the rows, "tune.jsonl" and "test.jsonl".
        run_job: Runs ("tune" or "test", (cell, rate), seeds); its row has "cell", "lr", "seeds" and "accuracies".
        rates: Of every cell, ascending; a single one is not tuned.
        tuning_seeds: Of the runs on held-out data.
        test_seeds: Of the runs on test data, none of them used for tuning.
        chunk: Seeds of a job.

    Returns:
        By cell: its rate, whether that is the first or last of its rates, and the accuracies on test data.
    """
    best = {cell: grid[0] for cell, grid in rates.items()}
    tuning = [(cell, lr) for cell, grid in rates.items() for lr in grid if len(grid) > 1]
    stages = Stages(
        folder,
        {
            "tune": lambda: ((run, tuning_seeds) for run in tuning),
            "test": lambda: ((run, test_seeds) for run in best.items()),
        },
        run_job,
        settings_of=lambda row: (tuple(row["cell"]), row["lr"]),
        chunk=chunk,
    )
    stages.run("tune")
    found = stages.read("tune")
    best |= best_rates({run: found[run] for run in tuning}, lambda run: run)
    stages.run("test")
    tested = stages.read("test")
    return {cell: Outcome(lr, lr in (rates[cell][0], rates[cell][-1]), tested[cell, lr]) for cell, lr in best.items()}
