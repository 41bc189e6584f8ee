"""Stand-ins for the trainer and optimizers while a copied module is scored: changes to them are discarded with it."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from weakref import proxy

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.optim import Optimizer

from lightning_signin.callback.lightning_internals import (
    OF_LOADERS,
    OF_OPTIMIZERS,
    give_strategy,
    make_optimizers,
    mode_of,
    set_training_loader,
    wrapped_optimizers,
)


class Steps:
    """Records what the optimizers of a copied module would step on, without stepping.

    Each parameter has a list of the losses whose gradients it holds: `manual_backward` adds to it unless the parameter
    is frozen, as by ``toggle_optimizer``, and `zero_grad` clears it.

    The optimizers of a manual optimization are created at once. Others, which a step may ask for a learning rate, are
    created only when it does, for another copy: during a step, plain values replace the parameters.

    Args:
        module: The copy; its trainer is a `scoring_trainer`.
        copy_beside: Makes another copy of the module, with the given trainer.
    """

    def __init__(self, module: LightningModule, copy_beside: Callable[[Trainer], LightningModule]) -> None:
        self.strategy: Any = module.trainer.strategy
        self.held: dict[int, list[Tensor]] = {}
        self.done: list[tuple[Tensor, list[Tensor]]] = []
        self.strategy.optimizer_step = self._step  # type: ignore[method-assign]
        module.__dict__["manual_backward"] = self._backward
        trainer = proxy(module.trainer)  # a cycle would keep the copy alive
        if not module.automatic_optimization:
            for part in module.modules():
                part.zero_grad = partial(self._zero_grad, list(part.parameters()))  # type: ignore[method-assign]
            self._configure(module)
        else:
            make_on_demand(self.strategy, OF_OPTIMIZERS, lambda: self._configure(copy_beside(trainer)))

    def begin(self) -> None:
        """Forget the last training step."""
        self.done, self.held = [], {}

    def losses(self) -> list[tuple[Tensor, list[Tensor]]]:
        """What the optimizers stepped on; if none did, the losses of the gradients accumulated for a later step."""
        return self.done or self._held_of(p for optimizer in self.strategy.optimizers for p in _trained(optimizer))

    def _configure(self, module: LightningModule) -> None:
        self.strategy.optimizers, self.strategy.lr_scheduler_configs = [], []
        self.strategy.optimizers, self.strategy.lr_scheduler_configs = make_optimizers(module)
        for plain, wrapped in zip(self.strategy.optimizers, wrapped_optimizers(self.strategy), strict=True):
            plain.zero_grad = wrapped.zero_grad = lambda *args, of=plain, **kwargs: self._zero_grad(_trained(of))
            plain.step = partial(self._step, plain)

    def _backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        everything = {id(p): p for optimizer in self.strategy.optimizers for p in _trained(optimizer)}
        for key, parameter in everything.items():
            if parameter.requires_grad:
                self.held.setdefault(key, []).append(loss)

    def _zero_grad(self, parameters: Iterable[Tensor], set_to_none: bool = True) -> None:
        for parameter in parameters:
            self.held.pop(id(parameter), None)

    def _step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        result = None if closure is None else closure()
        self.done += self._held_of(_trained(optimizer))
        return result

    def _held_of(self, parameters: Iterable[Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
        found: dict[int, tuple[Tensor, list[Tensor]]] = {}
        for parameter in parameters:
            for loss in self.held.get(id(parameter), []):
                found.setdefault(id(loss), (loss, []))[1].append(parameter)
        return list(found.values())


def scoring_trainer(trainer: Trainer, module: LightningModule, loaders: Callable[[], CombinedLoader]) -> Trainer:
    """A shallow copy of the trainer, with its own strategy and loop.

    Args:
        trainer: The trainer, after ``setup``.
        module: The copied module that will use it.
        loaders: Makes the training loaders, for a step or an optimizer that asks for the length of the run.

    Returns:
        The copy; its steps change nothing of the original.
    """
    found: Any = copy.copy(trainer)
    strategy: Any = copy.copy(trainer.strategy)
    strategy.__dict__.pop("process_dataloader", None)  # the fit's own records the order of the data
    give_strategy(found, strategy, proxy(module))
    loop: Any = copy.copy(trainer.fit_loop)
    found.fit_loop = loop
    loop.trainer = proxy(found)

    def load() -> None:
        combined = loaders()
        set_training_loader(loop, combined)
        loop.max_batches = number_of_batches(combined)

    make_on_demand(loop, OF_LOADERS, load)
    found.loggers = [DummyLogger()] if trainer.loggers else []
    return found


def number_of_batches(loaders: CombinedLoader) -> int | float:
    """The length of an epoch, from the limits of loaders that are iterated in parallel; infinite if unknown."""
    return (min if mode_of(loaders) == "min_size" else max)(loaders.limits or [0])


def make_on_demand(holder: object, names: Iterable[str], make: Callable[[], None]) -> None:
    """Remove attributes from an object until one is accessed; then ``make`` has to set them all.

    Example:
        >>> from argparse import Namespace
        >>> holder = Namespace(value=1)
        >>> make_on_demand(holder, ["value"], lambda: setattr(holder, "value", 2))
        >>> holder.value
        2
    """

    def asked(self: object, name: str) -> Any:
        if name not in names:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        make()
        return self.__dict__[name]

    for name in names:
        holder.__dict__.pop(name, None)
    holder.__class__ = type(type(holder).__name__, (type(holder),), {"__getattr__": asked})


def _trained(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
