"""Masks that were learned or scored, and what is trained on them: the runs behind Tables 8 and 9 and Figures 7 and 8.

A row is one seed of one task. Networks become sparse by AC/DC, AC/DC with Sign-In, RigL and GMP from the start of the
seed; SNIP, SynFlow and the random mask score that same start. Everything that is trained on a fixed mask begins at
another start (seed + 500) with its own batches, the same for all masks and methods, so that differences are paired.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks import mask_table, update_table
from benchmarks.jobs import run_each
from benchmarks.moving_masks import accuracy, fit, mlp, rule_of, start
from benchmarks.paper import records
from benchmarks.sign_table import FRESH
from benchmarks.stacked_training import Problem, Settings, masks_of
from benchmarks.update_table import data_of
from lightning_signin import effective_weights, flip_signs_, masks, sparsify, transplant_
from lightning_signin.metrics import SignFlips
from lightning_signin.recipes.datasets import Split

SPARSITY, SEEDS = 0.9, range(30)
LEARNED = {"AC/DC": ("acdc", False), "AC/DC + Sign-In": ("acdc", True), "RigL": ("rigl", False), "GMP": ("gmp", False)}
SCORED = {"SNIP": "snip", "SynFlow": "synflow", "random": "random"}
MASKS = ("AC/DC", "RigL", "GMP", *SCORED)
REINITIALIZED = "AC/DC mask, reinitialized"
CORRECT_SIGNS = (1.0, 0.95, 0.9, 0.8, 0.5)
TASKS = {"mnist1d": "MNIST-1D", "mnist5000": "MNIST, 5,000 images"}
QUICK_TASKS, QUICK_SEEDS, QUICK_EPOCHS = ("mnist1d",), range(2), 8

Rates = dict[str, float]
Masks = dict[str, Tensor]


class Run:
    """A network that is trained while its flips are counted.

    Attributes:
        accuracy: On the test data, in percent.
        masks: The final ones by plain name.
        weights: The final effective weights by plain name.
        flips: Shares of the finally kept weights, by stage and layer; "start_to_warmup" of those kept at the warm-up.
    """

    def __init__(self, net: nn.Module, problem: Problem, test: Split, lr: float, seed: int, rule: Any = None) -> None:
        counted = SignFlips(net, moving=rule is not None)

        def note(epoch: int, net: nn.Module) -> None:
            if epoch + 1 == problem.epochs // 5:  # the learning rate has its peak
                counted.mark("warmup", net)
            if epoch + 1 == problem.epochs:
                counted.update(net)
                self.masks, self.weights = masks(net), effective_weights(net)

        self.accuracy = accuracy(fit(net, problem, lr, seed, rule, SPARSITY, note), *test)
        layers = counted.by_layer()
        self.flips = {stage: {name: found[stage] for name, found in layers.items()} for stage in counted.compute()}


def learn(name: str, problem: Problem, test: Split, lr: float, seed: int) -> Run:
    """Train while an update rule finds the mask."""
    method, sign_in = LEARNED[name]
    rule = rule_of(method, problem)
    net = start(mlp(problem.widths, seed), SPARSITY, rule, sign_in, seed)
    return Run(net, problem, test, lr, seed, rule)


def score(name: str, problem: Problem, seed: int) -> Masks:
    """The mask that a score finds at the start."""
    found = masks_of(Settings("plain", SPARSITY, 0.0, mask=SCORED[name]), seed, problem)
    return {f"{2 * layer}.weight": mask for layer, mask in enumerate(found)}


def fresh(widths: tuple[int, ...], mask: Masks, seed: int, sign_in: bool) -> nn.Module:
    """A network on a mask, from a start that the mask has not seen."""
    return sparsify(mlp(widths, seed + FRESH), mask=mask, parametrization="sign-in" if sign_in else "plain")


def with_signs(widths: tuple[int, ...], learned: Run, correct: float, seed: int) -> nn.Module:
    """Random magnitudes on a learned mask, with this share of its learned signs and the others wrong."""
    net = transplant_(mlp(widths, seed + FRESH), names=list(learned.masks), signs_from=learned.weights)
    sparsify(net, mask=learned.masks, parametrization="plain")
    return flip_signs_(net, round(1 - correct, 10), seed=seed)


def measure(problem: Problem, test: Split, rates: Rates, seed: int) -> dict[str, Any]:
    """All runs of one seed. ``rates``: of each name in `LEARNED`, and of "plain" and "signin" on a fixed mask."""
    learned = {name: learn(name, problem, test, rates[name], seed) for name in LEARNED}
    flips = {name: learned[name].flips for name in ("AC/DC", "AC/DC + Sign-In")}
    on_masks: dict[str, Any] = {}
    for name in MASKS:
        mask = score(name, problem, seed) if name in SCORED else learned[name].masks
        runs = {
            method: Run(
                fresh(problem.widths, mask, seed, method == "signin"), problem, test, rates[method], seed + FRESH
            )
            for method in ("plain", "signin")
        }
        shares = {layer: 1 - kept.float().mean().item() for layer, kept in mask.items()}
        on_masks[name] = {method: run.accuracy for method, run in runs.items()} | {"sparsity": shares}
        if name == "AC/DC":
            flips[REINITIALIZED] = runs["plain"].flips
    signs = {}
    for correct in CORRECT_SIGNS:
        net = with_signs(problem.widths, learned["AC/DC"], correct, seed)
        signs[f"{correct:.0%}"] = Run(net, problem, test, rates["plain"], seed + FRESH).accuracy
    baselines = {name: run.accuracy for name, run in learned.items()}
    return {"baselines": baselines, "masks": on_masks, "signs": signs, "flips": flips}


def rates_of(task: str) -> Rates:
    """Stored learning rates: a rule's own, and on fixed masks those that are best for several scores together."""
    rules = {name: update_table.learning_rate(task, *rule) for name, rule in LEARNED.items()}
    return rules | mask_table.learning_rates(task, SPARSITY)


def measure_task(epochs: int | None, task: str, seed: int) -> dict[str, Any]:
    """All runs of one seed of a task, for so many epochs; None is the task's own number."""
    problem, test = data_of(task, held_out=False)
    return measure(replace(problem, epochs=epochs or problem.epochs), test, rates_of(task), seed)


def runs_of(quick: bool) -> dict[str, list[dict[str, Any]]]:
    """What was measured, by task, seeds ascending; what a stopped run has done is not done again."""
    tasks, seeds = (QUICK_TASKS, QUICK_SEEDS) if quick else (tuple(TASKS), SEEDS)
    one = partial(measure_task, QUICK_EPOCHS if quick else None)
    return run_each(records.folder(quick) / "learned_masks.jsonl", tasks, seeds, one)
