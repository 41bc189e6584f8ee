"""A second parametrization on a sparse weight, and compilers that need plain layers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from lightning_signin import SignInError, merge_, sparsify
from tests.core.test_func import NETWORKS, STORAGES, pair


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


CHAINED = {
    "own": lambda layer: register_parametrization(layer, "weight", Twice()),
    "own, unchecked": lambda layer: register_parametrization(layer, "weight", Twice(), unsafe=True),
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}
EVERY = pytest.mark.parametrize("kind", CHAINED)


@EVERY
@STORAGES
def test_a_second_parametrization_is_refused_and_changes_nothing(kind, storage):
    net = sparsify(nn.Linear(8, 8), sparsity=0.5, storage=storage)
    before, x = copy.deepcopy(net.state_dict()), torch.randn(2, 8)
    own = net(x)
    with pytest.raises(
        ValueError, match=r"A sparse weight takes no second parametrization, got \w+\. Leave the weight"
    ):
        CHAINED[kind](net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(net(x), own)
    assert torch.equal(merge_(net)(x), own)


@EVERY
def test_a_weight_that_has_one_already_is_refused(kind):
    layer = nn.Linear(8, 8)
    CHAINED[kind](layer)
    with pytest.raises(ValueError, match=r"0\.weight is already parametrized \(\w+\)\. Merge or remove that first"):
        sparsify(nn.Sequential(layer), sparsity=0.5)


@EVERY
def test_copies_refuse_too_and_merged_layers_take_one(kind):
    net = sparsify(nn.Linear(8, 8), sparsity=0.5)
    with pytest.raises(ValueError, match="no second parametrization"):
        CHAINED[kind](copy.deepcopy(net))
    CHAINED[kind](merge_(net))
    assert net(torch.randn(2, 8)).shape == (2, 8)


BY_HOOKS = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "random pruning": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "pruning of channels": lambda layer: prune.ln_structured(layer, "weight", 0.5, n=2, dim=0),
    "no pruning": lambda layer: prune.identity(layer, "weight"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("twin", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("kind", BY_HOOKS)
def test_norms_and_pruning_by_hooks_are_refused_and_change_nothing(kind, twin):
    net = twin(sparsify(nn.Linear(8, 8), sparsity=0.5))
    before, x = copy.deepcopy(net.state_dict()), torch.randn(2, 8)
    with pytest.raises(SignInError, match=r"no parameter 'weight.*which work by hooks, do not apply"):
        BY_HOOKS[kind](net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [name for name, _ in merge_(net).named_parameters()] == ["weight", "bias"]
    assert type(vars(net)["_parameters"]) is dict
    BY_HOOKS[kind](net)
    assert net(x).shape == (2, 8)


def test_pruning_of_a_bias_beside_a_sparse_weight():
    net = sparsify(nn.Linear(8, 8), sparsity=0.5)
    prune.l1_unstructured(net, "bias", 4)
    assert int((net.bias == 0).sum()) == 4
    assert net(torch.randn(2, 8)).shape == (2, 8)


@STORAGES
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("gradients", [True, False])
def test_traces_compute_what_the_merged_network_computes(name, storage, gradients):
    net, plain, x = pair(name, storage)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(net, x)
    torch.testing.assert_close(traced(x), plain(x))


@STORAGES
@pytest.mark.parametrize("name", ["linear", "conv", "attention"])
def test_graphs_of_torch_compute_what_the_merged_network_computes(name, storage):
    net, plain, x = pair(name, storage)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), plain(x))
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), plain(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_scripting_is_refused_in_words(name):
    net, plain, x = pair(name)
    with pytest.raises(
        ValueError, match=r"cannot be scripted, .* `torch.jit.script\(merge_\(copy.deepcopy\(module\)\)\)`"
    ):
        torch.jit.script(net)
    torch.testing.assert_close(torch.jit.script(merge_(copy.deepcopy(net)))(x), plain(x))


@STORAGES
def test_a_parametrized_bias_stays_in_the_way_of_a_merge_until_it_is_removed(storage):
    net, x = sparsify(nn.Sequential(nn.Linear(8, 8)), sparsity=0.5, storage=storage), torch.randn(2, 8)
    register_parametrization(net[0], "bias", Twice())
    own = net(x)
    with pytest.raises(SignInError, match=r"bias of a sparse Linear got a parametrization after .* Remove it"):
        merge_(net)
    assert torch.equal(net(x), own)
    remove_parametrizations(net[0], "bias")
    assert torch.equal(merge_(net)(x), own)
    assert list(net.state_dict()) == ["0.weight", "0.bias"]
