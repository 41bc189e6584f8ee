"""Trainers, modules and callbacks that are copied and pickled before, during and after a fit."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.utils.data import DataLoader

from lightning_signin import SignInCallback
from tests.small import Small, callback, copies, data, differing, loader, seeded, trainer

WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda held: pickle.loads(pickle.dumps(held)),
    "pickle of a copy": lambda held: pickle.loads(pickle.dumps(copy.deepcopy(held))),
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)
QUICK = {"epochs": 1, "limit_train_batches": 4}
HOOKS = ["on_fit_start", "on_before_optimizer_step", "on_train_batch_end"]


class Task(Small):
    """Without a schedule, whose function could not be pickled."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def made() -> Task:
    return seeded(kind=Task)


class Copies(Callback):
    """Copies trainer and module in one hook."""

    def __init__(self, way: str, hook: str) -> None:
        self.way, self.made = way, []
        setattr(self, hook, self.copy)

    def copy(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if not self.made:
            self.made = [WAYS[self.way](trainer), WAYS[self.way](module)]

    def __getstate__(self) -> dict[str, Any]:
        return {"way": self.way, "made": []}


@EVERY_WAY
@pytest.mark.parametrize("hook", HOOKS)
def test_copies_that_are_made_in_a_fit_train_on_their_own(hook, way):
    def fitted(*callbacks: object) -> Small:
        module = made()
        trainer(callback(update="rigl"), *callbacks, **QUICK).fit(module, loader())
        return module

    copied = Copies(way, hook)
    assert differing(copies(fitted(copied)), copies(fitted())) == [], "the fit goes on as if nothing was copied"
    run, twin = copied.made
    assert isinstance(run, Trainer)
    assert not any(isinstance(held, DataLoader) and type(held) is not DataLoader for held in loaders_of(run))
    before = copies(twin)
    optimizer = twin.configure_optimizers()
    twin(data().tensors[0]).square().sum().backward()
    optimizer.step()
    assert {"fc1.bias", "norm.bias"} <= set(differing(copies(twin), before)), "its optimizer trains the copy"


def loaders_of(run: Trainer) -> list[Any]:
    combined = run.fit_loop._combined_loader
    return [] if combined is None else combined.flattened


@EVERY_WAY
def test_a_copied_trainer_fits(way):
    states = []
    for when in ("before", "in", "after"):
        copied = Copies(way, "on_train_batch_end")
        run = trainer(callback(), copied, **QUICK)
        if when == "before":
            run = WAYS[way](run)
        else:
            run.fit(made(), loader())
            run = copied.made[0] if when == "in" else WAYS[way](run)
            run.fit_loop.epoch_progress.reset()
        run.fit_loop.max_epochs = 1
        module = made()
        run.fit(module, loader())
        assert (module.fc1.weight == 0).float().mean() > 0.5
        states.append(module)
    assert all(list(module.state_dict()) == list(made().state_dict()) for module in states)


@EVERY_WAY
def test_a_callback_that_was_copied_in_a_fit_has_its_arguments_and_state(way):
    class Own(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            self.twin = WAYS[way](next(c for c in trainer.callbacks if isinstance(c, SignInCallback)))
            self.state = copy.deepcopy(self.twin.state_dict())

    own = Own()
    trainer(callback(), own, **QUICK).fit(made(), loader())
    assert own.twin.arguments == callback().arguments
    assert own.state["masks"].keys() == {"conv.weight", "fc1.weight", "fc2.weight"}


@EVERY_WAY
def test_trainers_with_averages_can_be_copied_in_a_fit(way):
    copied = Copies(way, "on_train_batch_end")
    trainer(callback(), WeightAveraging(), copied, **QUICK).fit(made(), loader())
    averaging = next(held for held in copied.made[0].callbacks if isinstance(held, WeightAveraging))
    assert averaging.on_train_epoch_start.__self__ is averaging


class OfOnesOwn(DataLoader):
    """A loader that says how it is pickled."""

    def __reduce__(self) -> Any:
        return type(self), (self.dataset, self.batch_size)


@EVERY_WAY
def test_loaders_keep_their_own_way_to_be_pickled(way):
    copied = Copies(way, "on_train_batch_end")
    trainer(callback(), copied, **QUICK).fit(made(), OfOnesOwn(data(), 8))
    assert {type(held) for held in loaders_of(copied.made[0])} == {OfOnesOwn}


@EVERY_WAY
def test_methods_are_those_of_the_copy(way):
    """Hooks that this package replaces for a fit are none in copies: they would act on the original."""
    copied = Copies(way, "on_train_batch_end")
    run = trainer(callback(), copied, **QUICK)
    run.fit(made(), loader())
    other, twin = copied.made
    assert twin.configure_optimizers.__self__ is twin
    assert twin.training_step.__self__ is twin
    assert other.strategy.process_dataloader.__self__ is other.strategy
    assert torch.equal(twin.fc1.bias, other.lightning_module.fc1.bias)
