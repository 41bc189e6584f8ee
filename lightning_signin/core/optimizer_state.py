"""Whether an optimizer's state of an entry can be zeroed and moved along with the entry, as moving masks require."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_signin.core.optimizer_experiments import fresh_state, remembers
from lightning_signin.core.optimizer_parts import bare
from lightning_signin.core.optimizer_trial import TrialError
from lightning_signin.errors import SignInError


def check_movable(optimizers: Iterable[Optimizer], ndim: int = 1) -> None:
    """Check that every optimizer itself starts an entry's state at zero.

    A trial shows it: the optimizer takes steps on a parameter of ones with a zero gradient, and its
    state is inspected. What cannot follow a moving mask: state that is copied from the parameter or starts elsewhere
    (averages of parameters, Rprop's step sizes), has another shape (Adafactor's rows and columns), or is shared by all
    parameters (L-BFGS). Adagrad's state starts from zeros, except for `initial_accumulator_value`; an entry that enters
    the mask then starts from 0 nevertheless.

    Args:
        optimizers: Those that train sparse weights.
        ndim: The largest number of dimensions of the factors; Adafactor has rows and columns from two on.

    Raises:
        SignInError: If one does not, or its steps fail on such a parameter.
    """
    for optimizer in map(bare, optimizers):
        name = type(optimizer).__name__
        for group in optimizer.param_groups:
            try:
                state, copies = fresh_state(optimizer, group, ndim), remembers(optimizer, group)
            except TrialError as error:
                raise SignInError(_refusal(name, str(error))) from error
            for key, value in state.items():
                if reason := _why_not(key, value, (3,) * ndim):
                    raise SignInError(_refusal(name, reason))
            if copies:
                raise SignInError(_refusal(name, "its steps depend on where a parameter was before"))


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
