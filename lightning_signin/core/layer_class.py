"""The class that torch makes for a layer with sparse weights, where it has to do what plain layers do.

Such a layer takes part in `torch.func.functional_call` by the plain names of its weights, and can be pickled. All of it
is put on the class of this one layer and its copies, and goes away with it when the layer becomes plain again.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.core.layer_forward import mark_own_forward
from lightning_signin.core.stacked import check_when_stacked
from lightning_signin.core.state_dict import saving_plain
from lightning_signin.core.torch_internals import (
    empty_parametrized,
    is_functional_call,
    registered_parameters,
    set_registered_parameters,
    wrap_saving,
)
from lightning_signin.errors import SignInError

_SPARSE = "_sparse_weights"


class Given:
    """The tensors that replace a weight during a functional call, by its user: the layer's id, and the weight's name.

    A copy that is made meanwhile has none of them. It is no dict, since Dynamo of torch 2.6 looks nothing up in a
    subclass of one.
    """

    def __init__(self) -> None:
        self.tensors: dict[tuple[int, str], Tensor | None] = {}

    def __reduce__(self) -> tuple[type["Given"], tuple[()]]:
        return Given, ()


class Others(dict[str, nn.Parameter | None]):
    """The parameters of a layer but for its sparse weights, of which it says why they are not among them."""

    def __missing__(self, name: str) -> None:
        raise _works_by_hooks(name)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise _works_by_hooks(name)
        super().__delitem__(name)


def refuse_hooks(owner: nn.Module) -> None:
    """Let a layer say which of its weights are sparse when they are looked for among its parameters."""
    set_registered_parameters(owner, Others(registered_parameters(owner)))


def complete_layer(owner: nn.Module, attribute: str) -> None:
    """Prepare a layer in which torch has just parametrized a weight.

    Args:
        owner: The layer.
        attribute: The name of the weight in it.
    """
    holder = _holder(owner, attribute)
    holder.given, holder.append = Given(), _refuse_another
    check_when_stacked(holder)
    _complete_class(owner, attribute)
    refuse_hooks(owner)


def _complete_class(owner: nn.Module, attribute: str) -> None:
    made_by_torch: Any = type(owner)
    setattr(made_by_torch, attribute, _weight(attribute, vars(made_by_torch)[attribute]))
    if (sparse := getattr(made_by_torch, _SPARSE, None)) is None:
        setattr(made_by_torch, _SPARSE, sparse := set())
        if set(getattr(owner, "parametrizations", [attribute])) == {attribute}:  # torch made the class for this weight
            made_by_torch.__name__ = made_by_torch.__bases__[0].__name__  # as model summaries and logs show it
        made_by_torch.__setattr__ = _setattr(made_by_torch, sparse)
        made_by_torch.__reduce_ex__ = _reduce_ex(made_by_torch, sparse)
        made_by_torch.register_parameter = _register_parameter(made_by_torch)
        made_by_torch.__prepare_scriptable__ = _refuse_script
        wrap_saving(made_by_torch, saving_plain)
        mark_own_forward(owner)
    sparse.add(attribute)


def _weight(attribute: str, computed: Any) -> property:
    """The property of a sparse weight, over that of torch."""
    compute = computed.fget  # Dynamo of torch 2.6 reads no attribute of a property

    def read(self: nn.Module) -> Tensor | None:
        given = _given(self, attribute)
        if given and (own := (id(self), attribute)) in given:
            return given[own]
        if not torch.compiler.is_compiling() and _in_functional_call(attribute):
            raise AttributeError(attribute)  # then there is nothing to put back, and what is given gets deleted
        # A weight that is given to one of its users is given to all.
        return next(iter(given.values())) if given else compute(self)

    def delete(self: nn.Module) -> None:
        if (id(self), attribute) not in (given := _given(self, attribute)):
            raise SignInError(f"{attribute} is a sparse weight and cannot be deleted. Call `merge_` first.")
        del given[id(self), attribute]

    return property(read, computed.fset, delete)


def _setattr(made_by_torch: type[nn.Module], sparse: set[str]) -> Callable[[nn.Module, str, Any], None]:
    """A ``__setattr__`` that keeps what a functional call gives beside the factors, which stay as they are."""

    def __setattr__(self: nn.Module, name: str, value: Any) -> None:
        if name in sparse and _in_functional_call(name):
            _given(self, name)[id(self), name] = value
        else:
            super(made_by_torch, self).__setattr__(name, value)

    return __setattr__


def _register_parameter(made_by_torch: type[nn.Module]) -> Callable[[nn.Module, str, Any], None]:
    """A ``register_parameter`` for what pruning does first with a weight: it gives the weight another name."""

    def register_parameter(self: nn.Module, name: str, param: Any) -> None:
        if isinstance(param, Tensor) and not isinstance(param, nn.Parameter):
            raise _works_by_hooks(name)
        super(made_by_torch, self).register_parameter(name, param)  # type: ignore[misc]

    return register_parameter


def _reduce_ex(made_by_torch: type[nn.Module], sparse: set[str]) -> Callable[[nn.Module, Any], tuple[Any, ...]]:
    """A ``__reduce_ex__`` for pickles and shallow copies: torch refuses them, since no module has this class."""

    def __reduce_ex__(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        parametrized = {name: name in sparse for name in self.parametrizations}  # type: ignore[union-attr]
        getstate = getattr(super(made_by_torch, self), "__getstate__", self.__dict__.copy)  # Python 3.10 has no default
        return _empty_layer, (made_by_torch.__bases__[0], parametrized), getstate()

    return __reduce_ex__


def _empty_layer(plain: type[nn.Module], parametrized: dict[str, bool]) -> nn.Module:
    """A layer of a plain class with these parametrized tensors, sparse weights or not, before its state is loaded."""
    owner = empty_parametrized(plain, parametrized)
    for attribute, sparse in parametrized.items():
        if sparse:
            _complete_class(owner, attribute)
    return owner


def _works_by_hooks(name: str) -> SignInError:
    return SignInError(
        f"This layer has no parameter {name!r}: its sparse weights are computed from factors. torch's pruning and its "
        "older norms, which work by hooks, do not apply to them. Leave the weight dense with `exclude`, or apply them "
        "after `merge_`."
    )


def _refuse_another(parametrization: nn.Module) -> None:
    raise SignInError(
        f"A sparse weight takes no second parametrization, got {type(parametrization).__name__}. Leave the weight "
        "dense with `exclude`, or parametrize it after `merge_`."
    )


def _refuse_script(self: nn.Module) -> None:
    raise SignInError(
        "Sparse weights cannot be scripted, since torch scripts no parametrization. Script a plain copy, "
        "`torch.jit.script(merge_(copy.deepcopy(module)))`, or trace the module."
    )


def _in_functional_call(attribute: str) -> bool:
    """Whether a functional call is behind the access that the calling function handles: directly, or by a live view."""
    asking = sys._getframe(2)  # noqa: SLF001 — documented by Python
    return is_functional_call(asking, attribute) or is_functional_call(asking.f_back, attribute)


def _given(owner: nn.Module, attribute: str) -> dict[tuple[int, str], Tensor | None]:
    tensors: dict[tuple[int, str], Tensor | None] = _holder(owner, attribute).given.tensors
    return tensors


def _holder(owner: nn.Module, attribute: str) -> Any:
    return owner.parametrizations[attribute]  # type: ignore[index]
