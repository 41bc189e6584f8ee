"""Plots of the end of a run: sign flips by stage, and values per layer."""

from typing import TYPE_CHECKING

from lightning_signin.report.drawing import (
    add_legend,
    grouped_bars,
    line_style,
    new_axes,
    over_layers,
    shown_name,
)
from lightning_signin.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = {
    "sign_flips": "start → end",
    "flips_start_to_warmup": "start → warm-up",
    "flips_warmup_to_now": "warm-up → end",
}


def draw_stages(runs: list[Run]) -> "Figure":
    """Bars of the share of flipped signs: one group per stage, one colour per run."""
    figure, [axes] = new_axes()
    bars = []
    for run in runs:
        found = enumerate(run.last(f"signin/{column}") for column in STAGES)
        bars.append((run, {place: 100 * value for place, value in found if value is not None}))
    drawn = grouped_bars(axes, bars, len(STAGES))
    if len(runs) <= 4:
        for one in drawn:
            axes.bar_label(one, fmt="%.1f", fontsize=10 if len(runs) <= 2 else 8, padding=2)
    axes.set_xticks(range(len(STAGES)), list(STAGES.values()))
    axes.set_ylabel("signs that differ (%)")
    axes.margins(y=0.12)
    add_legend(figure, drawn)
    return figure


def draw_layer_flips(runs: list[Run]) -> "Figure":
    """One row of axes per available stage, with one line per run over the layers."""
    columns = {"flips" if name == "sign_flips" else name: stage for name, stage in STAGES.items()}
    columns = {name: stage for name, stage in columns.items() if any(run.layers(name) for run in runs)}
    layers = _layers(runs, *columns)
    figure, rows = new_axes(len(columns), wide=True, height=2.4 + 1.9 * len(columns))
    handles = []
    for axes, (column, stage) in zip(rows, columns.items(), strict=True):
        for run in runs:
            found = run.layers(column)
            y = [100 * found.get(name, float("nan")) for name in layers]
            handles += axes.plot(range(len(layers)), y, label=shown_name(run.name), **line_style(run, runs))
        axes.set_title(stage, loc="left", fontsize=11)
        axes.set_ylabel("flips (%)")
        axes.set_ylim(bottom=0)
    over_layers(rows[-1], layers, runs)
    add_legend(figure, handles[: len(runs)])
    return figure


def draw_layer_density(runs: list[Run]) -> "Figure":
    """Bars of the share of non-zeros: one group per layer, one colour per run."""
    layers = _layers(runs, "density")
    figure, [axes] = new_axes(wide=True, height=4.4)
    bars = []
    for run in runs:
        found = run.layers("density")
        bars.append((run, {layers.index(name): 100 * value for name, value in found.items()}))
    drawn = grouped_bars(axes, bars, len(layers))
    axes.set_ylabel("density (%)")
    axes.set_ylim(0, 104)
    over_layers(axes, layers, runs)
    add_legend(figure, drawn)
    return figure


def draw_layer_scaling(runs: list[Run]) -> "Figure":
    """Mean and standard deviation of m² − w² in each layer, with the runs next to each other."""
    layers = _layers(runs, "scaling")
    figure, [axes] = new_axes(wide=True, height=4.4)
    handles = []
    for place, run in enumerate(runs):
        mean, spread = run.layers("scaling"), run.layers("scaling_spread")
        x = [layers.index(name) + 0.5 * (place - (len(runs) - 1) / 2) / len(runs) for name in mean]
        errors = [spread.get(name, 0.0) for name in mean]
        look = line_style(run, runs) | {"linestyle": "", "elinewidth": 1.3, "capsize": 2.5}
        handles.append(axes.errorbar(x, list(mean.values()), errors, label=shown_name(run.name), **look))
    axes.set_ylabel("m² − w²")
    axes.axhline(0, color="#888888", linewidth=0.8)
    over_layers(axes, layers, runs)
    add_legend(figure, handles)
    return figure


def _layers(runs: list[Run], *columns: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs for column in columns for name in run.layers(column)))
