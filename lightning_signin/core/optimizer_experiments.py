"""What trials reveal about an optimizer: the state that it makes, whether it holds copies, whether it needs shapes."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_signin.core.optimizer_trial import Trial, TrialError, example_of

T = TypeVar("T")

STEPS = 16  # enough to see state that is made late: Lookahead's slow weights come after five, six or ten
_START, _PUT, _GRADIENT = ([1.0, 2.0, -1.0], [0.25, -0.5, 0.75], [1.0, 2.0, -1.0])
_MATRIX = torch.linspace(-1, 2, 24).view(4, 6)
_MATRICES = [torch.linspace(first, -0.5, 24).view(4, 6) for first in (1.0, 0.25, -0.75)]  # gradients


def fresh_state(optimizer: Optimizer, group: dict[str, Any], ndim: int = 1) -> dict[str, Any]:
    """The state that an optimizer makes for a parameter of 3, 3 × 3, … ones in a group, whose gradient is zero.

    Returns:
        The parameter's state after `STEPS` trial steps, by the optimizer's keys.

    Raises:
        TrialError: If the optimizer's step fails on it.
    """
    trial = Trial(optimizer, group, torch.ones((3,) * ndim))
    for _ in range(STEPS):
        trial.step(torch.zeros((3,) * ndim))
    return trial.state


def precisely(experiment: Callable[[torch.dtype], T], group: dict[str, Any]) -> T:
    """Run an experiment in at least float32: half precision rounds too much to compare the results.

    If the optimizer's step fails in float32, it supports half precision only, and the group's own dtype is used.

    Returns:
        The result of the experiment.

    Raises:
        TrialError: If the optimizer's step fails in both.
    """
    own = example_of(group).dtype
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
    In half precision there may be copies that a float32 parameter does not need, so that is tried, too.

    Returns:
        Whether the two trials end apart.

    Raises:
        TrialError: If the optimizer's step fails.
    """
    own = example_of(group).dtype
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
    # How a norm is rounded depends on where in memory it is summed.
    one, other = ends
    return not _agree(one, other, rtol=max(1e-5, 8 * torch.finfo(dtype).eps), atol=1e-6)


def needs_shape(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether the steps of a matrix differ from those of its entries as a vector.

    Returns:
        Whether the two differ by more than rounding.

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


def _agree(one: Tensor, other: Tensor, rtol: float, atol: float) -> bool:
    """Whether values are close where both are finite."""
    known = one.isfinite() & other.isfinite()
    return torch.allclose(one[known], other[known], rtol=rtol, atol=atol)
