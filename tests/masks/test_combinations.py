"""Every score with every distribution and every structure, on the shapes of real networks: exact counts."""

import warnings
from math import prod

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from lightning_signin.masks import DISTRIBUTIONS, Task, build_masks
from lightning_signin.masks.choice import Choice
from lightning_signin.masks.structures import parse_structure
from tests import reference

STRUCTURES = ["unstructured", "2:4", "1:4-cap", "2:4-cap", "4x4-block", "8x1-block", "constant-fan-in"]


class Recurrent(nn.Module):
    """An LSTM between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.recurrent, self.head = nn.Linear(20, 32), nn.LSTM(32, 64), nn.Linear(64, 88)


MODELS = {
    "resnet18": torchvision.models.resnet18,
    "deit_tiny": lambda: timm.create_model("deit_tiny_patch16_224"),
    "lstm": Recurrent,
}


def shapes_of(model: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        parts = MODELS[model]().named_modules()
    return {f"{n}.weight": tuple(p.weight.shape) for n, p in parts if isinstance(p, nn.Linear | nn.Conv2d)}


def structures_of(shapes: dict[str, tuple[int, ...]], structure: str) -> dict[str, str]:
    """The structure, and none for a first layer that reads three colours."""
    first = next(iter(shapes))
    return {first: "unstructured", "*": structure} if shapes[first][1] == 3 else {"*": structure}


def distance(shapes: dict[str, tuple[int, ...]], structure: dict[str, str], total: int) -> int:
    parsed = {name: parse_structure(structure.get(name, structure["*"])) for name in shapes}
    units = [parsed[name].unit(shape) for name, shape in shapes.items()]
    capacities = [parsed[name].capacity(shape) for name, shape in shapes.items()]
    return reference.distance_of_nearest_sum(units, capacities, total)


def all_equal(task: Task) -> dict[str, Tensor]:
    """A score of a user."""
    return {name: torch.ones_like(weight) for name, weight in task.weights.items()}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("model", MODELS)
def test_counts_of_every_layer_are_exact(model, structure):
    shapes = shapes_of(model)
    wanted = structures_of(shapes, structure)
    structures = {name: parse_structure(wanted.get(name, wanted["*"])) for name in shapes}
    for distribution in DISTRIBUTIONS:
        choice = Choice(shapes, 0.9, distribution, structures)
        assert choice.target == reference.budget("0.9", sum(map(prod, shapes.values())))
        assert abs(sum(choice.counts().values()) - choice.target) == distance(shapes, wanted, choice.target)


@pytest.mark.parametrize("score", ["random", "magnitude", all_equal])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore:distribution='global' would leave")
def test_every_score_distribution_and_structure_combine(model, structure, score):
    shapes = shapes_of(model)
    small = {n: s for n, s in shapes.items() if prod(s) < 75_000 or "blocks.0" in n or n == "head.weight"}
    values = {name: torch.ones(1).expand(shape) for name, shape in small.items()}
    wanted = structures_of(small, structure)
    target = reference.budget("0.9", sum(map(prod, small.values())))
    for distribution in (*DISTRIBUTIONS, "global"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            built = build_masks(values, sparsity=0.9, mask=score, distribution=distribution, structure=wanted)
        off = abs(sum(int(mask.sum()) for mask in built.values()) - target)
        assert off == distance(small, wanted, target)
        assert any("the nearest count" in str(warning.message) for warning in caught) == (off > 0)
        assert all(mask.shape == small[name] and mask.any() for name, mask in built.items())
