"""Masks that move, with and without Sign-In, on two small real problems (the shape of the paper's Tables 11 to 13).

    python -m benchmarks.update_table tune      # one learning rate a method, on held-out training data
    python -m benchmarks.update_table test      # every update rule and the random static mask, on test data
    python -m benchmarks.update_table stable    # what was tuned to a rate above 0.45, at 0.45
    python -m benchmarks.update_table report    # the tables, as Markdown

The problems are those of `benchmarks.mask_table`. Each method with and without Sign-In has its own learning rate, tuned
at 90 %. Iterative pruning is in `benchmarks.rewind_table`.
Raw results stand in ``benchmarks/results/updates``; what is there is not run again.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.jobs import command, read_rows, run_jobs
from benchmarks.mask_table import PROBLEMS, mean_interval, mnist5000, print_compared
from benchmarks.moving_masks import accuracy, fit, mlp, rule_of, start
from benchmarks.stacked_training import Problem
from lightning_signin.recipes.datasets import mnist1d
from lightning_signin.updates import UPDATES

RESULTS = Path(__file__).parent / "results" / "updates"
SPARSITIES = (0.8, 0.9, 0.95)
METHODS = ("static", *(name for name in UPDATES if name != "one-shot"))
RATES = {"mnist1d": (0.15, 0.225, 0.338, 0.45, 0.6, 0.8), "mnist5000": (0.067, 0.1, 0.15, 0.225, 0.338, 0.45)}
TEST_SEEDS, TUNING_SEEDS = range(6), range(1000, 1003)
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


def tune_grid() -> Iterator[Settings]:
    for problem, method, sign_in in product(PROBLEMS, METHODS, (False, True)):
        yield from (Settings(problem, method, sign_in, 0.9, lr) for lr in RATES[problem])


def test_grid() -> Iterator[Settings]:
    for problem, method, sign_in, sparsity in product(PROBLEMS, METHODS, (False, True), SPARSITIES):
        yield Settings(problem, method, sign_in, sparsity, learning_rate(problem, method, sign_in))


def stable_grid() -> Iterator[Settings]:
    """What was tuned to a rate above 0.45, at which some runs at other sparsities diverge: at 0.45."""
    for settings in test_grid():
        if settings.lr > STABLE:
            yield replace(settings, lr=STABLE)


def learning_rate(problem: str, method: str, sign_in: bool) -> float:
    found = {}
    for row in read("tune"):
        settings = Settings(**row["settings"])
        if (settings.problem, settings.method, settings.sign_in) == (problem, method, sign_in):
            found[settings.lr] = sum(row["accuracies"])
    return max(found, key=lambda lr: found[lr])


STAGES = {
    "tune": (tune_grid, TUNING_SEEDS),
    "test": (test_grid, TEST_SEEDS),
    "stable": (stable_grid, TEST_SEEDS),
}


def run_job(job: tuple[str, Settings, list[int]]) -> dict:
    torch.set_num_threads(1)
    stage, settings, seeds = job
    problem, test = data_of(settings.problem, held_out=stage == "tune")
    found = [one(settings, problem, test, seed) for seed in seeds]
    return {"settings": asdict(settings), "seeds": seeds, "accuracies": found}


def one(settings: Settings, problem: Problem, test: tuple[Tensor, Tensor], seed: int) -> float:
    rule = None if settings.method == "static" else rule_of(settings.method, problem)
    net = start(mlp(problem.widths, seed), settings.sparsity, rule, settings.sign_in, seed)
    return accuracy(fit(net, problem, settings.lr, seed, rule, settings.sparsity), *test)


def run_stage(stage: str, processes: int | None) -> None:
    grid, seeds = STAGES[stage]
    done = {Settings(**row["settings"]) for row in read(stage)}
    jobs = [(stage, settings, list(seeds)) for settings in grid() if settings not in done]
    run_jobs(run_job, jobs, RESULTS / f"{stage}.jsonl", processes)


def read(stage: str) -> list[dict]:
    return read_rows(RESULTS / f"{stage}.jsonl")


def cells() -> dict[tuple, list[float]]:
    """The accuracies by problem, method, with Sign-In or not, and sparsity."""
    found = {}
    for row in read("test"):
        s = Settings(**row["settings"])
        found[s.problem, s.method, s.sign_in, s.sparsity] = row["accuracies"]
    return found


def report() -> None:
    table = cells()
    for problem in PROBLEMS:
        print(f"\n{problem}: test accuracy, %, mean ± 95 % interval; learning rates without and with Sign-In\n")
        print("| rule | | " + " | ".join(f"{sparsity:.0%}" for sparsity in SPARSITIES) + " |")
        print("|---" * (2 + len(SPARSITIES)) + "|")
        for method in METHODS:
            rates = [learning_rate(problem, method, s) for s in (False, True)]
            plain, signin = ([table[problem, method, s, sparsity] for sparsity in SPARSITIES] for s in (False, True))
            print_compared(f"{method} ({rates[0]}, {rates[1]})", plain, signin)
        for row in read("stable"):
            s = Settings(**row["settings"])
            if s.problem == problem:
                form = "Sign-In" if s.sign_in else "plain"
                print(f"{s.method}, {form}, at {s.lr}, {s.sparsity:.0%}: {mean_interval(row['accuracies'])}")


if __name__ == "__main__":
    command("update_table", STAGES, run_stage, report, RESULTS)
