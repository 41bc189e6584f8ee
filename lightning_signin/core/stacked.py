"""Ensembles by `torch.func.stack_module_state`: the factors of sparse modules can be stacked where their masks agree.

Factors in compact storage do not say where they belong, so the module that runs a stack puts those of all members at
its own places. Where they are stacked is the last place at which the masks of all members are known.
"""

import sys
from collections.abc import ItemsView, Iterable
from typing import Any

import torch
from torch import nn
from torch.func import stack_module_state

from lightning_signin.core.torch_internals import registered_parameters, set_registered_parameters
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.errors import SignInError

_DEPTH = 8  # frames from `items` up to the function that stacks: five, and some for a module's own `named_parameters`


class Factors(dict[str, nn.Parameter | None]):
    """The trainable tensors of one sparse weight."""

    def items(self) -> ItemsView[str, nn.Parameter | None]:  # type: ignore[override]
        """As of any dict; what lists the parameters of a module asks for it."""
        if torch.compiler.is_compiling():
            return self.copy().items()  # torch's compiler would take the method of the base class for this one
        if (models := _stacked_now()) and _first_factors(models) is self:
            _check_stack(models)
        return super().items()


def check_when_stacked(holder: nn.Module) -> None:
    """Let a sparse weight refuse to be stacked with those of other masks.

    Args:
        holder: torch's list of its one parametrization.
    """
    set_registered_parameters(holder, Factors(registered_parameters(holder)))


def _stacked_now() -> list[nn.Module]:
    """The modules that `stack_module_state` stacks, if it asks."""
    frame: Any = sys._getframe(2)  # noqa: SLF001 — documented by Python
    for _ in range(_DEPTH):
        if frame is None:
            break
        if frame.f_code is stack_module_state.__code__:
            return list(frame.f_locals["models"])
        frame = frame.f_back
    return []


def _first_factors(models: Iterable[nn.Module]) -> Factors | None:
    """Those which are asked first, so that the masks are compared once."""
    dicts = (registered_parameters(module) for model in models for module in model.modules())
    return next((own for own in dicts if isinstance(own, Factors)), None)


def _check_stack(models: Iterable[nn.Module]) -> None:
    first, *others = (sparse_weights(model) for model in models)
    for other in others:
        for name in {**first, **other}:
            if name not in first or name not in other or not _same_form(first[name], other[name]):
                raise SignInError(
                    f"`stack_module_state` needs modules with the same masks, and those of {name} differ: factors are "
                    "stored at the places of their own mask, and one module would run them all at its own. Stack "
                    "plain copies, `merge_(copy.deepcopy(net))`, or give all modules one mask, "
                    "`sparsify(net, mask=masks(other))`."
                )


def _same_form(one: SparseWeight, other: SparseWeight) -> bool:
    """Whether the factors of two weights have the same meaning."""
    a, b = one.parametrization, other.parametrization
    if type(a) is not type(b) or a.elementwise_map != b.elementwise_map or a.shape != b.shape:
        return False
    if one.storage.name != other.storage.name:
        return False
    masks = one.storage.mask, other.storage.mask
    # On the meta device there are no masks: a call says so.
    return any(mask.is_meta for mask in masks) or torch.equal(masks[0], masks[1].to(masks[0].device))
