"""Which layers of a plain model can run on their non-zeros, and the sparse layers that would."""

from collections import Counter

from torch import Tensor, nn

from lightning_signin.core.torch_internals import has_forward_hooks, registered_parameters
from lightning_signin.export.fused import fused_layers
from lightning_signin.export.sparse.conv import SparseConv1x1
from lightning_signin.export.sparse.linear import SparseLinear
from lightning_signin.export.sparse.matrix import Rows, SparseMatrix

MAX_DENSITY = 0.5  # above it no kernel here was ever faster than the dense one
# Without an example, layers are not timed. Within these limits, they were faster for every measured batch.
SURE_DENSITY, SURE_WEIGHTS = 0.2, 2**18


def sparse_layers(model: nn.Module, only_sure: bool) -> dict[str, SparseMatrix]:
    """A sparse layer for each layer that can be replaced, by name.

    Args:
        model: A plain model on the CPU.
        only_sure: Leave out 1×1 convolutions, and linear layers that are too small or too dense for a certain speedup.

    Returns:
        The layers to put in, by the names of those that they replace.
    """
    hidden = fused_layers(model)
    fitting = {name: layer for name, layer in model.named_modules() if layer not in hidden and _fits(layer, only_sure)}
    users = Counter(id(parameter) for part in model.modules() for parameter in registered_parameters(part).values())
    sparse_users = Counter(id(layer.weight) for layer in fitting.values())
    rows: dict[int, Rows] = {}  # one set for tied weights
    found: dict[str, SparseMatrix] = {}
    for name, layer in fitting.items():
        key = id(layer.weight)
        if sparse_users[key] < users[key]:
            continue  # an embedding shares it: the dense weight stays in memory, so the non-zeros would only add to it
        if key not in rows:
            rows[key] = Rows.of(layer.weight.flatten(1))
        kind = SparseLinear if isinstance(layer, nn.Linear) else SparseConv1x1
        found[name] = kind.of(layer, rows[key])
    return found


def _fits(layer: nn.Module, only_sure: bool) -> bool:
    # A custom forward, hooks or a parametrization may do more than the plain product.
    if has_forward_hooks(layer) or hasattr(layer, "parametrizations"):
        return False
    if type(layer).forward is nn.Conv2d.forward and isinstance(layer, nn.Conv2d):
        flat = layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid", "same")
        if only_sure or layer.groups > 1 or not flat:
            return False
    elif type(layer).forward is not nn.Linear.forward:
        return False
    weight: Tensor = layer.weight  # type: ignore[assignment]
    kept = int(weight.count_nonzero())
    if only_sure:
        return kept <= SURE_DENSITY * weight.numel() and weight.numel() >= SURE_WEIGHTS
    return kept <= MAX_DENSITY * weight.numel()
