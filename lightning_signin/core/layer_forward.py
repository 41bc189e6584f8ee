"""How torch's layers read their weights in their forward passes: what this allows, and what it requires."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.core.masked import Masked
from lightning_signin.core.sparse_forward import on_non_zeros
from lightning_signin.core.sparse_layer import KINDS
from lightning_signin.core.torch_internals import (
    compute_weights_list,
    drop_weights_list,
    is_transformed,
    registered_parameters,
)

# Their forward passes only hand the weight to one function, so nothing can write into it meanwhile. Code outside torch
# may, as in ``layer.weight.data.add_(…)``, which torch's version counters do not see.
READERS = frozenset({nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNN, nn.LSTM, nn.GRU})
_IN_FORWARD = "_weights_in_forward"


def mark_own_forward(owner: nn.Module) -> None:
    """Tell the masked weights of a parametrized layer when they are only read: see `Masked.read_only`.

    Layers of classes other than `READERS` are left alone, except that recurrent layers of any class find their current
    weights where they look for them. The methods are put on the class that torch made for this one layer, and go away
    with it when the layer becomes plain again.
    """
    made_by_torch: Any = type(owner)
    plain: Any = made_by_torch.__bases__[0]
    if isinstance(owner, nn.RNNBase):
        _list_weights(owner, made_by_torch)
    elif plain in READERS:
        own_forward = _reading(plain.forward)
        made_by_torch.forward = _choosing(own_forward) if plain in KINDS else own_forward


def hands_on_only(owner: nn.Module) -> bool:
    """Whether a parametrized layer tells its weights when it runs itself; in other layers that is not known."""
    return type(owner).__bases__[0] in READERS


def _reading(plain_forward: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return plain_forward(self, *args, **kwargs)
        weights = [holder[0] for holder in self.parametrizations.values() if isinstance(holder[0], Masked)]  # type: ignore[operator]
        for weight in weights:
            weight.read_only = True
        try:
            return plain_forward(self, *args, **kwargs)
        finally:
            for weight in weights:
                weight.read_only = False

    return forward


def _choosing(with_whole_weight: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        known = "weight" in self.parametrizations and isinstance(self.parametrizations.weight[0], Masked)  # type: ignore[operator, index, union-attr]
        if known and len(args) == 1 and not kwargs and not torch.compiler.is_compiling():
            out = on_non_zeros(self, args[0])
            if out is not None:
                return out
        return with_whole_weight(self, *args, **kwargs)

    return forward


def _list_weights(owner: nn.RNNBase, made_by_torch: Any) -> None:
    """Recurrent layers read their weights from a list of references: make it hold the current values.

    In a forward pass each value is computed once; afterwards nothing refers to the values and their graph, so that the
    layer can be copied. cuDNN gets them one by one, and copies them into one piece of memory in every pass.
    """
    plain: Any = made_by_torch.__bases__[0]

    def flat_weights(self: nn.RNNBase) -> list[Tensor | None]:
        known = self.__dict__.get(_IN_FORWARD)
        return [getattr(self, name, None) for name in self._flat_weights_names] if known is None else known

    def like_parameters(self: nn.RNNBase) -> list[Tensor | None]:
        # Not its own `parameters`, which the user's code sees as plain.
        factors = list(self.parametrizations.parameters())  # type: ignore[union-attr]
        if torch.is_grad_enabled() or is_transformed(factors[0]):
            return flat_weights(self)
        # They require a gradient here too: for tensors that do not, torch sums in another order.
        with torch.inference_mode(False), torch.no_grad():
            own = [*factors, *registered_parameters(self).values()]
            trained = any(parameter is not None and parameter.requires_grad for parameter in own)
            return [w if w is None else w.detach().requires_grad_(trained) for w in flat_weights(self)]

    def forward(self: nn.RNNBase, *args: Any, **kwargs: Any) -> Any:
        self.__dict__[_IN_FORWARD] = like_parameters(self)
        try:
            return plain.forward(self, *args, **kwargs)
        finally:
            del self.__dict__[_IN_FORWARD]

    drop_weights_list(owner)  # of the plain parameters
    compute_weights_list(made_by_torch, flat_weights)
    made_by_torch.forward = _reading(forward) if plain in READERS else forward
