"""Optimizers across a rescale: how their state of m and w changes with it, and which of them would undo it.

What an optimizer does is determined by a trial (`Trial`), so a subclass, a wrapper or an optimizer of one's own is
judged by its steps and its state.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.optimizer_experiments import precisely, remembers
from lightning_signin.core.optimizer_parts import bare, distributes, holds_tensors, states_of, wrapped
from lightning_signin.core.optimizer_trial import Trial, TrialError, settings_of
from lightning_signin.core.weights import SparseWeight
from lightning_signin.errors import SignInError, warn

MOMENTUM = ("keep", "carry", "clear")
_GRADIENTS = torch.tensor([[2.0, -1.0, 1.5], [-1.0, -3.0, 0.5], [4.0, 1.0, -2.0]])
_SIZES = (1e-4, 0.05)  # of the gradients: the eps of optimizers matters beside small ones, other constants beside large
_SCALES = torch.tensor([-2.0, 0.5, 3.0])


class StateAtRescale:
    """The optimizers' state of products m ⊙ w, which changes before their factors are renewed; see `model.rescale_`.

    A θ-gradient g gives states of degree d as s_m = wᵈ gᵈ and s_w = mᵈ gᵈ. "carry" finds gᵈ by least squares and
    inserts the renewed factors; "clear" zeroes the states of degree 1. States of degree 0 are left as they are.

    Args:
        momentum: One of `MOMENTUM`.
        optimizers: Some of them train the products.
        weights: The products.

    Raises:
        SignInError: If an optimizer that trains a product would undo a rescale, or its state has no rule.
    """

    def __init__(self, momentum: str, optimizers: Iterable[Optimizer], weights: Iterable[SparseWeight]) -> None:
        self.momentum = momentum
        self._rules: dict[int, list[tuple[Optimizer, _Rule]]] = {}
        factors = {id(factor) for weight in weights for factor in weight.factors}
        for optimizer in map(bare, optimizers):
            for group in optimizer.param_groups:
                if mine := [parameter for parameter in group["params"] if id(parameter) in factors]:
                    rule = _rule(optimizer, group)
                    _check(momentum, optimizer, rule)
                    for parameter in mine:
                        self._rules.setdefault(id(parameter), []).append((optimizer, rule))

    def change_(self, factors: Sequence[nn.Parameter], renewed: Sequence[Tensor]) -> None:
        """Change the state of one product.

        Args:
            factors: m and w, before the rescale.
            renewed: Their values after it.

        Raises:
            SignInError: If the state has a tensor that no trial has shown.
        """
        for optimizer, rule in self._rules.get(id(factors[0]), ()) if self.momentum != "keep" else ():
            for states in zip(*(states_of(optimizer, factor) for factor in factors), strict=False):
                for key, of_m, of_w in _shared(states, factors):
                    degree = rule.degrees.get(key)
                    if degree is None:
                        raise SignInError(_no_rule(optimizer, [key]))
                    if self.momentum == "clear" and degree == 1:
                        of_m.zero_(), of_w.zero_()
                    elif self.momentum == "carry" and degree:
                        m, w = (factor**degree for factor in factors)
                        norm = m * m + w * w
                        gradient = torch.where(norm > 0, (w * of_m + m * of_w) / norm, 0)
                        of_m.copy_(renewed[1] ** degree * gradient)
                        of_w.copy_(renewed[0] ** degree * gradient)


@dataclass(frozen=True)
class _Rule:
    """What trials have shown of an optimizer with the settings of one group.

    Attributes:
        failed: Why it could not be tried.
        remembers: Whether its next steps depend on where a parameter was before it was put elsewhere.
        degrees: The degree of each state in the gradient; None for a state that is not a power of it.
    """

    failed: str | None
    remembers: bool
    degrees: dict[str, int | None]


_RULES: WeakKeyDictionary[Optimizer, dict[Any, _Rule]] = WeakKeyDictionary()


def _rule(optimizer: Optimizer, group: dict[str, Any]) -> _Rule:
    known = _RULES.setdefault(optimizer, {})
    settings = settings_of(group)
    if settings not in known:
        known[settings] = _tried(optimizer, group)
    return known[settings]


def _tried(optimizer: Optimizer, group: dict[str, Any]) -> _Rule:
    if distributes(optimizer):  # its state of m and w may be on different ranks
        rules = [_rule(part, part.param_groups[0]) for part in wrapped(optimizer)]
        return _Rule(None, any(rule.remembers for rule in rules), {"": None})
    try:
        return _Rule(None, remembers(optimizer, group), _degrees(optimizer, group))
    except TrialError as error:
        return _Rule(str(error), holds_tensors(optimizer), {"": None})


def _degrees(optimizer: Optimizer, group: dict[str, Any]) -> dict[str, int | None]:
    """The d with s(c ⊙ g) = cᵈ ⊙ s(g) for each state s; None where there is none."""

    def experiment(dtype: torch.dtype) -> dict[str, int | None]:
        found = []
        for size in _SIZES:
            once, scaled = (_after(optimizer, group, scales * size, dtype) for scales in (torch.ones(3), _SCALES))
            found.append({key: _degree(value, scaled.get(key)) for key, value in once.items()})
        small, large = found
        return {key: degree if degree == large.get(key) else None for key, degree in small.items()}

    degrees = precisely(experiment, group)
    # Half precision may have more state, such as what was lost in rounding.
    return {key: degrees.get(key) for key in _after(optimizer, group, torch.ones(3))}


def _after(
    optimizer: Optimizer, group: dict[str, Any], scales: Tensor, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    trial = Trial(optimizer, group, torch.ones(3), dtype)
    for gradient in _GRADIENTS:
        trial.step(scales * gradient, closure=True)
    return trial.state


def _degree(once: Any, scaled: Any) -> int | None:
    if not isinstance(once, Tensor):
        return 0 if isinstance(once, int | float) and once == scaled else None
    one, other = once.double().cpu(), scaled.double().cpu()
    for degree in (0, 1, 2):
        if (one.shape == _SCALES.shape or degree == 0) and torch.allclose(
            other, one * _SCALES.double() ** degree if degree else one, rtol=1e-5, atol=0
        ):
            return degree
    return None


def _check(momentum: str, optimizer: Optimizer, rule: _Rule) -> None:
    name = type(optimizer).__name__
    if rule.remembers:
        raise SignInError(
            f"{name} cannot follow a rescale of m and w: its steps depend on where the parameters were before, of "
            f"which it holds copies, and would pull m and w back. {_INSTEAD}"
        )
    if momentum != "keep" and (unknown := [key for key, degree in rule.degrees.items() if degree is None]):
        raise SignInError(_no_rule(optimizer, unknown))
    if rule.failed is not None:
        warn(
            f"Whether {name} follows a rescale of m and w is unknown: {rule.failed}. If it holds copies of the "
            f"parameters, it will pull m and w back. {_INSTEAD}"
        )


_INSTEAD = (
    "Use SGD, Adam, AdamW, RMSprop, Lion or another optimizer that keeps averages of gradients, or do not rescale "
    "(the callback's rescale_every_n_epochs=None)."
)


def _no_rule(optimizer: Optimizer, unknown: list[str]) -> str:
    name = type(optimizer).__name__
    what = f"the state {unknown} of {name}" if any(unknown) else name
    return (
        f"A rescale has no rule for {what}. Use momentum='keep' (the callback's rescale_momentum='keep'), or an "
        "optimizer whose state is averages of gradients or of their squares, such as SGD, Adam, AdamW or Lion."
    )


def _shared(states: tuple[dict[str, Any], ...], factors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The tensors of the factors' shape that both factors have in a state, by key."""
    of_m, of_w = states
    for key, value in of_m.items():
        if isinstance(value, Tensor) and value.shape == factors[0].shape and key in of_w:
            yield key, value, of_w[key]
