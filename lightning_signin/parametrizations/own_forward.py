"""While a layer of torch runs its own forward pass, nobody can write into the weight that it asks for."""

from typing import Any

import torch
from torch import nn

from lightning_signin.parametrizations.masked import Masked

# Their forward passes hand the weight to one function and nothing else. Code that is not torch's may write into it, as
# in ``layer.weight.data.add_(…)``, which no counter of torch sees.
READERS = frozenset({nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d})


def mark_own_forward(owner: nn.Module) -> None:
    """Let the masked weights of a parametrized layer know when they are only read: see `Masked.read_only`.

    Nothing is done to layers of other classes than `READERS`. The method is put on the class that torch made for this
    one layer, and goes with it when the layer is plain again.
    """
    made_by_torch: Any = type(owner)
    plain: Any = made_by_torch.__bases__[0]
    if plain not in READERS:
        return

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return plain.forward(self, *args, **kwargs)
        weights = [holder[0] for holder in self.parametrizations.values() if isinstance(holder[0], Masked)]  # type: ignore[union-attr, operator]
        for weight in weights:
            weight.read_only = True
        try:
            return plain.forward(self, *args, **kwargs)
        finally:
            for weight in weights:
                weight.read_only = False

    made_by_torch.forward = forward
