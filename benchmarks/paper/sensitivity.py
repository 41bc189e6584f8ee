"""How the cells of Tables 2 and 6 move with n, T, η and the scale of the start, one axis at a time.

The setting in the middle is that of Table 6 (n = 200, w ~ N(0, σ² I) with σ = 1, η = 0.01), with Table 2's T = 200,
at which each cell is counted; the axis T goes to 500. 100 runs a cell, success as in Table 6, the same starts and
samples along T and η. Nothing is chosen by it: the settings of the tables were written down before.
"""

from pathlib import Path
from typing import Any

from benchmarks.paper.counts import agrees, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.paper.single_neuron import CASES, METHODS, Setting, count_cells
from benchmarks.paper.table6 import PAPER

TITLE = "What the cells depend on"
CENTRE, TIME = Setting(runs=100, n=200, scale=1.0, rate=0.01, seed=60), 200
TIMES, QUICK_TIME = (10, 20, 50, 100, 200, 500), 50
VALUES: dict[str, tuple[float, ...]] = {
    "n": (5, 10, 20, 50, 500),
    "rate": (0.003, 0.03, 0.1, 0.3),
    "scale": (0.05, 0.1, 0.2, 5**-0.5, 2),
}
QUICK_VALUES: dict[str, tuple[float, ...]] = {"n": (10,), "rate": (0.1,), "scale": (0.1,)}
LABELS = {
    "n": "n, samples of a run",
    "T": "T, steps · η",
    "rate": "η, learning rate",
    "scale": "σ, scale of the start: w ~ N(0, σ² I)",
}


def run(quick: bool) -> dict[str, Any]:
    """Counts of every cell: axis → value → method → case."""
    time, centre = (QUICK_TIME, CENTRE.but(runs=50)) if quick else (TIME, CENTRE)
    times = tuple(t for t in TIMES if not quick or t <= QUICK_TIME)
    values = QUICK_VALUES if quick else VALUES
    over_time = count_cells(centre, times, "sensitivity: centre")
    found: dict[str, dict[str, Any]] = {"T": {str(t): _at(over_time, i) for i, t in enumerate(times)}}
    for axis, places in values.items():
        middle = getattr(centre, axis)
        found[axis] = {str(middle): found["T"][str(time)]}
        for place in places:
            label = f"sensitivity: {axis} = {place:.3g}"
            found[axis][str(place)] = _at(count_cells(centre.but(**{axis: place}), (time,), label), 0)
        found[axis] = dict(sorted(found[axis].items(), key=lambda entry: float(entry[0])))
    return {"settings": {**centre.written(), "T": time}, "counts": found}


def _at(counts: dict[str, dict[str, list[int]]], position: int) -> dict[str, dict[str, int]]:
    return {method: {case: row[position] for case, row in cells.items()} for method, cells in counts.items()}


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel a method and axis, one line a sign case."""
    runs = results["settings"]["runs"]
    with picture(path, rows=len(METHODS), columns=len(LABELS), size=(14, 11)) as panels:
        for position, axes in enumerate(panels):
            method, axis = list(METHODS)[position // len(LABELS)], list(LABELS)[position % len(LABELS)]
            column = results["counts"][axis]
            for offset, case in enumerate(CASES):
                shares = [100 * cells[method][case] / runs for cells in column.values()]
                look: Any = {"color": COLOURS[offset], "marker": "os^D"[offset], "markersize": 9 - 2 * offset}
                axes.plot([float(value) for value in column], shares, label=case, **look)
            axes.set(xscale="log", ylim=(-4, 104), xlabel=LABELS[axis], title=method)
            if axis != "T":
                axes.axvline(results["settings"][axis], color="#888888", linestyle=":", linewidth=1)
            if position % len(LABELS) == 0:
                axes.set_ylabel("% recovered")
        panels[0].legend(title="start", loc="center right")


def describe(results: dict[str, Any]) -> str:
    """How many cells of Table 6 agree at each value, and those that do not."""
    runs, rows = results["settings"]["runs"], []
    for axis, column in results["counts"].items():
        for value, cells in column.items():
            wrong = [
                f"{method}, {case}: {cells[method][case]}"
                for method, papers in PAPER.items()
                for case, paper in zip(CASES, papers, strict=True)
                if not agrees(cells[method][case], runs, paper)
            ]
            rows.append([axis, f"{float(value):.3g}", str(16 - len(wrong)), "; ".join(wrong)])
    return f"""The dotted line is the setting of the tables. Cells of Table 6 that agree (≥ 95 % or ≤ 5 %), and those
that do not, of {runs} runs:

{table(["axis", "value", "agree", "differ"], rows)}

- n: with few samples a student at d = 5 can fit them all without being the teacher, or be active
  on none; at d = 1 one positive sample is enough, and only n = 5 has runs without.
- T: the overparameterized rows need time, those with w < 0 the most. Table 6 has them to T = 2000.
- η: larger steps break a² = ‖w‖², which the plain flow keeps, and then plain overparameterized descent recovers a < 0
  as well: its zeros are those of a flow. Sign-In, which moves faster, loses runs to such steps.
- σ: the ones of Sign-In from a < 0 at d = 5 need a start that is not small against β (see Table 2); a large start makes
  the same η a large step. At d = 1, where β₁ > β₂ makes a the faster one at every σ, nothing moves."""
