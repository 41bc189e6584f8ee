"""The numbers of a sweep as text: a Markdown table to read, and CSV to process."""

import csv
import io
from collections.abc import Callable, Sequence

from lightning_signin.sweep.grid import Cell
from lightning_signin.sweep.result import Mean, Result
from lightning_signin.sweep.summary import Summary


def markdown(summary: Summary) -> str:
    """A table of means, one of the differences from the first method, the runs without a number, and warnings."""
    parts = [
        f"{summary.label}: mean ± half of the 95 % interval (Student's t) over n seeds",
        _table(summary, summary.methods, lambda method, sparsity: _mean_cell(summary, method, sparsity)),
    ]
    if others := summary.methods[1:]:
        parts += [
            f"Difference from {summary.methods[0]}, paired by seed" + (", in points" if summary.percent else ""),
            _table(summary, others, lambda method, sparsity: _difference_cell(summary, method, sparsity)),
        ]
    if summary.decays:
        found = {method: "; ".join(decays) for method, decays in summary.decays.items()}
        same = set(found.values()) if len(found) == len(summary.methods) else set()
        each = "\n".join(f"- {method}: {decay}" for method, decay in found.items())
        of_all = f"Weight decay of the sparse weights, with every method: {next(iter(same), '')}"
        parts += [of_all] if len(same) == 1 else ["Weight decay of the sparse weights:", each]
    if summary.troubles:
        lines = (f"- {result.cell}: {_in_line(why)}" for result, why in summary.troubles)
        parts += ["Runs without a number:", "\n".join(lines)]
    if summary.warnings:
        lines = (f"- {_some(cells)}: {_in_line(text)}" for text, cells in summary.warnings.items())
        parts += ["Warnings:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def as_csv(results: Sequence[Result], metric: str) -> str:
    """One row per run: its cell, its value as logged, why there is none, how long it took, and its folder.

    Returns:
        The text of the file.

    Example:
        >>> from lightning_signin.sweep.grid import Cell
        >>> print(as_csv([Result(Cell("plain", 0.9, 0), "runs/0", {"test_acc": 0.5}, seconds=3.0)], "test_acc").strip())
        method,sparsity,seed,test_acc,error,seconds,folder
        plain,0.9,0,0.5,,3.0,runs/0
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["method", "sparsity", "seed", metric, "error", "seconds", "folder"])
    for result in results:
        cell = result.cell
        number = (result.measured or {}).get(metric)
        about = [result.trouble(metric), result.seconds, result.folder]
        writer.writerow([cell.method, cell.sparsity, cell.seed, number, *about])
    return file.getvalue()


def percent(sparsity: float) -> str:
    """A sparsity as text.

    Returns:
        The percentage without trailing zeros.

    Example:
        >>> percent(0.9), percent(0.975)
        ('90 %', '97.5 %')
    """
    return f"{100 * sparsity:.10g} %"


def _table(summary: Summary, methods: Sequence[str], cell: Callable[[str, float], str]) -> str:
    header = ["method", *map(percent, summary.sparsities)]
    rows = [header, *([method, *(cell(method, s) for s in summary.sparsities)] for method in methods)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * len(summary.sparsities) + "|", *lines[1:]])


def _mean_cell(summary: Summary, method: str, sparsity: float) -> str:
    asked = summary.asked.get((method, sparsity), 0)
    if not asked:
        return ""
    found = summary.mean_at(method, sparsity)
    count = found.count if found else 0
    n = f"n = {count}" if count == asked else f"n = {count} of {asked}"
    return f"{_written(found, summary.percent)}, {n}" if found else n


def _difference_cell(summary: Summary, method: str, sparsity: float) -> str:
    found = summary.difference_at(method, sparsity)
    return f"{_written(found, summary.percent, '+')}, n = {found.count}" if found else ""


def _written(found: Mean, is_percent: bool, sign: str = "") -> str:
    digits = f"{sign}.2f" if is_percent else f"{sign}.4g"
    value = format(found.value, digits).replace("-", "−")
    return value if found.half is None else f"{value} ± {format(found.half, digits.lstrip('+'))}"


def _some(cells: Sequence[Cell]) -> str:
    """The first cell, and the number of others."""
    return f"{cells[0]} and {len(cells) - 1} more" if len(cells) > 1 else str(cells[0])


def _in_line(text: str) -> str:
    return " ".join(text.split())
