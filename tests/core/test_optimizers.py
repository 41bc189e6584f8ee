"""Optimizer state across a rescale, the Frobenius decay, and the optimizers that are refused."""

import copy
import re

import lightning.fabric
import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from timm.optim import Adan, Lion
from torch import nn, optim

from lightning_signin import effective_weights, plain_view, rescale_, sparsify
from lightning_signin.core.optimizers import add_frobenius_decay_, check_optimizers
from lightning_signin.core.weights import SparseWeight, sparse_weights
from tests import reference
from tests.strangers import Lazy, Logged, Whitened

STORAGES = pytest.mark.parametrize("storage", ["compact", "dense"])
CARRIED = {
    "SGD": lambda p: optim.SGD(p, lr=0.0, momentum=0.9),
    "Adam": lambda p: optim.Adam(p, lr=0.0, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, lr=0.0),
    "NAdam": lambda p: optim.NAdam(p, lr=0.0),
    "RAdam": lambda p: optim.RAdam(p, lr=0.0),
    "Lion": lambda p: Lion(p, lr=0.0),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.0, centered=True),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.0),
    "Adan": lambda p: Adan(p, lr=0.0),
    "a subclass of AdamW": lambda p: Logged(p, lr=0.0),
    "one's own": lambda p: Lazy(p, lr=0.0),
    "fused AdamW": lambda p: optim.AdamW(p, lr=0.0, fused=True),
    "foreach SGD": lambda p: optim.SGD(p, lr=0.0, momentum=0.9, foreach=True),
    "in Fabric's wrapper": lambda p: lightning.fabric.Fabric(accelerator="cpu").setup_optimizers(optim.Adam(p, lr=0.0)),
    "in Lightning's wrapper": lambda p: LightningOptimizer(optim.Adam(p, lr=0.0)),
}
NOT_CARRIED = {
    "Adamax": lambda p: optim.Adamax(p),
    "Adadelta": lambda p: optim.Adadelta(p),
    "ASGD": lambda p: optim.ASGD(p),
    "RMSprop": lambda p: optim.RMSprop(p, momentum=0.9),
}


def product(storage: str) -> tuple[nn.Module, SparseWeight]:
    """A sparse layer whose factors have left their scaling."""
    torch.manual_seed(3)
    net = sparsify(nn.Linear(6, 5, bias=False).double(), sparsity=0.6, storage=storage)
    weight = sparse_weights(net)["weight"]
    weight.set_factors([factor * (1 + torch.rand_like(factor)) for factor in weight.factors])
    return net, weight


def step(weight: SparseWeight, optimizer: optim.Optimizer, gradients: list[torch.Tensor]) -> None:
    """Steps with these θ-gradients; a LightningOptimizer needs a Trainer for its own."""
    optimizer = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
    for gradient in gradients:
        optimizer.zero_grad()
        (weight.holder() * gradient).sum().backward()
        optimizer.step()


def tensors(weight: SparseWeight, optimizer: optim.Optimizer) -> dict[tuple[int, str], torch.Tensor]:
    return {
        (i, key): value.clone()
        for i, factor in enumerate(weight.factors)
        for key, value in optimizer.state[factor].items()
        if isinstance(value, torch.Tensor) and value.shape == factor.shape
    }


def random_gradients(count: int = 4) -> list[torch.Tensor]:
    return list(torch.randn(count, 5, 6, dtype=torch.float64))


@STORAGES
@pytest.mark.parametrize("name", CARRIED)
def test_carry_equals_replaying_the_gradients_at_the_new_factors(name, storage):
    net, weight = product(storage)
    twin = copy.deepcopy(net)
    its = sparse_weights(rescale_(twin))["weight"]
    mine, replayed = CARRIED[name](net.parameters()), CARRIED[name](twin.parameters())
    gradients = random_gradients()
    step(weight, mine, gradients)
    step(its, replayed, gradients)
    rescale_(net, optimizers=[mine], momentum="carry")
    carried, expected = tensors(weight, mine), tensors(its, replayed)
    assert carried.keys() == expected.keys()
    assert carried
    for key, value in carried.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-16)


