"""The common style of all plots: colours, markers, axes and legends. Needs matplotlib."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_signin.report.layers import short_names
from lightning_signin.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe palette, without its yellow, which is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX<>"  # their number is coprime to that of the colours: 63 runs differ
_LINES = ("-", "--", ":", "-.")
_LOOK: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.edgecolor": "#888888",
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "savefig.dpi": 150,
    "text.parse_math": False,  # a $ in a name is a $
    "figure.constrained_layout.use": True,
}


def as_png(draw: "Callable[[list[Run]], Figure]", runs: list[Run]) -> bytes:
    """Draw a plot in this style, independent of the user's matplotlib settings, which stay unchanged."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_LOOK)
        draw(runs).savefig(file, format="png")
    return file.getvalue()


def new_axes(rows: int = 1, wide: bool = False, height: float = 3.9) -> "tuple[Figure, list[Axes]]":
    """A figure of half or the full width of a page, with axes that share x."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0 if wide else 6.4, height))
    return figure, list(figure.subplots(rows, squeeze=False, sharex=True)[:, 0])


def colour(run: Run) -> str:
    """The colour of a run, in every plot and in the page's table."""
    return COLOURS[run.index % len(COLOURS)]


def line_style(run: Run, runs: list[Run], column: int = 0) -> dict[str, Any]:
    """Colour and marker of a run, and the dashes of a column.

    Markers of earlier runs are larger, so that they remain visible behind those of later ones where lines overlap.

    Returns:
        Arguments of matplotlib's ``plot``.
    """
    after = min(2, len(runs) - 1 - runs.index(run))
    return {
        "color": colour(run),
        "marker": _MARKERS[run.index % len(_MARKERS)],
        "markersize": 5 + 2.4 * after,
        "linestyle": _LINES[column % len(_LINES)],
    }


def over_epochs(axes: "Axes", runs: list[Run]) -> None:
    """Make x the epochs, with integer ticks and the same range in all plots of the runs."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epochs trained")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlim(0, 1.03 * max(1, *(run.epochs for run in runs)))


def fit_y(axes: "Axes", values: Sequence[float], may_be_log: bool) -> None:
    """Start y at 0 unless values are negative, or make it logarithmic if they differ more than thirtyfold."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = [value for value in values if math.isfinite(value)]
    if may_be_log and min(finite) > 0 and max(finite) > 30 * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif min(finite) >= 0:
        axes.set_ylim(0, max(finite) * 1.08 or 1)


def over_layers(axes: "Axes", names: Sequence[str], runs: list[Run]) -> None:
    """Label layers under an axis: all of them, or every n-th if there are too many to read."""
    step = -(-len(names) // 60)
    size = 10 if len(names) <= 30 else 8
    axes.set_xticks(range(0, len(names), step), short_names(names)[::step], rotation=90, fontsize=size)
    axes.set_xlim(-0.7, len(names) - 0.3)
    order = "in the model's order" if all(run.knows_order for run in runs) else "by name"
    axes.set_xlabel(f"weight, {order}" + (f"; one of {step} is named" if step > 1 else ""))


def grouped_bars(axes: "Axes", bars: Sequence[tuple[Run, Mapping[int, float]]], groups: int) -> list[Any]:
    """Draw the runs' bars (group → height) next to each other; return the handles for a legend."""
    beside = [[run.index for run, heights in bars if group in heights] for group in range(groups)]
    drawn = []
    for run, heights in bars:
        widths = [0.8 / len(beside[group]) for group in heights]
        places = [beside[group].index(run.index) - (len(beside[group]) - 1) / 2 for group in heights]
        centres = [g + place * width for g, place, width in zip(heights, places, widths, strict=True)]
        hatch = "//" if run.index >= len(COLOURS) else None
        look: Any = {"color": colour(run), "hatch": hatch, "edgecolor": "white", "label": shown_name(run.name)}
        drawn.append(axes.bar(centres, list(heights.values()), [0.94 * width for width in widths], **look))
    axes.set_xlim(-0.6, groups - 0.4)
    axes.grid(False, axis="x")
    return drawn


def shown_name(name: str) -> str:
    """A name in a legend: its end, with a leading underscore escaped, since matplotlib would hide such an entry."""
    short = name if len(name) <= 44 else f"…{name[-43:]}"
    return f" {short}" if short.startswith("_") else short


def add_legend(figure: "Figure", handles: Sequence[Any]) -> None:
    """Put a legend above the axes, where it covers nothing."""
    longest = max(len(handle.get_label()) for handle in handles)
    inches = figure.get_size_inches()[0]
    columns = max(1, int(inches * 11 / (longest + 7)))
    figure.legend(handles=handles, loc="outside upper left", ncols=min(columns, len(handles)))
