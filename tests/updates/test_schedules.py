"""When masks change, and how strongly: against the papers' formulas, walked through step by step."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_signin import MaskUpdates, plain_view, sparsify
from lightning_signin.errors import SignInError
from lightning_signin.updates import (
    ACDC,
    GMP,
    MEST,
    SET,
    Constant,
    Cosine,
    Cubic,
    Once,
    OneShot,
    Phases,
    RigL,
    Schedule,
    SRigL,
    Stages,
)
from lightning_signin.updates.schedule import passed
from tests.update_references import acdc_starts

TOTALS = [1, 2, 3, 7, 10, 39, 40, 97, 100, 160, 399, 1000, 1001]
EVERY = [1, 2, 3, 7, 40]
UNTIL = ["0.05", "0.3", "0.5", "0.75", "0.9", "1"]


def share(text: str, total: int) -> int:
    """A share of a run in whole steps, half to even."""
    whole, rest = divmod(Fraction(text) * total, 1)
    return int(whole) + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1))


CASES = [(total, every, until) for total in TOTALS for every in EVERY for until in UNTIL]
PERIODIC = pytest.mark.parametrize(("total", "every", "until"), CASES)


@PERIODIC
def test_constant_is_that_of_set(total, every, until):
    schedule = Constant(every, float(until))
    end = share(until, total)
    assert list(schedule.steps(total)) == [step for step in range(1, total + 1) if step % every == 0 and step < end]
    assert all(schedule.amount(step, total) == 1 for step in schedule.steps(total))


@PERIODIC
def test_cosine_is_that_of_rigl(total, every, until):
    schedule, alpha = Cosine(every, float(until)), 0.3
    end = share(until, total)
    steps = list(schedule.steps(total))
    assert steps == [step for step in range(total) if step % every == 0 and step < end]
    expected = [alpha / 2 * (1 + math.cos(math.pi * step / end)) for step in steps]
    assert [alpha * schedule.amount(step, total) for step in steps] == expected


@PERIODIC
def test_stages_are_those_of_mest(total, every, until):
    if Fraction(until) <= Fraction(3, 4):
        with pytest.raises(SignInError, match=r"`until` must be above 0\.75"):
            Stages(every, float(until))
        return
    schedule, mutation = Stages(every, float(until)), 0.05
    steps = list(schedule.steps(total))
    assert steps == list(Constant(every, float(until)).steps(total))
    expected = [mutation * (1 if 160 * s < 90 * total else 0.5 if 160 * s < 120 * total else 0) for s in steps]
    assert [mutation * schedule.amount(step, total) for step in steps] == expected


@PERIODIC
@pytest.mark.parametrize("since", ["0", "0.05", "0.25"])
def test_cubic_is_that_of_gmp(total, every, until, since):
    if Fraction(since) > Fraction(until):
        return
    schedule = Cubic(every, float(until), float(since))
    first, last = share(since, total), min(share(until, total), total - 1)
    steps = list(schedule.steps(total))
    assert steps == [step for step in range(first, last + 1) if (step - first) % every == 0]
    for initial, final in ((0.0, 0.9), (0.2, 0.7)):
        gmp = GMP(schedule, initial)
        for step in steps:  # S_f + (S_i − S_f) (1 − (t − t₀) / (n Δt))³
            left = (steps[-1] - step) / max(steps[-1] - steps[0], 1)
            assert gmp.sparsity(final, schedule.amount(step, total)) == final + (initial - final) * left**3
            assert len(steps) == 1 or left == pytest.approx(1 - (step - first) / (steps[-1] - first))


@pytest.mark.parametrize("total", [4, 5, 7, 13, 20, 37, 40, 80, 100, 160, 391, 400, 1000])
@pytest.mark.parametrize(
    "shares",
    [
        ("0.1", "0.05", "0.1", "0.15"),
        ("0.2", "0.1", "0.2", "0.1"),
        ("0.1", "0.05", "0.1", "0.1"),  # room for an even number of phases
        ("0.1", "0.03", "0.1", "0.1"),  # which phases do not fill
    ],
)
def test_phases_are_those_of_acdc(total, shares):
    schedule, expected = Phases(*map(float, shares)), acdc_starts(total, *shares)
    steps = schedule.steps(total)
    assert list(steps) == list(expected)
    assert [schedule.amount(step, total) for step in steps] == [0.0 if sparse else 1.0 for sparse in expected.values()]


def test_phases_of_the_paper():
    """The configurations of the authors' code, in epochs: ResNet-50 on ImageNet, and WideResNet on CIFAR-100."""
    assert Phases().steps(100) == [*range(10, 80, 5), 85]
    cifar = Phases(warmup=10 / 200, phase=20 / 200, final_dense=20 / 200, final_sparse=30 / 200)
    assert cifar.steps(200) == [*range(10, 170, 20), 170]