@STORAGES
def test_carry_gives_momentum_its_closed_form(storage):
    net, weight = product(storage)
    optimizer, gradients = CARRIED["SGD"](net.parameters()), random_gradients()
    step(weight, optimizer, gradients)
    rescale_(net, optimizers=[optimizer], momentum="carry")
    m, w = weight.factors
    total = weight.storage.pack(reference.decayed_sum(gradients, 0.9))
    torch.testing.assert_close(optimizer.state[m]["momentum_buffer"], total * w.detach())
    torch.testing.assert_close(optimizer.state[w]["momentum_buffer"], total * m.detach())


@pytest.mark.parametrize("name", [*CARRIED, *NOT_CARRIED])
def test_keep_changes_no_state(name):
    net, weight = product("compact")
    optimizer = (NOT_CARRIED | CARRIED)[name](net.parameters())
    step(weight, optimizer, random_gradients())
    before = tensors(weight, optimizer)
    rescale_(net, optimizers=[optimizer])
    assert all(torch.equal(value, before[key]) for key, value in tensors(weight, optimizer).items())


@pytest.mark.parametrize("name", ["SGD", "Adam", "Lion", "RMSprop", "Adagrad"])
def test_clear_zeroes_averages_of_gradients_only(name):
    net, weight = product("compact")
    optimizer = CARRIED[name](net.parameters())
    step(weight, optimizer, random_gradients())
    before = tensors(weight, optimizer)
    rescale_(net, optimizers=[optimizer], momentum="clear")
    for (i, key), value in tensors(weight, optimizer).items():
        cleared = key in ("momentum_buffer", "exp_avg", "grad_avg")
        assert torch.equal(value, torch.zeros_like(value) if cleared else before[i, key]), key


@pytest.mark.parametrize("momentum", ["carry", "clear"])
@pytest.mark.parametrize("name", NOT_CARRIED)
def test_unknown_state_is_refused_before_anything_changes(name, momentum):
    net, weight = product("compact")
    optimizer = NOT_CARRIED[name](net.parameters())
    step(weight, optimizer, random_gradients())
    before = copy.deepcopy(weight.factors)
    with pytest.raises(ValueError, match=rf"no rule for the state \['.*'\] of {name}\. Use momentum='keep' "):
        rescale_(net, optimizers=[optimizer], momentum=momentum)
    assert all(torch.equal(a, b) for a, b in zip(before, weight.factors, strict=True))


@pytest.mark.parametrize("momentum", ["carry", "clear"])
def test_rescale_skips_optimizers_without_state_for_a_weight(momentum):
    net, _ = product("compact")
    other = nn.Linear(3, 3)
    rescale_(net, optimizers=[optim.SGD(net.parameters()), optim.Rprop(other.parameters())], momentum=momentum)


def test_rescale_lists_the_allowed_momenta():
    with pytest.raises(ValueError, match="`momentum` must be one of 'keep', 'carry', 'clear'; got 'drop'"):
        rescale_(product("compact")[0], momentum="drop")


@STORAGES
@pytest.mark.parametrize("parametrization", ["sign-in", "plain"])
def test_frobenius_decay_is_the_gradient_of_half_the_squared_norm(storage, parametrization):
    net = sparsify(nn.Linear(6, 5).double(), sparsity=0.6, storage=storage, parametrization=parametrization)
    x = torch.randn(3, 6, dtype=torch.float64)
    (net(x).square().sum() + 0.3 / 2 * net.weight.square().sum()).backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    net(x).square().sum().backward()
    add_frobenius_decay_(sparse_weights(net).values(), 0.3, net.parameters())
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-13, atol=1e-15)


