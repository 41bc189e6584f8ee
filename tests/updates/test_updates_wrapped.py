"""Optimizers in wrappers: mask updates go by the one that is wrapped."""

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from lightning_signin import MaskUpdates, plain_view, sparsify
from lightning_signin.updates import SET, Constant, Cosine, RigL


def wrapped(kind, optimizers):
    """As Fabric gives them, and as ``self.optimizers()`` of a LightningModule does."""
    if kind == "fabric":
        return Fabric(accelerator="cpu").setup_optimizers(*optimizers)
    return [LightningOptimizer(optimizer) for optimizer in optimizers]


@pytest.mark.parametrize("kind", ["fabric", "lightning"])
@pytest.mark.parametrize("first", ["bare", "wrapped"])
@pytest.mark.parametrize("rule", [SET(Constant(3)), RigL(Cosine(3))])
def test_wrapped_optimizers_are_those_that_they_wrap(kind, first, rule):
    """Each counts its own steps, whichever of the two forms is given at the start and whichever at the steps."""
    ends = []
    for given, stepped in (("bare", "bare"), (first, "wrapped"), ("wrapped", "wrapped")):
        torch.manual_seed(0)
        net = sparsify(nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10)), sparsity=0.8)
        with plain_view(net):
            bare = [torch.optim.Adam(layer.parameters(), lr=0.01) for layer in net]
        forms = {"bare": bare, "wrapped": wrapped(kind, bare)}
        updates = MaskUpdates(net, rule, forms[given], total_steps=40)
        for step in range(14):
            updates.before_batch()
            net.zero_grad()
            net(torch.randn(8, 20)).square().mean().backward()
            for place, optimizer in enumerate(forms[stepped]):
                if place == 0 or step % 2 == 0:
                    updates.before_step(optimizer)
                    bare[place].step()
        assert [lane.steps for lane in updates.lanes] == [14, 7]
        ends.append([parameter.detach().clone() for parameter in net.parameters()])
    for end in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], end, strict=True))


def test_an_optimizer_and_its_wrapper_are_one():
    net = sparsify(nn.Linear(20, 10), sparsity=0.8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert len(MaskUpdates(net, "set", [optimizer, LightningOptimizer(optimizer)], total_steps=300).lanes) == 1


def test_another_optimizer_of_the_weights_is_refused_at_its_step():
    net, other = sparsify(nn.Linear(20, 10), sparsity=0.8), nn.Linear(3, 3)
    updates = MaskUpdates(net, "rigl", [torch.optim.SGD(net.parameters(), lr=0.1)], total_steps=300)
    assert not updates.before_step(torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="This SGD trains weight, but it is none of the `optimizers` of the mask upd"):
        updates.before_step(torch.optim.SGD(net.parameters(), lr=0.1))
