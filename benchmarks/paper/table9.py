"""Table 9 on two cores: how many signs must be right on an AC/DC mask of 90 %.

The runs are those of Table 8. On the final mask of an AC/DC run a plain network starts with random magnitudes and the
final signs of the AC/DC run, of which an exact share, spread over all layers together, is then made wrong: 0, 5, 10,
20, and 50 %, which is random signs. All starts of a seed have the same magnitudes, mask and batches. 10 seeds.

Rule, before the run, with 95 % Student intervals of differences paired by seed: 100 % correct signs match the AC/DC
baseline if the interval is not wholly below 0. 90, 80 and 50 % degrade if their differences to 100 % are below 0 with
the interval; "beyond 10 % wrong, rapidly", if 80 % is so below 90 %. Of 95 % nothing is claimed.
"""

from pathlib import Path
from typing import Any

from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.paper.learned_masks import CORRECT_SIGNS, SEEDS, TASKS, rates_of, rows
from benchmarks.paper.table8 import paired
from benchmarks.paper.table14 import interval

TITLE = "Table 9: wrong signs on an AC/DC mask"
SHARES = [f"{share:.0%}" for share in CORRECT_SIGNS]
BASELINE = "AC/DC baseline"
PAPER = dict(zip([BASELINE, *SHARES], (74.68, 74.88, 74.44, 73.54, 71.81, 70.88), strict=True))
DEGRADES = (("90%", "100%"), ("80%", "100%"), ("50%", "100%"), ("80%", "90%"))


def run(quick: bool) -> dict[str, Any]:
    """Accuracies of every seed by task and start."""
    found = rows(quick)
    cells: dict[str, dict[str, list[float]]] = {}
    for row in found:
        task = cells.setdefault(row["task"], {name: [] for name in PAPER})
        task[BASELINE].append(row["baselines"]["AC/DC"])
        for share in SHARES:
            task[share].append(row["signs"][share])
    claims = []
    for name, task in cells.items():
        middle, half = paired(task["100%"], task[BASELINE])
        what, paper = (
            f"Table 9, {TASKS[name]}: 100% correct signs − baseline",
            f"{PAPER['100%'] - PAPER[BASELINE]:+.2f}",
        )
        claims.append(claim(what, f"{paper}, not < 0", f"{middle:+.2f} ± {half:.2f}", middle + half >= 0))
        for worse, better in DEGRADES:
            middle, half = paired(task[worse], task[better])
            what, paper = (
                f"Table 9, {TASKS[name]}: {worse} − {better} correct signs",
                f"{PAPER[worse] - PAPER[better]:+.2f}",
            )
            claims.append(claim(what, f"{paper}, < 0", f"{middle:+.2f} ± {half:.2f}", middle + half < 0))
    settings = {"seeds": len(SEEDS), "rates": {task: rates_of(task) for task in cells}}
    return {"settings": settings, "claims": claims, "cells": cells}


def draw(results: dict[str, Any], path: Path) -> None:
    """Accuracy below 100 % correct signs, beside the paper's."""
    x = [100 * (1 - share) for share in CORRECT_SIGNS]
    with picture(path, size=(6.5, 3.8)) as [axes]:
        axes.axhline(0, color="#888888", linewidth=0.8)
        for place, (task, cells) in enumerate(results["cells"].items()):
            middles, halves = zip(*(paired(cells[share], cells["100%"]) for share in SHARES), strict=True)
            axes.errorbar(x, middles, halves, fmt="-o", color=COLOURS[place], capsize=3, label=TASKS[task])
        axes.plot(x, [PAPER[share] - PAPER["100%"] for share in SHARES], "--", color="#666666", label="paper, ImageNet")
        axes.set(xlabel="wrong signs (%)", ylabel="accuracy to 100 % correct (points)")
        axes.legend()


def describe(results: dict[str, Any]) -> str:
    """Accuracies and paired differences to all signs correct."""
    body = []
    for name in PAPER:
        line = [name if name == BASELINE else f"{name} correct signs"]
        for cells in results["cells"].values():
            middle, half = interval(cells[name])
            line.append(f"{middle:.2f} ± {half:.2f}")
            middle, half = paired(cells[name], cells["100%"])
            line.append("" if name == "100%" else f"{middle:+.2f} ± {half:.2f}")
        body.append([*line, f"{PAPER[name]:.2f}"])
    tasks = [column for task in results["cells"] for column in (f"{TASKS[task]}, %", "to 100 %, paired")]
    return table(["start", *tasks, "paper"], body)
