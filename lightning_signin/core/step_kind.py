"""How the steps of an optimizer depend on the size of gradients: determined by a trial."""

from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_signin.core.optimizer_trial import Trial, TrialError, settings_of

StepKind = Literal["proportional", "normalized"]
_TIMES = 4.0
_START = torch.tensor([1.0, -2.0, 0.5])
_GRADIENTS = torch.tensor([[0.3, 0.1, -0.2], [0.1, 0.4, -0.3], [0.2, 0.3, -0.1]])
_KINDS: WeakKeyDictionary[Optimizer, dict[Any, StepKind | None]] = WeakKeyDictionary()


def step_kind(optimizer: Optimizer, group: dict[str, Any]) -> StepKind | None:
    """How steps change when all gradients are multiplied by a number.

    Args:
        optimizer: One that wraps no other.
        group: One of its groups.

    Returns:
        "proportional" if steps are multiplied by it too, as with SGD; "normalized" if they stay, as with Adam; None for
        anything else.

    Example:
        >>> adam = torch.optim.Adam([torch.zeros(3)])
        >>> step_kind(adam, adam.param_groups[0])
        'normalized'
    """
    known = _KINDS.setdefault(optimizer, {})
    key = settings_of(group)
    if key not in known:
        try:
            one, other = (_moved(optimizer, group, times) for times in (1.0, _TIMES))
        except TrialError:
            known[key] = None
        else:
            same, more = (torch.allclose(other, times * one, rtol=1e-2, atol=1e-9) for times in (1.0, _TIMES))
            known[key] = "normalized" if same else "proportional" if more else None
    return known[key]


def _moved(optimizer: Optimizer, group: dict[str, Any], times: float) -> Tensor:
    trial = Trial(optimizer, group, _START, torch.float64)
    for gradient in _GRADIENTS:
        trial.step(times * gradient.double(), closure=True)
    return trial.values.cpu() - _START.double()
