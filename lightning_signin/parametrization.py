"""The parametrizations of a masked weight, as modules for `torch.nn.utils.parametrize`.

`right_inverse` takes θ to the trainable tensors, `forward` takes them back; the `storage` decides their form. The
masked weight exists only as the result of `forward`.
"""

import math
from collections.abc import Callable

from torch import Tensor, nn

from lightning_signin.functional import check_beta, check_beta_fits, factorize
from lightning_signin.storage import Storage


class Masked(nn.Module):
    """The weight itself on a fixed mask: one trainable tensor, θ.

    Args:
        storage: The mask, and how the values on it are stored.
    """

    factors: tuple[str, ...] = ("theta",)

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage = storage

    def right_inverse(self, theta: Tensor) -> tuple[Tensor, ...]:
        """The trainable tensors of a full weight; its masked entries are dropped."""
        return (self.storage.pack(theta),)

    def values(self, theta: Tensor) -> Tensor:
        """The stored form of θ, from the trainable tensors."""
        # In dense storage a plain weight gets a gradient on its masked entries too: only masking here keeps it out.
        return self.storage.restrict(theta)

    def forward(self, *factors: Tensor) -> Tensor:
        """The full weight, from the trainable tensors."""
        return self.storage.unpack(self.values(*factors))

    def extra_repr(self) -> str:
        """Shape, active entries and storage, for `print(module)`."""
        return f"{tuple(self.storage.shape)}, active={self.storage.active}, storage={self.storage.name!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Masked":
        self.storage.follow(fn)
        return super()._apply(fn, recurse)


class SignIn(Masked):
    """θ = m ⊙ w on a fixed mask, with m² − w² = β whenever θ is set (Section 4, Appendix C).

    In dense storage m = w = 0 on masked entries. Both gradients are zero there, so elementwise optimizers never move
    them and no mask has to be multiplied in.

    Args:
        storage: The mask, and how the values on it are stored.
        beta: The scaling β, positive.

    Example:
        >>> import torch
        >>> from lightning_signin.storage import Compact
        >>> theta = torch.randn(4, 4)
        >>> mask = torch.eye(4, dtype=torch.bool)
        >>> sign_in = SignIn(Compact(mask), beta=1.0)
        >>> m, w = sign_in.right_inverse(theta)
        >>> m.shape, torch.allclose(sign_in(m, w), theta * mask)
        (torch.Size([4]), True)
    """

    factors = ("m", "w")

    def __init__(self, storage: Storage, beta: float = 1.0) -> None:
        super().__init__(storage)
        check_beta(beta)
        self.beta = beta

    def right_inverse(self, theta: Tensor) -> tuple[Tensor, ...]:
        """The factors of a full weight, in its dtype; its masked entries are dropped."""
        return self.refactorize(self.storage.pack(theta))

    def refactorize(self, values: Tensor) -> tuple[Tensor, ...]:
        """The factors of packed values of θ, in their dtype: zero where dense storage is masked."""
        check_beta_fits(math.sqrt(self.beta), values.dtype)  # m = √β at θ = 0
        m, w = (factor.to(values.dtype) for factor in factorize(values, self.beta))
        # factorize(0) is (√β, 0): a masked m must be put back to zero, or w would start to move.
        return self.storage.restrict(m), w

    def values(self, m: Tensor, w: Tensor) -> Tensor:  # type: ignore[override]
        """The stored form of θ = m ⊙ w."""
        return m * w

    def extra_repr(self) -> str:
        """Shape, active entries, storage and β, for `print(module)`."""
        return f"{super().extra_repr()}, beta={self.beta}"
