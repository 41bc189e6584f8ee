"""θ and its gradient, as they would stand in a plain parameter: read from the factors, and written into them.

With θ = m ⊙ w and g = ∂L/∂θ, the factors' gradients are g ⊙ w and g ⊙ m, so g = (w ⊙ ∂L/∂m + m ⊙ ∂L/∂w) / (m² + w²);
with an elementwise map θ = ψ(v), that is divided by ψ′(v). What is not changed leaves the factors as they are, bit for
bit, entry by entry.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import ParametrizationList

from lightning_signin.core.masked_product import strided
from lightning_signin.core.sharded import is_sharded, sharded_like, whole
from lightning_signin.core.torch_internals import (
    is_transformed,
    storage_id,
    tree_leaves,
    tree_map,
    version_of,
    without_torch_function,
)
from lightning_signin.errors import SignInError, warn


@torch.no_grad()
def set_theta(holder: ParametrizationList, theta: Tensor, name: str = "a sparse weight", unseen: bool = False) -> None:
    """Set the entries of θ that differ from the current ones, up to rounding; entries off the mask stay zero.

    Scalars of the parametrization keep their values, and θ its gradient.

    Args:
        holder: torch's list of the weight's parametrization, which holds the trainable tensors.
        theta: The new values, of the weight's shape.
        name: The weight's name in messages.
        unseen: Write past autograd, as ``weight.data`` does.

    Raises:
        SignInError: If the shape is another, or a new value on the mask is not finite.
    """
    masked, factors, scalars = _parts(holder)
    if theta.shape != masked.shape:
        raise SignInError(
            f"{name} was given the shape {tuple(theta.shape)} and has {tuple(masked.shape)}: its mask is of that "
            "shape. Change the layer before the fit, or leave it dense with `exclude`."
        )
    theta, now = whole(theta), whole(masked.values(*factors, *scalars))
    packed = masked.storage.pack(theta).to(now)
    same = _same(packed, now)
    if int(theta.count_nonzero()) > int(packed.count_nonzero()):
        warn(f"Values were written into {name} off its mask. They are dropped: masked entries stay zero.")
    if bool(same.all()):
        return
    if not bool(packed.isfinite().logical_or_(same).all()):
        raise SignInError(f"Infinities or NaN were written into {name}, which have no factors. Write finite ones.")
    psi, gradient = masked.elementwise_map, _stored_gradient(holder)
    inner = packed if psi is None else psi.inverse(packed, *map(whole, scalars))
    for factor, value in zip(factors, masked.split(inner), strict=True):
        renewed = whole(factor).where(same, value.to(factor.dtype))
        (factor.data if unseen else factor).copy_(sharded_like(renewed, factor))
    if gradient is not None:
        for factor, of_factor in zip(factors, _of_factors(holder, gradient), strict=True):
            factor.grad.copy_(factor.grad.where(same, of_factor))


@torch.no_grad()
def gradient_of(holder: ParametrizationList) -> Tensor | None:
    """∂L/∂θ of the weight's shape, zero off the mask; None where the factors have none, or are sharded.

    Where the loss does not depend on θ through its map, as below a threshold, it is zero.

    Returns:
        The gradient, or None.
    """
    gradient = _stored_gradient(holder)
    return None if gradient is None else _parts(holder)[0].storage.unpack(gradient)


@torch.no_grad()
def set_gradient(holder: ParametrizationList, gradient: Tensor | None) -> None:
    """Change the gradients of the factors along with that of θ, where the latter differs from the current one.

    Args:
        holder: As in `set_theta`; gradients of sharded factors are left alone.
        gradient: ∂L/∂θ, or None to clear the gradients.
    """
    masked, factors, scalars = _parts(holder)
    if is_sharded(factors[0]):
        return
    if gradient is None:
        for tensor in (*factors, *scalars):
            tensor.grad = None
        return
    before, after = _stored_gradient(holder), masked.storage.pack(strided(gradient))
    if before is None:
        for factor, new in zip(factors, _of_factors(holder, after), strict=True):
            factor.grad = new.to(factor.dtype)
    elif not bool((same := _same(after, before)).all()):
        for factor, more in zip(factors, _of_factors(holder, after - before), strict=True):
            # Adding the change keeps a decay that is part of the gradient; what should be zero is exactly zero.
            new = (factor.grad + more).where(after != 0, torch.zeros_like(more))
            if masked.elementwise_map is None and masked.factors == ("theta",):  # without rounding
                new = after.to(new)
            factor.grad.copy_(factor.grad.where(same, new))


def from_factor_gradients(holder: ParametrizationList, gradients: Sequence[Tensor]) -> Tensor:
    """∂L/∂θ of the weight's shape from the gradients of the factors; it can be differentiated again."""
    masked, factors, scalars = _parts(holder)
    of_inner = masked.gradient(factors, gradients[: len(factors)])
    if masked.elementwise_map is not None:
        slope = _slope(masked, factors, scalars)
        of_inner = torch.where(slope != 0, of_inner / slope, 0)
    return masked.storage.unpack(of_inner)


