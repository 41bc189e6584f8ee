"""The plain parameter of a weight, which stays the same object before, while and after the weight is sparse.

Ids, attributes, hooks and lists of parameters that a module notes in ``__init__`` thus stay valid. While the weight is
sparse, its factors are trained, and the plain parameter is empty: what is done to it is done to θ.
"""

import copy
from collections.abc import Callable, Hashable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from lightning_signin.core.gradient_hooks import carry_hooks
from lightning_signin.core.theta import (
    from_factor_gradients,
    gradient_of,
    set_gradient,
    set_theta,
    views_written_through,
    written_through,
)
from lightning_signin.core.torch_internals import (
    TENSOR_METADATA,
    can_hold,
    tree_map,
    version_of,
    without_torch_function,
)

_TORCH: Any = Tensor
_HOLDER = "_sparse_holder"  # among the attributes of an empty parameter


def set_aside(parameter: nn.Parameter, holder: ParametrizationList) -> None:
    """Empty the plain parameter of a sparse weight. Its attributes and hooks are carried over to the factors.

    Args:
        parameter: The plain parameter; its memory is released.
        holder: torch's list of the weight's parametrization, which holds the trainable tensors.
    """
    masked: Any = holder[0]
    if parameter is not masked.plain_parameter or is_empty(parameter):
        return
    for factor in holder.parameters(recurse=False):
        vars(factor).update(vars(parameter))
    parameter.grad = None
    parameter.data = _blank(parameter.shape, parameter)
    _become_empty(parameter, holder)
    carry_hooks(parameter, holder)


def shown(parameter: Any, values: Tensor, requires_grad: bool) -> nn.Parameter:
    """The plain parameter with its values; a new one with its attributes where it cannot hold them, as if sharded."""
    if is_empty(parameter):
        del vars(parameter)[_HOLDER]
        parameter.__class__ = type(parameter).__bases__[-1]
    if can_hold(parameter, values):
        parameter.data = values
    else:
        attributes, parameter = vars(parameter), nn.Parameter(values)
        vars(parameter).update(attributes)
    parameter.requires_grad_(requires_grad)
    return parameter


def is_empty(parameter: nn.Parameter) -> bool:
    """Whether this is the plain parameter of a weight that is sparse now."""
    return _HOLDER in vars(parameter)


def follow(parameter: nn.Parameter, fn: Callable[[Tensor], Tensor]) -> None:
    """Give an empty parameter the device and the dtype that ``fn`` gives to others."""
    if not is_empty(parameter):  # it is shown, by another layer than the one that is moved
        return
    with without_torch_function():
        like = fn(torch.empty(0, dtype=parameter.dtype, device=parameter.device))
        if can_hold(parameter, like):
            parameter.data = _blank(parameter.shape, like)


class _Empty:
    """Mixed into the class of a parameter while it is empty: what is done to it is done to θ."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in TENSOR_METADATA:
            with without_torch_function():
                return func(*args, **kwargs)
        if func in _ON_PARAMETER:
            return _ON_PARAMETER[func](*args, **kwargs)
        if func is torch.autograd.grad and any(isinstance(parameter, _Empty) for parameter in args[1]):
            return _differentiate(*args, **kwargs)
        found: dict[int, tuple[Any, Tensor, int]] = {}

        def theta_of(argument: Any) -> Any:
            if not isinstance(argument, _Empty):
                return argument
            if id(argument) not in found:
                theta = _holder(argument)()
                found[id(argument)] = argument, theta, version_of(theta)
            return found[id(argument)][1]

        result = func(*tree_map(theta_of, args), **tree_map(theta_of, kwargs))
        for parameter, theta, version in found.values():
            if version_of(theta) != version:  # changed in place
                set_theta(_holder(parameter), theta)
            if result is theta:
                return parameter
            write = partial(set_theta, _holder(parameter), theta.detach())
            result = views_written_through(result, theta, write)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo[id(self)] = _new(*_described(self))
        _become_empty(twin, copy.deepcopy(_holder(self), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, _described(self), vars(self), None, None, _set_attributes


@cache
def _empty_kind(kind: Hashable) -> type:
    return type("EmptyParameter", (_Empty, kind), {})  # type: ignore[arg-type]


def _become_empty(parameter: Any, holder: ParametrizationList) -> None:
    vars(parameter)[_HOLDER] = holder
    parameter.__class__ = _empty_kind(parameter.__class__)


def _holder(parameter: Any) -> ParametrizationList:
    return vars(parameter)[_HOLDER]


def _blank(shape: torch.Size, like: Tensor) -> Tensor:
    """NaN, in the memory of one number."""
    return torch.full((), torch.nan, dtype=like.dtype, device=like.device).expand(shape)


def _described(parameter: Any) -> tuple[Any, ...]:
    return type(parameter).__bases__[-1], parameter.shape, parameter.dtype, parameter.device, parameter.requires_grad


def _new(kind: Any, shape: torch.Size, dtype: torch.dtype, device: torch.device, requires_grad: bool) -> nn.Parameter:
    parameter: nn.Parameter = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad)
    parameter.data = _blank(shape, parameter)
    parameter.__class__ = kind
    return parameter


def _set_attributes(parameter: Any, attributes: dict[str, Any]) -> None:
    vars(parameter).update(attributes)
    parameter.__class__ = _empty_kind(parameter.__class__)


def _register(method: Callable[..., Any]) -> Callable[..., Any]:
    def register(parameter: nn.Parameter, *args: Any, **kwargs: Any) -> Any:
        with without_torch_function():
            handle = method(parameter, *args, **kwargs)
        carry_hooks(parameter, _holder(parameter))
        return handle

    return register


def _set_requires_grad(parameter: nn.Parameter, requires_grad: bool = True) -> nn.Parameter:
    _holder(parameter).requires_grad_(requires_grad)
    with without_torch_function():
        parameter.requires_grad_(requires_grad)
    return parameter


def _gradient(parameter: nn.Parameter, *_: Any) -> Tensor | None:
    holder = _holder(parameter)
    gradient = gradient_of(holder)
    return None if gradient is None else written_through(gradient, lambda values: set_gradient(holder, values))


def _differentiate(outputs: Any, inputs: Any, **options: Any) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad`` with respect to θ: by the factors, since each use of θ computes it anew."""
    sources = [list(_holder(p).parameters(recurse=False)) if isinstance(p, _Empty) else [p] for p in inputs]
    found = iter(torch.autograd.grad(outputs, [tensor for source in sources for tensor in source], **options))
    gradients = [[next(found) for _ in source] for source in sources]
    return tuple(
        from_factor_gradients(_holder(p), own) if isinstance(p, _Empty) and None not in own else own[0]
        for p, own in zip(inputs, gradients, strict=True)
    )


def _data(parameter: nn.Parameter, *_: Any) -> Tensor:
    holder = _holder(parameter)
    with torch.no_grad():
        return written_through(holder(), lambda values: set_theta(holder, values, unseen=True))


_ON_PARAMETER: dict[Any, Callable[..., Any]] = {
    _TORCH.data.__get__: _data,
    _TORCH.data.__set__: lambda parameter, theta: set_theta(_holder(parameter), theta, unseen=True),
    _TORCH.grad.__get__: _gradient,
    _TORCH.grad.__set__: lambda parameter, gradient: set_gradient(_holder(parameter), gradient),
    _TORCH.requires_grad.__set__: _set_requires_grad,
    _TORCH.requires_grad_: _set_requires_grad,
    _TORCH.register_hook: _register(_TORCH.register_hook),
    _TORCH.register_post_accumulate_grad_hook: _register(_TORCH.register_post_accumulate_grad_hook),
}
