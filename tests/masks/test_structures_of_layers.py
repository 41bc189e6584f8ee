"""Structures by name or as objects, on layers that they fit and on layers that they do not."""

import re
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_signin import SignInError, masks, sparsify
from lightning_signin.core.layout import Layout
from lightning_signin.masks import NM, Blocks, ConstantFanIn, NMCap, Unstructured, build_masks
from lightning_signin.masks.structures import Structure, parse_structure
from tests import reference


def test_transposed_convolution_has_its_inputs_in_the_first_dimension():
    net = nn.ConvTranspose2d(8, 6, 3)
    for name in ("2:4", "2:4-cap", "2x8-block", "constant-fan-in"):
        kept = build_masks({"w": net.weight}, sparsity=2 / 3, structure=name, layouts={"w": Layout("io")})["w"]
        assert kept.shape == (8, 6, 3, 3)
        assert int(kept.sum()) == 144
        assert reference.in_pattern(name)(kept.transpose(0, 1).numpy())
    sparsify(net, sparsity=0.75, structure="2:4")
    assert set(reference.groups(masks(net)["weight"].transpose(0, 1).numpy(), 4)) <= {0, 2}
    with pytest.raises(ValueError, match=r"weight of shape \(8, 6, 3, 3\): groups of 6 do not divide its 8 inputs"):
        sparsify(nn.ConvTranspose2d(8, 6, 3), structure="2:6")


def test_grouped_convolution_counts_inputs_of_its_group():
    net = sparsify(nn.Conv2d(8, 8, 3, groups=2), sparsity=0.5, structure="2:4")
    assert reference.groups(masks(net)["weight"].numpy(), 4) == [2] * 72
    with pytest.raises(ValueError, match="groups of 4 do not divide its 1 inputs"):
        sparsify(nn.Conv2d(8, 8, 3, groups=8), structure="2:4")


MISFITS = [
    ("2:4", (64, 3, 7, 7), "groups of 4 do not divide its 3 inputs"),
    ("4x4-block", (64, 3, 7, 7), "blocks of 4 do not divide its 3 inputs"),
    ("4x4-block", (10, 64), "blocks of 4 do not divide its 10 outputs"),
]


@pytest.mark.parametrize(("name", "shape", "reason"), MISFITS)
def test_structure_that_does_not_fit_names_the_layer_and_the_ways_out(name, shape, reason):
    weights = {"first.weight": torch.randn(shape), "fc.weight": torch.randn(64, 64)}
    text = (
        f"`structure` does not fit first.weight of shape {shape}: {reason}. Leave them out with "
        "exclude=['first.weight'], or choose another structure: structure={'first.weight': 'unstructured', '*': …}."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        build_masks(weights, structure=name)
    built = build_masks(weights, structure={"first.weight": "unstructured", "*": name})
    assert reference.in_pattern(name)(built["fc.weight"].numpy())


@pytest.mark.parametrize(
    ("name", "kind", "attributes"),
    [
        ("unstructured", Unstructured, {}),
        ("constant-fan-in", ConstantFanIn, {}),
        ("2:4", NM, {"n": 2, "m": 4}),
        ("16:32", NM, {"n": 16, "m": 32}),
        ("1:4-cap", NMCap, {"n": 1, "m": 4}),
        ("16x8-block", Blocks, {"block": (16, 8)}),
    ],
)
def test_parse_structure_reads_names(name, kind, attributes):
    structure = parse_structure(name)
    assert type(structure) is kind
    assert vars(structure) == attributes
    assert parse_structure(structure) is structure


@pytest.mark.parametrize("name", ["", "2:4 ", "2:4-caps", "4x4", "x4-block", "2:-4", "Unstructured", None, 124, Blocks])
def test_parse_structure_lists_the_names(name):
    names = "'unstructured', 'n:m' (e.g. '2:4'), 'n:m-cap' (e.g. '2:4-cap'), 'axb-block' (e.g. '4x4-block'), 'constant"
    with pytest.raises(ValueError, match=re.escape(f"`structure` must be {names}") + ".*got " + re.escape(repr(name))):
        parse_structure(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("5:4", "`structure` '5:4' must keep 1 to 4 of each 4 weights"),
        ("0:4-cap", "`n` must be a whole number of at least 1, got 0. It is that of the structure '0:4'."),
        ("0:0", "`n` must be a whole number of at least 1, got 0"),
        (
            "0x4-block",
            "`outputs` must be a whole number of at least 1, got 0. It is that of the structure '0x4-block'.",
        ),
        ("4x0-block", "`inputs` must be a whole number of at least 1, got 0. It is that of the structure '4x0-block'."),
    ],
)
def test_parse_structure_refuses_empty_patterns(name, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_structure(name)


@pytest.mark.parametrize("value", [True, 2.0, "2", None])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("make", [NM, NMCap, Blocks])
def test_sizes_of_patterns_are_whole_numbers(make, place, value):
    sizes = [2, 2]
    sizes[place] = value
    with pytest.raises(SignInError, match=re.escape(f"must be a whole number of at least 1, got {value!r}")):
        make(*sizes)


def test_sizes_of_patterns_may_be_numbers_of_numpy():
    assert type(NM(np.int64(2), np.int64(4)).n) is int


class Outputs:
    """Whole outputs: a structure of a user."""

    def unit(self, shape: tuple[int, ...]) -> int:
        return prod(shape[1:])

    def capacity(self, shape: tuple[int, ...]) -> int:
        return prod(shape)

    def values(self, score: Tensor) -> Tensor:
        return score.flatten(1).mean(1)

    def pick(self, score: Tensor, count: int) -> Tensor:
        chosen = reference.top(self.values(score).tolist(), count // self.unit(tuple(score.shape)))
        return torch.stack([torch.full(row.shape, i in chosen) for i, row in enumerate(score)])


@pytest.mark.parametrize("distribution", ["balanced", "uniform", "erk", "global"])
def test_structure_of_a_user_is_taken(distribution):
    structure: Structure = Outputs()
    weights = {"a": torch.randn(10, 4), "b": torch.randn(8, 5, 3)}
    built = build_masks(weights, sparsity=0.5, mask="magnitude", distribution=distribution, structure={"*": structure})
    kept = [int(mask.sum()) for mask in built.values()]
    assert sum(kept) == 80
    for name, mask in built.items():
        rows = mask.flatten(1)
        assert torch.equal(rows.all(1), rows.any(1))
        magnitudes = weights[name].abs().flatten(1).mean(1)
        assert magnitudes[rows.all(1)].min() > magnitudes[~rows.any(1)].max()
