"""Decay of the factors of a product m ⊙ w: strength · (m² + w²) is added to the loss, which is an L1 bias on θ."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from lightning_signin.core.structure import Expected, entries, number, optional

State = dict[str, Any]


class FactorDecay(Protocol):
    """How strong the decay is, over the course of a run."""

    strength: float

    def epoch_ended(self, loss: float | None, l1_norm: float, progress: float) -> None:
        """Adapt the strength.

        Args:
            loss: Mean training loss of the epoch, if it is known.
            l1_norm: ‖m ⊙ w‖₁ over all sparse weights.
            progress: Share of the run that is completed, in (0, 1].
        """
        ...

    def state(self) -> State:
        """The values that change during a run."""
        ...

    def load(self, state: State) -> None:
        """Continue from a saved state."""
        ...

    @property
    def expected(self) -> Expected:
        """The structure of a saved state."""
        ...


@dataclass
class ConstantDecay:
    """The same strength all the time."""

    strength: float

    def epoch_ended(self, loss: float | None, l1_norm: float, progress: float) -> None:
        """Nothing to adapt."""

    def state(self) -> State:
        """Nothing changes."""
        return {}

    def load(self, state: State) -> None:
        """Nothing to restore."""

    @property
    def expected(self) -> Expected:
        """A dict."""
        return entries({})


class AdaptiveDecay:
    """Grows by δ after an epoch that lowered the training loss, in the first half of the run; shrinks by δ otherwise.

    (Jacobs, Burkholz: "Mask in the Mirror", ICLR 2025, Algorithm 1. There the training accuracy has to rise; the loss
    serves the same purpose for tasks without an accuracy.)

    Args:
        strength: α₀.
        delta: δ > 1.
        least_l1_norm: K: the strength grows only while ‖m ⊙ w‖₁ is at least this.
    """

    def __init__(self, strength: float, delta: float, least_l1_norm: float) -> None:
        self.strength, self.delta, self.least_l1_norm = strength, delta, least_l1_norm
        self.last_loss: float | None = None

    def epoch_ended(self, loss: float | None, l1_norm: float, progress: float) -> None:
        """Adapt the strength."""
        improved = loss is not None and (self.last_loss is None or loss < self.last_loss)
        grows = improved and l1_norm >= self.least_l1_norm and progress <= 0.5
        self.strength = self.strength * self.delta if grows else self.strength / self.delta
        self.last_loss = loss

    def state(self) -> State:
        """Strength and loss."""
        return {"strength": self.strength, "last_loss": self.last_loss}

    def load(self, state: State) -> None:
        """Continue from a saved state."""
        self.strength, self.last_loss = state["strength"], state["last_loss"]

    @property
    def expected(self) -> Expected:
        """Strength and loss."""
        return entries({"strength": number, "last_loss": optional(number)})


@torch.no_grad()
def add_factor_decay_(factors: Iterable[nn.Parameter], strength: float, stepped: Iterable[nn.Parameter]) -> None:
    """Add the gradient of strength · (m² + w²), that is 2 · strength · m, to the gradients of factors.

    Args:
        factors: Those that decay.
        strength: As above, ≥ 0.
        stepped: The parameters that are about to be stepped; others are left alone.
    """
    about = {id(parameter) for parameter in stepped}
    for factor in factors:
        if factor.grad is not None and id(factor) in about:
            factor.grad.add_(factor, alpha=2 * strength)
