"""Masks that move, with and without Sign-In, on two small real problems (the shape of the paper's Tables 11 to 13).

    python -m benchmarks.update_table tune      # one learning rate a method, on held-out training data
    python -m benchmarks.update_table test      # every update rule and the random static mask, on test data
    python -m benchmarks.update_table stable    # what was tuned to a rate above 0.45, at 0.45
    python -m benchmarks.update_table rewind    # IMP, WR and LRR
    python -m benchmarks.update_table report    # the tables, as Markdown

The problems are those of `benchmarks.mask_table`. Each method with and without Sign-In has its own learning rate, tuned
at 90 %; iterative pruning takes those of "gmp", up to 0.45. It prunes a fifth of the weights a level, over all layers
together, and
is run here as one chain of levels: at each of the three sparsities a last level branches off.
Raw results stand in ``benchmarks/results/updates``; what is there is not run again.
"""

import copy
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.jobs import read_rows, run_jobs
from benchmarks.mask_table import PROBLEMS, mean_interval, mnist5000, print_compared
from benchmarks.moving_masks import accuracy, fit, mlp, rule_of, start
from benchmarks.stacked_training import Problem
from lightning_signin import sparsify
from lightning_signin.masks import build_masks
from lightning_signin.recipes.datasets import mnist1d
from lightning_signin.updates import UPDATES

RESULTS = Path(__file__).parent / "results" / "updates"
SPARSITIES = (0.8, 0.9, 0.95)
METHODS = ("static", *(name for name in UPDATES if name != "one-shot"))
REWINDS = ("lrr", "wr", "imp")
RATES = {"mnist1d": (0.15, 0.225, 0.338, 0.45, 0.6, 0.8), "mnist5000": (0.067, 0.1, 0.15, 0.225, 0.338, 0.45)}
TEST_SEEDS, TUNING_SEEDS, REWIND_SEEDS = range(6), range(1000, 1003), range(5)
PRUNE_RATE, REWIND_EPOCH = 0.2, 3
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


def rewind_grid() -> Iterator[Settings]:
    for problem, method, sign_in in product(PROBLEMS, REWINDS, (False, True)):
        lr = min(learning_rate(problem, "gmp", sign_in), STABLE)
        yield Settings(problem, method, sign_in, max(SPARSITIES), lr)


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
    "rewind": (rewind_grid, REWIND_SEEDS),
}


def run_job(job: tuple[str, Settings, list[int]]) -> dict:
    torch.set_num_threads(1)
    stage, settings, seeds = job
    problem, test = data_of(settings.problem, held_out=stage == "tune")
    if stage == "rewind":
        found: object = [levels(settings, problem, test, seed) for seed in seeds]
    else:
        found = [one(settings, problem, test, seed) for seed in seeds]
    return {"settings": asdict(settings), "seeds": seeds, "accuracies": found}


def one(settings: Settings, problem: Problem, test: tuple[Tensor, Tensor], seed: int) -> float:
    rule = None if settings.method == "static" else rule_of(settings.method, problem)
    net = start(mlp(problem.widths, seed), settings.sparsity, rule, settings.sign_in, seed)
    return accuracy(fit(net, problem, settings.lr, seed, rule, settings.sparsity), *test)


def levels(settings: Settings, problem: Problem, test: tuple[Tensor, Tensor], seed: int) -> list[float]:
    """Iterative pruning: the accuracy at each of `SPARSITIES`."""
    net: nn.Module = mlp(problem.widths, seed)
    rewound = copy.deepcopy(net.state_dict())
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in net.named_parameters() if p.ndim > 1}

    def note(epoch: int, module: nn.Module) -> None:
        if settings.method == "wr" and epoch + 1 == REWIND_EPOCH and level == 0:
            rewound.update(copy.deepcopy(module.state_dict()))

    def trained(net: nn.Module, masks: dict[str, Tensor], number: int) -> nn.Module:
        if number > 0 and settings.method != "lrr":
            net.load_state_dict(rewound)
        form = "sign-in" if settings.sign_in else "plain"
        sparsify(net, mask=masks, parametrization=form)
        return fit(net, problem, settings.lr, seed + 10_000 * number, after_epoch=note)

    found, level = [], 0
    net = trained(net, masks, level)
    for sparsity in SPARSITIES:
        while (1 - PRUNE_RATE) ** (level + 1) > 1 - sparsity + 1e-9:
            level += 1
            masks = pruned(net, masks, 1 - (1 - PRUNE_RATE) ** level)
            net = trained(net, masks, level)
        last = trained(copy.deepcopy(net), pruned(net, masks, sparsity), level + 1)
        found.append(accuracy(last, *test))
    return found


def pruned(net: nn.Module, masks: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """The largest of the weights on the masks."""
    weights = {name: net.get_parameter(name).detach().abs().masked_fill(~mask, -1) for name, mask in masks.items()}
    return build_masks(weights, sparsity=sparsity, mask=lambda task: task.weights, distribution="global")


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
    for row in read("rewind"):
        s = Settings(**row["settings"])
        for place, sparsity in enumerate(SPARSITIES):
            found[s.problem, s.method, s.sign_in, sparsity] = [one[place] for one in row["accuracies"]]
    return found


def report() -> None:
    table = cells()
    for problem in PROBLEMS:
        print(f"\n{problem}: test accuracy, %, mean ± 95 % interval; learning rates without and with Sign-In\n")
        print("| rule | | " + " | ".join(f"{sparsity:.0%}" for sparsity in SPARSITIES) + " |")
        print("|---" * (2 + len(SPARSITIES)) + "|")
        for method in (*METHODS, *REWINDS):
            if (problem, method, True, SPARSITIES[0]) not in table:
                continue  # not run yet
            rates = [learning_rate(problem, "gmp" if method in REWINDS else method, s) for s in (False, True)]
            rates = [min(rate, STABLE) for rate in rates] if method in REWINDS else rates
            plain, signin = ([table[problem, method, s, sparsity] for sparsity in SPARSITIES] for s in (False, True))
            print_compared(f"{method} ({rates[0]}, {rates[1]})", plain, signin)
        for row in read("stable"):
            s = Settings(**row["settings"])
            if s.problem == problem:
                form = "Sign-In" if s.sign_in else "plain"
                print(f"{s.method}, {form}, at {s.lr}, {s.sparsity:.0%}: {mean_interval(row['accuracies'])}")


if __name__ == "__main__":
    stage = sys.argv[1] if len(sys.argv) > 1 else ""
    RESULTS.mkdir(parents=True, exist_ok=True)
    if stage == "report":
        report()
    elif stage in STAGES:
        run_stage(stage, int(sys.argv[2]) if len(sys.argv) > 2 else None)
    else:
        sys.exit(f"usage: python -m benchmarks.update_table {'|'.join([*STAGES, 'report'])} [PROCESSES]")
