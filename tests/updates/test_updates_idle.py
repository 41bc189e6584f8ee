"""Layers without a gradient at an update, and layers with fewer gradients than weights to grow."""

import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_signin import MaskUpdates, masks, plain_view, sparsify
from lightning_signin.updates import MEST, Constant, Cosine, RigL, SRigL, Stages, UpdateRule

STEPS = 12
BOTH = pytest.mark.parametrize("rule", [RigL(Cosine(1, 1.0)), SRigL(Cosine(1, 1.0))], ids=["RigL", "SRigL"])


class Heads(nn.Module):
    """A trunk and two heads, of which a step uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.first, self.second = nn.Linear(20, 16), nn.Linear(16, 8), nn.Linear(16, 8)

    def loss(self, x, step):
        return self.first(self.trunk(x).relu()).square().mean()


class Turns(Heads):
    """The heads take turns."""

    def loss(self, x, step):
        return (self.second if step % 2 else self.first)(self.trunk(x).relu()).square().mean()


class Weightless(Heads):
    """The second head's loss has the weight 0: its gradient is there, and zero."""

    def loss(self, x, step):
        found = self.trunk(x).relu()
        return self.first(found).square().mean() + 0.0 * self.second(found).square().mean()


class Expert(Heads):
    """The second head is an expert that gets the tokens that a gate sends: none."""

    def loss(self, x, step):
        found = self.trunk(x).relu()
        chosen = found[found.sum(1) < 0]
        return self.first(found).square().mean() + self.second(chosen).square().sum()


class Other(Heads):
    """The second head has a gradient of another loss, which `zero_grad` takes away."""

    def loss(self, x, step):
        self.second(x[:, :16]).square().mean().backward()
        self.zero_grad()
        return super().loss(x, step)


