"""Patterns of kept weights: every one against all masks of tiny layers, and its property on real shapes."""

import itertools
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_signin.masks import NM, Blocks, ConstantFanIn, NMCap, build_masks
from lightning_signin.masks.structures import parse_structure
from tests import reference

INF = float("inf")


TINY = [
    ("unstructured", (2, 3)),
    ("1:2", (2, 4)),
    ("2:3", (3, 3)),
    ("2:4", (1, 8)),
    ("2:4", (1, 4, 2)),
    ("3:3", (2, 3)),
    ("1:2-cap", (2, 5)),
    ("1:2-cap", (2, 3, 2)),
    ("2:4-cap", (2, 5)),
    ("2:4-cap", (1, 3, 3)),
    ("1:4-cap", (4, 1, 2)),
    ("2x1-block", (4, 2)),
    ("1x2-block", (2, 2, 2)),
    ("2x2-block", (2, 4)),
    ("2x2-block", (2, 2, 2)),
    ("constant-fan-in", (3, 3)),
    ("constant-fan-in", (2, 2, 2)),
    ("constant-fan-in", (1, 5)),
]
EVERY_TINY_LAYER = pytest.mark.parametrize(("name", "shape"), TINY)


def all_masks(name: str, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
    """All masks of a pattern, as rows of bits, by their counts."""
    fits, found = reference.in_pattern(name), {}
    for bits in itertools.product((False, True), repeat=prod(shape)):
        if fits(np.array(bits).reshape(shape)):
            found.setdefault(sum(bits), []).append(bits)
    return {count: np.array(rows) for count, rows in found.items()}


def random_scores(shape: tuple[int, ...]) -> list[Tensor]:
    """Whole numbers, so that sums are exact: without ties, with many, and all equal."""
    size = prod(shape)
    distinct = [torch.randperm(size) ** 2 for _ in range(8)]
    scores = [*distinct, *(torch.randint(3, (size,)) - 1 for _ in range(8)), torch.ones(size)]
    return [score.double().view(shape) for score in scores]


@EVERY_TINY_LAYER
def test_counts_up_to_the_capacity_are_those_of_the_pattern(name, shape):
    structure = parse_structure(name)
    unit, capacity = structure.unit(shape), structure.capacity(shape)
    assert sorted(all_masks(name, shape)) == list(range(0, capacity + 1, unit))


@EVERY_TINY_LAYER
def test_pick_has_the_highest_sum_of_all_masks_of_the_pattern(name, shape):
    structure, every, fits = parse_structure(name), all_masks(name, shape), reference.in_pattern(name)
    for score in random_scores(shape):
        for count, candidates in every.items():
            mask = structure.pick(score, count)
            assert mask.dtype == torch.bool
            assert mask.shape == shape
            assert int(mask.sum()) == count
            assert fits(mask.numpy())
            assert float(score[mask].sum()) == (candidates * score.numpy().reshape(-1)).sum(1).max()


@EVERY_TINY_LAYER
def test_values_are_the_means_of_the_units_that_are_picked(name, shape):
    structure = parse_structure(name)
    unit = structure.unit(shape)
    for score in random_scores(shape):
        values = structure.values(score).flatten().sort(descending=True).values
        assert len(values) == structure.capacity(shape) // unit
        for number in range(len(values) + 1):
            picked = score[structure.pick(score, number * unit)].sum()
            torch.testing.assert_close(values[:number].double().sum() * unit, picked)


REAL = [
    ("2:4", (64, 48)),
    ("2:4", (32, 16, 3, 3)),
    ("1:8", (16, 32, 5)),
    ("2:4-cap", (64, 50)),
    ("2:4-cap", (32, 7, 3, 3)),
    ("2:4-cap", (96, 1, 7, 7)),  # depthwise
    ("4x4-block", (64, 48)),
    ("8x1-block", (32, 5, 3, 3)),
    ("constant-fan-in", (64, 50)),
    ("constant-fan-in", (32, 7, 3, 3)),
    ("constant-fan-in", (96, 1, 7, 7)),
]


@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
@pytest.mark.parametrize(("name", "shape"), REAL)
def test_picked_masks_are_in_the_pattern(name, shape, density):
    structure, fits = parse_structure(name), reference.in_pattern(name)
    unit, capacity = structure.unit(shape), structure.capacity(shape)
    count = max(int(capacity * density) // unit, 1) * unit
    mask = structure.pick(torch.randn(shape), count)
    assert int(mask.sum()) == count
    assert fits(mask.numpy())


@pytest.mark.parametrize(("name", "shape"), REAL)
def test_picks_of_equal_scores_keep_the_lower_indices_whatever_the_score_is(name, shape):
    structure = parse_structure(name)
    count = structure.capacity(shape) // structure.unit(shape) // 3 * structure.unit(shape)
    expected = structure.pick(torch.zeros(shape), count)
    for score in (-INF, INF, 1.0):
        assert torch.equal(structure.pick(torch.full(shape, score), count), expected)
    half = structure.pick(torch.zeros(shape, dtype=torch.bfloat16), count)
    strided = structure.pick(torch.zeros(shape[::-1]).permute(*reversed(range(len(shape)))), count)
    assert torch.equal(half, expected)
    assert torch.equal(strided, expected)


@pytest.mark.parametrize("score", [0.0, -INF])
@pytest.mark.parametrize(("name", "shape"), [case for case in REAL if ":" in case[0]])
def test_full_picks_of_equal_scores_keep_the_first_of_each_group(name, shape, score):
    structure = parse_structure(name)
    full = structure.pick(torch.full(shape, score), structure.capacity(shape)).movedim(1, -1)
    first = torch.arange(shape[1]) % structure.m < structure.n
    assert torch.equal(full, first.expand(full.shape))


def test_equal_blocks_and_rows_keep_the_first():
    assert Blocks(2, 1).pick(torch.zeros(4, 3), 4).int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert ConstantFanIn().pick(torch.zeros(2, 3), 4).int().tolist() == [[1, 1, 0], [1, 1, 0]]
    assert NM(1, 2).pick(torch.zeros(2, 4), 3).int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 0]]


