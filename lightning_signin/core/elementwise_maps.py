"""Maps ψ from v to θ = ψ(v), elementwise, odd and with ψ(0) = 0: masked entries stay zero, signs stay signs."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class ElementwiseMap(Protocol):
    """What a map has to provide. All tensors have the same shape, except for the scalars."""

    scalars: ClassVar[tuple[str, ...]]
    makes_zeros: ClassVar[bool]

    def __call__(self, inner: Tensor, *scalars: Tensor) -> Tensor:
        """θ = ψ(v)."""
        ...

    def inverse(self, theta: Tensor, *scalars: Tensor) -> Tensor:
        """A v with ψ(v) = θ, at these values of the scalars, or at their starting values."""
        ...

    def start(self, like: Tensor) -> tuple[Tensor, ...]:
        """The scalars' starting values, of the dtype and device of ``like``."""
        ...


@dataclass(frozen=True)
class SoftThreshold:
    """ψ(v) = sign(v) · max(|v| − sigmoid(s), 0) with one trainable scalar s.

    Args:
        s_init: The starting value of s.

    Example:
        >>> psi = SoftThreshold(0.0)
        >>> psi(torch.tensor([-2.0, 0.25, 1.0]), *psi.start(torch.zeros(1))).tolist()
        [-1.5, 0.0, 0.5]
    """

    s_init: float
    scalars: ClassVar[tuple[str, ...]] = ("s",)
    makes_zeros: ClassVar[bool] = True

    def __call__(self, inner: Tensor, *scalars: Tensor) -> Tensor:
        """The weight θ."""
        (s,) = scalars
        return inner.sign() * (inner.abs() - s.sigmoid()).relu()

    def inverse(self, theta: Tensor, *scalars: Tensor) -> Tensor:
        """sign(θ) · (|θ| + sigmoid(s)); 0 for 0."""
        (s,) = scalars or self.start(theta)
        return theta.sign() * (theta.abs() + s.sigmoid())

    def start(self, like: Tensor) -> tuple[Tensor, ...]:
        """The threshold s."""
        return (like.new_tensor(self.s_init),)


@dataclass(frozen=True)
class Power:
    """ψ(v) = v · |v|^(α − 1).

    Args:
        alpha: α > 1.

    Example:
        >>> Power(2.0)(torch.tensor([-2.0, 0.5])).tolist()
        [-4.0, 0.25]
    """

    alpha: float
    scalars: ClassVar[tuple[str, ...]] = ()
    makes_zeros: ClassVar[bool] = False

    def __call__(self, inner: Tensor, *scalars: Tensor) -> Tensor:
        """The weight θ."""
        # The power has no derivative at 0 for α < 2; ψ has one, and it is 0.
        there = inner != 0
        return torch.where(there, inner * inner.where(there, 1).abs() ** (self.alpha - 1), 0)

    def inverse(self, theta: Tensor, *scalars: Tensor) -> Tensor:
        """sign(θ) · |θ|^(1 / α)."""
        return theta.sign() * theta.abs() ** (1 / self.alpha)

    def start(self, like: Tensor) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()
