"""How an optimizer applies its ``weight_decay``: determined by a trial; see `Trial`."""

from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_signin.core.optimizer_experiments import precisely
from lightning_signin.core.optimizer_trial import Trial, TrialError, settings_of

Kind = Literal["coupled", "coupled, maximizing", "coupled, normalized", "decoupled", "separate", "none"]
_DECAY = 0.125
_RATES = (0.02, 0.005)  # two, because some decay by the square of the rate
_SMALL_RATE, _SMALL_DECAY = 1e-3, 2**-10  # whose squares do not matter
_NEAR = 0.02
_START = torch.tensor([1.0, -2.0, 0.5])
_GRADIENTS = torch.tensor([[0.3, 0.1, -0.2], [-0.1, 0.4, 0.2], [0.2, -0.3, 0.1]])
_KINDS: WeakKeyDictionary[Optimizer, dict[Any, Kind | None]] = WeakKeyDictionary()


def decay_kind(optimizer: Optimizer, group: dict[str, Any], ndim: int = 1) -> Kind | None:
    """How an optimizer decays the parameters of a group.

    Args:
        optimizer: One that wraps no other.
        group: One of its groups, with a ``weight_decay``.
        ndim: The number of dimensions of the parameters.

    Returns:
        "coupled" if λp is added to the gradient g of a parameter p, as SGD and Adam do ("coupled, maximizing" if g is
        negated first, "coupled, normalized" if the length of the step depends on λ in another way, as with LARS);
        "decoupled" if p is multiplied by 1 − lr · λ, as AdamW does; "separate" if it is pulled to 0 in proportion to λ,
        whatever the size of g, as LAMB, NovoGrad, Adan and Adafactor do; "none" if nothing decays; None for any other
        form.

    Example:
        >>> adam = torch.optim.Adam([torch.zeros(3)], weight_decay=0.1)
        >>> decay_kind(adam, adam.param_groups[0])
        'coupled'
    """
    known = _KINDS.setdefault(optimizer, {})
    key = (settings_of(group), ndim)
    if key not in known:
        try:
            known[key] = precisely(lambda dtype: _tried(optimizer, group, ndim, dtype), group)
            if known[key] is None:
                known[key] = _of_direction(optimizer, group, ndim)
        except TrialError:
            known[key] = None
    return known[key]


def _tried(optimizer: Optimizer, group: dict[str, Any], ndim: int, dtype: torch.dtype) -> Kind | None:
    kinds: tuple[Kind, ...] = ("none", "coupled", "coupled, maximizing", "decoupled")
    own = [_after(optimizer, group, ndim, dtype, rate, None) for rate in _RATES]
    for kind in kinds:
        ends = [_after(optimizer, group, ndim, dtype, rate, kind) for rate in _RATES]
        if all(torch.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in zip(own, ends, strict=True)):
            return kind
    return None


def _after(
    optimizer: Optimizer, group: dict[str, Any], ndim: int, dtype: torch.dtype, rate: float, kind: Kind | None
) -> Tensor:
    """A parameter after three steps: with the optimizer's own decay, or with the decay of a kind in its place."""
    decay = _DECAY if kind is None else 0.0
    trial = Trial(optimizer, group, _matrix(_START, ndim), dtype, lr=rate, weight_decay=decay)
    sign = {"coupled": 1, "coupled, maximizing": -1}.get(kind or "none", 0)
    for gradient in _GRADIENTS:
        if kind == "decoupled":
            trial.put(trial.values * (1 - rate * _DECAY))
        trial.step(_matrix(gradient, ndim) + sign * _DECAY * trial.values.cpu(), closure=True)
    return trial.values


def _of_direction(optimizer: Optimizer, group: dict[str, Any], ndim: int) -> Kind | None:
    """What the direction of a few small steps, in float64, says about a decay; their length does not matter."""

    def moved(gradient: Tensor, decay: float, steps: int) -> Tensor:
        start = _matrix(_START, ndim)
        trial = Trial(optimizer, group, start, torch.float64, lr=_SMALL_RATE, weight_decay=decay)
        for _ in range(steps):
            trial.step(_matrix(gradient, ndim), closure=True)
        return (trial.values.cpu() - start.double()).flatten()

    if all(
        _share_off(moved(gradient, _DECAY, 1), [moved(gradient + _DECAY * _START, 0.0, 1)]) < _NEAR
        for gradient in _GRADIENTS
    ):
        return "coupled, normalized"
    for gradient in _GRADIENTS:
        pulls = []
        for size in (1, 4):
            # Not from 0: without a decay, some optimizers take steps of another length.
            quarter, half, whole = (moved(size * gradient, part * _SMALL_DECAY, 3) for part in (0.25, 0.5, 1.0))
            pull, start = whole - half, _matrix(_START, ndim).double().flatten()
            if _differ(pull, 2 * (half - quarter)) or _share_off(pull, [start, whole]) > _NEAR:
                return None
            pulls.append(pull)
        if _differ(*pulls):
            return None
    return "separate"


def _share_off(values: Tensor, directions: list[Tensor]) -> float:
    """The share of a vector's length that is outside the span of others."""
    basis = torch.stack(directions, 1)
    off = values - basis @ torch.linalg.lstsq(basis, values, driver="gelsd").solution
    return float(off.norm() / values.norm())  # NaN for 0, which is near nothing


def _differ(one: Tensor, other: Tensor) -> bool:
    return not float((one - other).norm()) < _NEAR * float(one.norm())


def _matrix(values: Tensor, ndim: int) -> Tensor:
    return values.view(-1, *[1] * (ndim - 1)).expand((3,) * ndim)