def test_nm_groups_follow_the_input_channels_at_each_place_of_a_kernel():
    score = torch.zeros(1, 8, 1, 2)
    score[0, [1, 3], 0, 1] = 1.0  # the first group of the second place
    assert NM(2, 4).pick(score, 2).nonzero().tolist() == [[0, 1, 0, 1], [0, 3, 0, 1]]


def test_nm_compares_groups_by_means_that_low_precision_cannot_tell_apart():
    score = torch.tensor([[256.0, 256.0, 256.0, 258.0]], dtype=torch.bfloat16)
    assert NM(2, 2).pick(score, 2).tolist() == [[False, False, True, True]]
    large = torch.full((1, 4), 60000.0, dtype=torch.float16)
    assert NM(2, 2).values(large).tolist() == [60000.0, 60000.0]  # their sum passes the largest float16


def test_values_of_infinite_scores_stay_ordered():
    score = torch.tensor([[-INF, 1.0, 0.0, 0.0], [-INF, -INF, -INF, 3.0]])
    assert NM(1, 2).values(score).tolist() == [1.0, 0.0, -INF, 3.0]
    assert NMCap(1, 2).pick(score, 4).int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]


# A random mask keeps each weight with probability 0.1: of four, at most two with 1 − 4 · 0.1³ · 0.9 − 0.1⁴ = 0.9963.
def test_random_mask_of_a_tenth_has_2_of_4_in_nearly_all_groups():
    mask = build_masks({"w": torch.zeros(1000, 1000)}, sparsity=0.9)["w"]
    met = np.mean([kept <= 2 for kept in reference.groups(mask.numpy(), 4)])
    assert abs(met - 0.9963) < 5 * (0.0037 / 250_000) ** 0.5


# What passes two of four: (0.0036 · 1 + 0.0001 · 2) of 0.4 kept weights a group.
def test_cap_changes_about_one_in_a_hundred_weights_of_a_random_mask_of_a_tenth():
    free, capped = (
        build_masks({"w": torch.zeros(1000, 1000)}, sparsity=0.9, structure=structure)["w"]
        for structure in ("unstructured", "2:4-cap")
    )
    assert int(capped.sum()) == int(free.sum()) == 100_000
    assert max(reference.groups(capped.numpy(), 4)) == 2
    assert abs(int((free & ~capped).sum()) / 100_000 - 0.0095) < 0.0015
