"""What is changed around the steps of optimizers: before each, when the gradients are there, and after it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_signin.core.for_one_step import ForOneStep
from lightning_signin.core.optimizer_parts import parts_of, takes_hooks, wrapped
from lightning_signin.core.torch_internals import first_after_step, is_within_step


class AroundSteps(ABC):
    """Hooks on the steps of optimizers, and of those that they wrap.

    A step that is given a closure computes, and clips, the gradients in it, so what comes before is done after each
    call of the closure. Gradients and settings that were exchanged for the step are put back after it.

    Args:
        optimizers: Those whose steps are followed.

    Attributes:
        steppers: The optimizers that take the steps.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.steppers = [part for optimizer in optimizers for part in parts_of(optimizer) if not wrapped(part)]
        self._changes = {id(optimizer): ForOneStep(optimizer) for optimizer in self.steppers}
        self._handles: list[RemovableHandle] = []
        for optimizer in self.steppers:
            if takes_hooks(optimizer):
                self._handles.append(optimizer.register_step_pre_hook(self._before_step))
                self._handles.append(first_after_step(optimizer, self._after_step))

    def remove(self) -> None:
        """Let the optimizers step as they are again."""
        for handle in self._handles:
            handle.remove()
        for change in self._changes.values():
            change.undo()

    @abstractmethod
    def before(self, optimizer: Optimizer, change: ForOneStep, first: bool) -> None:
        """Called when the gradients of a step are there.

        Args:
            optimizer: The one that steps.
            change: Takes what holds for this step alone.
            first: Whether this is the first call in this step: an optimizer may call its closure several times.
        """

    def after(self, optimizer: Optimizer) -> None:  # noqa: B027 — most have nothing to do then
        """Called after a step, with the optimizer's own gradients and settings again."""

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_within_step(optimizer):
            return None
        self._changes[id(optimizer)].undo()  # of a step that failed
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._change_(optimizer, first=True)
            return None
        calls: list[int] = []

        # Lightning computes and clips the gradients in the closure.
        def and_change() -> Any:
            loss = closure()
            self._change_(optimizer, first=not calls)
            calls.append(1)
            return loss

        return (args[:1], {**kwargs, "closure": and_change})

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._changes[id(optimizer)].undo()
        self.after(optimizer)

    @torch.no_grad()
    def _change_(self, optimizer: Optimizer, first: bool) -> None:
        self.before(optimizer, self._changes[id(optimizer)], first)


def trained(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those that have a gradient, which an optimizer steps on."""
    return [parameter for parameter in parameters if parameter.grad is not None]
