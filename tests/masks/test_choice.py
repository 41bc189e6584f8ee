"""Scores, distributions and structures together: exact counts, groups, patterns by name, and what is said."""

import re
import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_signin import sparsify
from lightning_signin.masks import DISTRIBUTIONS, NMCap, Task, Unstructured, budget, build_masks
from lightning_signin.masks.build import check_distribution
from lightning_signin.masks.choice import Choice
from lightning_signin.masks.structures import parse_structure
from tests import reference

NAMES = [*DISTRIBUTIONS, "global"]
SHAPES = {"encoder.a": (10, 10), "encoder.b": (30, 20), "decoder.a": (8, 4, 3, 3), "head": (5, 30)}


def weights() -> dict[str, Tensor]:
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in SHAPES.items()}


def number(masks: dict[str, Tensor], *names: str) -> int:
    return sum(int(masks[name].sum()) for name in names or masks)


def all_equal(task: Task) -> dict[str, Tensor]:
    """A score of a user."""
    return {name: torch.ones_like(weight) for name, weight in task.weights.items()}


def without_warnings(**options) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return build_masks(weights(), **options)


@pytest.mark.parametrize("mask", ["random", "magnitude"])
def test_groups_keep_their_own_budgets_exactly(mask):
    built = without_warnings(mask=mask, distribution={"encoder.*": 0.75, "*.a": 0.5, "*": 0.1})
    assert number(built, "encoder.a", "encoder.b") == budget(0.75, 700)
    assert number(built, "decoder.a") == 144  # not of "encoder.*", where it would be first
    assert number(built, "head") == 135


def test_first_group_that_matches_wins():
    built = without_warnings(distribution={"*.a": 0.5, "encoder.*": 0.75, "head": 0.0})
    assert [number(built, name) for name in SHAPES] == [50, 150, 144, 150]


