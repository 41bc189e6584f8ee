"""A plain view that opens by itself: a layer becomes plain when user code in a hook asks for its parameters.

Until then it costs nothing. What asks is `named_modules`, through which torch's `parameters`, `named_parameters` and
`get_parameter` come to a layer, and the attribute of the weight; and `copy.deepcopy`, whose copy is plain for good.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from lightning_signin.core.factors_visible import LIVE
from lightning_signin.core.plain_view import opened
from lightning_signin.core.state_dict import uninstall_plain_state
from lightning_signin.core.weights import SparseWeight, sparse_weights

Opening = Callable[[nn.Module], bool]


class LiveView:
    """The view of one module, for the time of a fit.

    Args:
        module: A module with sparse weights, none of them sharded.
    """

    def __init__(self, module: nn.Module) -> None:
        self._groups = _connected(list(sparse_weights(module).values()))
        self._is_on = False
        self._open = ExitStack()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the layers open in blocks of `on`. It is undone with the classes of the layers when they are merged."""
        owners = {id(owner): owner for group in self._groups.values() for weight in group for owner, _ in weight.owners}
        for owner in owners.values():
            _watch(owner, self._opens)
        LIVE.append(self)
        try:
            yield
        finally:
            LIVE.remove(self)
            self._groups = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let layers become plain in the block; then write back what was changed, and close them."""
        before, self._is_on = self._is_on, True
        try:
            yield
        finally:
            self._is_on = before
            if not before:
                self._open.close()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Write back what was changed, close the layers, and leave them closed in the block."""
        before, self._is_on = self._is_on, False
        try:
            self._open.close()
            yield
        finally:
            self._is_on = before

    def _opens(self, owner: nn.Module) -> bool:
        """Make a layer plain if user code asks for it; its copies, which share its class, stay as they are."""
        if not self._is_on or id(owner) not in self._groups:
            return False
        self._open.enter_context(opened(self._groups[id(owner)]))
        return True


def _watch(owner: nn.Module, opens: Opening) -> None:
    made_by_torch: Any = type(owner)
    inherited = super(made_by_torch, owner)
    before = {name: getattr(inherited, name).__func__ for name in ("named_modules", "named_parameters")}
    for name, function in before.items():
        setattr(made_by_torch, name, _opening(function, name, opens))
    for attribute in owner.parametrizations:  # type: ignore[union-attr]
        if isinstance(found := vars(made_by_torch).get(attribute), property):
            setattr(made_by_torch, attribute, _opening_property(found, attribute, opens))
    copied = made_by_torch.__deepcopy__

    def __deepcopy__(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        if not opens(self):
            return copied(self, memo)
        plain = copy.deepcopy(self, memo)
        uninstall_plain_state(plain)
        return plain

    made_by_torch.__deepcopy__ = __deepcopy__


def _opening(function: Callable[..., Any], name: str, opens: Opening) -> Callable[..., Any]:
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # If it opens, the layer has another class now.
        return getattr(self, name)(*args, **kwargs) if opens(self) else function(self, *args, **kwargs)

    return method


def _opening_property(computed: property, attribute: str, opens: Opening) -> property:
    def read(self: nn.Module) -> Any:
        if not torch.compiler.is_compiling() and opens(self):
            return getattr(self, attribute)
        return computed.fget(self)  # type: ignore[misc]

    def write(self: nn.Module, value: Any) -> None:
        if opens(self):
            setattr(self, attribute, value)
        else:
            computed.fset(self, value)  # type: ignore[misc]

    return property(read, write, computed.fdel)


def _connected(weights: list[SparseWeight]) -> dict[int, list[SparseWeight]]:
    """For each layer, by its id, the weights that become plain along with it: of it and of all users of its weights."""
    groups: dict[int, list[SparseWeight]] = {}
    for weight in weights:
        joined = [weight]
        for owner, _ in weight.owners:
            joined += [other for other in groups.get(id(owner), []) if other not in joined]
        for member in joined:
            groups |= {id(owner): joined for owner, _ in member.owners}
    return groups
