"""A masked weight and its product form, as modules for `torch.nn.utils.parametrize`.

`right_inverse` maps θ to the trainable tensors, `forward` maps them back; the `storage` decides their form. The
masked weight exists only as the result of `forward`. In between is v: θ itself, or the argument of an elementwise map ψ
with θ = ψ(v).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_signin.core.compute import Choice
from lightning_signin.core.elementwise_maps import ElementwiseMap
from lightning_signin.core.functional import check_beta, check_beta_fits, factors_of
from lightning_signin.core.gradient_hooks import HookedUses
from lightning_signin.core.layout import PLAIN
from lightning_signin.core.plain_parameter import follow
from lightning_signin.core.sharded import is_sharded, whole
from lightning_signin.core.storage import Storage


class Masked(nn.Module):
    """The weight itself on a mask: one trainable tensor, v.

    Args:
        storage: The mask, and how the values on it are stored.
        elementwise_map: The map ψ of θ = ψ(v), None for θ = v.

    Attributes:
        factors: Names of the trainable tensors of the weight's shape, in order; scalars of the map come after them.
        signed: Index of the factor that carries the sign of θ.
        grown: The value of each factor where an entry enters the mask: θ = 0 with a gradient. None if there is no such
            point.
        probe: A zero tensor of the weight's shape whose ``grad`` becomes the dense gradient, where one is needed.
        stride: The plain weight's strides, which it gets back when merged.
        layout: Which axes of the plain weight are outputs and inputs.
        plain_parameter: The parameter that the weight was, and becomes again when it is merged.
        name: The plain name of the weight.
        hooked_uses: Gives θ the hooks on the gradient of the plain parameter; None if it has none.
        waits: Whether that parameter has hooks that wait for the gradients of all trainable tensors.
        choice: Whether layers run on the non-zeros; None if they never do.
        read_only: Whether the weight computed now will only be read; see `mark_own_forward`.
    """

    factors: tuple[str, ...] = ("theta",)
    signed = 0
    plain_parameter: nn.Parameter | None = None
    name = ""
    choice: Choice | None = None

    def __init__(self, storage: Storage, elementwise_map: ElementwiseMap | None = None) -> None:
        super().__init__()
        self.storage, self.elementwise_map = storage, elementwise_map
        self.probe: Tensor | None = None
        self.stride = torch.empty(storage.shape, device="meta").stride()
        self.layout = PLAIN
        self.hooked_uses: HookedUses | None = None
        self.waits = self.read_only = False

    @property
    def makes_zeros(self) -> bool:
        """Whether the map turns values on the mask into zeros."""
        return self.elementwise_map is not None and self.elementwise_map.makes_zeros

    @property
    def shape(self) -> torch.Size:
        """The shape of the plain weight."""
        return self.storage.shape

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all trainable tensors."""
        return self.factors if self.elementwise_map is None else (*self.factors, *self.elementwise_map.scalars)

    @property
    def grown(self) -> tuple[float, ...] | None:
        """See the class's attributes."""
        return (0.0,) if self.elementwise_map is None else None

    def right_inverse(self, theta: Tensor) -> tuple[Tensor, ...]:
        """The trainable tensors of a full weight; its masked entries are dropped."""
        values = self.storage.pack(theta)
        if self.elementwise_map is None:
            return self.split(values)
        return (*self.split(self.elementwise_map.inverse(values)), *self.elementwise_map.start(values))

    def refusal(self, name: str, theta: Tensor) -> str | None:
        """Why a full weight cannot be taken: it is not finite where the mask keeps it. None if it can."""
        if self.storage.pack(theta).isfinite().all():
            return None
        return (
            f"{name} has infinities or NaN among its kept values, in {theta.dtype}. Use finite ones, from an earlier "
            f"checkpoint or a new initialization, or leave it dense with exclude=['{name}']."
        )

    def split(self, inner: Tensor) -> tuple[Tensor, ...]:
        """The factors of packed values of v."""
        return (inner,)

    def join(self, *factors: Tensor) -> Tensor:
        """The stored form of v, from its factors: their product, zero where dense storage is masked."""
        return self.storage.restrict(*factors)

    def gradient(self, factors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """The gradient with respect to v in stored form, from those of the factors."""
        return gradients[0]

    def factor_gradients(self, factors: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the factors, from that with respect to v in stored form."""
        return (gradient,)

    def values(self, *tensors: Tensor) -> Tensor:
        """The stored form of θ, from the trainable tensors."""
        if self.elementwise_map is None:
            return self.join(*tensors)
        count = len(self.factors)
        return self.elementwise_map(self.join(*tensors[:count]), *tensors[count:])

    def full(self, *tensors: Tensor, lend: bool) -> Tensor:
        """The full weight, from the trainable tensors; see `Compact.unpack`."""
        if self.elementwise_map is not None or is_sharded(tensors[0]):
            return self.storage.unpack(whole(self.values(*tensors)), lend=lend)
        return self.storage.unpack(*tensors, lend=lend)  # product and scatter in one

    def forward(self, *tensors: Tensor) -> Tensor:
        """The full weight, from the trainable tensors; plus the probe where there is one."""
        lend = self.read_only and self.probe is None and torch.is_grad_enabled()
        full = self.full(*tensors, lend=lend)
        if self.hooked_uses is not None and full.requires_grad and self.names != ("theta",):
            self.hooked_uses.watch(full)
        if self.probe is None or not torch.is_grad_enabled() or not tensors[0].requires_grad:
            return full
        return full + self.probe

    def extra_repr(self) -> str:
        """Shape, active entries and storage, for `print(module)`."""
        psi = "" if self.elementwise_map is None else f", map={self.elementwise_map}"
        return f"{tuple(self.storage.shape)}, active={self.storage.active}, storage={self.storage.name!r}{psi}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Masked":
        self.storage.follow(fn)
        if self.plain_parameter is not None:
            follow(self.plain_parameter, fn)
        return super()._apply(fn, recurse)


class SignIn(Masked):
    """v = m ⊙ w on a mask, with m² − w² = β whenever θ is set (Section 4, Appendix C).

    In dense storage m = w = 0 on masked entries. Both gradients are zero there, so elementwise optimizers never move
    them; if something else does, the storage keeps it out of θ.

    Args:
        storage: The mask, and how the values on it are stored.
        beta: The scaling β, positive.
        elementwise_map: The map ψ of θ = ψ(v), None for θ = v.

    Example:
        >>> import torch
        >>> from lightning_signin.core.compact import Compact
        >>> theta = torch.randn(4, 4)
        >>> mask = torch.eye(4, dtype=torch.bool)
        >>> sign_in = SignIn(Compact(mask), beta=1.0)
        >>> m, w = sign_in.right_inverse(theta)
        >>> m.shape, torch.allclose(sign_in(m, w), theta * mask)
        (torch.Size([4]), True)
    """

    factors = ("m", "w")
    signed = 1

    def __init__(self, storage: Storage, beta: float = 1.0, elementwise_map: ElementwiseMap | None = None) -> None:
        super().__init__(storage, elementwise_map)
        self.beta = check_beta(beta)

    @property
    def grown(self) -> tuple[float, ...] | None:
        """(√β, 0)."""
        return (math.sqrt(self.beta), 0.0) if self.elementwise_map is None else None

    def split(self, inner: Tensor) -> tuple[Tensor, ...]:
        """The factors of packed values of v, in their dtype: zero where dense storage is masked."""
        check_beta_fits(math.sqrt(self.beta), inner.dtype)  # m = √β at θ = 0
        m, w = (factor.to(inner.dtype) for factor in factors_of(inner, self.beta))
        # The factors of 0 are (√β, 0): a masked m must be put back to zero, or w would start to move.
        return self.storage.restrict(m), w

    def gradient(self, factors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """(w g_m + m g_w) / (m² + w²), which is g for g_m = w g and g_w = m g; 0 where both factors are 0."""
        (m, w), (of_m, of_w) = factors, gradients
        norm = m * m + w * w
        return torch.where(norm > 0, (w * of_m + m * of_w) / norm, 0)

    def factor_gradients(self, factors: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
        """(w g, m g)."""
        m, w = factors
        return w * gradient, m * gradient

    def extra_repr(self) -> str:
        """Shape, active entries, storage and β, for `print(module)`."""
        return f"{super().extra_repr()}, beta={self.beta}"
