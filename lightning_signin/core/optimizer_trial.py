"""Trying an optimizer: a copy of it trains one small parameter, which shows how it treats entries and state."""

import copy
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.optimizer_parts import parts_of
from lightning_signin.core.torch_internals import without_step_hooks
from lightning_signin.errors import SignInError

T = TypeVar("T")

LEARNING_RATE = 0.01
STEPS = 16  # enough to see state that is made late: Lookahead's slow weights come after five, six or ten
_START, _PUT, _GRADIENT = ([1.0, 2.0, -1.0], [0.25, -0.5, 0.75], [1.0, 2.0, -1.0])
_MATRIX = torch.linspace(-1, 2, 24).view(4, 6)
_MATRICES = [torch.linspace(first, -0.5, 24).view(4, 6) for first in (1.0, 0.25, -0.75)]  # gradients


class TrialError(SignInError):
    """An optimizer cannot be tried. The message is a reason, without the optimizer's name."""


def settings_of(group: dict[str, Any]) -> tuple[Any, ...]:
    """What of a group's settings may decide how it is trained, to remember trials by: not the size of numbers."""
    return tuple((key, _kind(value)) for key, value in group.items() if key not in ("params", "param_names", "lr"))


def fresh_state(optimizer: Optimizer, group: dict[str, Any], ndim: int = 1) -> dict[str, Any]:
    """The state that an optimizer makes for a parameter of 3, 3 × 3, … ones in a group, whose gradient is zero.

    Raises:
        TrialError: If the optimizer's step fails on it.
    """
    trial = Trial(optimizer, group, torch.ones((3,) * ndim))
    for _ in range(STEPS):
        trial.step(torch.zeros((3,) * ndim))
    return trial.state


def precisely(experiment: Callable[[torch.dtype], T], group: dict[str, Any]) -> T:
    """An experiment in at least float32, since half precision rounds too much to compare what comes out.

    An optimizer whose step fails there is for half precision only, and the experiment is in the dtype of its group.
    """
    own = _example(group).dtype
    wide = torch.promote_types(own, torch.float32)
    try:
        return experiment(wide)
    except TrialError:
        if wide == own:
            raise
        return experiment(own)


def remembers(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether an optimizer's steps depend on where a parameter was before it was put elsewhere.

    Two trials differ in where the parameter was, under zero gradients, and go on from the same point on the same
    gradients. What differs then is in copies: Lookahead's slow weights, the starting points of MADGRAD and Prodigy, the
    averages of schedule-free optimizers. Or a zero gradient moves the parameter: FTRL computes it from the state.
    In half precision there may be copies that a float32 parameter has no need of, so that is tried, too.

    Raises:
        TrialError: If the optimizer's step fails.
    """
    own = _example(group).dtype
    return precisely(lambda dtype: _remembers(optimizer, group, dtype), group) or (
        own.itemsize < torch.float32.itemsize and _remembers(optimizer, group, own)
    )


def _remembers(optimizer: Optimizer, group: dict[str, Any], dtype: torch.dtype) -> bool:
    ends = []
    for start in (torch.tensor(_START), -torch.tensor(_START)):
        trial = Trial(optimizer, group, start, dtype)
        for _ in range(STEPS):
            trial.step(torch.zeros(3), closure=True)
        # Adam's eps is 0 in float16, and 0 / 0 says nothing about copies.
        if not _agree(trial.values, start.to(trial.values), rtol=0.1, atol=0):
            return True
        trial.put(torch.tensor(_PUT))
        for _ in range(STEPS):
            trial.step(torch.tensor(_GRADIENT), closure=True)
        ends.append(trial.values)
    # A norm is rounded by where in memory it is summed.
    one, other = ends
    return not _agree(one, other, rtol=max(1e-5, 8 * torch.finfo(dtype).eps), atol=1e-6)


def needs_shape(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether a matrix takes other steps than its entries as a vector.

    Raises:
        TrialError: If the optimizer's step fails.
    """

    def experiment(dtype: torch.dtype) -> bool:
        matrix, vector = (Trial(optimizer, group, start, dtype) for start in (_MATRIX, _MATRIX.flatten()))
        for gradient in _MATRICES:
            matrix.step(gradient, closure=True)
            vector.step(gradient.flatten(), closure=True)
        return not torch.allclose(matrix.values.flatten(), vector.values, rtol=1e-3, atol=1e-6)

    return precisely(experiment, group)


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
        like = _example(group)
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


def _example(group: dict[str, Any]) -> Tensor:
    return group["params"][0] if group["params"] else torch.empty(0)


def _agree(one: Tensor, other: Tensor, rtol: float, atol: float) -> bool:
    """Whether values are close where both are finite."""
    known = one.isfinite() & other.isfinite()
    return torch.allclose(one[known], other[known], rtol=rtol, atol=atol)


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