def test_group_of_every_weight_is_the_uniform_distribution():
    groups, uniform = without_warnings(distribution={"*": 0.8}), without_warnings(sparsity=0.8, distribution="uniform")
    assert all(torch.equal(groups[name], uniform[name]) for name in SHAPES)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"sparsity": 0.9, "distribution": {"*": 0.5}},
            "`sparsity` must be left out where `distribution` gives it for",
        ),
        (
            {"distribution": {"head": 90, "*": 0.5}},
            "`distribution['head']` must be in [0, 1), got 90. Pass the",
        ),
        ({"distribution": {"*": 1.0}}, "`distribution['*']` must be in [0, 1), got 1.0."),
        ({"distribution": {"tail": 0.5, "*": 0.5}}, "`distribution` pattern 'tail' matches no sparse weight of: enc"),
        ({"distribution": {"encoder.*": 0.5}}, "`distribution` has no pattern for decoder.a, head. End it with a"),
        ({"distribution": {"*": 0.5, "head": 0.9}}, "`distribution` pattern 'head' has no effect: earlier ones match"),
        ({"structure": {"*": "2:4", "head": "1:5"}}, "`structure` pattern 'head' has no effect: earlier ones match"),
        ({"distribution": {}}, "`distribution` has no pattern for encoder.a, encoder.b, decoder.a, head. End it with"),
        ({"distribution": {"head": 0.999, "*": 0.5}}, "`sparsity`=0.999 keeps 0 of 150 weights, but each of 1 layers"),
        ({"structure": {"tail": "2:4", "*": "2:4"}}, "`structure` pattern 'tail' matches no sparse weight of: enc"),
        ({"structure": {"head": "1:5"}}, "`structure` has no pattern for encoder.a, encoder.b, decoder.a. End it with"),
        ({"structure": {"head": "1:5", "*": "free"}}, "`structure` must be 'unstructured', 'n:m' (e.g. '2:4')"),
        ({"structure": "2:4"}, "`structure` does not fit encoder.a of shape (10, 10): groups of 4 do not divide its"),
        ({"structure": "7:14"}, "; head of shape (5, 30): groups of 14 do not divide its 30 inputs. Leave them out"),
        ({"structure": "1:2", "sparsity": 0.9999}, "keeps 0 of 1138 weights, but each of 4 layers must keep at least"),
        ({"structure": "constant-fan-in", "sparsity": 0.96}, "4 layers must keep at least one unit of the structure,"),
    ],
)
def test_choice_says_what_does_not_fit(options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        build_masks(weights(), **options)


def test_distribution_can_be_checked_before_there_are_weights():
    check_distribution(None, {"a": 0.5, "*": 0})
    check_distribution(0.99, None)
    for sparsity, distribution in ((None, {"a": 0.5, "*": 90}), (90, None), (90, "erk")):
        with pytest.raises(
            ValueError,
            match=r"`(sparsity|distribution\['\*'\])` must be in \[0, 1\), got 90\. Pass the fraction of zeros",
        ):
            check_distribution(sparsity, distribution)


@pytest.mark.parametrize("distribution", NAMES)
def test_first_structure_that_matches_wins(distribution):
    structure = {"*.a": "1:2-cap", "encoder.*": "2:4", "*": Unstructured()}
    values = weights()
    built = build_masks(values, sparsity=0.5, mask="magnitude", distribution=distribution, structure=structure)
    assert number(built) == 569
    pairs = {name: built[name].unflatten(1, (-1, 2)).sum(2) for name in ("encoder.a", "decoder.a")}
    assert all(int(pair.max()) == 1 for pair in pairs.values())
    assert set(built["encoder.b"].unflatten(1, (-1, 4)).sum(2).flatten().tolist()) <= {0, 2}
    kept = int(built["head"].sum())
    assert reference.top(values["head"].abs().flatten().tolist(), kept) == set(
        built["head"].flatten().nonzero().flatten().tolist()
    )


def test_one_and_the_same_structure_may_be_named_or_built():
    named, built = (without_warnings(sparsity=0.8, structure=structure) for structure in ("2:4-cap", NMCap(2, 4)))
    assert all(torch.equal(named[name], built[name]) for name in SHAPES)


def test_sparsity_below_what_a_pattern_can_keep_takes_all_that_it_can():
    text = "structure='1:4-cap' cannot keep 80 of the 100 weights of w: it keeps 30, the nearest .* (sparsity 0.7000)"
    with pytest.warns(UserWarning, match=text.replace("(", r"\(").replace(")", r"\)")):
        built = build_masks({"w": torch.randn(10, 10)}, sparsity=0.2, structure="1:4-cap")
    assert built["w"].unflatten(1, (-1, 2)).any(2).sum() <= 30
    assert number(built) == 30


def test_masks_on_the_way_keep_powers_of_the_density_without_structure():
    shapes = {"a": (20, 20), "b": (40, 40)}
    choice = Choice(shapes, 0.9, "global", dict.fromkeys(shapes, parse_structure("2:4")))
    scores = {name: torch.rand(shape) for name, shape in shapes.items()}
    assert choice.is_global
    assert number(choice.masks(scores, lambda sparsity: (1 - sparsity) ** 0.5)) == round(2000 * 0.1**0.5)
    flat = torch.cat([score.flatten() for score in scores.values()])
    kept = torch.cat(
        [mask.flatten() for mask in choice.masks(scores, lambda sparsity: (1 - sparsity) ** 0.25).values()]
    )
    assert set(kept.nonzero().flatten().tolist()) == reference.top(flat.tolist(), round(2000 * 0.1**0.25))
    last = choice.masks(scores)
    assert number(last) == choice.target == 200
    assert all(set(mask.unflatten(1, (-1, 4)).sum(2).flatten().tolist()) == {0, 2} for mask in last.values())


def test_counts_are_those_of_the_masks_unless_layers_compete():
    shapes = {"a": (10, 10), "b": (40, 20)}
    for distribution in (*DISTRIBUTIONS, {"a": 0.5, "*": 0.9}):
        choice = Choice(shapes, 0.8, distribution, dict.fromkeys(shapes, Unstructured()))
        masks = choice.masks({name: torch.rand(shape) for name, shape in shapes.items()})
        assert choice.counts() == {name: int(mask.sum()) for name, mask in masks.items()}
        assert not choice.is_global


NEAREST = re.escape(
    "structure='constant-fan-in' cannot keep 26 of the 200 weights of 0.weight and 1 more: it keeps 30, the nearest "
    "count that it can make (sparsity 0.8500)."
)
EMPTY = re.escape("distribution='global' would leave 1.weight without any weight: each keeps its best.")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"structure": "constant-fan-in"}, NEAREST),
        ({"mask": all_equal, "structure": "constant-fan-in"}, NEAREST),
        ({"mask": "magnitude"}, EMPTY),
    ],
)
def test_warnings_point_at_the_caller(options, text):
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    nn.init.constant_(net[1].weight, 1e-9)
    weights = {"0.weight": net[0].weight.detach(), "1.weight": net[1].weight.detach()}
    options = {"sparsity": 0.87, **options}
    for choose in (lambda: build_masks(weights, **options), lambda: sparsify(net, **options)):
        with pytest.warns(UserWarning, match=text) as caught:
            choose()
        code = choose.__code__
        assert [(w.filename, w.lineno) for w in caught] == [(code.co_filename, code.co_firstlineno)]


def test_every_group_off_its_budget_is_said_though_their_sum_is_right():
    values = {"a": torch.randn(10, 10), "b": torch.randn(10, 10)}
    with pytest.warns(UserWarning, match="the nearest count") as caught:
        built = build_masks(values, distribution={"a": 0.86, "b": 0.84}, structure="constant-fan-in")
    assert [int(mask.sum()) for mask in built.values()] == [10, 20]
    first, second = (str(warning.message) for warning in caught)
    assert "cannot keep 14 of the 100 weights of a: it keeps 10" in first
    assert "cannot keep 16 of the 100 weights of b: it keeps 20" in second


def test_exact_counts_and_full_layers_are_silent():
    for distribution in NAMES:
        built = without_warnings(sparsity=0.5, mask="magnitude", distribution=distribution, structure="2:4-cap")
        assert number(built) == 569