@pytest.mark.parametrize("total", [39, 40, 97, 1001])
@pytest.mark.parametrize("phase", [0.01, 0.05, 0.06, 0.1, 0.25])
def test_all_phases_but_the_last_two_have_one_length(total, phase):
    begins = Phases(phase=phase).steps(total)
    assert {later - begin for begin, later in pairwise(begins[:-1])} == {max(round(Fraction(str(phase)) * total), 1)}
    assert begins[-1] - begins[-2] >= max(share("0.1", total), 1)
    assert len(begins) % 2 == 1


@pytest.mark.parametrize(
    ("shares", "total", "least"),
    [((), 1, 4), ((), 3, 4), ((0.3, 0.3, 0.2, 0.2), 3, 4), ((0.5, 0.1, 0.1, 0.3), 2, 8)],
)
def test_a_run_that_is_too_short_for_all_phases_is_told_how_long_to_be(shares, total, least):
    schedule = Phases(*shares)
    with pytest.raises(SignInError, match=rf"fit in {total} .*\. Train longer: at least {least} steps\."):
        ACDC(schedule).check(0.1, total, 1.0)
    ACDC(schedule).check(0.1, least, 1.0)


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("at", ["0", "0.25", "0.5", "0.75", "1"])
def test_once_is_one_step_of_the_run(total, at):
    (step,) = Once(float(at)).steps(total)
    assert step == min(share(at, total), total - 1)
    assert Once(float(at)).amount(step, total) == 1


def test_defaults_are_those_of_the_papers():
    defaults = {SET: Constant(100, 0.75), RigL: Cosine(100, 0.75), SRigL: Cosine(100, 0.75), GMP: Cubic(100, 0.75, 0.0)}
    defaults |= {MEST: Stages(100, 1.0), ACDC: Phases(0.1, 0.05, 0.1, 0.15), OneShot: Once(0.75)}
    for rule, schedule in defaults.items():
        assert rule().schedule == schedule


@pytest.mark.parametrize("seen", [[0, 1, 2, 3, 4, 5, 6], [0, 3, 4, 9], [2, 2, 3], [8]])
def test_every_step_is_noticed_once_even_if_some_are_never_looked_at(seen):
    steps, before, noticed = range(0, 9, 2), -1, 0
    for now in seen:
        new = [step for step in steps if before < step <= now]
        assert passed(steps, before, now) == bool(new)
        noticed, before = noticed + len(new), now
    assert noticed == sum(step <= seen[-1] for step in steps)


class Amounts(Schedule):
    """A schedule with given amounts, one a step."""

    def __init__(self, *amounts: float) -> None:
        self.amounts = amounts

    def steps(self, total):
        return range(len(self.amounts))

    def amount(self, step, total):
        return self.amounts[step]


def run(rule, steps):
    """The masks of a small layer before every step."""
    torch.manual_seed(0)
    net, found = sparsify(nn.Linear(20, 10), sparsity=rule.start_sparsity or 0.5 * (rule.start_sparsity is None)), []
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    updates = MaskUpdates(net, rule, [optimizer], total_steps=steps, sparsity=0.5)
    for _ in range(steps):
        updates.before_batch()
        optimizer.zero_grad()
        net(torch.randn(8, 20)).square().sum().backward()
        updates.before_step(optimizer)
        optimizer.step()
        found.append(next(iter(updates.weights.values())).storage.mask.clone())
    updates.close()
    return found


@pytest.mark.parametrize("make", [SET, RigL])
def test_any_rule_takes_any_schedule(make):
    """The amount is the share of the drop fraction: of 100 weights 100, 20 and 0 can go."""
    whole, fifth, none = run(make(schedule=Amounts(1.0, 0.2, 0.0), drop_fraction=1.0), 3)
    assert int((whole & ~fifth).sum()) <= 20
    assert not torch.equal(whole, fifth)
    assert torch.equal(fifth, none)


def test_amounts_are_shares_of_the_way_to_the_final_sparsity():
    assert [int(mask.sum()) for mask in run(GMP(schedule=Amounts(1.0, 0.5, 0.25, 0.25)), 4)] == [200, 150, 125, 100]
    assert [int(mask.sum()) for mask in run(ACDC(schedule=Amounts(0.0, 0.5, 0.0)), 3)] == [100, 200, 100]


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
def test_an_amount_out_of_range_is_refused(amount):
    text = rf"`amount` of Amounts\(amounts=\(1.0, {amount}\)\) must be in \[0, 1\], got {amount} at step 1"
    with pytest.raises(SignInError, match=text):
        run(SET(schedule=Amounts(1.0, amount)), 2)
