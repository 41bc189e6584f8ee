"""From θ back to the trainable tensors: what is written into a shown parameter, its gradient and its flags.

With θ = m ⊙ w and g = ∂L/∂θ, the factors' gradients are g ⊙ w and g ⊙ m, so g = (w ⊙ ∂L/∂m + m ⊙ ∂L/∂w) / (m² + w²);
with an elementwise map θ = ψ(v), that is divided by ψ′(v).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_signin.core.masked_product import strided
from lightning_signin.core.sharded import is_sharded, whole
from lightning_signin.core.torch_internals import registered_parameters, version_of
from lightning_signin.core.weights import SparseWeight
from lightning_signin.errors import SignInError, warn

Versions = list[tuple[int, int]]


class Mirror:
    """The parameter that shows a sparse weight, with its gradient and flag, and the way back.

    What was not changed in it leaves the trainable tensors as they are, bit for bit, entry by entry. Each of θ, its
    gradient and its flag is compared with what the trainable tensors still give, so nothing is kept to compare with.

    Args:
        weight: A sparse weight that is shown: its users have a parameter in its place.
    """

    def __init__(self, weight: SparseWeight) -> None:
        self.weight = weight
        self._shown = parameter = self._parameter()
        self._requires_grad = parameter.requires_grad
        parameter.grad = plain_gradient(weight)
        self._note()

    def refresh(self) -> None:
        """Take over what the trainable tensors give now."""
        with torch.inference_mode(False), torch.no_grad():
            parameter = self._parameter()
            parameter.copy_(self.weight.plain())
            parameter.grad = plain_gradient(self.weight)
        self._note()

    def write_back(self) -> None:
        """Give the trainable tensors what was changed.

        Raises:
            SignInError: If the values do not fit, see `set_values`, or the parameter was removed.
        """
        weight, parameter = self.weight, self._parameter()
        with torch.inference_mode(False), torch.no_grad():
            if parameter.requires_grad != self._requires_grad:
                for tensor in weight.tensors:
                    tensor.requires_grad_(parameter.requires_grad)
                self._requires_grad = parameter.requires_grad
            if self._gradients == _versions([factor.grad for factor in weight.factors]):
                set_gradient(weight, parameter.grad)
            if self._values == _versions(weight.tensors):
                # Between a forward and its backward pass autograd lets pass what is written through `data`, here too.
                set_values(weight, parameter.detach(), unseen=version_of(parameter) == self._version)
        self._note()

    def _parameter(self) -> nn.Parameter:
        """What has the parameter's place: itself, or what was assigned to one of its users."""
        found = [registered_parameters(owner).get(attribute) for owner, attribute in self.weight.owners]
        if None in found:
            raise SignInError(
                f"{self.weight.name} was removed, pruned or parametrized while it is sparse. Do that before the fit, "
                "or leave it dense with `exclude`."
            )
        first = self._shown if hasattr(self, "_shown") else found[0]
        return next((p for p in found if p is not first), first)  # type: ignore[return-value]

    def _note(self) -> None:
        # If the trainable tensors change meanwhile, as by loading a state dict, the parameter is out of date.
        self._values = _versions(self.weight.tensors)
        self._gradients = _versions([factor.grad for factor in self.weight.factors])
        self._version = version_of(self._shown)


