"""θ and its gradient, as they would stand in a plain parameter: read from the factors, and written into them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import ParametrizationList

from lightning_signin.core.sharded import sharded_like, whole
from lightning_signin.core.torch_internals import tree_leaves, version_of, without_torch_function
from lightning_signin.errors import SignInError


@torch.no_grad()
def set_theta(holder: ParametrizationList, theta: Tensor) -> None:
    """Write θ into the factors of a weight; if no entry on the mask has changed, they stay as they are, bit for bit.

    Args:
        holder: torch's list of the weight's parametrization, which holds the trainable tensors.
        theta: Of the weight's shape; its masked entries are dropped.
    """
    masked: Any = holder[0]
    tensors = list(holder.parameters(recurse=False))
    if torch.equal(masked.storage.pack(theta), whole(masked.values(*tensors))):
        return
    for tensor, value in zip(tensors, masked.right_inverse(theta.to(tensors[0])), strict=True):
        tensor.copy_(sharded_like(value, tensor))


@torch.no_grad()
def gradient_of(holder: ParametrizationList) -> Tensor | None:
    """The gradient with respect to θ on the mask, zero elsewhere, from those of the factors; None if they have none.

    Raises:
        SignInError: If θ is a map of the product of its factors: where the map is flat, the gradient is not known.
    """
    masked = _without_map(holder)
    factors = list(holder.parameters(recurse=False))[: len(masked.factors)]
    gradients = [factor.grad for factor in factors]
    if any(gradient is None for gradient in gradients):
        return None
    return masked.storage.unpack(whole(masked.gradient(factors, gradients)))


@torch.no_grad()
def set_gradient(holder: ParametrizationList, gradient: Tensor | None) -> None:
    """Give the factors the gradients that belong to a gradient with respect to θ, or none.

    Raises:
        SignInError: See `gradient_of`.
    """
    tensors = list(holder.parameters(recurse=False))
    if gradient is None:
        for tensor in tensors:
            tensor.grad = None
        return
    masked = _without_map(holder)
    factors = tensors[: len(masked.factors)]
    packed = masked.storage.pack(gradient)
    for factor, value in zip(factors, masked.factor_gradients(factors, packed), strict=True):
        factor.grad = sharded_like(value, factor)


def _without_map(holder: ParametrizationList) -> Any:
    masked: Any = holder[0]
    if masked.elementwise_map is not None:
        raise SignInError(
            f"The gradient of a weight that is a {type(masked.elementwise_map).__name__} of its factors is not known "
            "where the map is flat. Use those of the factors, which are in `parameters()` during a fit."
        )
    return masked


def written_through(values: Tensor, write: Callable[[Tensor], None]) -> Tensor:
    """A tensor of these values; whenever it is changed in place, ``write`` is called with the values it has then.

    Example:
        >>> seen = []
        >>> written_through(torch.zeros(2), lambda values: seen.append(values.tolist()))[1:].add_(1)
        tensor([1.])
        >>> seen
        [[0.0, 1.0]]
    """
    result = values.detach().as_subclass(_WrittenThrough)
    result.write = lambda: write(values)
    return result


class _WrittenThrough(Tensor):
    """A tensor of which changes in place, of its views too, are written on."""

    write: Callable[[], None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with without_torch_function():
            own = [(t, version_of(t)) for t in tree_leaves((args, kwargs)) if isinstance(t, _WrittenThrough)]
            result = func(*args, **(kwargs or {}))
            for tensor, version in own:
                if version_of(tensor) != version:
                    tensor.write()
            if isinstance(result, Tensor) and own and not isinstance(result, _WrittenThrough):
                source = own[0][0]
                if result.untyped_storage().data_ptr() == source.untyped_storage().data_ptr():  # a view
                    result = result.as_subclass(_WrittenThrough)
                    result.write = source.write
        return result
