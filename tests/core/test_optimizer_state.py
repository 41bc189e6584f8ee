"""Which optimizers can follow a mask that moves: each is asked, and the answer is tried."""

import inspect

import pytest
import timm.optim
import torch
from torch import nn

from lightning_signin import MaskUpdates, plain_view, sparsify
from lightning_signin.core.optimizer_state import check_movable
from lightning_signin.core.weights import sparse_weights
from lightning_signin.updates import SET

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
        updates = MaskUpdates(net, SET(2), [optimizer], total_steps=40, storage="dense")
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
        MaskUpdates(net, SET(2), [optimizer], total_steps=40, storage="dense")


def test_an_optimizer_that_wraps_another_is_refused():
    class Wrapped(torch.optim.SGD):
        def __init__(self, parameters, **options):
            super().__init__(parameters, **options)
            self.base = torch.optim.Adam(self.param_groups[0]["params"])

    with pytest.raises(ValueError, match=r"Wrapped cannot follow a mask that moves: it wraps Adam.*Use SGD, Adam"):
        check_movable([built(Wrapped)])


def test_asking_changes_nothing_and_calls_no_hook():
    optimizer = built(torch.optim.Adam, weight_decay=0.1)
    optimizer.register_step_pre_hook(lambda *_: pytest.fail("the user's hook was called"))
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    before = [parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]]
    check_movable([optimizer])
    after = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not optimizer.state
    assert schedule.last_epoch == 0
