"""Learned signs or learned magnitudes on a learned mask (the experiment of the paper's Table 1), on two small problems.

    python -m benchmarks.sign_table test      # trains; what is there is not run again

The table is in `benchmarks.paper`, Table 1.

A network is trained from dense to 90 % sparse, by AC/DC or GMP, or with RigL. On its final mask a plain network is
trained from scratch, from a start that the first run has not seen: with the first run's signs after a fifth of it
(where the learning rate has its peak), after half of it, or at its end, and random magnitudes; with its final
magnitudes and random signs; and all random. Learning rates are those of `benchmarks.update_table`: the rule's, and that
of "static".
Raw results stand in ``benchmarks/results/signs``.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.jobs import Stages
from benchmarks.mask_table import PROBLEMS
from benchmarks.moving_masks import accuracy, fit, mlp, rule_of, start
from benchmarks.update_table import data_of, learning_rate
from lightning_signin import effective_weights, masks, sparsify, transplant_

RESULTS = Path(__file__).parent / "results" / "signs"
METHODS, SPARSITY, SEEDS = ("acdc", "gmp", "rigl"), 0.9, range(30)
FRESH = 500  # added to the seed of a start that is trained from scratch
STARTS = {
    "signs after 20 %": ("signs_from", 0.2),
    "signs after 50 %": ("signs_from", 0.5),
    "final signs": ("signs_from", 1.0),
    "final magnitudes": ("magnitudes_from", 1.0),
    "random": (None, 1.0),
}


def grid() -> Iterator[tuple[tuple[str, str], Sequence[int]]]:
    yield from ((settings, SEEDS) for settings in product(PROBLEMS, METHODS))


def run_job(job: tuple[str, tuple[str, str], list[int]]) -> dict[str, Any]:
    _, (problem_name, method), seeds = job
    found = [one(problem_name, method, seed) for seed in seeds]
    return {"problem": problem_name, "method": method, "seeds": seeds, "accuracies": found}


def one(problem_name: str, method: str, seed: int) -> dict[str, float]:
    """The accuracy of the run that learns the mask, and from every start on it."""
    problem, test = data_of(problem_name, held_out=False)
    learned: dict[float, dict[str, Tensor]] = {}
    found_masks: dict[str, Tensor] = {}

    def note(epoch: int, net: nn.Module) -> None:
        learned[(epoch + 1) / problem.epochs] = effective_weights(net)
        found_masks.update(masks(net))

    rule = rule_of(method, problem)
    net = start(mlp(problem.widths, seed), SPARSITY, rule, sign_in=False, seed=seed)
    trained = fit(net, problem, learning_rate(problem_name, method, False), seed, rule, SPARSITY, note)
    found = {"baseline": accuracy(trained, *test)}
    for name, (argument, moment) in STARTS.items():
        scratch = mlp(problem.widths, seed + FRESH)
        if argument is not None:
            transplant_(scratch, names=list(found_masks), **{argument: learned[moment]})
        sparsify(scratch, mask=found_masks, parametrization="plain")
        lr = learning_rate(problem_name, "static", False)
        found[name] = accuracy(fit(scratch, problem, lr, seed + FRESH), *test)
    return found


STAGES = Stages(
    RESULTS,
    {"test": grid},
    run_job,
    settings_of=lambda row: (row["problem"], row["method"]),
    chunk=1,
)

if __name__ == "__main__":
    STAGES.command("sign_table")
