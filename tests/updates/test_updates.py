"""Every update rule against a slow reference: the same drops, grows and optimizer state, update by update."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from lightning_signin import MaskUpdates, masks, plain_view, sparsify
from lightning_signin.core.weights import sparse_weights
from lightning_signin.updates import (
    ACDC,
    GMP,
    MEST,
    SET,
    UPDATES,
    Constant,
    Cosine,
    Cubic,
    Once,
    OneShot,
    Phases,
    RigL,
    SRigL,
    Stages,
    UpdateRule,
)
from tests import update_references as slow
from tests.update_references import Reference

TOTAL, EVERY, SEED, BETA = 80, 2, 7, 1.5


@dataclass
class Row:
    """A rule, and what it does: the masks at an update, given the reference network and the step."""

    rule: UpdateRule
    masks: Callable[[Reference, int], list[Tensor]]
    updates: int
    sparsity: str = "0.7"


def acdc(net: Reference, step: int) -> list[Tensor]:
    sparse = slow.acdc_starts(TOTAL, "0.1", "0.05", "0.1", "0.1")[step]
    return slow.largest_of_all(net, "0.7") if sparse else slow.everything(net)


ROWS = {
    "set": Row(SET(Constant(EVERY)), lambda net, step: slow.set_(net, step, 0.3), 29),
    "rigl": Row(RigL(Cosine(EVERY)), lambda net, step: slow.rigl(net, step, 60, 0.3), 30),
    "rigl, all": Row(RigL(Cosine(EVERY, 1.0), 0.8), lambda net, step: slow.rigl(net, step, 80, 0.8), 40),
    "srigl": Row(SRigL(Cosine(EVERY), 0.5, 0.9), lambda net, step: slow.srigl(net, step, 60, 0.5, 0.9), 30),
    "srigl, no ablation": Row(
        SRigL(Cosine(EVERY), min_salient=0), lambda net, step: slow.srigl(net, step, 60, 0.3, 0.0), 30
    ),
    "mest": Row(MEST(Stages(EVERY)), lambda net, step: slow.mest(net, step, TOTAL, 0.05, True, 1.0), 39),
    "mest, hard": Row(
        MEST(Stages(EVERY), mutation=0.1, soft_memory_bound=False, gradient_weight=3.0),
        lambda net, step: slow.mest(net, step, TOTAL, 0.1, False, 3.0),
        39,
    ),
    "gmp": Row(GMP(Cubic(EVERY)), lambda net, step: slow.gmp(net, step, list(range(0, 61, 2)), "0.7", 0.0), 31),
    "gmp, from 0.2": Row(
        GMP(Cubic(EVERY, 0.9, 0.1), 0.2), lambda net, step: slow.gmp(net, step, list(range(8, 73, 2)), "0.7", 0.2), 33
    ),
    "acdc": Row(ACDC(Phases(0.1, 0.05, 0.1, 0.1)), acdc, 15),
    "one-shot": Row(OneShot(Once(0.5)), lambda net, step: slow.largest_of_all(net, "0.7"), 1),
}
OPTIMIZERS: dict[str, Callable] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 0.01),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, 0.01, momentum=0.5, centered=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, 0.05),
    "Lion": lambda parameters: timm.optim.Lion(parameters, 0.003),
}


def test_every_rule_has_a_row():
    assert {type(row.rule) for row in ROWS.values()} == set(UPDATES.values())


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5)).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 8, generator=generator, dtype=torch.float64)
    return x, (x[:, :5] + 0.3 * torch.randn(16, 5, generator=generator, dtype=torch.float64)).argmax(1)


def sparse_start(rule: UpdateRule, net: nn.Module, **options: object) -> nn.Module:
    dense = rule.start_sparsity is not None
    sparsity = rule.start_sparsity if dense else 0.7
    structure = "unstructured" if dense else rule.structure or "unstructured"
    return sparsify(net, sparsity=sparsity, structure=structure, distribution="uniform", seed=1, **options)


@pytest.mark.parametrize("parametrization", ["sign-in", "plain"])
@pytest.mark.parametrize("storage", ["auto", "dense"])
@pytest.mark.parametrize(("name", "optimizer"), [*((name, "SGD") for name in ROWS), *(("rigl", o) for o in OPTIMIZERS)])
def test_rule_equals_its_slow_reference(name, optimizer, storage, parametrization):
    row, net = ROWS[name], network()
    sparse_start(row.rule, net, storage=storage, parametrization=parametrization, beta=BETA)
    plain = network()
    plain.load_state_dict(net.state_dict())
    expected = Reference(plain, list(masks(net).values()), BETA if parametrization == "sign-in" else None, SEED)
    with plain_view(net):
        real = OPTIMIZERS[optimizer](net.parameters())
    reference_optimizer = OPTIMIZERS[optimizer](expected.parameters)
    updates = MaskUpdates(
        net, row.rule, [real], total_steps=TOTAL, sparsity=float(row.sparsity), storage=storage, seed=SEED
    )
    done = 0
    for step in range(TOTAL):
        due = step in updates.steps
        if due and not row.rule.looks_at_gradients:
            expected.set_masks(row.masks(expected, step), reference_optimizer)
        updates.before_batch()
        x, y = batch(step)
        real.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        expected.backward(x, y)
        if due and row.rule.looks_at_gradients:
            expected.set_masks(row.masks(expected, step), reference_optimizer)
        skipped = updates.before_step(real)
        real.step()
        assert skipped == (due and row.rule.skips_step)
        if not skipped:
            reference_optimizer.step()
        if due:
            done += 1
            assert_equal(net, real, expected, reference_optimizer)
    assert done == row.updates
    assert updates.progress == 1


def assert_equal(net: nn.Module, optimizer: torch.optim.Optimizer, expected: Reference, other: torch.optim.Optimizer):
    parts = zip(sparse_weights(net).values(), expected.masks, expected.factors, strict=True)
    for weight, mask, factors in parts:
        assert torch.equal(weight.storage.mask, mask)
        for own, theirs in zip(weight.factors, factors, strict=True):
            torch.testing.assert_close(weight.storage.unpack(own.detach()), theirs.detach(), rtol=1e-9, atol=1e-12)
            states = optimizer.state[own], other.state[theirs]
            assert states[0].keys() == states[1].keys()
            for key, value in states[1].items():
                here = states[0][key]
                full = isinstance(value, Tensor) and value.shape == theirs.shape
                here = weight.storage.unpack(here) if full else here
                torch.testing.assert_close(here, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "graphs"), [("set", 1), ("rigl", 2)])
def test_a_compiled_step_goes_on_through_updates_of_equal_size(name, graphs):
    """One graph, and for rules that look at gradients a second one for the steps that collect them."""
    torch._dynamo.reset()
    row, net, compiled_graphs = ROWS[name], network(), []
    sparse_start(row.rule, net, storage="compact")
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
    updates = MaskUpdates(net, row.rule, [optimizer], total_steps=TOTAL, storage="compact")

    def backend(graph, _):
        compiled_graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net, backend=backend)
    for step in range(TOTAL):
        updates.before_batch()
        optimizer.zero_grad()
        nn.functional.cross_entropy(compiled(batch(step)[0]), batch(step)[1]).backward()
        updates.before_step(optimizer)
        optimizer.step()
    assert len(compiled_graphs) == graphs


@pytest.mark.parametrize("faster", [0, 1])
def test_rules_without_gradients_go_by_the_optimizer_that_has_taken_the_most_steps(faster):
    net = sparsify(nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10)), sparsity=0.8)
    with plain_view(net):
        optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in net]
    updates = MaskUpdates(net, SET(Constant(10)), optimizers, total_steps=1000)
    before, changed = masks(net), []
    for step in range(1, 46):
        for place, optimizer in enumerate(optimizers):
            if place == faster or step % 3 == 0:
                updates.before_step(optimizer)
        updates.before_batch()
        now = masks(net)
        changed += [step] if any(not torch.equal(now[name], before[name]) for name in now) else []
        assert all(torch.equal(now[name], before[name]) for name in now) == (step not in changed)
        if step in changed:
            assert not any(torch.equal(now[name], before[name]) for name in now)  # all together
        before = now
    assert changed == [10, 20, 30, 40]
