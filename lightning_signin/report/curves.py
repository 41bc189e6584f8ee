"""Plots over epochs: accuracy and loss, and what `SignInCallback` logs about the whole network."""

from typing import TYPE_CHECKING, Any

from lightning_signin.report.drawing import (
    add_legend,
    fit_y,
    line_style,
    new_axes,
    over_epochs,
    shown_name,
)
from lightning_signin.report.runs import Run, in_order, is_test

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curve(runs: list[Run], column: str, label: str, percent: bool = True, up_to: float | None = None) -> "Figure":
    """Draw one line per run.

    Args:
        runs: Runs that have the column.
        column: The name of the column.
        label: The label of the y axis, without the unit if that is percent.
        percent: Whether the column holds shares, which are drawn as percentages.
        up_to: Upper limit of the y axis.

    Returns:
        The figure.
    """
    figure, [axes] = new_axes()
    values: list[float] = []
    handles: list[Any] = []
    for run in runs:
        x, y = run.curve(column)
        y = [100 * value for value in y] if percent else y
        handles += axes.plot(x, y, label=shown_name(run.name), markevery=_apart(x), **line_style(run, runs))
        values += y
    fit_y(axes, values, may_be_log=not percent)
    if up_to is not None:
        axes.set_ylim(0, up_to)
    axes.set_ylabel(f"{label} (%)" if percent else label)
    over_epochs(axes, runs)
    add_legend(figure, handles)
    return figure


def draw_users_columns(runs: list[Run], word: str, label: str) -> "Figure":
    """Draw columns with a word in their names: one colour per run, dashes per column, a star at the end for a test."""
    from matplotlib.lines import Line2D

    figure, [axes] = new_axes()
    names = in_order({name for run in runs for name in run.named(word)})
    values: list[float] = []
    handles: list[Any] = []
    for run in runs:
        for name in run.named(word):
            x, y = run.curve(name)
            look = line_style(run, runs, names.index(name))
            if is_test(name):
                x, y = [run.epochs], y[-1:]
                look |= {"marker": "*", "markersize": 15, "markeredgecolor": "white", "zorder": 3, "clip_on": False}
            axes.plot(x, y, markevery=_apart(x), **look)
            values += y
        handles.append(Line2D([], [], label=shown_name(run.name), **line_style(run, runs)))
    for name in names:
        look = line_style(runs[0], runs, names.index(name)) | {"marker": "", "color": "#555555"}
        if is_test(name):
            look |= {"marker": "*", "markersize": 11, "linestyle": ""}
        handles.append(Line2D([], [], label=shown_name(name), **look))
    fit_y(axes, values, may_be_log=word == "loss")
    axes.set_ylabel(label)
    over_epochs(axes, runs)
    add_legend(figure, handles)
    return figure


def _apart(x: list[int]) -> float | None:
    # Spacing relative to the axes' diagonal: denser markers would hide the line. A single point would get no marker.
    return 0.035 if len(x) > 1 else None
