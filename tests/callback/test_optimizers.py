"""Optimizers in a fit, judged by what they do: subclasses as their bases, and those with copies refused in time."""

import pytest
import timm.optim
import torch
from torch import optim

from lightning_signin import SignInError
from tests.small import Small, callback, copies, differing, loader, seeded, trainer
from tests.strangers import FTRL, Lasso, Logged, Lookahead, Prodigy, ScheduleFree


class With(Small):
    """Trained by any optimizer."""

    make = None
    steps = 0

    def configure_optimizers(self):
        return type(self).make(self.parameters())

    def on_train_batch_start(self, *_):
        self.steps += 1


def fit(make, **options):
    kind = type("With", (With,), {"make": staticmethod(make)})
    module = seeded(kind=kind)
    trainer(callback(**options), epochs=3, limit_train_batches=3).fit(module, loader())
    return module


class Renamed(optim.SGD):
    """Calls the step of its base, around which torch runs the hooks again."""

    def step(self, closure=None):
        return super().step(closure)


class Clipping(optim.AdamW):
    """Does something of its own before each step of its base."""

    def step(self, closure=None):
        self.steps = getattr(self, "steps", 0) + 1
        return super().step(closure)


SAME = {
    "a subclass with nothing else": (Logged, optim.AdamW, {}),
    "a step that calls that of its base": (Renamed, optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "a step with something of its own": (Clipping, optim.AdamW, {"amsgrad": True}),
    "a name of another optimizer": (type("Lookahead", (optim.NAdam,), {}), optim.NAdam, {}),
}


@pytest.mark.parametrize("momentum", ["carry", "clear"])
@pytest.mark.parametrize("name", SAME)
def test_a_subclass_trains_as_its_base_with_rescales(name, momentum):
    kind, base, options = SAME[name]
    base([torch.zeros(1)])  # torch gives hooks to a class with its first instance
    ends = [copies(fit(lambda p, o=o: o(p, lr=0.01, **options), rescale_momentum=momentum)) for o in (kind, base)]
    assert differing(*ends) == []


FORMS = {
    "SGD": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.05}),
    "Adam": (optim.Adam, {"lr": 0.01, "weight_decay": 0.05}),
    "AdamW": (optim.AdamW, {"lr": 0.01}),
    "Adagrad": (optim.Adagrad, {"lr": 0.05}),
}


@pytest.mark.parametrize("form", ["foreach", "fused"])
@pytest.mark.parametrize("name", FORMS)
def test_forms_of_an_optimizer_train_alike(name, form):
    kind, options = FORMS[name]
    ends = [copies(fit(lambda p, more=more: kind(p, **options, **more))) for more in ({"foreach": False}, {form: True})]
    for key, value in ends[0].items():
        if key in ("conv.bias", "norm.running_mean"):  # before BatchNorm its gradient is rounding, which Adam enlarges
            continue
        torch.testing.assert_close(ends[1][key], value, rtol=1e-3, atol=1e-5)


class ClosingScheduleFree(ScheduleFree):
    def step(self, closure=None):
        self.train()
        with torch.enable_grad():
            loss = None if closure is None else closure()
        super().step()
        return loss


def closing(kind):
    """With a step that calls its closure first, as Lightning needs it."""

    class Closing(kind):
        def step(self, closure=None):
            with torch.enable_grad():
                loss = None if closure is None else closure()
            super().step()
            return loss

    Closing.__name__ = kind.__name__
    return Closing


WITH_COPIES = {
    "Lookahead": lambda p: closing(Lookahead)(optim.AdamW(p, lr=0.01)),
    "Lookahead of timm": lambda p: timm.optim.Lookahead(optim.AdamW(p, lr=0.01)),
    "MADGRAD": lambda p: timm.optim.MADGRAD(p, lr=0.01),
    "ScheduleFree": ClosingScheduleFree,
    "Prodigy": closing(Prodigy),
    "FTRL": closing(FTRL),
}


@pytest.mark.parametrize("momentum", ["keep", "carry"])
@pytest.mark.parametrize("name", WITH_COPIES)
def test_optimizers_with_copies_are_refused_before_the_first_step(name, momentum):
    kind = type("With", (With,), {"make": staticmethod(WITH_COPIES[name])})
    module = seeded(kind=kind)
    with pytest.raises(SignInError, match="cannot follow a rescale of m and w: its steps depend on"):
        trainer(callback(rescale_momentum=momentum), epochs=1).fit(module, loader())
    assert module.steps == 0


@pytest.mark.parametrize("name", WITH_COPIES)
def test_optimizers_with_copies_train_without_rescales(name):
    module = fit(WITH_COPIES[name], rescale_every_n_epochs=None)
    assert int((module.fc1.weight == 0).sum()) > 0.5 * module.fc1.weight.numel()
    assert all(value.isfinite().all() for value in copies(module).values())
    assert len(set(module.losses)) > 3


def test_an_optimizer_without_state_or_copies_needs_no_rule():
    module = fit(lambda p: Lasso(p, lr=0.05))
    assert all(value.isfinite().all() for value in copies(module).values())
