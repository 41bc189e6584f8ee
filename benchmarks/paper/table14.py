"""Tables 3 and 14 on two cores: plain, m ⊙ w and Sign-In on random masks, on three small real tasks.

Tasks: MNIST-1D (MLP 40-300-300-10, 60 epochs, 4,000 samples), 5,000 MNIST images (MLP 784-300-100-10, 30 epochs,
4,000 to train), scikit-learn's digits (MLP 64-300-100-10, 60 epochs, 1,437 to train), in place of CIFAR and ImageNet,
whose recipes are in the package. Protocol of Table 5: SGD with momentum 0.9, batch 100, triangular schedule, Frobenius
decay 1e-4 of θ and no other, balanced random masks of 90 and 95 %, β = 1. p and T₂ are the package's defaults (5
epochs, 0.75), which were chosen on validation data of MNIST-1D.

Every method has its own learning rate for each task and sparsity, the best of a grid in steps of 1.5× on held-out
training samples (8 seeds; on digits 0.759 and 1.139 were added after the first tests, when optima were at the edge).
MNIST-1D is the run of `benchmarks.mnist1d_table`, with a finer grid and 96 seeds. The others have 32 test seeds, none
of them used for tuning; differences are paired by seed (same start, mask and batches).

Rule, before the run: the paper's order is Sign-In > m ⊙ w > plain. A difference shows if its 95 % interval is above 0.
"""

from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks import mask_table, mnist1d_table
from benchmarks.intervals import Interval, above, difference, interval, shown, signed
from benchmarks.mask_table import mnist5000
from benchmarks.paper import records
from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.paper.gains import CHANCE
from benchmarks.stacked_training import Problem, Settings, accuracies, train
from benchmarks.tuning import Outcome, tune_and_test
from lightning_signin.recipes.datasets import Split, digits, mnist1d

TITLE = "Tables 3 and 14: Sign-In and m ⊙ w against plain training on random masks"
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mw": {},
    "signin": {"rescale_every": 5, "rescale_until": 0.75, "momentum": "carry"},
}
NAMES = {"plain": "plain", "mw": "m ⊙ w", "signin": "Sign-In"}
PAIRS = (("mw", "plain"), ("signin", "plain"), ("signin", "mw"))
SPARSITIES = (0.9, 0.95)
PROBLEMS = {"mnist5000": ((784, 300, 100, 10), 30), "digits": ((64, 300, 100, 10), 60)}  # widths, epochs
RATES: dict[str, tuple[float, ...]] = {
    "mnist5000": (0.067, 0.1, 0.15, 0.225, 0.338, 0.506),
    "digits": (0.067, 0.1, 0.15, 0.225, 0.338, 0.506, 0.759, 1.139),
}
TASKS = {"mnist1d": "MNIST-1D", "mnist5000": "MNIST, 5,000 images", "digits": "digits"}
TUNING_SEEDS, TEST_SEEDS = range(1000, 1008), range(32)
QUICK_TASK, QUICK_RATES, QUICK_SEEDS = "digits", (0.15, 0.338), 4

Cell = tuple[str, str, float, str]  # task, mask, sparsity, method


def splits(task: str) -> tuple[Split, Split]:
    """Training and test data, inputs flat."""
    if task == "mnist1d":
        return mnist1d()
    if task == "mnist5000":
        return mnist5000()
    (x, y), (more_x, more_y), (test_x, test_y) = digits()
    return (torch.cat([x, more_x]).flatten(1), torch.cat([y, more_y])), (test_x.flatten(1), test_y)


def run_job(job: tuple[str, tuple[Cell, float], list[int]]) -> dict[str, Any]:
    stage, (cell, lr), seeds = job
    task, mask, sparsity, method = cell
    (x, y), test = splits(task)
    if stage == "tune":
        held_out = len(y) // 5
        (x, y), test = (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out])
    settings = Settings(method, sparsity, lr, **METHODS[method], mask=mask)
    net = train(settings, seeds, Problem(*(mask_table.PROBLEMS | PROBLEMS)[task], x, y))
    return {"cell": cell, "lr": lr, "seeds": seeds, "accuracies": accuracies(net, *test)}


def run(quick: bool) -> dict[str, Any]:
    """The accuracy of every seed; what a stopped run has done is not done again."""
    seeds = slice(QUICK_SEEDS if quick else None)
    rates = {QUICK_TASK: QUICK_RATES} if quick else RATES
    grid = {(task, "random", s, m): rates[task] for task, m, s in product(rates, METHODS, SPARSITIES)}
    folder = records.folder(quick) / "table14"
    found = {} if quick else of_mnist1d()
    found |= tune_and_test(folder, run_job, grid, TUNING_SEEDS[seeds], TEST_SEEDS[seeds])
    rows = [
        {"task": task, "method": method, "sparsity": sparsity, "lr": one.rate, "accuracies": one.accuracies}
        for (task, _, sparsity, method), one in found.items()
    ]
    edges = [f"{t}, {NAMES[m]}, {s:.0%}" for (t, _, s, m), one in found.items() if one.at_edge]
    settings_shown = {"rates": RATES, "tuning_seeds": len(TUNING_SEEDS[seeds]), "problems": PROBLEMS, "edges": edges}
    return {"settings": settings_shown, "claims": compared(rows), "rows": rows}


