"""How the pictures of this folder look. Needs matplotlib (`pip install "lightning-signin[plot]"`)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_signin.report.drawing import COLOURS

_LOOK: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "savefig.dpi": 130,
    "figure.constrained_layout.use": True,
}


@contextmanager
def picture(path: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (6, 4)) -> Iterator[list[Axes]]:
    """Axes, row by row, to draw on; the picture is stored at the end."""
    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=size)
        yield list(figure.subplots(rows, columns, squeeze=False).flat)
        figure.savefig(path, format="png")


def draw_phase_plane(
    axes: Axes, paths: Mapping[str, Sequence[Sequence[tuple[float, float]]]], title: str, reach: float
) -> None:
    """Paths of (w₁, a) from their starts (circles) to their ends (squares), one colour a sign case."""
    first = np.linspace(1 / reach, reach, 200)
    axes.plot(first, 1 / first, color="black", linewidth=1, label="the teacher: a·w₁ = 1")
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.axhline(0, color="#888888", linewidth=0.8)
    for colour, (case, lines) in zip(COLOURS, paths.items(), strict=False):
        for position, line in enumerate(lines):
            across, up = zip(*line, strict=True)
            axes.plot(across, up, color=colour, linewidth=1.3, label=None if position else case)
            axes.plot(across[0], up[0], "o", color=colour, markerfacecolor="white", markersize=5)
            axes.plot(across[-1], up[-1], "s", color=colour, markersize=5)
    axes.set(xlabel="w₁", ylabel="a", title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
