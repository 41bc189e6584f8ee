"""The dense gradient is that of the plain network, and goes with the gradients of the factors."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_signin import sparsify
from lightning_signin.core.weights import sparse_weights
from lightning_signin.updates.probe import probe_of

BOTH = pytest.mark.parametrize("storage", ["compact", "dense"])
PARAMETRIZATIONS = pytest.mark.parametrize("parametrization", ["sign-in", "plain"])


def probed(storage: str, parametrization: str = "sign-in"):
    net = sparsify(nn.Linear(6, 5).double(), sparsity=0.6, storage=storage, parametrization=parametrization)
    plain = nn.Linear(6, 5).double()
    plain.load_state_dict(net.state_dict())
    weight = sparse_weights(net)["weight"]
    weight.parametrization.probe = probe_of(weight)
    return net, plain, weight.parametrization.probe


def loss(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (net(x) ** 3).sum()


@BOTH
@PARAMETRIZATIONS
@pytest.mark.parametrize("uses", [1, 3])
def test_dense_gradient_is_that_of_the_plain_network(storage, parametrization, uses):
    net, plain, probe = probed(storage, parametrization)
    for _ in range(2):  # accumulated batches
        x = torch.randn(4, 6, dtype=torch.float64)
        for module in (net, plain):
            sum(loss(module, x + use) for use in range(uses)).backward()
    torch.testing.assert_close(probe.grad, plain.weight.grad, rtol=1e-12, atol=1e-12)


@BOTH
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("after_forward", [True, False])
def test_it_begins_anew_after_zero_grad(storage, set_to_none, after_forward):
    net, plain, probe = probed(storage)
    loss(net, torch.ones(1, 6, dtype=torch.float64)).backward()
    x = torch.randn(4, 6, dtype=torch.float64)
    if not after_forward:
        net.zero_grad(set_to_none)
    found = loss(net, x)
    if after_forward:
        net.zero_grad(set_to_none)
    found.backward()
    loss(plain, x).backward()
    torch.testing.assert_close(probe.grad, plain.weight.grad, rtol=1e-12, atol=1e-12)


@BOTH
def test_frozen_weights_and_evaluation_leave_no_gradient(storage):
    net, _, probe = probed(storage)
    for factor in net.parametrizations.weight.parameters():
        factor.requires_grad_(False)  # as `toggle_optimizer` does with the other optimizers' parameters
    loss(net, torch.randn(4, 6, dtype=torch.float64)).backward()
    with torch.no_grad():
        net(torch.randn(4, 6, dtype=torch.float64))
    assert probe.grad is None


@BOTH
def test_activation_checkpoints_do_not_matter(storage):
    net, plain, probe = probed(storage)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    checkpoint(loss, net, x, use_reentrant=False).backward()
    loss(plain, x).backward()
    torch.testing.assert_close(probe.grad, plain.weight.grad, rtol=1e-12, atol=1e-12)


def test_a_probe_that_is_let_go_is_gone():
    net, _, probe = probed("compact")
    loss(net, torch.randn(4, 6, dtype=torch.float64)).backward()
    alive = weakref.ref(probe)
    sparse_weights(net)["weight"].parametrization.probe = None
    del probe
    assert alive() is None  # without waiting for a garbage collection


def test_probe_changes_no_output():
    net, plain, _ = probed("compact")
    x = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(net(x), plain(x))