def of_mnist1d() -> dict[Cell, Outcome]:
    """The runs of `benchmarks.mnist1d_table`, whose optima are inside their grids."""
    found = mnist1d_table.STAGES.read("test", "test")
    return {("mnist1d", s.mask, s.sparsity, s.method): Outcome(s.lr, False, scores) for s, scores in found.items()}


def gain(rows: list[dict[str, Any]], task: str, sparsity: float, better: str, base: str) -> Interval:
    cells = {row["method"]: row["accuracies"] for row in rows if (row["task"], row["sparsity"]) == (task, sparsity)}
    return difference(cells[better], cells[base])


def compared(rows: list[dict[str, Any]]) -> list[dict[str, str | bool]]:
    """Every paired difference that the paper has above 0."""
    found = []
    for task, sparsity, (better, base) in product(dict.fromkeys(r["task"] for r in rows), SPARSITIES, PAIRS):
        ahead = gain(rows, task, sparsity, better, base)
        what = f"Table 14, {TASKS[task]}, {sparsity:.0%}: {NAMES[better]} − {NAMES[base]}"
        found.append(claim(what, "> 0", signed(ahead), above(ahead)))
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """Paired differences to plain training, with their intervals."""
    rows = results["rows"]
    cells = list(product(dict.fromkeys(row["task"] for row in rows), SPARSITIES))
    with picture(path, size=(8.5, 3.8)) as [axes]:
        axes.axhline(0, color="#888888", linewidth=0.8)
        for place, (better, base) in enumerate(PAIRS[:2]):
            found = [gain(rows, task, sparsity, better, base) for task, sparsity in cells]
            x = [position + 0.24 * (place - 0.5) for position in range(len(cells))]
            middles, halves = zip(*found, strict=True)
            axes.errorbar(x, middles, halves, fmt="os"[place], color=COLOURS[place], capsize=3, label=NAMES[better])
        names = [TASKS[task].replace(", ", "\n") for task, _ in cells]
        axes.set_xticks(range(len(cells)), [f"{s:.0%}\n{name}" for (_, s), name in zip(cells, names, strict=True)])
        axes.set_yscale("symlog", linthresh=1)  # runs that diverge make one interval much longer than the others
        axes.set_ylabel("accuracy above plain (points)")
        axes.legend()


def describe(results: dict[str, Any]) -> str:
    """Accuracies, and the paired differences."""
    rows, body = results["rows"], []
    for row in rows:
        line = [TASKS[row["task"]], f"{row['sparsity']:.0%}", NAMES[row["method"]], str(row["lr"])]
        body.append([*line, shown(interval(row["accuracies"])), str(len(row["accuracies"]))])
    differences = [
        [c["claim"].removeprefix("Table 14, "), c["here"], "yes" if c["holds"] else "no"] for c in results["claims"]
    ]
    spoiled = [row for row in rows if min(row["accuracies"]) < CHANCE]
    lost = [
        f"{sum(a < CHANCE for a in row['accuracies'])} of {len(row['accuracies'])} with {NAMES[row['method']]} on "
        f"{TASKS[row['task']]} at {row['sparsity']:.0%} (learning rate {row['lr']}); the others have a mean of "
        f"{mean(a for a in row['accuracies'] if a >= CHANCE):.2f} %"
        for row in spoiled
    ]
    diverged = f"Runs that ended at chance: {'; '.join(lost)}." if lost else "No run ended at chance."
    means = {(row["task"], row["sparsity"], row["method"]): mean(row["accuracies"]) for row in rows}
    cells = dict.fromkeys((task, sparsity) for task, sparsity, _ in means)
    ordered = [
        f"{TASKS[t]} at {s:.0%}" for t, s in cells if means[t, s, "signin"] > means[t, s, "mw"] > means[t, s, "plain"]
    ]
    order = f"In the means alone the paper's order (Sign-In > m ⊙ w > plain) stands on: {'; '.join(ordered) or 'none'}."
    edges = results["settings"]["edges"]
    at_edge = (
        f"At the edge of the grid of learning rates: {'; '.join(edges)}." if edges else "No optimum is at an edge."
    )
    return f"""{table(["task", "sparsity", "method", "learning rate", "test accuracy, %", "seeds"], body)}

{order} {at_edge} {diverged}

{table(["difference, paired", "points", "shows as in the paper"], differences)}"""
