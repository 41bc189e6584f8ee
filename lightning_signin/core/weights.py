"""Finding the sparse weights of a module: every verb starts with this scan."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from lightning_signin.core.factors_visible import factors_visible
from lightning_signin.core.layout import Layout
from lightning_signin.core.masked import Masked, SignIn
from lightning_signin.core.sharded import reshard_, sharded_like, whole
from lightning_signin.core.storage import Storage
from lightning_signin.core.wrappers import unwrapped


@dataclass
class SparseWeight:
    """One masked weight of a module.

    Attributes:
        name: Its plain name, e.g. "layer1.0.conv1.weight"; for a tied weight the first of its names.
        holder: torch's list of its one parametrization, which holds the trainable tensors.
        owners: Every (module, attribute name) that uses it: more than one for a tied weight.
    """

    name: str
    holder: ParametrizationList
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)

    @property
    def parametrization(self) -> Masked:
        """How θ is computed from the trainable tensors."""
        return self.holder[0]  # type: ignore[return-value]

    @property
    def storage(self) -> Storage:
        """The mask, and how the values on it are stored."""
        return self.parametrization.storage

    @property
    def factors(self) -> tuple[nn.Parameter, ...]:
        """The trainable tensors of θ's stored form: (m, w) for a product, (θ,) for a plain masked weight."""
        return self.tensors[: len(self.parametrization.factors)]

    @property
    def tensors(self) -> tuple[nn.Parameter, ...]:
        """All trainable tensors: the factors, and scalars of the parametrization."""
        return tuple(getattr(self.holder, f"original{i}") for i in range(self.holder.ntensors))

    @property
    def layout(self) -> Layout:
        """Which of its axes are outputs and inputs."""
        return self.parametrization.layout

    @torch.no_grad()
    def effective(self) -> Tensor:
        """A new tensor with the full masked weight θ."""
        return self.holder()

    def plain(self) -> Tensor:
        """The same in the memory layout of the plain weight, e.g. channels_last; sharded where the factors are."""
        theta, stride = self.effective(), self.parametrization.stride
        theta = theta if theta.stride() == stride else theta.new_empty_strided(theta.shape, stride).copy_(theta)
        return sharded_like(theta, self.factors[0])

    @torch.no_grad()
    def values(self) -> Tensor:
        """θ as it is stored: the active entries in compact storage, the full masked weight in dense storage."""
        return whole(self.parametrization.values(*self.tensors))

    def active_values(self) -> Tensor:
        """The entries of θ on the mask, as a vector."""
        values = self.values()
        return values if self.storage.name == "compact" else values[self.storage.mask]

    @torch.no_grad()
    def inner(self) -> Tensor:
        """The v of θ = ψ(v), stored like `values`: θ itself where there is no ψ. Sharded where the factors are."""
        return self.parametrization.join(*self.factors)

    @property
    def kept(self) -> int:
        """The number of entries on the mask, minus those that the parametrization makes zero."""
        return int(self.values().count_nonzero()) if self.parametrization.makes_zeros else self.storage.active

    @torch.no_grad()
    def set_factors(self, values: Iterable[Tensor]) -> None:
        """Write the factors in place: optimizers and DDP hold references to them."""
        for factor, value in zip(self.factors, values, strict=True):
            factor.copy_(sharded_like(value, factor))


def sparsity(module: nn.Module) -> float:
    """The share of zeros in the sparse weights, by count: masked entries, and zeros that the parametrization makes.

    Returns:
        The share, in [0, 1].

    Example:
        >>> from lightning_signin import sparsify
        >>> sparsity(sparsify(nn.Linear(10, 10), sparsity=0.75))
        0.75
    """
    weights = sparse_weights(module).values()
    return 1 - sum(weight.kept for weight in weights) / sum(weight.storage.shape.numel() for weight in weights)


def sparse_weights(module: nn.Module) -> dict[str, SparseWeight]:
    """The masked weights below a module by plain name, in model order; see `unwrapped` for what wraps it."""
    module = unwrapped(module)
    reshard_(module)
    found: dict[int, SparseWeight] = {}
    with factors_visible():
        for prefix, owner in module.named_modules():
            if not is_parametrized(owner):
                continue
            for attribute, holder in owner.parametrizations.items():
                if isinstance(holder[0], Masked):
                    name = f"{prefix}.{attribute}" if prefix else attribute
                    found.setdefault(id(holder), SparseWeight(name, holder)).owners.append((owner, attribute))
    return {weight.name: weight for weight in found.values()}


def sign_in_weights(module: nn.Module) -> dict[str, SparseWeight]:
    """Those of `sparse_weights` that are products m ⊙ w."""
    return {name: w for name, w in sparse_weights(module).items() if isinstance(w.parametrization, SignIn)}
