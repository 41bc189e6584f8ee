"""The result files of a sweep."""

from collections.abc import Sequence
from pathlib import Path

from lightning_signin.sweep.picture import picture
from lightning_signin.sweep.result import Result
from lightning_signin.sweep.summary import summarize
from lightning_signin.sweep.table import as_csv, markdown
from lightning_signin.weightfiles.files.paths import write_whole


def write_results(folder: Path, results: Sequence[Result], metric: str, methods_first: Sequence[str] = ()) -> str:
    """Write ``results.md``, ``results.csv`` and, if any run has a value, ``results.png``.

    Args:
        folder: The folder to write into.
        results: The results of all cells.
        metric: The metric to show.
        methods_first: The methods of the first rows; differences are taken from the first row.

    Returns:
        The text of ``results.md``.
    """
    summary = summarize(results, metric, methods_first)
    text = markdown(summary)
    write_whole(folder / "results.md", text.encode())
    write_whole(folder / "results.csv", as_csv(results, metric).encode())
    if (drawn := picture(summary)) is not None:
        write_whole(folder / "results.png", drawn)
    return text
