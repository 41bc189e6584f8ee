"""Signs of the effective weights against an earlier moment, and the scaling of the factors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_signin.bits import pack_signs, unpack_signs
from lightning_signin.functional import scaling, sign_flips
from lightning_signin.weights import sign_in_weights, sparse_weights


def signs(module: nn.Module) -> dict[str, Tensor]:
    """The signs of every sparse weight by plain name, on the CPU, as `pack_signs` packs them: a masked 0 has none.

    Example:
        >>> from lightning_signin import sparsify
        >>> packed = signs(sparsify(nn.Linear(10, 10), sparsity=0.7))["weight"]
        >>> int(unpack_signs(packed, (10, 10)).abs().sum())
        30
    """
    return {name: pack_signs(weight.effective()) for name, weight in sparse_weights(module).items()}


def flips_by_weight(before: Mapping[str, Tensor], module: nn.Module) -> dict[str, tuple[int, int]]:
    """For every sparse weight (flipped signs, active entries) since ``before``, which `signs` returned.

    Where the mask has moved, a weight that had no sign then or has none now is not counted as flipped.
    """
    found = {}
    for name, weight in sparse_weights(module).items():
        now, storage = weight.values(), weight.storage
        then = storage.pack(unpack_signs(before[name], storage.shape).to(now.device))
        found[name] = (int(sign_flips(then, now)), storage.active)
    return found


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
        ``sparsity``, the share of masked entries, and of zeros that the parametrization makes; ``sign_flips``, the
        share of active entries whose sign differs from ``before``; and with products m ⊙ w ``scaling``, the mean of
        m² − w².
    """
    flips = flips_by_weight(before, module).values()
    active = sum(count for _, count in flips)
    weights = sparse_weights(module).values()
    size = sum(weight.storage.shape.numel() for weight in weights)
    numbers = {
        "sparsity": 1 - sum(weight.kept for weight in weights) / size,
        "sign_flips": sum(flipped for flipped, _ in flips) / active,
    }
    scaling = mean_scaling(module)
    return numbers if scaling is None else numbers | {"scaling": scaling}
