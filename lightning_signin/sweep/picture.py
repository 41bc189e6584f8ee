"""The plot of a sweep: the metric over sparsity, one line per method. Needs matplotlib."""

import math
from typing import TYPE_CHECKING, Any

from lightning_signin.report.drawing import COLOURS, add_legend, as_png, new_axes, shown_name
from lightning_signin.sweep.result import Mean
from lightning_signin.sweep.summary import Summary
from lightning_signin.sweep.table import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX<>"  # their number is coprime to that of the colours
_STEP = 0.015  # offset between two methods at one sparsity, relative to the width: keeps error bars apart


def picture(summary: Summary) -> bytes | None:
    """The plot as PNG; None if there are no values yet."""
    return as_png(lambda _: _figure(summary), []) if summary.values else None


def _figure(summary: Summary) -> "Figure":
    figure, [axes] = new_axes(height=4.4)
    x_of = {sparsity: -math.log10(1 - sparsity) for sparsity in summary.sparsities}
    width = max(x_of.values()) - min(x_of.values()) or 1.0
    handles: list[Any] = []
    for index, method in enumerate(summary.methods):
        found = [(sparsity, mean) for sparsity in x_of if (mean := summary.mean_at(method, sparsity)) is not None]
        beside = (index - (len(summary.methods) - 1) / 2) * _STEP * width
        handles.append(
            axes.errorbar(
                [x_of[sparsity] + beside for sparsity, _ in found],
                [mean.value for _, mean in found],
                yerr=[mean.half or 0.0 for _, mean in found],
                label=shown_name(method),
                color=COLOURS[index % len(COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=5,
                capsize=3,
                elinewidth=1.2,
            )
        )
    axes.set_xticks(list(x_of.values()), [percent(sparsity) for sparsity in x_of])
    axes.set_xlim(min(x_of.values()) - 0.12 * width, max(x_of.values()) + 0.12 * width)
    axes.set_xlabel("sparsity" + (", spaced by the logarithm of the density" if len(x_of) > 2 else ""))
    axes.set_ylabel(f"{summary.label}{_what(summary)}")
    add_legend(figure, handles)
    return figure


def _what(summary: Summary) -> str:
    means: list[Mean] = [
        mean for place in summary.values if (mean := summary.mean_at(*place)) is not None and mean.half is not None
    ]
    if not means:
        return ""
    fewest, most = min(mean.count for mean in means), max(mean.count for mean in means)
    seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f",\nmean and 95 % interval of {seeds} seeds"
