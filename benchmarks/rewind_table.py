"""Iterative pruning with its three rewinds (IMP, WR, LRR), with and without Sign-In.

    python -m benchmarks.rewind_table tune      # one learning rate a method, on held-out training data
    python -m benchmarks.rewind_table test      # on test data

The tables are in `benchmarks.paper`, Tables 11 to 13.

Problems and protocol of `benchmarks.update_table`, which has the other ways to a sparse network. A fifth of the weights
goes at each level, over all layers together. One chain of levels serves the three sparsities: at each a last level
branches off. Rates are tuned at 90 %. A chain that diverges can be pruned no further: it counts with the accuracy of
its last network (chance) at what sparsities are left. Raw results stand in ``benchmarks/results/rewinds``; what is
there is not run again.
"""

import copy
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.jobs import Stages
from benchmarks.mask_table import PROBLEMS
from benchmarks.moving_masks import accuracy, fit, is_finite, mlp
from benchmarks.stacked_training import Problem
from benchmarks.tuning import best_rates
from benchmarks.update_table import SPARSITIES, Job, Settings, cell_and_rate, data_of, settings_of
from lightning_signin import sparsify
from lightning_signin.masks import build_masks

RESULTS = Path(__file__).parent / "results" / "rewinds"
METHODS = ("lrr", "wr", "imp")
RATES = {"mnist1d": (0.15, 0.225, 0.338, 0.45), "mnist5000": (0.067, 0.1, 0.15, 0.225)}
TEST_SEEDS, TUNING_SEEDS = range(6), range(1000, 1002)
PRUNE_RATE, REWIND_EPOCH = 0.2, 3


def tune_grid() -> Iterator[Job]:
    for problem, method, sign_in in product(PROBLEMS, METHODS, (False, True)):
        yield from ((Settings(problem, method, sign_in, 0.9, lr), TUNING_SEEDS) for lr in RATES[problem])


def test_grid() -> Iterator[Job]:
    for problem, method, sign_in in product(PROBLEMS, METHODS, (False, True)):
        yield Settings(problem, method, sign_in, max(SPARSITIES), learning_rate(problem, method, sign_in)), TEST_SEEDS


def learning_rate(problem: str, method: str, sign_in: bool) -> float:
    last = {settings: [chain[-1] for chain in chains] for settings, chains in STAGES.read("tune").items()}
    return best_rates(last, cell_and_rate)[problem, method, sign_in]


def run_job(job: tuple[str, Settings, list[int]]) -> dict[str, Any]:
    stage, settings, seeds = job
    problem, test = data_of(settings.problem, held_out=stage == "tune")
    found = [levels(settings, problem, test, seed) for seed in seeds]
    return {"settings": asdict(settings), "seeds": seeds, "accuracies": found}


def levels(settings: Settings, problem: Problem, test: tuple[Tensor, Tensor], seed: int) -> list[float]:
    """The accuracy at each of `SPARSITIES` up to that of the settings."""
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

    found: list[float] = []
    level = 0
    net = trained(net, masks, level)
    sparsities = [sparsity for sparsity in SPARSITIES if sparsity <= settings.sparsity]
    for sparsity in sparsities:
        while (1 - PRUNE_RATE) ** (level + 1) > 1 - sparsity + 1e-9 and is_finite(net):
            level += 1
            masks = pruned(net, masks, 1 - (1 - PRUNE_RATE) ** level)
            net = trained(net, masks, level)
        if not is_finite(net):
            return found + [accuracy(net, *test)] * (len(sparsities) - len(found))
        last = trained(copy.deepcopy(net), pruned(net, masks, sparsity), level + 1)
        found.append(accuracy(last, *test))
    return found


def pruned(net: nn.Module, masks: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """The largest of the weights on the masks."""
    weights = {name: net.get_parameter(name).detach().abs().masked_fill(~mask, -1) for name, mask in masks.items()}
    return build_masks(weights, sparsity=sparsity, mask=lambda task: task.weights, distribution="global")


STAGES = Stages(RESULTS, {"tune": tune_grid, "test": test_grid}, run_job, settings_of)

if __name__ == "__main__":
    STAGES.command("rewind_table")
