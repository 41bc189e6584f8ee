"""Manual optimization is scored as it trains: each weight feels the losses that its own optimizer steps on."""

import copy
import functools
import gc
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_signin.masks import Task
from tests.small import callback, data, trainer


class GAN(LightningModule):
    """A generator and a discriminator; ``how`` is the training step."""

    def __init__(self, how: Callable[["GAN", list[Tensor], int], None]) -> None:
        super().__init__()
        self.automatic_optimization, self.how = False, how
        self.generator = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 10))
        self.critic = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))

    def training_step(self, batch, batch_idx):
        self.how(self, batch[0], batch_idx)

    def configure_optimizers(self):
        optimizers = [torch.optim.SGD(part.parameters(), 0.0) for part in (self.generator, self.critic)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(optimizer, 1) for optimizer in optimizers]

    def fooling(self, x):
        return F.softplus(-self.critic(self.generator(x))).mean()

    def telling(self, x, detached=True):
        made = self.generator(x)
        return F.softplus(-self.critic(x)).mean() + F.softplus(self.critic(made.detach() if detached else made)).mean()


class Gradients:
    """Notes the gradients of a batch, and keeps weights at random."""

    def __call__(self, task: Task) -> dict[str, Tensor]:
        self.found = task.mean_gradients(task.weights, task.batches(1))
        return {name: torch.rand(weight.shape, generator=task.generator) for name, weight in task.weights.items()}


WAYS: dict[str, Callable] = {}


def way(function: Callable) -> Callable:
    WAYS[function.__name__] = function
    return function


@way
def toggled_and_cleared_after_the_step(net, x, index):
    for optimizer, loss in zip(net.optimizers(), (net.fooling, net.telling), strict=True):
        net.toggle_optimizer(optimizer)
        net.manual_backward(loss(x))
        optimizer.step()
        optimizer.zero_grad()
        net.untoggle_optimizer(optimizer)


@way
def toggled_by_context(net, x, index):
    losses = net.fooling, functools.partial(net.telling, detached=False)
    for optimizer, loss in zip(net.optimizers(), losses, strict=True):
        with optimizer.toggle_model():
            net.manual_backward(loss(x))
            optimizer.step()
            optimizer.zero_grad()


@way
def cleared_before_each(net, x, index):
    for optimizer, loss in zip(net.optimizers(), (net.fooling, net.telling), strict=True):
        optimizer.zero_grad()
        net.manual_backward(loss(x))
        net.clip_gradients(optimizer, gradient_clip_val=1e9)
        optimizer.step()
    for schedule in net.lr_schedulers():
        schedule.step()


@way
def never_cleared_between(net, x, index):
    generating, criticizing = net.optimizers()
    net.manual_backward(net.fooling(x))
    generating.step()
    net.manual_backward(net.telling(x))
    criticizing.step()
    generating.zero_grad()
    criticizing.zero_grad()


@way
def cleared_through_the_module(net, x, index):
    generating, criticizing = net.optimizers()
    net.manual_backward(net.fooling(x))
    generating.step()
    net.critic.zero_grad()
    net.manual_backward(net.telling(x))
    criticizing.step()
    net.zero_grad()


@way
def frozen_by_hand(net, x, index):
    generating, criticizing = net.optimizers()
    net.critic.requires_grad_(True)
    net.manual_backward(net.telling(x))
    criticizing.step()
    net.critic.requires_grad_(False)
    net.manual_backward(net.fooling(x))
    generating.step()
    generating.zero_grad()
    criticizing.zero_grad()


@way
def closures(net, x, index):
    def closure(optimizer, loss):
        optimizer.zero_grad()
        net.manual_backward(loss(x))

    for optimizer, loss in zip(net.optimizers(), (net.fooling, net.telling), strict=True):
        optimizer.step(closure=functools.partial(closure, optimizer, loss))


@way
def plain_optimizers(net, x, index):
    for optimizer, loss in zip(net.optimizers(use_pl_optimizer=False), (net.fooling, net.telling), strict=True):
        optimizer.zero_grad()
        net.manual_backward(loss(x))
        optimizer.step()


