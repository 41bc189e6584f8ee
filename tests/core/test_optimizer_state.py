"""Which optimizers can follow a mask that moves: each is asked, and the answer is tried."""

import inspect

import pytest
import timm.optim
import torch
from torch import nn

from lightning_signin import MaskUpdates, plain_view, rescale_, sparsify
from lightning_signin.core.optimizer_state import check_movable
from lightning_signin.core.weights import sparse_weights
from lightning_signin.updates import SET, Constant
from tests.strangers import FTRL, SAM, Lookahead, Prodigy, ScheduleFree

TORCH = [kind for kind in vars(torch.optim).values() if inspect.isclass(kind) and kind is not torch.optim.Optimizer]
TIMM = [name for name in timm.optim.list_optimizers() if not name.startswith(("fused", "bnb"))]
REFUSED = {
    "Adafactor": "its state .* has another shape than the parameter",
    "ASGD": "its state 'ax' starts from 1 and not from 0",
    "Rprop": "its state 'step_size' starts from 0.01 and not from 0",
    "LBFGS": "its step fails on a small parameter",
    "SparseAdam": "its step fails on a small parameter",
}


def small(storage: str = "compact") -> nn.Module:
    return sparsify(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), sparsity=0.5, storage=storage)


def built(kind: type, storage: str = "compact", **options: object) -> torch.optim.Optimizer:
    net = small(storage)
    with plain_view(net):
        return kind(net.parameters(), **{"lr": 0.01, **options})


@pytest.mark.parametrize("kind", [kind for kind in TORCH if kind.__name__ != "Muon"], ids=lambda kind: kind.__name__)
def test_verdict_on_every_optimizer_of_torch(kind):
    name = kind.__name__
    if name == "Adafactor":  # it is refused earlier, in compact storage
        with pytest.raises(ValueError, match="depends on the shape of a weight"):
            built(kind)
    optimizer = built(kind, storage="dense" if name == "Adafactor" else "compact")
    if name in REFUSED:
        with pytest.raises(ValueError, match=f"{name} cannot follow a mask that moves: {REFUSED[name]}"):
            check_movable([optimizer], ndim=2 if name == "Adafactor" else 1)
        return
    check_movable([optimizer])
    assert not optimizer.state or name == "Adagrad"  # nothing is left behind


@pytest.mark.parametrize("name", TIMM)
def test_accepted_optimizers_keep_masked_entries_at_zero(name):
    """What is accepted trains through twelve updates in dense storage without filling a masked entry."""
    net = small("dense")
    try:
        with plain_view(net):
            optimizer = timm.optim.create_optimizer_v2(net, opt=name, lr=0.01)
        updates = MaskUpdates(net, SET(Constant(2)), [optimizer], total_steps=40, storage="dense")
    except ValueError as error:
        assert "cannot follow a mask" in str(error) or "mixes the entries" in str(error)  # noqa: PT017
        return
    for _ in range(24):
        updates.before_batch()
        optimizer.zero_grad()
        net(torch.randn(4, 6)).square().sum().backward()
        updates.before_step(optimizer)
        optimizer.step()
    for weight in sparse_weights(net).values():
        masked = ~weight.storage.mask
        assert not any(factor[masked].any() for factor in weight.factors)
        assert weight.effective().isfinite().all()


def test_adafactor_is_refused_where_its_rows_and_columns_would_stay_behind():
    net = small("dense")
    with plain_view(net):
        optimizer = torch.optim.Adafactor(net.parameters())
    with pytest.raises(
        ValueError, match="Adafactor cannot follow a mask that moves: its state 'row_var' has another s"
    ):
        MaskUpdates(net, SET(Constant(2)), [optimizer], total_steps=40, storage="dense")


class Outer(torch.optim.Optimizer):
    """Hands its steps on to the optimizer that it wraps."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure=None):
        self.inner.step(closure)


COPIES = {
    "timm's Lookahead": lambda p: timm.optim.Lookahead(torch.optim.SGD(p, 0.1)),
    "Lookahead": lambda p: Lookahead(torch.optim.Adam(p, 0.1)),
    "MADGRAD": lambda p: timm.optim.MADGRAD(p, lr=0.1),
    "ScheduleFree": ScheduleFree,
    "Prodigy": Prodigy,
    "FTRL": FTRL,
    "SAM": lambda p: SAM(p, lr=0.1),
}


@pytest.mark.parametrize("name", COPIES)
def test_optimizers_with_copies_of_the_parameters_are_refused(name):
    net = small()
    with plain_view(net):
        optimizer = COPIES[name](list(net.parameters()))
    with pytest.raises(ValueError, match="cannot follow a mask that moves: its ") as raised:
        MaskUpdates(net, SET(Constant(2)), [optimizer], total_steps=40)
    assert name.split()[-1] in str(raised.value)


def test_state_inside_a_wrapper_moves_with_the_mask():
    moved = []
    for wrap in (lambda optimizer: optimizer, Outer, lambda optimizer: Outer(Outer(optimizer))):
        torch.manual_seed(0)
        net = small()
        with plain_view(net):
            inner = torch.optim.Adam(net.parameters(), 0.01)
        optimizer = wrap(inner)
        updates = MaskUpdates(net, SET(Constant(2)), [optimizer], total_steps=40)
        for _ in range(9):
            updates.before_batch()
            optimizer.zero_grad()
            net(torch.linspace(-1, 1, 24).view(4, 6)).square().sum().backward()
            updates.before_step(optimizer)
            optimizer.step()
        assert updates.mask_change
        moved.append([p.detach().clone() for p in net.parameters()] + [s["exp_avg"] for s in inner.state.values()])
    for other in moved[1:]:
        assert all(torch.equal(a, b) for a, b in zip(moved[0], other, strict=True))


def test_asking_changes_nothing_and_calls_no_hook():
    optimizer = built(torch.optim.Adam, weight_decay=0.1)
    optimizer.register_step_pre_hook(lambda *_: pytest.fail("the user's hook was called"))
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    random = torch.get_rng_state()
    before = [parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]]
    check_movable([optimizer])
    check_movable([Outer(optimizer)])  # the schedule has replaced `step` on the instance that it wraps
    assert torch.equal(random, torch.get_rng_state())
    after = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not optimizer.state
    assert schedule.last_epoch == 0


def test_trials_leave_counters_in_groups_as_they_are():
    net = small()
    with plain_view(net):
        optimizer = timm.optim.Lamb(net.parameters())
    optimizer.zero_grad()
    net(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    check_movable([optimizer])
    rescale_(net, optimizers=[optimizer], momentum="carry")
    assert optimizer.param_groups[0]["step"] == 1  # a tensor
