"""Masks that move, with and without Sign-In, on two small real problems (the shape of the paper's Tables 11 to 13).

    python -m benchmarks.update_table tune      # one learning rate a method, on held-out training data
    python -m benchmarks.update_table test      # every update rule and the random static mask, on test data
    python -m benchmarks.update_table stable    # what was tuned to a rate above 0.45, at 0.45

The tables are in `benchmarks.paper`, Tables 11 to 13.

The problems are those of `benchmarks.mask_table`. Each method with and without Sign-In has its own learning rate, tuned
at 90 %. Iterative pruning is in `benchmarks.rewind_table`.
Raw results stand in ``benchmarks/results/updates``; what is there is not run again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.jobs import Stages
from benchmarks.mask_table import PROBLEMS, mnist5000
from benchmarks.moving_masks import accuracy, fit, is_finite, mlp, rule_of, start
from benchmarks.stacked_training import Problem
from benchmarks.tuning import best_rates
from lightning_signin.recipes.datasets import mnist1d
from lightning_signin.updates import UPDATES

RESULTS = Path(__file__).parent / "results" / "updates"
SPARSITIES = (0.8, 0.9, 0.95)
METHODS = ("static", *(name for name in UPDATES if name != "one-shot"))
RATES = {"mnist1d": (0.15, 0.225, 0.338, 0.45, 0.6, 0.8), "mnist5000": (0.067, 0.1, 0.15, 0.225, 0.338, 0.45)}
PAPER_METHODS = ("static", "acdc", "rigl", "mest")
TUNING_SEEDS, TEST_SEEDS, FEWER_TEST_SEEDS = range(1000, 1003), range(30), range(10)  # fewer: not the paper's
STABLE = 0.45


@dataclass(frozen=True)
class Settings:
    """One method at one learning rate."""

    problem: str
    method: str
    sign_in: bool
    sparsity: float
    lr: float


def data_of(name: str, held_out: bool) -> tuple[Problem, tuple[Tensor, Tensor]]:
    widths, epochs = PROBLEMS[name]
    (x, y), test = mnist1d() if name == "mnist1d" else mnist5000()
    if held_out:
        (x, y), test = (x[800:], y[800:]), (x[:800], y[:800])
    return Problem(widths, epochs, x, y), test


Job = tuple[Settings, Sequence[int]]  # settings, seeds


def tune_grid() -> Iterator[Job]:
    for problem, method, sign_in in product(PROBLEMS, METHODS, (False, True)):
        yield from ((Settings(problem, method, sign_in, 0.9, lr), TUNING_SEEDS) for lr in RATES[problem])


def test_grid() -> Iterator[Job]:
    for problem, method, sign_in, sparsity in product(PROBLEMS, METHODS, (False, True), SPARSITIES):
        seeds = TEST_SEEDS if method in PAPER_METHODS else FEWER_TEST_SEEDS
        yield Settings(problem, method, sign_in, sparsity, learning_rate(problem, method, sign_in)), seeds


def stable_grid() -> Iterator[Job]:
    """What was tuned to a rate above 0.45, at which some runs at other sparsities diverge: at 0.45."""
    for settings, seeds in test_grid():
        if settings.lr > STABLE:
            yield replace(settings, lr=STABLE), seeds


def learning_rate(problem: str, method: str, sign_in: bool) -> float:
    return best_rates(STAGES.read("tune"), cell_and_rate)[problem, method, sign_in]


def cell_and_rate(settings: Settings) -> tuple[tuple[str, str, bool], float]:
    """What is tuned apart."""
    return (settings.problem, settings.method, settings.sign_in), settings.lr


def settings_of(row: dict[str, Any]) -> Settings:
    return Settings(**row["settings"])


def run_job(job: tuple[str, Settings, list[int]]) -> dict[str, Any]:
    stage, settings, seeds = job
    problem, test = data_of(settings.problem, held_out=stage == "tune")
    found = [one(settings, problem, test, seed) for seed in seeds]
    return {"settings": asdict(settings), "seeds": seeds, "accuracies": found}


def one(settings: Settings, problem: Problem, test: tuple[Tensor, Tensor], seed: int) -> float:
    rule = None if settings.method == "static" else rule_of(settings.method, problem)
    net = start(mlp(problem.widths, seed), settings.sparsity, rule, settings.sign_in, seed)
    try:
        fit(net, problem, settings.lr, seed, rule, settings.sparsity)
    except ValueError:
        if is_finite(net):
            raise  # else it diverged, and no rule goes on with that: it counts as it is, at chance
    return accuracy(net, *test)


STAGES = Stages(
    RESULTS,
    {"tune": tune_grid, "test": test_grid, "stable": stable_grid},
    run_job,
    settings_of,
)

if __name__ == "__main__":
    STAGES.command("update_table")
