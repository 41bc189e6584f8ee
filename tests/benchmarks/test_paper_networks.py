"""What the paper's tables of trained networks are made of: masks, signs and starts as asked, rows to claims."""

import json
from itertools import pairwise, product

import pytest
import torch

from benchmarks.jobs import read_rows
from benchmarks.paper import (
    figure7,
    figure8,
    learned_masks,
    records,
    table8,
    table9,
    trainer_results,
    trainer_runs,
)
from benchmarks.paper.learned_masks import CORRECT_SIGNS, LEARNED, MASKS, Run, fresh, score, with_signs
from benchmarks.stacked_training import Problem
from benchmarks.tuning import tune_and_test
from lightning_signin import effective_weights, masks

WIDTHS = (20, 30, 30, 10)
RATES = dict.fromkeys([*LEARNED, "plain", "signin"], 0.1)


@pytest.fixture
def tiny():
    inputs = torch.randn(300, 20, generator=torch.Generator().manual_seed(0))
    return Problem(WIDTHS, 8, inputs, inputs[:, :10].argmax(1)), (inputs, inputs[:, :10].argmax(1))


def learned_from(seed: int) -> Run:
    """Signs and a mask as a run leaves them, without the run."""
    run = object.__new__(Run)
    run.masks = score("random", Problem(WIDTHS, 1, torch.zeros(100, 20), torch.zeros(100, dtype=torch.int64)), seed)
    source = torch.Generator().manual_seed(seed)
    run.weights = {name: torch.randn(mask.shape, generator=source) * mask for name, mask in run.masks.items()}
    return run


@pytest.mark.parametrize("correct", CORRECT_SIGNS)
def test_exactly_the_asked_share_of_signs_is_wrong(correct):
    learned = learned_from(3)
    found = effective_weights(with_signs(WIDTHS, learned, correct, seed=3))
    wrong = sum(int((weight * learned.weights[name] < 0).sum()) for name, weight in found.items())
    kept = sum(int(mask.sum()) for mask in learned.masks.values())
    assert wrong == round((1 - correct) * kept)


def test_starts_differ_in_signs_alone():
    learned = learned_from(4)
    right, wrong = (effective_weights(with_signs(WIDTHS, learned, correct, seed=4)) for correct in (1.0, 0.5))
    plain = effective_weights(fresh(WIDTHS, learned.masks, seed=4, sign_in=False))
    for name, mask in learned.masks.items():
        assert torch.equal(right[name].abs(), wrong[name].abs())
        assert torch.equal(right[name].abs(), plain[name].abs())
        assert torch.equal(right[name] != 0, mask)


def test_one_seed_makes_every_run_and_the_claims(tiny, monkeypatch):
    problem, test = tiny
    made = [learned_masks.measure(problem, test, RATES, seed) for seed in (0, 1)]
    sizes = {f"{2 * layer}.weight": a * b for layer, (a, b) in enumerate(pairwise(WIDTHS))}
    for mask in MASKS:
        zeros = sum(made[0]["masks"][mask]["sparsity"][layer] * size for layer, size in sizes.items())
        assert zeros / sum(sizes.values()) == pytest.approx(0.9, abs=0.001)
    for script in (table8, table9, figure7, figure8):
        monkeypatch.setattr(script, "runs_of", lambda quick: {"mnist1d": made})
        results = script.run(True)
        assert all(isinstance(claim["holds"], bool) for claim in results["claims"])
        assert "MNIST-1D" in script.describe(results)


def test_masks_of_both_methods_and_their_start_are_the_same(tiny):
    mask = score("SNIP", tiny[0], seed=1)
    plain, signin = (fresh(WIDTHS, mask, 1, sign_in) for sign_in in (False, True))
    for name, kept in masks(plain).items():
        assert torch.equal(kept, masks(signin)[name])
        assert torch.allclose(effective_weights(plain)[name], effective_weights(signin)[name], atol=1e-6)


def test_every_cell_is_tuned_apart_and_tested_at_its_own_rate(tmp_path):
    rates = {("digits", "random"): (0.1, 0.2, 0.4), ("digits", "snip"): (0.1, 0.2, 0.4), ("mnist1d", "snip"): (0.3,)}
    found = tune_and_test(tmp_path, best_at_two_tenths, rates, tuning_seeds=[5, 6], test_seeds=range(10))
    assert [one.rate for one in found.values()] == [0.2, 0.1, 0.3]
    assert [one.at_edge for one in found.values()] == [False, True, True]
    assert found["digits", "random"].accuracies == [90.0 + seed for seed in range(10)]
    assert {row["lr"] for row in read_rows(tmp_path / "tune.jsonl")} == {0.1, 0.2, 0.4}  # a single rate is not tuned


def best_at_two_tenths(job):
    """What a run would leave; with SNIP the two smaller rates are level."""
    stage, (cell, lr), seeds = job
    lost = 0.0 if lr == 0.2 or (cell[1] == "snip" and lr < 0.2) else 5.0
    accuracies = [90.0 - lost + seed * (stage == "test") for seed in seeds]
    return {"cell": cell, "lr": lr, "seeds": seeds, "accuracies": accuracies}


class Flat(torch.nn.Module):
    """A network of images (n, 1, 7, 7) that is small."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(49, 20), torch.nn.Linear(20, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


STUDY = trainer_runs.Study(
    "small", Flat, 7, 2, 50, {}, {"frobenius_decay": 1e-4}, (0.5,), ("plain", "signin"), (0.1, 0.2), [9], [0, 1]
)


def test_a_study_takes_each_method_at_its_own_rate_from_stored_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "folder", lambda quick: tmp_path)
    best = {"plain": 0.1, "signin": 0.2}
    (tmp_path / "small").mkdir()
    for method, lr, seed in product(STUDY.methods, STUDY.rates, (9, 0, 1)):
        accuracy = 90.0 + (lr == best[method]) + (method == "signin" and seed)
        row = {"cell": [method, 0.5], "lr": lr, "seeds": [seed], "accuracies": [accuracy]}
        with (tmp_path / "small" / f"{'tune' if seed == 9 else 'test'}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    rows = trainer_runs.run_study(STUDY, quick=True)["rows"]
    assert [(row["method"], row["lr"], row["accuracies"]) for row in rows] == [
        ("plain", 0.1, [91.0, 91.0]),
        ("signin", 0.2, [91.0, 92.0]),
    ]
    [claim] = trainer_results.compared("small", rows, {0.5: (70.0, 71.0)})
    assert (claim["paper"], claim["holds"]) == ("+1.00, > 0", False)  # +0.5 ± 6.4


def test_methods_of_a_study_share_start_mask_and_batches():
    source = torch.Generator().manual_seed(0)
    training = torch.randn(100, 1, 7, 7, generator=source), torch.randint(10, (100,), generator=source)
    plain, signin = (trainer_runs.train(STUDY, (method, 0.5), 1e-6, 3, training) for method in STUDY.methods)
    for name, weight in plain.state_dict().items():
        assert torch.allclose(weight, signin.state_dict()[name], atol=1e-4)
    assert int((plain.layers[1].weight == 0).sum()) == int((signin.layers[1].weight == 0).sum()) > 0