def _stored_gradient(holder: ParametrizationList) -> Tensor | None:
    masked, factors, _ = _parts(holder)
    if is_sharded(factors[0]) or any(factor.grad is None for factor in factors):
        return None
    return masked.storage.pack(from_factor_gradients(holder, [strided(factor.grad) for factor in factors]))


def _of_factors(holder: ParametrizationList, gradient: Tensor) -> tuple[Tensor, ...]:
    masked, factors, scalars = _parts(holder)
    if masked.elementwise_map is not None:
        gradient = gradient * _slope(masked, factors, scalars)
    return masked.factor_gradients(factors, gradient)


def _slope(masked: Any, factors: Sequence[Tensor], scalars: Sequence[Tensor]) -> Tensor:
    """ψ′(v)."""
    with torch.enable_grad():
        inner = masked.join(*factors).detach().requires_grad_()
        return torch.autograd.grad(masked.elementwise_map(inner, *[s.detach() for s in scalars]).sum(), inner)[0]


def _parts(holder: ParametrizationList) -> tuple[Any, list[Any], list[Any]]:
    """The parametrization, its factors, and its scalars."""
    masked: Any = holder[0]
    tensors = list(holder.parameters(recurse=False))
    return masked, tensors[: len(masked.factors)], tensors[len(masked.factors) :]


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b).logical_or_(a.isnan() & b.isnan())


def written_through(values: Tensor, write: Callable[[Tensor], None]) -> Tensor:
    """A tensor of these values; whenever it is changed in place, ``write`` is called with the values it has then.

    Returns:
        The tensor; its views write through as well.

    Example:
        >>> seen = []
        >>> _ = written_through(torch.zeros(2), lambda values: seen.append(values.tolist()))[1:].add_(1)
        >>> seen
        [[0.0, 1.0]]
    """
    result = values.detach().as_subclass(_WrittenThrough)
    result.write = lambda: write(values)
    return result


def as_parameter(holder: ParametrizationList, theta: Tensor) -> Tensor:
    """θ as computed, with its graph; like a parameter, it can be written to and has a gradient."""
    result = theta.as_subclass(_AsParameter)
    result.holder, result.write = holder, lambda: set_theta(holder, theta.detach())
    return result


def views_written_through(result: Any, source: Tensor, write: Callable[[], None]) -> Any:
    """What an operation on ``source`` gave: tensors in it that share its memory call ``write`` when they change."""

    def as_view(tensor: Any) -> Any:
        if type(tensor) is not Tensor or is_transformed(tensor) or storage_id(tensor) != storage_id(source):
            return tensor
        view = tensor.as_subclass(_WrittenThrough)
        view.write = write
        return view

    return as_view(result) if isinstance(result, Tensor) else tree_map(as_view, result)


class _WrittenThrough(Tensor):
    """A tensor whose in-place changes, and those of its views, are passed on."""

    write: Callable[[], None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with without_torch_function():
            flat = not kwargs and not any(isinstance(argument, list | tuple | dict) for argument in args)
            leaves = args if flat else tree_leaves((args, kwargs))  # which takes longer than the rest
            own = [(t, version_of(t)) for t in leaves if isinstance(t, _WrittenThrough)]
            result = func(*args, **(kwargs or {}))
            for tensor, version in own:
                if version_of(tensor) != version:
                    tensor.write()
            return views_written_through(result, own[0][0], own[0][0].write) if own else result


class _AsParameter(_WrittenThrough):
    """The result of `as_parameter`."""

    holder: ParametrizationList

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _AS_PARAMETER and isinstance(args[0], _AsParameter):
            with without_torch_function():
                return _AS_PARAMETER[func](*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def _set_requires_grad(theta: _AsParameter, requires_grad: bool = True) -> Tensor:
    theta.holder.requires_grad_(requires_grad)
    return theta


def _set_data(theta: _AsParameter, values: Tensor) -> None:
    set_theta(theta.holder, values, unseen=True)
    theta.data = values
    theta.write = lambda: set_theta(theta.holder, values.detach())  # they share their memory now


_TENSOR: Any = Tensor
_AS_PARAMETER: dict[Any, Callable[..., Any]] = {
    _TENSOR.data.__set__: _set_data,
    _TENSOR.grad.__get__: lambda theta: gradient_of(theta.holder),
    _TENSOR.grad.__set__: lambda theta, gradient: set_gradient(theta.holder, gradient),
    # θ itself does not require a gradient under `no_grad`, where it is computed.
    _TENSOR.requires_grad.__get__: lambda theta: any(p.requires_grad for p in theta.holder.parameters(recurse=False)),
    _TENSOR.requires_grad.__set__: _set_requires_grad,
    _TENSOR.requires_grad_: _set_requires_grad,
}
