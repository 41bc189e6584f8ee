"""Table 8 on two cores: masks from elsewhere, each trained from a fresh start, plain and with Sign-In, at 90 %.

Tasks: MNIST-1D (MLP 40-300-300-10, 60 epochs) and 5,000 MNIST images (MLP 784-300-100-10, 30 epochs), in place of a
ResNet-50 on ImageNet. Masks: those of AC/DC, RigL and GMP runs, SNIP, SynFlow and random. STR is left out: its sparsity
is an outcome of its threshold's start and of weight decay, so 90 % cannot be asked for; GMP, which also prunes from
dense, is in its place, with no claim. Every mask, the scored ones too, is trained from a start that it has not seen,
the same for all masks and both methods of a seed.

SGD with momentum 0.9, batch 100, triangular schedule, Frobenius decay 1e-4, Sign-In with p = 5, T₂ = 0.75, carry.
Learning rates are stored ones, tuned on held-out data: of the rules each one's own (`benchmarks.update_table`), on the
fixed masks one for plain and one for Sign-In, the best for several scores together (`benchmarks.mask_table`). 30 seeds.

Rule, before the run, with 95 % Student intervals of differences paired by seed: a gain of Sign-In agrees on AC/DC,
RigL, SNIP and random masks if its interval is above 0, on SynFlow, where the paper has none, if it is not. That SNIP
and SynFlow are below the random mask, plain, agrees if the interval is below 0; that RigL's mask is the best with
Sign-In, if its mean is the highest of the paper's masks.
"""

from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.intervals import Interval, above, below, difference, interval, points, shown, signed
from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.paper.learned_masks import LEARNED, MASKS, SPARSITY, TASKS, rates_of, runs_of

TITLE = "Table 8: masks from elsewhere with a fresh start"
PAPER = {
    "AC/DC": (70.66, 70.96),
    "RigL": (72.02, 72.48),
    "SNIP": (52.9, 54.27),
    "SynFlow": (60.66, 60.59),
    "random": (71.56, 72.19),
}  # plain, Sign-In
GAINS, BELOW_RANDOM = ("AC/DC", "RigL", "SNIP", "random"), ("SNIP", "SynFlow")

Cells = dict[str, dict[str, list[float]]]  # accuracies of the seeds, by mask and method


def run(quick: bool) -> dict[str, Any]:
    """Accuracies of every seed by task, mask and method, and those of the runs that found the masks."""
    found = runs_of(quick)
    cells: dict[str, Cells] = {
        task: {mask: {m: [run["masks"][mask][m] for run in runs] for m in ("plain", "signin")} for mask in MASKS}
        for task, runs in found.items()
    }
    learned = {
        task: {name: [run["baselines"][name] for run in runs] for name in LEARNED} for task, runs in found.items()
    }
    settings = {"sparsity": SPARSITY, "rates": {task: rates_of(task) for task in found}}
    claims = [c for task in found for c in compared(TASKS[task], cells[task])]
    return {"settings": settings, "claims": claims, "cells": cells, "learned": learned}


def gain(cells: Cells, mask: str) -> Interval:
    return difference(cells[mask]["signin"], cells[mask]["plain"])


def compared(task: str, cells: Cells) -> list[dict[str, str | bool]]:
    """What the paper says of its masks."""
    found = []
    for mask in (*GAINS, "SynFlow"):
        ahead = gain(cells, mask)
        plain, signin = PAPER[mask]
        shows, expected = above(ahead), mask in GAINS
        paper = f"{points(signin - plain)}, {'> 0' if expected else 'no gain'}"
        found.append(claim(f"Table 8, {task}: {mask}, Sign-In − plain", paper, signed(ahead), shows == expected))
    for mask in BELOW_RANDOM:
        ahead = difference(cells[mask]["plain"], cells["random"]["plain"])
        paper = f"{points(PAPER[mask][0] - PAPER['random'][0])}, < 0"
        found.append(claim(f"Table 8, {task}: {mask} − random, plain", paper, signed(ahead), below(ahead)))
    best = max(PAPER, key=lambda mask: mean(cells[mask]["signin"]))
    found.append(claim(f"Table 8, {task}: the best mask with Sign-In", "RigL", best, best == "RigL"))
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """What Sign-In adds on every mask."""
    with picture(path, size=(9, 3.6)) as [axes]:
        axes.axhline(0, color="#888888", linewidth=0.8)
        for place, (task, cells) in enumerate(results["cells"].items()):
            middles, halves = zip(*(gain(cells, mask) for mask in MASKS), strict=True)
            x = [position + 0.2 * (place - (len(results["cells"]) - 1) / 2) for position in range(len(MASKS))]
            axes.errorbar(x, middles, halves, fmt="os"[place], color=COLOURS[place], capsize=3, label=TASKS[task])
        axes.set_xticks(range(len(MASKS)), MASKS)
        axes.set(xlabel="mask", ylabel="Sign-In − plain (points)")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def describe(results: dict[str, Any]) -> str:
    """Accuracies on every mask, and of the runs that found the masks."""
    body = []
    for task, cells in results["cells"].items():
        for mask in MASKS:
            means = [shown(interval(cells[mask][method])) for method in ("plain", "signin")]
            ahead = signed(gain(cells, mask))
            to_random = signed(difference(cells[mask]["plain"], cells["random"]["plain"])) if mask != "random" else ""
            paper = " → ".join(f"{value:.2f}" for value in PAPER[mask]) if mask in PAPER else ""
            body.append([TASKS[task], mask, *means, ahead, to_random, paper])
    head = ["task", "mask", "plain, %", "Sign-In, %", "difference, paired", "to random, plain", "paper"]
    ends = [
        f"{TASKS[task]}: {', '.join(f'{name} {interval(scores)[0]:.2f}' for name, scores in learned.items())}"
        for task, learned in results["learned"].items()
    ]
    return f"{table(head, body)}\n\nThe runs that found the masks, mean accuracy, %: {'; '.join(ends)}."
