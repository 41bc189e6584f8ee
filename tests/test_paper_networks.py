"""What the paper's tables of trained networks are made of: masks, signs and starts as asked, rows to claims."""

from itertools import pairwise

import pytest
import torch

from benchmarks.paper import figure7, figure8, learned_masks, table8, table9, table16, trainer_runs
from benchmarks.paper.learned_masks import CORRECT_SIGNS, LEARNED, MASKS, Run, fresh, score, with_signs
from benchmarks.stacked_training import Problem, Settings
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
    made = [{"task": "mnist1d", "seed": seed} | learned_masks.measure(problem, test, RATES, seed) for seed in (0, 1)]
    sizes = {f"{2 * layer}.weight": a * b for layer, (a, b) in enumerate(pairwise(WIDTHS))}
    for mask in MASKS:
        zeros = sum(made[0]["masks"][mask]["sparsity"][layer] * size for layer, size in sizes.items())
        assert zeros / sum(sizes.values()) == pytest.approx(0.9, abs=0.001)
    for script in (table8, table9, figure7, figure8):
        monkeypatch.setattr(script, "rows", lambda quick: made)
        results = script.run(True)
        assert all(isinstance(claim["holds"], bool) for claim in results["claims"])
        assert "MNIST-1D" in script.describe(results)


def test_masks_of_both_methods_and_their_start_are_the_same(tiny):
    mask = score("SNIP", tiny[0], seed=1)
    plain, signin = (fresh(WIDTHS, mask, 1, sign_in) for sign_in in (False, True))
    for name, kept in masks(plain).items():
        assert torch.equal(kept, masks(signin)[name])
        assert torch.allclose(effective_weights(plain)[name], effective_weights(signin)[name], atol=1e-6)


def test_table16_tunes_each_mask_apart(tmp_path):
    path = tmp_path / "table16.jsonl"
    table16.run_stage("tune", [5], [table16.made(("digits", "random", 0.98, "plain"), lr) for lr in (0.0, 0.2)], path)
    assert table16.tuned(path) == {("digits", "random", 0.98, "plain"): 0.2}
    assert table16.made(("digits", "snip", 0.98, "signin"), 0.1)[1] == Settings(
        "signin", 0.98, 0.1, rescale_every=5, rescale_until=0.75, momentum="carry", mask="snip"
    )


class Flat(torch.nn.Module):
    """A network of images (n, 1, 7, 7) that is small."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(49, 20), torch.nn.Linear(20, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_study_is_tuned_on_other_seeds_and_not_run_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_runs.records, "folder", lambda quick: tmp_path)
    study = trainer_runs.Study(
        "small", Flat, 7, 1, 64, {}, {"frobenius_decay": 1e-4}, (0.5,), ("plain", "signin"), (0.0, 0.2), [9], [0, 1]
    )
    results = trainer_runs.run_study(study, quick=True)
    assert [(row["method"], row["lr"], len(row["accuracies"])) for row in results["rows"]] == [
        ("plain", 0.2, 2),
        ("signin", 0.2, 2),
    ]
    before = (tmp_path / "small.jsonl").read_text()
    assert trainer_runs.run_study(study, quick=True) == results
    assert (tmp_path / "small.jsonl").read_text() == before