def run(net: nn.Module, rule: UpdateRule, average=lambda tensor: tensor, every: int = 1):
    """The masks before every step and at the end, and what was said."""
    structure = rule.structure or "unstructured"
    torch.manual_seed(1)
    sparsify(net, sparsity=0.6, distribution="uniform", structure=structure)
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
    updates = MaskUpdates(net, rule, [optimizer], total_steps=STEPS, sparsity=0.6, average=average)
    found = [masks(net)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(STEPS):
            updates.before_batch()
            optimizer.zero_grad()
            net.loss(torch.randn(32, 20), step).backward()
            updates.before_step(optimizer)
            optimizer.step()
            found.append(masks(net))
    return found, [str(warning.message) for warning in said], updates


@BOTH
@pytest.mark.parametrize("kind", [Heads, Weightless, Expert, Other])
def test_the_mask_of_a_layer_without_gradient_stays_and_it_is_said_once(kind, rule):
    found, said, _ = run(kind(), rule)
    assert all(torch.equal(found[0]["second.weight"], masks["second.weight"]) for masks in found)
    assert not torch.equal(found[0]["first.weight"], found[-1]["first.weight"])
    assert said == [
        f"{type(rule).__name__}: 1 of 3 layers had no gradient at the update of step 0 (second.weight): their masks "
        "stay. (Warned once.) Larger batches may reach them."
    ]


@BOTH
def test_heads_that_take_turns_move_in_turn(rule):
    found, said, _ = run(Turns(), rule)
    for step, (before, after) in enumerate(pairwise(found)):
        idle = "first.weight" if step % 2 else "second.weight"
        assert torch.equal(before[idle], after[idle])
    assert all(not torch.equal(found[0][name], found[-1][name]) for name in found[0])
    assert len(said) == 1


def test_nothing_is_said_where_every_layer_has_a_gradient():
    class All(Heads):
        def loss(self, x, step):
            return super().loss(x, step) + self.second(self.trunk(x).relu()).square().mean()

    assert run(All(), RigL(Cosine(1, 1.0)))[1] == []


def test_an_update_without_any_gradient_waits():
    class Late(Heads):
        def loss(self, x, step):
            return super().loss(x, step) * (0.0 if step < 2 else 1.0)

    found, _, updates = run(Late(), RigL(Cosine(3, 1.0)))
    changed = [
        step for step in range(STEPS) if not torch.equal(found[step]["trunk.weight"], found[step + 1]["trunk.weight"])
    ]
    assert changed[:2] == [2, 3]
    assert updates.progress == 1


@pytest.mark.parametrize("kind", [Heads, Weightless])
@pytest.mark.parametrize("soft", [True, False])
def test_mest_goes_on_without_a_gradient_and_keeps_its_counts(kind, soft):
    found, said, _ = run(kind(), MEST(Stages(1), soft_memory_bound=soft))
    counts = [sum(int(mask.sum()) for mask in masks.values()) for masks in found]
    size = sum(mask.numel() for mask in found[0].values())
    assert said == []
    assert len({tuple(mask["second.weight"].flatten().tolist()) for mask in found}) > 3
    assert counts[0] == counts[-1] == round(0.4 * size)
    assert counts[2] == counts[0] + (round(0.05 * size) if soft else 0)


@pytest.mark.parametrize("without", [True, False])
def test_a_rule_of_the_user_says_whether_it_works_without(without):
    seen = []

    class Own(UpdateRule):
        schedule = Constant(1, 1.0)
        looks_at_gradients, works_without_gradient = True, without

        def masks(self, layers, moment):
            seen.append({name: bool(layer.gradient.any()) for name, layer in layers.items()})
            yield from ()

    run(Heads(), Own())
    used = {"trunk.weight": True, "first.weight": True}
    assert seen == [used | ({"second.weight": False} if without else {})] * (STEPS - 1)


def test_every_rank_averages_every_layer_before_it_decides():
    """What another rank has seen counts: it adds a gradient to a head that this rank did not use."""
    calls, shapes = [], [(16, 20), (8, 16), (8, 16)]

    def average(tensor):
        calls.append(tuple(tensor.shape))
        return tensor + torch.ones_like(tensor)

    found, said, _ = run(Heads(), RigL(Cosine(1, 1.0)), average)
    assert calls == shapes * STEPS
    assert said == []
    assert not torch.equal(found[0]["second.weight"], found[-1]["second.weight"])


@BOTH
def test_weights_are_kept_rather_than_grown_without_a_gradient(rule):
    """Two of six inputs are alive: what is dropped and cannot be replaced by one with a gradient is kept."""
    torch.manual_seed(0)
    net = nn.Linear(6, 10, bias=False)
    sparsify(net, mask={"weight": torch.arange(60).view(10, 6) % 6 >= 3})
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
    updates = MaskUpdates(net, type(rule)(Cosine(1, 1.0), 1.0), [optimizer], total_steps=2, sparsity=0.5)
    theta, before = net.weight.detach().clone(), masks(net)["weight"]
    x = torch.randn(4, 6)
    x[:, 1:5] = 0
    net(x).square().sum().backward()
    updates.before_step(optimizer)
    after = masks(net)["weight"]
    assert int(after.sum()) == 30
    gained, lost = after & ~before, before & ~after
    assert gained[:, 1:].sum() == 0, "only where there is a gradient"
    assert torch.equal(gained[:, 0], torch.ones(10, dtype=torch.bool))
    assert torch.equal(after[:, 5], before[:, 5]), "a weight with a gradient comes back"
    dead = theta.abs()[:, 3:5]
    if rule == RigL(Cosine(1, 1.0)):  # of all those without a gradient the smallest are gone
        assert dead[lost[:, 3:5]].max() < dead[~lost[:, 3:5]].min()
    else:  # of every neuron
        assert torch.equal(lost[:, 3:5], dead == dead.amin(1, keepdim=True))


class Dead(nn.Module):
    """Rows of the one layer and columns of the other without a gradient: dead units."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(20, 16), nn.Linear(16, 8)
        with torch.no_grad():
            self.one.bias[::2] = -100.0

    def loss(self, x, step):
        return F.cross_entropy(self.two(self.one(x).relu()), torch.arange(len(x)) % 8)


@BOTH
def test_dead_units_keep_their_weights(rule):
    found, said, _ = run(Dead(), type(rule)(Cosine(1, 1.0), 1.0))
    dead = found[0]["one.weight"][::2]
    gained = [(m["one.weight"][::2] & ~dead).sum() for m in found]
    assert said == []
    assert not any(gained)
    if not isinstance(rule, SRigL):  # which ablates some
        assert [m["one.weight"].sum() for m in found] == [found[0]["one.weight"].sum()] * len(found)
