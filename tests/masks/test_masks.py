"""Which weights are kept: the scores of the weights alone under every distribution, and top-k against sorting."""

import itertools
import re
import warnings

import pytest
import torch

from lightning_signin.masks import DISTRIBUTIONS, budget, build_masks
from lightning_signin.masks.largest import kth_largest, largest
from tests import reference

SHAPES = {"a": (7, 5), "conv": (4, 3, 3, 3), "b": (20, 11), "c": (7, 5)}
NAMES = [*DISTRIBUTIONS, "global"]
INF = float("inf")


def weights(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()}


def kept(mask: torch.Tensor) -> set[int]:
    return set(mask.flatten().nonzero().flatten().tolist())


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.97])
@pytest.mark.parametrize(("mask", "distribution"), list(itertools.product(["random", "magnitude"], NAMES)))
@pytest.mark.filterwarnings("ignore:distribution='global' would leave")
def test_masks_keep_the_budget_exactly(mask, distribution, sparsity):
    values = weights()
    built = build_masks(values, sparsity=sparsity, mask=mask, distribution=distribution)
    assert list(built) == list(values)
    assert all(built[name].dtype == torch.bool and built[name].shape == values[name].shape for name in values)
    assert sum(int(part.sum()) for part in built.values()) == budget(sparsity, sum(v.numel() for v in values.values()))
    assert all(part.any() for part in built.values())


@pytest.mark.parametrize("distribution", NAMES)
def test_random_masks_depend_on_the_seed_alone(distribution):
    options = {"sparsity": 0.8, "distribution": distribution}
    first = build_masks(weights(torch.float32), seed=3, **options)
    torch.rand(5)  # the global generator has no part in it
    again, other = build_masks(weights(torch.float16), seed=3, **options), build_masks(weights(), seed=4, **options)
    assert all(torch.equal(first[name], again[name]) for name in SHAPES)
    assert not any(torch.equal(first[name], other[name]) for name in SHAPES)
    assert not torch.equal(first["a"], first["c"])  # equal shapes


