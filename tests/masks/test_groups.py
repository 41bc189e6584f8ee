"""Groups beside a distribution of the rest, and layers with a maximum sparsity."""

import re

import pytest
import torch
from torch import nn

from lightning_signin import MaskUpdates, masks, plain_view, sparsify
from lightning_signin.masks import build_masks
from tests import reference

SHAPES = {"stem": (8, 9), "body.0": (40, 30), "body.1": (30, 50), "head": (5, 30)}
SIZE = sum(a * b for a, b in SHAPES.values())


def built(distribution: object, sparsity: float | None = 0.9, **options: object) -> dict[str, int]:
    weights = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in SHAPES.items()}
    found = build_masks(weights, sparsity=sparsity, distribution=distribution, **options)
    return {name: int(mask.sum()) for name, mask in found.items()}


@pytest.mark.parametrize("spread", ["erk", "balanced", "uniform", "global"])
def test_the_rest_is_spread_over_what_groups_leave(spread):
    counts = built({"head": 0.5, "stem": 0.0, "*": spread}, mask="magnitude")
    assert counts["head"], counts["stem"] == (75, 72)
    assert sum(counts.values()) == round(0.1 * SIZE)
    rest = [name for name in SHAPES if name.startswith("body")]
    if spread == "global":
        return
    shares = {"erk": sum, "balanced": lambda shape: 1, "uniform": lambda shape: shape[0] * shape[1]}[spread]
    shapes = [SHAPES[name] for name in rest]
    left = round(0.1 * SIZE) - 75 - 72
    ideal = reference.water_fill([shares(s) for s in shapes], [1, 1], [a * b for a, b in shapes], left)
    assert [counts[name] for name in rest] == pytest.approx([float(i) for i in ideal], abs=1)


def test_the_default_sparsity_is_that_of_all_weights():
    assert sum(built({"head": 0.5, "*": "erk"}, sparsity=None).values()) == round(0.1 * SIZE)


@pytest.mark.parametrize("spread", ["erk", "balanced", "uniform", "global"])
def test_maximum_sparsity_of_a_layer_is_kept(spread):
    free = built(spread, sparsity=0.93, mask="magnitude")
    counts = built(
        {"body.1": {"max_sparsity": 0.95}, "head": {"max_sparsity": 0.4}, "*": spread}, 0.93, mask="magnitude"
    )
    assert sum(counts.values()) == sum(free.values()) == round(0.07 * SIZE)
    assert counts["head"] == 90 > free["head"]
    assert counts["body.1"] >= 75


def test_maximum_that_is_met_already_changes_nothing():
    assert built({"*.0": {"max_sparsity": 0.999}, "*": "global"}, mask="magnitude") == built("global", mask="magnitude")


def test_layers_with_a_maximum_keep_their_best():
    weights = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    weights["head"] *= 1e-3
    found = build_masks(weights, mask="magnitude", distribution={"head": {"max_sparsity": 0.9}, "*": "global"})
    assert int(found["head"].sum()) == 15
    assert reference.top(weights["head"].abs().flatten().tolist(), 15) == set(
        found["head"].flatten().nonzero().flatten().tolist()
    )


@pytest.mark.parametrize(
    ("distribution", "sparsity", "text"),
    [
        ({"head": "erk", "*": "balanced"}, 0.9, "`distribution` can spread the rest in one way, got balanced, erk."),
        ({"head": {"max_sparsity": 0.5}, "*": 0.9}, None, "`distribution` has a max_sparsity and no spread by which"),
        ({"head": {"maximum": 0.5}, "*": "erk"}, 0.9, "`distribution` of 'head' must be a sparsity in [0, 1), one of "),
        (
            {"head": {"max_sparsity": 50}, "*": "erk"},
            0.9,
            "`distribution['head']['max_sparsity']` must be in [0, 1), got 50.",
        ),
        (
            {"head": {"max_sparsity": "0.5"}, "*": "erk"},
            0.9,
            "['max_sparsity']` must be a number in [0, 1), got '0.5'.",
        ),
        ({"head": True, "*": "erk"}, 0.9, "`distribution['head']` must be a number in [0, 1), got True."),
        ({"head": None, "*": "erk"}, 0.9, "`distribution['head']` must be a number in [0, 1), got None."),
        ({"*": "0.9"}, 0.9, "`distribution` of '*' must be a sparsity in [0, 1), one of 'balanced',"),
        (
            {"head": "ERK", "*": "erk"},
            0.9,
            "`distribution` of 'head' must be a sparsity in [0, 1), one of 'balanced', ",
        ),
        (
            {"body*": 0.5, "*": "erk"},
            0.9,
            "of `distribution` take 1350 of them: -1058 would be left for the 222 weights",
        ),
        ({"body*": 0.9, "*": "erk"}, 0.5, "1191 would be left for the 222 weights of the others. Change `sparsity` or"),
        ({"body*": {"max_sparsity": 0.5}, "*": "erk"}, 0.9, "4 layers must keep what `max_sparsity` leaves"),
        ({"*": 0.5}, 0.9, "To spread the rest of one budget, end `distribution` with '*': 'erk' (or 'balanced',"),
    ],
)
def test_what_does_not_go_together_is_said(distribution, sparsity, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        built(distribution, sparsity)


def test_update_rule_prunes_to_the_groups():
    net = sparsify(nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 10)), sparsity=0.0)
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    spread = {"2.weight": 0.5, "*": "erk"}
    updates = MaskUpdates(net, "gmp", [optimizer], total_steps=1000, sparsity=0.8, distribution=spread)
    for _ in range(800):
        updates.before_batch()
        updates.before_step(optimizer)
    assert {name: int(mask.sum()) for name, mask in masks(net).items()} == {"0.weight": 40, "2.weight": 200}
