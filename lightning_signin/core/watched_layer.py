"""What user code asks a sparse layer for its parameters with: a live view then opens."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from lightning_signin.core.layer_forward import hands_on_only
from lightning_signin.core.theta import as_parameter
from lightning_signin.core.torch_internals import is_transformed

_HAND_ON = ("torch", __name__.partition(".")[0])
_GET_PARAMETER = nn.Module.get_parameter.__code__


class Opens(Protocol):
    """A view that opens layers when they are asked: see `LiveView`."""

    mode: str | None

    def shows(self, owner: nn.Module) -> bool:
        """Whether it can open the layer."""
        ...

    def opens(self, owner: nn.Module) -> bool:
        """Whether it opens the layer now."""
        ...

    def copied(self, owner: nn.Module, memo: dict[int, Any]) -> Any:
        """A plain copy of the layer, or None."""
        ...


def watch(owner: nn.Module, view: Opens) -> None:
    """Tell a view when a parametrized layer is asked for its parameters.

    The methods are put on the class that torch made for this one layer, and go away with it.
    """
    made_by_torch: Any = type(owner)
    for name in ("named_modules", "named_parameters"):
        setattr(made_by_torch, name, _opening(getattr(made_by_torch, name), name, view))
    for attribute in owner.parametrizations:  # type: ignore[union-attr]
        if isinstance(vars(made_by_torch).get(attribute), property):
            setattr(made_by_torch, attribute, _opening_property(owner, attribute, view))
    copied = made_by_torch.__deepcopy__

    def __deepcopy__(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        plain: nn.Module | None = view.copied(self, memo)
        return copied(self, memo) if plain is None else plain

    made_by_torch.__deepcopy__ = __deepcopy__


def _opening(method: Callable[..., Any], name: str, view: Opens) -> Callable[..., Any]:
    def opening(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # If it opens, the layer has another class now.
        return getattr(self, name)(*args, **kwargs) if view.opens(self) else method(self, *args, **kwargs)

    return opening


def _opening_property(owner: nn.Module, attribute: str, view: Opens) -> property:
    computed: Any = vars(type(owner))[attribute]
    masked: Any = owner.parametrizations[attribute][0]  # type: ignore[index]
    known = hands_on_only(owner)  # then it says itself when it runs

    def read(self: nn.Module) -> Any:
        # In every forward pass, so as little as possible.
        if torch.compiler.is_compiling() or view.mode is None or masked.read_only:
            return computed.fget(self)
        asking = sys._getframe(1)  # noqa: SLF001 — documented by Python
        if view.mode == "hooks" or asking.f_code is _GET_PARAMETER:
            return getattr(self, attribute) if view.opens(self) else computed.fget(self)
        theta = computed.fget(self)
        if not view.shows(self) or is_transformed(theta) or not (known or _may_write(asking)):
            return theta
        holder: Any = self.parametrizations
        return as_parameter(holder[attribute], theta)

    def write(self: nn.Module, value: Any) -> None:
        if view.mode == "hooks" and view.opens(self):
            setattr(self, attribute, value)
        else:
            computed.fset(self, value)

    return property(read, write, computed.fdel)


def _may_write(asking: FrameType) -> bool:
    """Whether the code that reads a weight may write into it: the layers of torch only hand theirs on."""
    return asking.f_globals.get("__name__", "").partition(".")[0] not in _HAND_ON