@torch.no_grad()
def set_values(weight: SparseWeight, theta: Tensor, unseen: bool = False) -> None:
    """Set the entries of θ that differ from the current ones, up to rounding; entries off the mask stay zero.

    Scalars of the parametrization keep their values, and θ its gradient.

    Args:
        weight: The sparse weight.
        theta: The new values, of the weight's shape.
        unseen: Write past autograd, as ``weight.data`` does.

    Raises:
        SignInError: If the shape is another, or a new value on the mask is not finite.
    """
    storage, parametrization, count = weight.storage, weight.parametrization, len(weight.factors)
    if theta.shape != storage.shape:
        raise SignInError(
            f"{weight.name} was given the shape {tuple(theta.shape)} and has {tuple(storage.shape)}: its mask is of "
            "that shape. Change the layer before the fit, or leave it dense with `exclude`."
        )
    now = weight.values()
    packed = storage.pack(whole(theta)).to(now)
    same = _same(packed, now)
    if _nonzeros(theta) > _nonzeros(packed):
        warn(f"Values were written into {weight.name} off its mask. They are dropped: masked entries stay zero.")
    if bool(same.all()):
        return
    if not bool(packed.isfinite().logical_or_(same).all()):
        raise SignInError(
            f"Infinities or NaN were written into {weight.name}, which have no factors. Write finite ones."
        )
    psi, gradient = parametrization.elementwise_map, _stored_gradient(weight)
    inner = packed if psi is None else psi.inverse(packed, *map(whole, weight.tensors[count:]))
    renewed = zip(weight.factors, parametrization.split(inner), strict=True)
    weight.set_factors([whole(own).where(same, value.to(own.dtype)) for own, value in renewed], unseen)
    if gradient is not None:
        for factor, new in zip(weight.factors, _of_factors(weight, gradient), strict=True):
            assert factor.grad is not None
            factor.grad.copy_(factor.grad.where(same, new))


@torch.no_grad()
def plain_gradient(weight: SparseWeight) -> Tensor | None:
    """∂L/∂θ of the weight's shape, zero off the mask; None where the factors have none, or are sharded.

    Where the loss does not depend on θ through its map, as below a threshold, it is zero.
    """
    gradient = _stored_gradient(weight)
    return None if gradient is None else weight.storage.unpack(gradient)


@torch.no_grad()
def set_gradient(weight: SparseWeight, gradient: Tensor | None) -> None:
    """Change the gradients of the factors along with that of θ, where the latter differs from the current one.

    Args:
        weight: The sparse weight.
        gradient: ∂L/∂θ, or None to clear the gradients.
    """
    if is_sharded(weight.factors[0]):
        return
    if gradient is None:
        for tensor in weight.tensors:
            tensor.grad = None
        return
    before, after = _stored_gradient(weight), weight.storage.pack(strided(gradient))
    if before is None:
        for factor, new in zip(weight.factors, _of_factors(weight, after), strict=True):
            factor.grad = new.to(factor.dtype)
    elif not bool((same := _same(after, before)).all()):
        for factor, more in zip(weight.factors, _of_factors(weight, after - before), strict=True):
            assert factor.grad is not None
            # Adding leaves a decay that is in the gradient; what is to be zero is exactly zero.
            new = (factor.grad + more).where(after != 0, torch.zeros_like(more))
            factor.grad.copy_(factor.grad.where(same, new))


def _of_factors(weight: SparseWeight, gradient: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the factors, from that of θ as it is stored."""
    of_inner = gradient * _slope(weight)
    return tuple(of_inner * other for other in reversed(weight.factors)) if len(weight.factors) == 2 else (of_inner,)


def _stored_gradient(weight: SparseWeight) -> Tensor | None:
    factors = weight.factors
    if is_sharded(factors[0]) or any(factor.grad is None for factor in factors):
        return None
    gradients = [strided(factor.grad) for factor in factors]  # type: ignore[arg-type]
    gradient = gradients[0]
    if len(factors) == 2:
        m, w = factors
        norm = m * m + w * w
        gradient = torch.where(norm > 0, (w * gradients[0] + m * gradients[1]) / norm, 0)
    if weight.parametrization.elementwise_map is None:
        return gradient
    slope = _slope(weight)
    return torch.where(slope != 0, gradient / slope, 0)


def _slope(weight: SparseWeight) -> Tensor:
    """ψ′(v), which is 1 where there is no map."""
    psi = weight.parametrization.elementwise_map
    if psi is None:
        return weight.factors[0].new_ones(())
    with torch.enable_grad():
        inner = weight.inner().detach().requires_grad_()
        scalars = [tensor.detach() for tensor in weight.tensors[len(weight.factors) :]]
        return torch.autograd.grad(psi(inner, *scalars).sum(), inner)[0]


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b).logical_or_(a.isnan() & b.isnan())


def _versions(tensors: Sequence[Tensor | None]) -> Versions:
    return [(id(tensor), -1 if tensor is None else version_of(tensor)) for tensor in tensors]


def _nonzeros(tensor: Tensor) -> int:
    return int(whole(tensor).count_nonzero())
