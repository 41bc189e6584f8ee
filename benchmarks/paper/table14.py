"""Tables 3 and 14 on two cores: plain, m ⊙ w and Sign-In on random masks, on three small real tasks.

Tasks: MNIST-1D (MLP 40-300-300-10, 60 epochs, 4,000 samples), 5,000 MNIST images (MLP 784-300-100-10, 30 epochs,
4,000 to train), scikit-learn's digits (MLP 64-300-100-10, 60 epochs, 1,437 to train), in place of CIFAR and ImageNet,
whose recipes are in the package. Protocol of Table 5: SGD with momentum 0.9, batch 100, triangular schedule, Frobenius
decay 1e-4 of θ and no other, balanced random masks of 90 and 95 %, β = 1. p and T₂ are the package's defaults (5
epochs, 0.75), which were chosen on validation data of MNIST-1D.

Every method has its own learning rate for each task and sparsity, the best of a grid in steps of 1.5× on held-out
training samples (8 seeds). MNIST-1D is the run of `benchmarks.mnist1d_table`, with a finer grid and 96 seeds. The
others have 32 test seeds, none of them used for tuning; differences are paired by seed (same start, mask and batches).

Rule, before the run: the paper's order is Sign-In > m ⊙ w > plain. A difference shows if its 95 % interval is above 0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks import mask_table
from benchmarks.intervals import Interval, difference, interval
from benchmarks.jobs import read_rows, run_jobs
from benchmarks.mask_table import mnist5000
from benchmarks.mnist1d_table import by_seed
from benchmarks.paper import records
from benchmarks.paper.counts import claim, table
from benchmarks.paper.drawing import COLOURS, picture
from benchmarks.stacked_training import Problem, Settings, accuracies, train
from lightning_signin.recipes.datasets import Split, digits, mnist1d

TITLE = "Tables 3 and 14: Sign-In and m ⊙ w against plain training on random masks"
METHODS: dict[str, dict] = {
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
    "digits": (0.067, 0.1, 0.15, 0.225, 0.338, 0.506),
}
TASKS = {"mnist1d": "MNIST-1D", "mnist5000": "MNIST, 5,000 images", "digits": "digits"}
CHANCE = 15.0  # percent: all three tasks have ten classes
CHUNK, TUNING_SEEDS, TEST_SEEDS = 8, range(1000, 1008), range(32)
QUICK_TASK, QUICK_RATES, QUICK_SEEDS = "digits", (0.15, 0.338), 4

Scores = dict[int, float]


def splits(task: str) -> tuple[Split, Split]:
    """Training and test data, inputs flat."""
    if task == "mnist1d":
        return mnist1d()
    if task == "mnist5000":
        return mnist5000()
    (x, y), (more_x, more_y), (test_x, test_y) = digits()
    return (torch.cat([x, more_x]).flatten(1), torch.cat([y, more_y])), (test_x.flatten(1), test_y)


def run_job(job: tuple[str, str, Settings, list[int]]) -> dict[str, Any]:
    torch.set_num_threads(1)
    stage, task, settings, seeds = job
    (x, y), test = splits(task)
    if stage == "tune":
        held_out = len(y) // 5
        (x, y), test = (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out])
    net = train(settings, seeds, Problem(*(mask_table.PROBLEMS | PROBLEMS)[task], x, y))
    row = {"stage": stage, "task": task, "settings": asdict(settings), "seeds": seeds}
    return row | {"accuracies": accuracies(net, *test)}


def run(quick: bool) -> dict[str, Any]:
    """The accuracy of every seed; what a stopped run has done is not done again."""
    path = records.folder(quick) / "table14.jsonl"
    seeds = {"tune": list(TUNING_SEEDS), "test": list(TEST_SEEDS)}
    if quick:
        seeds = {stage: chosen[:QUICK_SEEDS] for stage, chosen in seeds.items()}
    tasks = [QUICK_TASK] if quick else list(PROBLEMS)
    rates = {task: QUICK_RATES if quick else RATES[task] for task in tasks}
    run_stage("tune", seeds["tune"], tuning_grid(rates), path)
    best = {key: lr for key, (lr, _) in tuned(path).items()}
    grid = [
        (task, Settings(m, s, best[task, m, s], **METHODS[m])) for task, m, s in product(tasks, METHODS, SPARSITIES)
    ]
    run_stage("test", seeds["test"], grid, path)
    cells = {} if quick else of_mnist1d()
    for task, settings in grid:
        scores = collect("test", path)[task, settings]
        cells[task, settings.method, settings.sparsity] = (settings.lr, scores)
    rows = [
        {
            "task": task,
            "method": method,
            "sparsity": sparsity,
            "lr": lr,
            "accuracies": [scores[seed] for seed in sorted(scores)],
        }
        for (task, method, sparsity), (lr, scores) in cells.items()
    ]
    edges = [
        f"{t}, {NAMES[m]}, {s:.0%}" for (t, m, s), (lr, _) in tuned(path).items() if lr in (rates[t][0], rates[t][-1])
    ]
    settings_shown = {"rates": RATES, "tuning_seeds": len(seeds["tune"]), "problems": PROBLEMS, "edges": edges}
    return {"settings": settings_shown, "claims": compared(rows), "rows": rows}


def tuning_grid(rates: Mapping[str, tuple[float, ...]]) -> Iterator[tuple[str, Settings]]:
    for task, method, sparsity in product(rates, METHODS, SPARSITIES):
        yield from ((task, Settings(method, sparsity, lr, **METHODS[method])) for lr in rates[task])


def run_stage(stage: str, seeds: list[int], grid: Any, path: Path) -> None:
    done = {(r["task"], Settings(**r["settings"]), *r["seeds"]) for r in read_rows(path) if r["stage"] == stage}
    chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
    jobs = [(stage, task, settings, chunk) for (task, settings), chunk in product(grid, chunks)]
    run_jobs(run_job, [job for job in jobs if (job[1], job[2], *job[3]) not in done], path, processes=None)


def collect(stage: str, path: Path) -> dict[tuple[str, Settings], Scores]:
    found: dict[tuple[str, Settings], Scores] = {}
    for row in read_rows(path):
        if row["stage"] == stage:
            scores = found.setdefault((row["task"], Settings(**row["settings"])), {})
            scores.update(zip(row["seeds"], row["accuracies"], strict=True))
    return found


def tuned(path: Path) -> dict[tuple[str, str, float], tuple[float, float]]:
    """Learning rate and held-out accuracy of every task, method and sparsity."""
    best: dict[tuple[str, str, float], tuple[float, float]] = {}
    for (task, s), scores in collect("tune", path).items():
        key, score = (task, s.method, s.sparsity), mean(scores.values())
        if key not in best or score > best[key][1]:
            best[key] = (s.lr, score)
    return best


def of_mnist1d() -> dict[tuple[str, str, float], tuple[float, Scores]]:
    return {("mnist1d", s.method, s.sparsity): (s.lr, scores) for s, scores in by_seed("test", "test").items()}


def gain(rows: list[dict[str, Any]], task: str, sparsity: float, better: str, base: str) -> Interval:
    cells = {row["method"]: row["accuracies"] for row in rows if (row["task"], row["sparsity"]) == (task, sparsity)}
    return difference(cells[better], cells[base])


def compared(rows: list[dict[str, Any]]) -> list[dict[str, str | bool]]:
    """Every paired difference that the paper has above 0."""
    found = []
    for task, sparsity, (better, base) in product(dict.fromkeys(r["task"] for r in rows), SPARSITIES, PAIRS):
        middle, half = gain(rows, task, sparsity, better, base)
        what = f"Table 14, {TASKS[task]}, {sparsity:.0%}: {NAMES[better]} − {NAMES[base]}"
        found.append(claim(what, "> 0", f"{middle:+.2f} ± {half:.2f}", middle - half > 0))
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
        middle, half = interval(row["accuracies"])
        shown = [TASKS[row["task"]], f"{row['sparsity']:.0%}", NAMES[row["method"]], str(row["lr"])]
        body.append([*shown, f"{middle:.2f} ± {half:.2f}", str(len(row["accuracies"]))])
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
