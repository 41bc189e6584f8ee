"""The numbers of a sweep by method, sparsity and seed."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_signin.sweep.grid import Cell
from lightning_signin.sweep.result import Mean, Result, mean

Place = tuple[str, float]  # method, sparsity


@dataclass(frozen=True)
class Summary:
    """The content of tables and plots.

    Attributes:
        metric: The name of the metric.
        percent: Whether values are shares, multiplied by 100 here.
        methods: In the order of the rows; differences are taken from the first.
        sparsities: In the order of the columns.
        values: For each place, the values by seed.
        asked: For each place, the number of planned runs.
        troubles: The runs without a value, and why they have none.
        warnings: For each warning, the cells whose runs gave it.
        decays: For each method, what decayed its sparse weights.
    """

    metric: str
    percent: bool
    methods: list[str]
    sparsities: list[float]
    values: dict[Place, dict[int, float]]
    asked: dict[Place, int]
    troubles: list[tuple[Result, str]]
    warnings: dict[str, list[Cell]]
    decays: dict[str, list[str]]

    @property
    def label(self) -> str:
        """The metric with its unit."""
        return f"{self.metric} (%)" if self.percent else self.metric

    def mean_at(self, method: str, sparsity: float) -> Mean | None:
        """The mean over seeds; None if there are none."""
        values = list(self.values.get((method, sparsity), {}).values())
        return mean(values) if values else None

    def difference_at(self, method: str, sparsity: float) -> Mean | None:
        """The mean difference from the first method, over the seeds that both have; None if there are none."""
        first = self.values.get((self.methods[0], sparsity), {})
        own = self.values.get((method, sparsity), {})
        paired = [own[seed] - first[seed] for seed in own if seed in first]
        return mean(paired) if paired else None


def summarize(results: Sequence[Result], metric: str, methods_first: Sequence[str] = ()) -> Summary:
    """Sort results into places.

    Args:
        results: All results in the folder.
        metric: The metric to read from each.
        methods_first: These methods come first; the others follow in the order of the results.

    Returns:
        The values of each place in the table.
    """
    troubles = [(result, why) for result in results if (why := result.trouble(metric))]
    without = {result.cell for result, _ in troubles}
    numbers = {r.cell: r.measured[metric] for r in results if r.measured is not None and r.cell not in without}
    percent = "acc" in metric.lower() and all(0 <= number <= 1 for number in numbers.values())
    values: dict[Place, dict[int, float]] = {}
    for cell, number in numbers.items():
        values.setdefault((cell.method, cell.sparsity), {})[cell.seed] = 100 * number if percent else number
    places = [(result.cell.method, result.cell.sparsity) for result in results]
    warnings: dict[str, list[Cell]] = {}
    for result in results:
        for text in result.warnings or ():
            warnings.setdefault(text, []).append(result.cell)
    decays: dict[str, dict[str, None]] = {}
    for result in results:
        if result.weight_decay:
            decays.setdefault(result.cell.method, {})[result.weight_decay] = None
    return Summary(
        metric=metric,
        percent=percent,
        methods=list(dict.fromkeys([*methods_first, *(method for method, _ in places)])),
        sparsities=sorted({sparsity for _, sparsity in places}),
        values=values,
        asked={place: places.count(place) for place in places},
        troubles=troubles,
        warnings=warnings,
        decays={method: list(found) for method, found in decays.items()},
    )
