"""Trying an optimizer: a copy of it trains one small parameter."""

import copy
import random
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.optimizer_parts import parts_of
from lightning_signin.core.torch_internals import without_step_hooks
from lightning_signin.errors import SignInError

LEARNING_RATE = 0.01


class TrialError(SignInError):
    """An optimizer cannot be tried. The message is a reason, without the optimizer's name."""


def settings_of(group: dict[str, Any]) -> tuple[Any, ...]:
    """What of a group's settings may decide how it is trained, to remember trials by: not the size of numbers."""
    return tuple((key, _kind(value)) for key, value in group.items() if key not in ("params", "param_names", "lr"))


class Trial:
    """A copy of an optimizer, with all that it wraps, that trains one parameter and leaves the optimizer as it is.

    The copy has the settings of one of the optimizer's groups, its own state, and none of the hooks around a step.

    Args:
        optimizer: Any optimizer.
        group: The one of its groups that is tried.
        start: The value of the parameter.
        dtype: Of the parameter. Default: that of the group.
        settings: What replaces settings of the group, where it has them. Default: no weight decay.

    Attributes:
        parameter: The parameter.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        group: dict[str, Any],
        start: Tensor,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        like = example_of(group)
        device = like.device if like.device.type in ("cpu", "cuda") else torch.device("cpu")
        self.parameter = nn.Parameter(start.to(device=device, dtype=dtype or like.dtype).clone())
        self._devices = [device] if device.type == "cuda" else []
        self._begun = self._with_closure = False
        self._parts, self._example = parts_of(optimizer), group["params"][:1]
        replaced = {"lr": LEARNING_RATE, "weight_decay": 0.0, **settings}
        of_trial = {key: _as(group[key], value) for key, value in replaced.items() if key in group}
        settings_of_group = copy.deepcopy({key: value for key, value in group.items() if key != "params"})
        self._groups = [{**settings_of_group, **of_trial, "params": [self.parameter]}]
        self._states: dict[int, Any] = {}
        self._twins: dict[int, Optimizer] = {}
        for part in self._parts:
            self._twins[id(part)] = object.__new__(type(part))
        for part in self._parts:
            self._equip(part)
        self._twin = self._twins[id(optimizer)]
        if callable(train := getattr(self._twin, "train", None)):  # schedule-free optimizers step in this mode only
            train()

    def step(self, gradient: Tensor, closure: bool = False) -> None:
        """Take one step on a gradient.

        Args:
            gradient: Of the parameter's shape.
            closure: Give a closure to steps that insist on one, such as those of L-BFGS and SAM.

        Raises:
            TrialError: If the step fails.
        """
        self.parameter.grad = gradient.to(self.parameter).clone()
        with torch.random.fork_rng(self._devices), torch.no_grad():
            torch.random.default_generator.manual_seed(0)  # `torch.manual_seed` takes a millisecond
            try:
                self._step(gradient, closure)
            except Exception as error:
                raise TrialError(f"its step fails on a small parameter ({error})") from error

    @torch.no_grad()
    def put(self, value: Tensor) -> None:
        """Set the parameter, as a rescale does."""
        self.parameter.copy_(value)

    @property
    def values(self) -> Tensor:
        """The parameter's values now."""
        return self.parameter.detach().clone()

    @property
    def state(self) -> dict[str, Any]:
        """The state of the parameter, in the optimizer and in those that it wraps."""
        return {key: value for twin in self._twins.values() for key, value in twin.state[self.parameter].items()}

    def _step(self, gradient: Tensor, closure: bool) -> None:
        def backward() -> Tensor:
            self.parameter.grad = gradient.to(self.parameter).clone()
            return gradient.new_zeros(())

        step: Any = type(self._twin).step
        try:
            step(self._twin, *([backward] if self._with_closure else []))
        except KeyError:
            if self._begun or not self._begin_state():
                raise
            step(self._twin)
        except (AssertionError, RuntimeError, TypeError):
            if self._begun or not closure:
                raise
            self._with_closure = True
            step(self._twin, backward)
        self._begun = True

    def _begin_state(self) -> bool:
        """Begin with zeros where the optimizer makes its state in the constructor, as Adagrad does."""
        made = [(id(part.state), part.state[p]) for part in self._parts for p in self._example if part.state.get(p)]
        for key, state in made:
            self._states[key][self.parameter] = {
                name: torch.zeros_like(self.parameter if value.ndim else value) if isinstance(value, Tensor) else value
                for name, value in state.items()
            }
        return bool(made)

    def _equip(self, part: Optimizer) -> None:
        """Give the copy of a part the attributes of the part."""
        twin, given = self._twins[id(part)], vars(part)
        # Schedulers replace the step of an instance by one that is bound to it, and would step the original.
        own = {key: self._copied(value) for key, value in given.items() if not _shadows(part, key, value)}
        state = self._states.setdefault(id(part.state), defaultdict(dict))
        twin.__dict__ = own | without_step_hooks() | {"state": state, "param_groups": self._groups}

    def _copied(self, value: Any) -> Any:
        if isinstance(value, Optimizer):
            return self._twins[id(value)]
        if isinstance(value, list | tuple) and any(isinstance(item, Optimizer | nn.Parameter) for item in value):
            if all(isinstance(item, nn.Parameter) for item in value):
                return [self.parameter]  # L-BFGS keeps the list
            return type(value)(self._copied(item) for item in value)
        if isinstance(value, Tensor):
            return value.clone()
        return copy.copy(value) if isinstance(value, dict | list | set | random.Random) else value


def example_of(group: dict[str, Any]) -> Tensor:
    """The first parameter of a group, or an empty tensor."""
    return group["params"][0] if group["params"] else torch.empty(0)


def _shadows(part: Optimizer, key: str, value: Any) -> bool:
    return callable(value) and hasattr(type(part), key)


def _as(given: Any, value: Any) -> Any:
    return torch.full_like(given, value) if isinstance(given, Tensor) else value


def _kind(setting: Any) -> Any:
    if isinstance(setting, list | tuple):
        return tuple(map(_kind, setting))
    if isinstance(setting, int | float) and not isinstance(setting, bool):
        return setting != 0
    return setting if isinstance(setting, bool | str) else type(setting)