def test_random_masks_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    build_masks({"a": torch.zeros(4, 4)}, sparsity=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_masks_keep_every_entry_equally_often():
    counts = sum(build_masks({"a": torch.zeros(20)}, sparsity=0.75, seed=seed)["a"].int() for seed in range(2000))
    # 2000 draws at 1/4: a standard deviation is 19.4.
    assert (counts - 500).abs().max() < 5 * 19.4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_magnitude_keeps_the_largest_of_each_layer(distribution, dtype):
    values = weights(dtype)
    built = build_masks(values, sparsity=0.8, mask="magnitude", distribution=distribution)
    for name, mask in built.items():
        magnitudes = values[name].abs().flatten().tolist()
        assert kept(mask) == reference.top(magnitudes, int(mask.sum())), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_global_magnitude_keeps_the_largest_of_all(dtype):
    values = {name: value * scale for (name, value), scale in zip(weights(dtype).items(), (1, 2, 0.7, 4), strict=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = build_masks(values, sparsity=0.75, mask="magnitude", distribution="global")
    magnitudes = [x for value in values.values() for x in value.abs().flatten().tolist()]
    expected = reference.top(magnitudes, budget(0.75, len(magnitudes)))
    assert kept(torch.cat([mask.flatten() for mask in built.values()])) == expected


@pytest.mark.parametrize(("mask", "own"), [("random", "balanced"), ("magnitude", "global")])
def test_distribution_left_out_is_that_of_the_score(mask, own):
    values = weights()
    plain = build_masks(values, mask=mask)
    named = build_masks(values, mask=mask, sparsity=0.9, distribution=own)
    assert all(torch.equal(plain[name], named[name]) for name in SHAPES)


def test_distribution_left_out_is_balanced_for_a_score_that_names_none():
    values = {"a": torch.randn(20, 20), "b": torch.randn(20, 80)}
    built = build_masks(values, mask=lambda task: {name: weight.abs() for name, weight in task.weights.items()})
    assert [int(mask.sum()) for mask in built.values()] == [100, 100]


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0, 2.0], [-INF, -INF, 0.0, INF], [0.0] * 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_kth_largest_equals_sorting(values, dtype):
    flat = torch.tensor(values, dtype=dtype, requires_grad=True)
    assert [kth_largest(flat, count) for count in range(1, 5)] == sorted(values, reverse=True)


@pytest.mark.parametrize("count", [0, 1, 4, 9, 10])
def test_ties_keep_the_lower_index(count):
    assert kept(largest(torch.ones(2, 5), count)) == kept(largest(torch.full((2, 5), -INF), count)) == set(range(count))
    scores = torch.tensor([0.0, 3.0, 1.0, 1.0, 1.0, 3.0, 1.0, 0.0, 2.0, 1.0])
    assert kept(largest(scores, count)) == reference.top(scores.tolist(), count)


def test_global_ties_keep_the_earlier_layer():
    values = {"a": torch.ones(4), "b": torch.ones(4)}
    built = build_masks(values, sparsity=0.375, mask="magnitude", distribution="global")
    assert [int(mask.sum()) for mask in built.values()] == [4, 1]


def test_global_repairs_an_empty_layer_and_says_so():
    values = {"big": 10 + torch.rand(10, 10), "small": torch.rand(6, 5), "tiny": torch.rand(3)}
    text = "distribution='global' would leave small, tiny without any weight: each keeps its best"
    with pytest.warns(UserWarning, match=text):
        built = build_masks(values, sparsity=0.9, mask="magnitude", distribution="global")
    assert {name: int(mask.sum()) for name, mask in built.items()} == {"big": 11, "small": 1, "tiny": 1}
    assert all(values[name].flatten()[built[name].flatten()].max() == values[name].max() for name in values)


def test_global_keeps_the_best_of_each_layer_beside_infinite_scores():
    def users(task):
        return {name: weight.where(weight < 2, torch.inf) for name, weight in task.weights.items()}

    values = {"big": torch.full((10, 10), 3.0), "small": torch.rand(6, 5), "other": torch.rand(4, 4)}
    with pytest.warns(UserWarning, match="would leave small, other without any weight"):
        built = build_masks(values, sparsity=0.9, mask=users, distribution="global")
    assert {name: int(mask.sum()) for name, mask in built.items()} == {"big": 13, "small": 1, "other": 1}


@pytest.mark.parametrize("distribution", NAMES)
def test_masks_refuse_fewer_weights_than_layers(distribution):
    text = (
        "`sparsity`=0.993 keeps 3 of 398 weights, but each of 4 layers must keep at least one weight, together 4. "
        "Lower `sparsity`, or leave layers dense with `exclude`."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        build_masks(weights(), sparsity=0.993, distribution=distribution)


def test_masks_list_the_allowed_names():
    with pytest.raises(ValueError, match=r"`mask` must be one of 'random', 'magnitude'.*; got 'snop'"):
        build_masks(weights(), mask="snop")
    names = "'balanced', 'uniform', 'erk', 'global'"
    for distribution in ("even", ""):
        with pytest.raises(ValueError, match=f"`distribution` must be one of {names}; got '{distribution}'"):
            build_masks(weights(), distribution=distribution)


@pytest.mark.parametrize("sparsity", [90, 1.0, -0.1])
def test_masks_refuse_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=re.escape(f"`sparsity` must be in [0, 1), got {sparsity}.")):
        build_masks(weights(), sparsity=sparsity)


@pytest.mark.parametrize("distribution", NAMES)
def test_masks_refuse_nan_weights(distribution):
    values = weights()
    values["b"][3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"`mask`='magnitude' gave NaN scores for 'b'\. Check that its weights are"):
        build_masks(values, mask="magnitude", distribution=distribution)
    assert build_masks(values)["b"].any()  # random scores do not look at values
