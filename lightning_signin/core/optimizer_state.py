"""Whether an optimizer's state of an entry can be zeroed and moved along with the entry, as moving masks require."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.torch_internals import without_step_hooks
from lightning_signin.errors import SignInError

# Adagrad makes its state in the constructor, so it cannot be tried on a fresh parameter. The state starts from zeros,
# except for `initial_accumulator_value`; an entry that enters the mask then starts from 0 all the same.
_KNOWN = ("Adagrad",)


def check_movable(optimizers: Iterable[Optimizer], ndim: int = 1) -> None:
    """Raise `SignInError` unless every optimizer itself starts an entry's state at zero.

    This is found out by experiment: the optimizer takes a step on a parameter of ones with a zero gradient, and its
    state is inspected. What cannot follow a moving mask: state that is copied from the parameter or starts elsewhere
    (averages of parameters, Rprop's step sizes), has another shape (Adafactor's rows and columns), or is shared by all
    parameters (L-BFGS); and optimizers that wrap others.

    Args:
        optimizers: Those that train sparse weights.
        ndim: The largest number of dimensions of the factors; Adafactor has rows and columns from two on.
    """
    for optimizer in optimizers:
        name = type(optimizer).__name__
        if name in _KNOWN or not optimizer.param_groups:
            continue
        if inner := [value for value in vars(optimizer).values() if isinstance(value, Optimizer)]:
            raise SignInError(_refusal(name, f"it wraps {type(inner[0]).__name__}, whose state cannot be reached"))
        for group in optimizer.param_groups:
            for key, value in fresh_state(optimizer, group, ndim).items():
                if reason := _why_not(key, value, (3,) * ndim):
                    raise SignInError(_refusal(name, reason))


def fresh_state(optimizer: Optimizer, group: dict[str, Any], ndim: int = 1) -> dict[str, Any]:
    """The state that an optimizer makes for a parameter of 3, 3 × 3, … ones in a group, whose gradient is zero.

    Raises:
        SignInError: If the optimizer's step fails on it.
    """
    device = group["params"][0].device if group["params"] else torch.device("cpu")
    parameter = nn.Parameter(torch.ones((3,) * ndim, device=device))
    parameter.grad = torch.zeros_like(parameter)
    twin = object.__new__(type(optimizer))
    # The twin has its own state and groups, and none of the user's hooks. Weight decay is off: it acts as a gradient.
    twin.__dict__ = {**vars(optimizer), "state": defaultdict(dict), "defaults": dict(optimizer.defaults)}
    twin.__dict__ |= without_step_hooks()
    decays = {"weight_decay": 0.0} if "weight_decay" in group else {}
    twin.__dict__["param_groups"] = [{**group, **decays, "params": [parameter]}]
    try:
        type(optimizer).step(twin)
    except Exception as error:
        name = type(optimizer).__name__
        raise SignInError(_refusal(name, f"its step fails on a small parameter ({error})")) from error
    return dict(twin.state[parameter])


def _why_not(key: str, value: Any, shape: tuple[int, ...]) -> str | None:
    if isinstance(value, dict | list | tuple):
        return f"its state {key!r} is a {type(value).__name__}"
    if not isinstance(value, Tensor) or (value.numel() == 1 and value.ndim == 0):
        return None
    if value.shape != shape:
        return f"its state {key!r} has another shape than the parameter"
    # Adamax adds its eps of 1e-8 to what it starts with.
    return (
        None
        if value.abs().max() < 1e-6
        else f"its state {key!r} starts from {value.flatten()[0].item():.4g} and not from 0"
    )


def _refusal(name: str, reason: str) -> str:
    return (
        f"{name} cannot follow a mask that moves: {reason}. Use SGD, Adam, AdamW, RMSprop, Adagrad, Lion or another "
        "optimizer whose state is tensors of the parameter's shape that start from 0, or leave out `update`."
    )
