"""What lives for one fit is gone after it, however it ends, and copies of the callback do without."""

import copy
import gc
import pickle
from types import FunctionType, ModuleType
from weakref import ref

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_signin import SignInCallback, masks
from lightning_signin.updates import SET, Constant, Cosine, RigL
from tests.small import callback, copies, differing, loader, seeded, trainer

MOVING = {"update": SET(Constant(2)), "parametrization": "plain"}


class Copies(Callback):
    """Copies another callback in every hook that it is there for."""

    def __init__(self, of: SignInCallback, make) -> None:
        self.of, self.make = of, make
        self.made: dict[str, SignInCallback] = {}
        self.masks: dict[str, torch.Tensor] = {}

    def _copy(self, name: str) -> None:
        self.made[name] = self.make(self.of)

    def setup(self, trainer, module, stage):
        self._copy("setup")

    def on_fit_start(self, trainer, module):
        self.masks = masks(module)
        self._copy("fit start")

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if index == 3:
            self._copy("batch")
            self.state = copy.deepcopy(self.of.state_dict())

    def on_validation_epoch_start(self, trainer, module):
        self._copy("validation")

    def on_train_end(self, trainer, module):
        self._copy("train end")

    def on_fit_end(self, trainer, module):
        self._copy("fit end")


def pickled(sign_in: SignInCallback) -> SignInCallback:
    return pickle.loads(pickle.dumps(sign_in))


def holds(sign_in: SignInCallback, *kinds: type) -> bool:
    """Whether the callback reaches an instance of these classes."""
    seen, left = set(), [sign_in]
    while left:
        thing = left.pop()
        if isinstance(thing, kinds):
            return True
        if id(thing) not in seen and not isinstance(thing, ModuleType | type):
            seen.add(id(thing))
            inside = (thing.__closure__ or ()) if isinstance(thing, FunctionType) else gc.get_referents(thing)
            left += inside
    return False


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


ENDS = {
    "its end": None,
    "exception in a batch": ("training_step", RuntimeError),
    "exception before the first": ("on_train_start", RuntimeError),
    "exception when the model is made": ("configure_model", RuntimeError),
    "exception in setup": ("setup", RuntimeError),
    "Ctrl-C": ("training_step", KeyboardInterrupt),
}


@pytest.mark.parametrize("end", ENDS)
def test_callback_holds_no_module_and_no_trainer_after_a_fit(end):
    sign_in, module = callback(), seeded()
    runner = trainer(sign_in, epochs=1)
    if ENDS[end] is not None:
        hook, error = ENDS[end]

        def fail(*_, **__):
            raise error

        setattr(module, hook, fail)
        with pytest.raises((error, SystemExit)):
            runner.fit(module, loader())
    else:
        runner.fit(module, loader())
    assert not holds(sign_in, nn.Module, Trainer)
    gone = [ref(module), ref(runner)]
    del module, runner
    gc.collect()
    assert [thing() for thing in gone] == [None, None]
    assert pickled(sign_in).arguments == sign_in.arguments


def test_callback_holds_both_during_a_fit():
    sign_in, seen = callback(), []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            seen.append(holds(sign_in, nn.Module) and holds(sign_in, Trainer))

    trainer(sign_in, Look(), epochs=1).fit(seeded(), loader())
    assert seen == [True]


@pytest.mark.parametrize("make", [pickled, copy.deepcopy], ids=["pickled", "deep"])
@pytest.mark.parametrize(
    "options", [{}, {"update": SET(Constant(2)), "parametrization": "plain"}], ids=["fixed", "moving"]
)
def test_copies_before_during_and_after_a_fit_have_no_fit(make, options):
    sign_in = callback(**options)
    watch = Copies(sign_in, make)
    before = make(sign_in)
    trainer(sign_in, watch, epochs=1).fit(module := seeded(), loader(), loader())
    after = make(sign_in)
    assert list(watch.made) == ["setup", "fit start", "validation", "batch", "train end", "fit end"]
    for name, made in {"before": before, **watch.made, "after": after}.items():
        assert made.arguments == sign_in.arguments
        assert not holds(made, nn.Module, Trainer), name
    assert before.state_dict() == watch.made["setup"].state_dict() == {}
    assert equal(after.state_dict(), sign_in.state_dict())
    in_fit = watch.made["batch"].state_dict()
    assert equal(in_fit["masks"], watch.state["masks"])
    assert equal(in_fit["factors"], watch.state["factors"])
    assert not equal(in_fit["factors"], after.state_dict()["factors"])  # a copy, not a view of what goes on to train
    assert equal(in_fit["arguments"], after.state_dict()["arguments"])
    assert not masks(module)


def test_fit_is_not_changed_by_copies_of_its_callback():
    ends = []
    for make in (pickled, copy.deepcopy, lambda sign_in: None):
        sign_in, module = callback(update=RigL(Cosine(4))), seeded()
        trainer(sign_in, Copies(sign_in, make), epochs=2).fit(module, loader(), loader())
        ends.append(copies(module))
    assert differing(ends[0], ends[2]) == differing(ends[1], ends[2]) == []


@pytest.mark.parametrize("make", [pickled, copy.deepcopy], ids=["pickled", "deep"])
def test_copy_from_within_a_fit_starts_a_fit_of_its_own(make):
    sign_in = callback(mask="magnitude")
    watch = Copies(sign_in, make)
    trainer(sign_in, watch, epochs=1).fit(seeded(), loader())
    ends = []
    for one in (watch.made["batch"], callback(mask="magnitude")):
        module = seeded(seed=5)
        trainer(one, epochs=1).fit(module, loader())
        ends.append(copies(module))
    assert differing(*ends) == []


def test_second_fit_of_the_same_module_keeps_its_mask_and_a_copy_does_not_know_it():
    sign_in, module = callback(), seeded()
    trainer(sign_in, epochs=1).fit(module, loader())
    kept = module.fc1.weight != 0
    second = Copies(sign_in, lambda _: None)
    trainer(sign_in, second, epochs=1).fit(module, loader())
    assert torch.equal(second.masks["fc1.weight"], kept)
    made = pickled(sign_in)
    made.sparsify = callback(seed=9).sparsify
    third = Copies(made, lambda _: None)
    trainer(made, third, epochs=1).fit(module, loader())
    assert not torch.equal(third.masks["fc1.weight"], kept)
