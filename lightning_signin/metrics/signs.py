"""Signs of the active weights against an earlier moment, and the scaling of the factors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_signin.functional import scaling, sign_flips
from lightning_signin.weights import SparseWeight, sign_in_weights, sparse_weights


def signs(module: nn.Module) -> dict[str, Tensor]:
    """The signs of the active entries of every sparse weight by plain name: int8 vectors of −1, 0 and 1.

    Example:
        >>> from lightning_signin import sparsify
        >>> [sign.shape for sign in signs(sparsify(nn.Linear(10, 10), sparsity=0.7)).values()]
        [torch.Size([30])]
    """
    return {name: _active(weight).sign().to(torch.int8) for name, weight in sparse_weights(module).items()}


def flips_by_weight(before: Mapping[str, Tensor], module: nn.Module) -> dict[str, tuple[int, int]]:
    """For every sparse weight (flipped signs, active entries) since ``before``, which `signs` returned."""
    now = signs(module)
    return {name: (int(sign_flips(before[name].to(sign.device), sign)), sign.numel()) for name, sign in now.items()}


def mean_scaling(module: nn.Module) -> float | None:
    """The mean of m² − w² over all active entries, or None without a product m ⊙ w."""
    weights = sign_in_weights(module).values()
    if not weights:
        return None
    # In dense storage both factors are zero on masked entries, so they add nothing to the sum.
    total = sum(scaling(*weight.factors).sum(dtype=torch.float64).item() for weight in weights)
    return total / sum(weight.storage.active for weight in weights)


def summary(before: Mapping[str, Tensor], module: nn.Module) -> dict[str, float]:
    """A sparse module in three numbers.

    Args:
        before: The signs from which flips are counted, from `signs`.
        module: A module after `sparsify`.

    Returns:
        ``sparsity``, the share of masked entries; ``sign_flips``, the share of active entries whose sign differs from
        ``before``; and with products m ⊙ w ``scaling``, the mean of m² − w².
    """
    flips = flips_by_weight(before, module).values()
    active = sum(count for _, count in flips)
    size = sum(weight.storage.shape.numel() for weight in sparse_weights(module).values())
    numbers = {"sparsity": 1 - active / size, "sign_flips": sum(flipped for flipped, _ in flips) / active}
    scaling = mean_scaling(module)
    return numbers if scaling is None else numbers | {"scaling": scaling}


def _active(weight: SparseWeight) -> Tensor:
    values = weight.values()
    return values if weight.storage.name == "compact" else values[weight.storage.mask]
