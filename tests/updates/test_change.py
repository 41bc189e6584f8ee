"""A new mask for a weight in training: what stays stays bit for bit, what comes starts at zero and can move."""

import pytest
import torch
from torch import Tensor, nn

from lightning_signin import plain_view, sparsify
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.parametrizations import STR
from lightning_signin.updates.change import change_mask_

KINDS = pytest.mark.parametrize("parametrization", ["sign-in", "plain", "spred", "pilot"])
SHAPE = (7, 9)


def trained(parametrization: object = "sign-in", storage: str = "auto", density: float = 0.4, **options: object):
    """One weight and its optimizer after three steps, gradients of a fourth at hand."""
    net = nn.Linear(9, 7)
    sparsify(
        net, mask={"weight": torch.rand(SHAPE) < density}, parametrization=parametrization, storage=storage, **options
    )
    with plain_view(net):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for step in range(4):
        optimizer.zero_grad()
        (net(torch.randn(5, 9)) - 1).square().mean().backward()
        if step < 3:
            optimizer.step()
    return net, sparse_weights(net)["weight"], optimizer


def full(weight: SparseWeight, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Factors, gradients and states, one after the other, in full shape."""
    unpack = weight.storage.unpack
    states = [optimizer.state[factor][key] for factor in weight.factors for key in ("exp_avg", "exp_avg_sq")]
    gradients = [factor.grad for factor in weight.factors]
    return [unpack(value.detach()).clone() for value in (*weight.factors, *gradients, *states)]


@KINDS
@pytest.mark.parametrize("storage", ["compact", "dense", "auto"])
@pytest.mark.parametrize("density", [0.4, 0.2, 0.9, 1.0])
def test_what_stays_keeps_all_and_what_comes_starts_at_zero(parametrization, storage, density):
    net, weight, optimizer = trained(parametrization, storage)
    before, old, parameters = full(weight, optimizer), weight.storage.mask.clone(), list(net.parameters())
    new = torch.rand(SHAPE) < density
    share = change_mask_(weight, new, [optimizer], storage)
    assert torch.equal(weight.storage.mask, new)
    assert share == pytest.approx(1 - (old & new).sum().item() / max(old.sum().item(), new.sum().item()))
    starts = weight.parametrization.grown
    for place, (a, b) in enumerate(zip(before, full(weight, optimizer), strict=True)):
        assert torch.equal(b[old & new], a[old & new])
        assert not b[~new].any()
        come = b[new & ~old]
        assert torch.equal(come, torch.full_like(come, starts[place] if place < len(starts) else 0.0))
    assert not net.weight[new & ~old].any()
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))


@KINDS
def test_weights_that_come_get_a_gradient(parametrization):
    net, weight, optimizer = trained(parametrization)
    old = weight.storage.mask
    change_mask_(weight, ~old, [optimizer])
    optimizer.zero_grad()
    (net(torch.randn(5, 9)) - 1).square().mean().backward()
    optimizer.step()
    assert net.weight[~old].all()


def test_the_same_mask_changes_nothing():
    _, weight, optimizer = trained()
    before = full(weight, optimizer)
    assert change_mask_(weight, weight.storage.mask, [optimizer]) == 0
    assert all(torch.equal(a, b) for a, b in zip(before, full(weight, optimizer), strict=True))


def test_storage_follows_the_density():
    _, weight, optimizer = trained(density=0.4)
    names = [weight.storage.name]
    for density in (0.9, 0.1):
        change_mask_(weight, torch.rand(SHAPE) < density, [optimizer])
        names.append(weight.storage.name)
    assert names == ["compact", "dense", "compact"]


def test_a_mask_of_equal_size_is_changed_in_place():
    """So that a compiled training step is not compiled anew."""
    _, weight, optimizer = trained()
    index, addresses = weight.storage.index, [factor.data_ptr() for factor in weight.factors]
    flat = weight.storage.mask.flatten()
    change_mask_(weight, flat[torch.randperm(63)].view(SHAPE), [optimizer])
    assert weight.storage.index is index
    assert [factor.data_ptr() for factor in weight.factors] == addresses


def test_a_parametrization_without_gradient_at_zero_cannot_grow():
    _, weight, optimizer = trained(STR(s_init=-5.0))
    with pytest.raises(ValueError, match="weight cannot grow weights: its parametrization has no gradient at 0"):
        change_mask_(weight, torch.ones(SHAPE, dtype=torch.bool), [optimizer])
    half = weight.storage.mask & (torch.rand(SHAPE) < 0.5)
    change_mask_(weight, half, [optimizer])
    assert torch.equal(weight.storage.mask, half)


def test_tied_weights_change_together():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    net[1].weight = net[0].weight
    sparsify(net, sparsity=0.5)
    weight = sparse_weights(net)["0.weight"]
    mask = torch.rand(6, 6) < 0.8
    change_mask_(weight, mask)
    assert torch.equal(net[0].weight, net[1].weight)
    assert not net[1].weight[~mask].any()
