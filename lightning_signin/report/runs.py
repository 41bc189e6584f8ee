"""The logged values of a run: the ``metrics.csv`` of Lightning's CSVLogger, as series over epochs."""

import csv
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_signin.errors import MissingFileError, SignInError
from lightning_signin.report.layers import depth_order

METRICS = "metrics.csv"
Series = list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """The numbers of one run.

    Attributes:
        name: A name that distinguishes it from the other runs on the page.
        folder: The folder of its ``metrics.csv``, as the user wrote it.
        index: Its position among the runs, which determines its colour everywhere.
        columns: For each column, (epochs trained so far, value) in the order of the rows that have a value.
        knows_order: Whether columns of layers are in the model's order; otherwise they are sorted by name.

    Example:
        >>> run = Run("a", Path("a"), 0, {"val_loss": [(1, 4.0), (1, 2.0), (2, 1.0)]})
        >>> run.curve("val_loss"), run.last("val_loss"), run.named("loss")
        (([1, 2], [3.0, 1.0]), 1.0, ['val_loss'])
    """

    name: str
    folder: Path
    index: int
    columns: dict[str, Series]
    knows_order: bool = False

    @property
    def epochs(self) -> int:
        """The epochs trained; 0 if the run was only tested."""
        return max((x for name, series in self.columns.items() if not is_test(name) for x, _ in series), default=0)

    def has(self, column: str) -> bool:
        """Whether there is a finite number in a column."""
        return any(math.isfinite(value) for _, value in self.columns.get(column, []))

    def curve(self, column: str) -> tuple[list[int], list[float]]:
        """Epochs and values; what was logged several times in an epoch is averaged."""
        found: dict[int, list[float]] = {}
        for epoch, value in self.columns.get(column, []):
            found.setdefault(epoch, []).append(value)
        return list(found), [sum(values) / len(values) for values in found.values()]

    def last(self, column: str) -> float | None:
        """The last value of a column."""
        series = self.columns.get(column)
        return series[-1][1] if series else None

    def named(self, word: str) -> list[str]:
        """The user's columns whose names contain a word; of a step and an epoch column, only the latter."""
        names = [name for name in self.columns if word in name.lower() and not name.startswith("signin/")]
        names = [name for name in names if f"{name.removesuffix('_step')}_epoch" not in names]
        return in_order(name for name in names if self.has(name))

    def layers(self, what: str) -> dict[str, float]:
        """The last value of ``signin/layer/<what>/…`` by the weight's plain name."""
        prefix = f"signin/layer/{what}/"
        found = {name: self.last(name) for name in self.columns if name.startswith(prefix)}
        return {name.removeprefix(prefix): value for name, value in found.items() if value is not None}


def is_test(column: str) -> bool:
    """Whether a column is from a test, which is run once and is not a curve over epochs."""
    return "test" in column.lower()


def in_order(columns: Iterable[str]) -> list[str]:
    """The user's columns sorted by name, but validation first and tests last."""
    return sorted(columns, key=lambda name: (is_test(name), not name.lower().startswith("val"), name))


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Read the runs in folders of CSVLogger, and name each by the end of its path that makes it unique.

    Returns:
        The runs, in the order of ``folders``.

    Raises:
        MissingFileError: If there is no such folder, or no ``metrics.csv`` in it.
        SignInError: If a folder is given twice, or its file is empty, damaged or from another program.
    """
    paths = [Path(folder) for folder in folders]
    whole = [path.resolve() for path in paths]
    for path, resolved in zip(paths, whole, strict=True):
        if whole.count(resolved) > 1:
            raise SignInError(f"{path} is given more than once. Name each run once.")
    runs = []
    for index, (path, name) in enumerate(zip(paths, _names(whole), strict=True)):
        columns = _read(path)
        weights = {column: column.split("/", 3)[-1] for column in columns if column.startswith("signin/layer/")}
        order, knows_order = depth_order(set(weights.values()), path)
        places = {weight: place for place, weight in enumerate(order)}
        by_depth = sorted(columns.items(), key=lambda item: places.get(weights.get(item[0], ""), -1))
        runs.append(Run(name, path, index, dict(by_depth), knows_order))
    return runs


def _names(paths: list[Path]) -> list[str]:
    depth = 2  # at least: "version_0" alone is not informative
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    readable = (Path(*path.parts[-depth:]).as_posix() for path in paths)
    return [os.fsencode(name).decode("utf-8", "replace") for name in readable]


def _read(folder: Path) -> dict[str, Series]:
    path = folder / METRICS
    if not folder.is_dir():
        raise MissingFileError(f"There is no folder {folder}. Pass a run's folder, e.g. runs/digits/version_0.")
    if not path.is_file():
        below = sorted(found.parent for found in folder.glob(f"*/{METRICS}"))
        way_out = f"Its runs are {', '.join(map(str, below))}." if below else "Train with that logger first."
        raise MissingFileError(f"There is no {METRICS} in {folder}, which Lightning's CSVLogger writes. {way_out}")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return _series(path, list(csv.reader(file, strict=True)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SignInError(f"{path} is not a text file of comma-separated values: {error}. Name another run.") from error


def _series(path: Path, rows: list[list[str]]) -> dict[str, Series]:
    header, *rows = rows or [[]]
    if not {"epoch", "step"} <= set(header):
        has = ", ".join(header)[:60] or "nothing"
        raise SignInError(f"{path} is not from CSVLogger: it needs the columns epoch and step, but has {has}.")
    if rows and len(rows[-1]) < len(header):
        rows.pop()  # incomplete: the run is still writing it, or was killed while doing so
    columns: dict[str, Series] = {name: [] for name in header if name not in ("epoch", "step")}
    epochs = 1
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise SignInError(f"{path} has {len(row)} cells in line {number}, but its header has {len(header)}.")
        cells = {name: _number(path, number, name, cell) for name, cell in zip(header, row, strict=True) if cell}
        if "epoch" in cells:  # a row that a user's logger wrote without one belongs to the epoch of the row before
            if not math.isfinite(cells["epoch"]):
                raise SignInError(
                    f"{path} has {cells['epoch']} for the epoch in line {number}, which must be a number."
                )
            epochs = int(cells["epoch"]) + 1  # Lightning counts from 0, and logs at the end of an epoch
        for name in columns.keys() & cells.keys():
            columns[name].append((epochs, cells[name]))
    if not any(columns.values()):
        raise SignInError(f"{path} has no numbers yet. Wait for the run's first epoch to end.")
    return columns


def _number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise SignInError(
            f"{path} has {cell[:30]!r} in line {line}, column {column}, which must be a number."
        ) from None
