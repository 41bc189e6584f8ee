"""The scripts of a study of `trainer_runs`: its runs with the paper's claims, picture and tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.intervals import Interval, above, difference, interval, points, shown, signed
from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.paper.table14 import NAMES
from benchmarks.paper.trainer_runs import Study, run_study, shortened

Rows = list[dict[str, Any]]
Paper = Mapping[float, tuple[float, float]]  # accuracies, plain and with Sign-In, by sparsity


def gain(rows: Rows, sparsity: float, better: str = "signin", base: str = "plain") -> Interval:
    """The paired difference of two methods and half of its 95 % interval."""
    cells = {row["method"]: row["accuracies"] for row in rows if row["sparsity"] == sparsity}
    return difference(cells[better], cells[base])


def compared(what: str, rows: Rows, paper: Paper) -> list[dict[str, str | bool]]:
    """Sign-In − plain at every sparsity."""
    found = []
    for sparsity in dict.fromkeys(row["sparsity"] for row in rows):
        ahead = gain(rows, sparsity)
        expected = "> 0"
        if sparsity in paper:
            plain, signin = paper[sparsity]
            expected = f"{points(signin - plain)}, > 0"
        found.append(claim(f"{what}, {sparsity:.0%}: Sign-In − plain", expected, signed(ahead), above(ahead)))
    return found


def run(study: Study, what: str, paper: Paper, quick: bool) -> dict[str, Any]:
    """Accuracies of every seed by method and sparsity, and what the paper claims of them."""
    results = run_study(shortened(study) if quick else study, quick)
    return results | {"claims": compared(what, results["rows"], paper)}


def draw(results: dict[str, Any], path: Path) -> None:
    """The accuracy of every seed, lines between the methods of a seed, means as bars."""
    rows: Rows = results["rows"]
    sparsities, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("sparsity", "method"))
    with picture(path, 1, len(sparsities), (1.5 + 2.8 * len(sparsities), 3.6)) as axes:
        for place, sparsity in enumerate(sparsities):
            cells = [row["accuracies"] for row in rows if row["sparsity"] == sparsity]
            for seed in zip(*cells, strict=True):
                axes[place].plot(range(len(methods)), seed, "-o", color="#bbbbbb", markersize=3, linewidth=0.8)
            for x, (scores, colour) in enumerate(zip(cells, COLOURS, strict=False)):
                middle, half = interval(scores)
                axes[place].errorbar(x, middle, half, fmt="s", color=colour, capsize=4, zorder=3)
            axes[place].set_xticks(range(len(methods)), [NAMES[method] for method in methods])
            axes[place].set(title=f"{sparsity:.0%} sparse", xlim=(-0.5, len(methods) - 0.5))
        axes[0].set_ylabel("test accuracy (%)\ngrey: seeds; squares: mean, 95 %")


def describe(paper: Paper, column: str, results: dict[str, Any]) -> str:
    """Accuracies with their learning rates, and the paired differences."""
    rows, body = results["rows"], []
    for row in rows:
        sparsity, method = row["sparsity"], row["method"]
        ahead = signed(gain(rows, sparsity, method)) if method != "plain" else ""
        stands = {"plain": 0, "signin": 1}.get(method)
        theirs = f"{paper[sparsity][stands]:.2f}" if sparsity in paper and stands is not None else ""
        mean = shown(interval(row["accuracies"]))
        seeds = str(len(row["accuracies"]))
        body.append([f"{sparsity:.0%}", NAMES[method], str(row["lr"]), mean, ahead, theirs, seeds])
    edges = results["settings"]["edges"]
    at_edge = f"At the edge of the grid: {'; '.join(edges)}." if edges else "No optimum is at an edge of the grid."
    head = ["sparsity", "method", "learning rate", "test accuracy, %", "to plain, paired", column, "seeds"]
    return f"{table(head, body)}\n\n{at_edge}"