def test_frobenius_decay_leaves_other_parameters_alone():
    net = sparsify(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), sparsity=0.5)
    add_frobenius_decay_(sparse_weights(net).values(), 1.0, net.parameters())
    assert all(parameter.grad is None for parameter in net.parameters())
    net(torch.ones(1, 4)).sum().backward()
    before = [parameter.grad.clone() for parameter in net.parameters()]
    add_frobenius_decay_(sparse_weights(net).values(), 1.0, net[0].parameters())
    changed = [not torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True)]
    assert changed == [False, True, True, False, False, False]  # of each layer bias, m, w


def test_a_weight_in_no_optimizer_is_refused_if_its_mask_moves():
    net = sparsify(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), sparsity=0.5)
    weights = sparse_weights(net).values()
    check_optimizers(weights, [optim.SGD(net[0].parameters())], moving=False)
    with pytest.raises(ValueError, match=r"1\.weight is in no optimizer, and its mask moves: what it grows"):
        check_optimizers(weights, [optim.SGD(net[0].parameters())], moving=True)
    check_optimizers(weights, [optim.SGD(net[0].parameters()), optim.Adam(net[1].parameters())], moving=True)
    net[1].requires_grad_(False)
    check_optimizers(weights, [optim.SGD(net[0].parameters())], moving=True)


def test_an_optimizer_that_mixes_entries_may_train_a_weight_without_zeros():
    net = sparsify(nn.Linear(4, 4), sparsity=0.0, storage="dense")
    optimizer = type("Muon", (Whitened,), {})(net.parameters())
    check_optimizers(sparse_weights(net).values(), [optimizer], moving=False)
    with pytest.raises(ValueError, match="Muon mixes the entries of a weight"):
        check_optimizers(sparse_weights(net).values(), [optimizer], moving=True)


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason="torch < 2.9 has no Muon")
@STORAGES
def test_muon_is_refused(storage):
    net = sparsify(nn.Linear(4, 4, bias=False), sparsity=0.5, storage=storage)
    text = "Muon mixes the entries of a weight, which would fill the zeros of weight"
    # While it is built: later its own constructor would refuse compact factors, which are vectors, in other words.
    with pytest.raises(ValueError, match=text), plain_view(net):
        optim.Muon([parameter for parameter in net.parameters() if parameter.ndim == 2])
    assert next(name for name, _ in net.named_parameters()).startswith("parametrizations")


def test_an_optimizer_of_ones_own_that_mixes_entries_is_found_by_its_steps():
    """With dense storage it sees the shape that it needs, and θ is masked whatever it writes."""
    net = sparsify(nn.Linear(4, 4), sparsity=0.5, storage="dense")
    check_optimizers(sparse_weights(net).values(), [Whitened(net.parameters())], moving=False)
    net = sparsify(nn.Linear(4, 4), sparsity=0.5, storage="compact")
    with pytest.raises(ValueError, match="The update of Whitened depends on the shape of a weight"):
        check_optimizers(sparse_weights(net).values(), [Whitened(net.parameters())], moving=False)
    check_optimizers(sparse_weights(net).values(), [Lazy(net.parameters())], moving=False)


def test_adafactor_is_refused_with_compact_storage_only():
    text = (
        "The update of Adafactor depends on the shape of a weight, and weight is stored as a vector of its non-zeros. "
        "Pass storage='dense', or use an elementwise optimizer"
    )
    net = sparsify(nn.Linear(4, 4), sparsity=0.5, storage="compact")
    with pytest.raises(ValueError, match=re.escape(text)):
        check_optimizers(sparse_weights(net).values(), [optim.Adafactor(net.parameters())], moving=False)
    net = sparsify(nn.Linear(6, 5, bias=False).double(), sparsity=0.8, storage="dense")
    weight, start = sparse_weights(net)["weight"], effective_weights(net)["weight"]
    optimizer = optim.Adafactor(net.parameters(), weight_decay=0.1)
    check_optimizers([weight], [optimizer], moving=False)
    step(weight, optimizer, random_gradients(10))
    assert not torch.equal(weight.effective(), start)
    assert all(factor[~weight.storage.mask].eq(0).all() and factor.isfinite().all() for factor in weight.factors)
