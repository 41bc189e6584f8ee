"""The files that a sweep ends with."""

from collections.abc import Sequence
from pathlib import Path

from lightning_signin.sweep.picture import picture
from lightning_signin.sweep.result import Result
from lightning_signin.sweep.summary import summarize
from lightning_signin.sweep.table import as_csv, markdown
from lightning_signin.weightfiles.files.paths import write_whole


def write_results(folder: Path, results: Sequence[Result], metric: str, methods_first: Sequence[str] = ()) -> str:
    """Write ``results.md``, ``results.csv`` and, if a run has a number, ``results.png``.

    Args:
        folder: To write into.
        results: Of all cells.
        metric: What to show.
        methods_first: The first rows; differences are taken from the first of all.

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