@way
def two_steps_of_one(net, x, index):
    generating, criticizing = net.trainer.optimizers
    for half in x.split(4):
        criticizing.zero_grad()
        net.manual_backward(net.telling(half))
        criticizing.step()
    if net.global_step % 2 == 0 and index % 2 == 0:
        generating.zero_grad()
        for half in x.split(4):
            net.manual_backward(net.fooling(half) / 2)
        generating.step()


def really_stepped_on(module: GAN, batch: Tensor) -> dict[str, Tensor]:
    """What a real training step of a copy finds in ``.grad`` at its optimizers' steps, summed."""
    copied, found = copy.deepcopy(module), {}
    names = {id(parameter): name for name, parameter in copied.named_parameters()}

    def note(optimizer, closure=None):
        if closure is not None:
            closure()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    name = names[id(parameter)]
                    found[name] = found.get(name, 0) + parameter.grad.clone()

    plain = copied.configure_optimizers

    def configure_optimizers():
        optimizers, schedules = plain()
        for optimizer in optimizers:
            optimizer.step = functools.partial(note, optimizer)
        return optimizers, schedules

    copied.configure_optimizers = configure_optimizers
    trainer(epochs=1, limit_train_batches=1).fit(copied, DataLoader(data(), 8))
    return found


@pytest.mark.parametrize("name", WAYS)
def test_gradients_are_those_that_the_optimizers_step_on(name):
    module, score = GAN(WAYS[name]), Gradients()
    expected = really_stepped_on(module, data().tensors[0][:8])
    before = copy.deepcopy(module.state_dict())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler.step")
        trainer(callback(mask=score, sparsity=0.1), epochs=1, limit_train_batches=2).fit(module, DataLoader(data(), 8))
    assert len(score.found) == 4
    for weight, gradient in score.found.items():
        torch.testing.assert_close(gradient, expected[weight], msg=lambda text, name=weight: f"{name}: {text}")
        after = module.state_dict()[weight]
        torch.testing.assert_close(after, before[weight] * (after != 0))  # lr is 0


def test_gradients_accumulated_for_a_later_step_are_scored():
    def step(net, x, index):
        net.manual_backward(net.fooling(x) / 2)
        if index == 1:
            for optimizer in net.optimizers():
                optimizer.step()

    module, score = GAN(step), Gradients()
    names = [name for name, parameter in module.named_parameters() if parameter.ndim == 2]
    loss = module.fooling(data().tensors[0][:8]) / 2
    expected = torch.autograd.grad(loss, [module.get_parameter(name) for name in names])
    trainer(callback(mask=score, sparsity=0.1), epochs=1, limit_train_batches=2).fit(module, DataLoader(data(), 8))
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(score.found[name], gradient)


@pytest.mark.parametrize(
    "step",
    [
        lambda net, x, index: net.fooling(x).backward(),
        lambda net, x, index: net.fooling(x),
        lambda net, x, index: [optimizer.step() for optimizer in net.optimizers()],
    ],
    ids=["own backward", "no backward", "step alone"],
)
def test_manual_optimization_without_manual_backward_is_refused(step):
    with pytest.raises(ValueError, match=r"called no `self\.manual_backward\(loss\)` on a first batch"):
        trainer(callback(mask="snip")).fit(GAN(step), DataLoader(data(), 8))


def test_copies_are_let_go():
    alive = []

    class Watched(GAN):
        def training_step(self, batch, batch_idx):
            alive.append(weakref.ref(self))
            super().training_step(batch, batch_idx)

    module = Watched(cleared_before_each)
    sign_in = callback(mask=Gradients(), sparsity=0.1)
    trainer(sign_in, epochs=1, limit_train_batches=1).fit(module, DataLoader(data(), 8))
    gc.collect()
    assert {reference() is None for reference in alive} == {True, False}
    assert all(reference() in (None, module) for reference in alive)
