"""Copies and pickles of sparse modules: they train and merge as the original does."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from lightning_signin import masks, merge_, rescale_, sparsify
from lightning_signin.core.weights import sparse_weights
from tests.core.test_func import NETWORKS, PARAMETRIZATIONS, STORAGES


def saved_and_loaded(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": saved_and_loaded,
    "pickle of a copy": lambda net: pickle.loads(pickle.dumps(copy.deepcopy(net))),
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


def trained(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The parameters after a few steps and a rescale, and the merged state."""
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    for step in range(4):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        if step == 2:
            rescale_(net)
    factors = [parameter.detach().clone() for parameter in net.parameters()]
    return factors + [value.clone() for value in merge_(net).state_dict().values()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


@EVERY_WAY
@STORAGES
@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_trains_and_merges_as_the_original(name, storage, way):
    make, shape = NETWORKS[name]
    net, x = sparsify(make(), sparsity=0.6, storage=storage), torch.randn(3, *shape)
    net(x).sum().backward()  # a copy is made after a forward, as in the middle of a fit
    twin = WAYS[way](net)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert list(twin.state_dict()) == list(net.state_dict())
    assert equal(list(masks(twin).values()), list(masks(net).values()))
    kept = copy.deepcopy(net.state_dict())
    merged = trained(twin, x)
    assert all(torch.equal(value, kept[key]) for key, value in net.state_dict().items())
    assert equal(merged, trained(net, x))
    assert [type(part) for part in twin.modules()] == [type(part) for part in make().modules()]


@EVERY_WAY
@PARAMETRIZATIONS
def test_a_copy_of_every_parametrization(parametrization, way):
    make, shape = NETWORKS["linear"]
    net, x = sparsify(make(), sparsity=0.6, parametrization=parametrization), torch.randn(3, *shape)
    assert equal(trained(WAYS[way](net), x), trained(net, x))


@EVERY_WAY
def test_copies_of_tied_weights_are_tied(way):
    layers = nn.Linear(4, 4), nn.Linear(4, 4)
    layers[1].weight = layers[0].weight
    twin = WAYS[way](sparsify(nn.Sequential(*layers), sparsity=0.5))
    assert [len(weight.owners) for weight in sparse_weights(twin).values()] == [2]
    assert merge_(twin)[0].weight is twin[1].weight


@EVERY_WAY
def test_copies_keep_what_else_is_parametrized(way):
    layer = sparsify(nn.Linear(4, 4), sparsity=0.5)
    register_parametrization(layer, "bias", nn.Softplus())
    twin, x = WAYS[way](layer), torch.randn(2, 4)
    assert is_parametrized(twin, "bias")
    assert torch.equal(twin(x), layer(x))


def test_a_shallow_copy_shares_the_factors():
    layer, x = sparsify(nn.Linear(4, 4), sparsity=0.5), torch.randn(2, 4)
    twin = copy.copy(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
    assert torch.equal(twin(x), layer(x))


class WithState(nn.Linear):
    """A layer with its own state for pickles."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "note": "kept"}


def test_the_state_of_a_users_layer_is_pickled_by_its_own_method():
    layer = sparsify(WithState(4, 4), sparsity=0.5)
    twin = pickle.loads(pickle.dumps(layer))
    assert twin.note == "kept"
    assert isinstance(twin, WithState)
    assert torch.equal(twin.weight, layer.weight)
