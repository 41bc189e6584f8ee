"""Table 9 on two cores: how many signs must be right on an AC/DC mask of 90 %.

The runs are those of Table 8. On the final mask of an AC/DC run a plain network starts with random magnitudes and the
final signs of the AC/DC run, of which an exact share, spread over all layers together, is then made wrong: 0, 5, 10,
20, and 50 %, which is random signs. All starts of a seed have the same magnitudes, mask and batches. 30 seeds.

Rule, before the run, with 95 % Student intervals of differences paired by seed: 100 % correct signs match the AC/DC
baseline if the interval is not wholly below 0. 90, 80 and 50 % degrade if their differences to 100 % are below 0 with
the interval; "beyond 10 % wrong, rapidly", if 80 % is so below 90 %. Of 95 % nothing is claimed.
"""

from pathlib import Path
from typing import Any

from benchmarks.intervals import below, difference, interval, points, shown, signed
from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.paper.learned_masks import CORRECT_SIGNS, TASKS, rates_of, runs_of

TITLE = "Table 9: wrong signs on an AC/DC mask"
SHARES = [f"{share:.0%}" for share in CORRECT_SIGNS]
BASELINE = "AC/DC baseline"
PAPER = dict(zip([BASELINE, *SHARES], (74.68, 74.88, 74.44, 73.54, 71.81, 70.88), strict=True))
COMPARED = (
    ("100%", BASELINE, "not < 0"),
    ("90%", "100%", "< 0"),
    ("80%", "100%", "< 0"),
    ("50%", "100%", "< 0"),
    ("80%", "90%", "< 0"),
)


def run(quick: bool) -> dict[str, Any]:
    """Accuracies of every seed by task and start."""
    found = runs_of(quick)
    cells = {
        task: {BASELINE: [run["baselines"]["AC/DC"] for run in runs]}
        | {share: [run["signs"][share] for run in runs] for share in SHARES}
        for task, runs in found.items()
    }
    claims = [c for name, task in cells.items() for c in compared(TASKS[name], task)]
    settings = {"rates": {task: rates_of(task) for task in cells}}
    return {"settings": settings, "claims": claims, "cells": cells}


def compared(task: str, cells: dict[str, list[float]]) -> list[dict[str, str | bool]]:
    """Paired differences by the rule of this table."""
    found = []
    for first, second, rule in COMPARED:
        ahead = difference(cells[first], cells[second])
        paper = f"{points(PAPER[first] - PAPER[second])}, {rule}"
        what = f"Table 9, {task}: correct signs {first} − {second}"
        found.append(claim(what, paper, signed(ahead), below(ahead) == (rule == "< 0")))
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """Accuracy below 100 % correct signs, beside the paper's."""
    x = [100 * (1 - share) for share in CORRECT_SIGNS]
    with picture(path, size=(8, 3.8)) as [axes]:
        axes.axhline(0, color="#888888", linewidth=0.8)
        for place, (task, cells) in enumerate(results["cells"].items()):
            middles, halves = zip(*(difference(cells[share], cells["100%"]) for share in SHARES), strict=True)
            shifted = [share + 0.5 * place for share in x]
            axes.errorbar(shifted, middles, halves, fmt="-o", color=COLOURS[place], capsize=3, label=TASKS[task])
        axes.plot(x, [PAPER[share] - PAPER["100%"] for share in SHARES], "--", color="#666666", label="paper, ImageNet")
        axes.set(xlabel="wrong signs (%)", ylabel="accuracy to 100 % correct (points)")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def describe(results: dict[str, Any]) -> str:
    """Accuracies and paired differences to all signs correct."""
    body = []
    for name in PAPER:
        line = [name if name == BASELINE else f"{name} correct signs"]
        for cells in results["cells"].values():
            line.append(shown(interval(cells[name])))
            line.append("" if name == "100%" else signed(difference(cells[name], cells["100%"])))
        body.append([*line, f"{PAPER[name]:.2f}"])
    tasks = [column for task in results["cells"] for column in (f"{TASKS[task]}, %", "to 100 %, paired")]
    return table(["start", *tasks, "paper"], body)
