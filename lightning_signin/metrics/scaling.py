"""The scaling m² − w² of the factors, which training changes and the rescale of Algorithm 1 resets."""

import math
from typing import NamedTuple

from torch import nn

from lightning_signin.core.functional import scaling
from lightning_signin.core.sharded import whole
from lightning_signin.core.weights import sign_in_weights


class Scaling(NamedTuple):
    """Mean and standard deviation of m² − w² over the active entries, and their number."""

    mean: float
    spread: float
    active: int


def scaling_by_weight(module: nn.Module) -> dict[str, Scaling]:
    """The scaling of every product m ⊙ w by plain name.

    Returns:
        Mean and spread of m² − w² over each weight's active entries.

    Example:
        >>> from lightning_signin import sparsify
        >>> found = scaling_by_weight(sparsify(nn.Linear(10, 10), sparsity=0.5, beta=2.0))["weight"]
        >>> round(found.mean, 4), round(found.spread, 4), found.active
        (2.0, 0.0, 50)
    """
    found = {}
    for name, weight in sign_in_weights(module).items():
        m, w = weight.factors
        active = weight.storage.active
        # The zeros of masked entries in dense storage add nothing to the sums.
        values = weight.storage.restrict(whole(scaling(m.detach(), w.detach()))).double()
        mean = values.sum().item() / active
        variance = (values.square().sum().item() - active * mean**2) / active
        found[name] = Scaling(mean, math.sqrt(max(variance, 0.0)), active)
    return found


def mean_scaling(module: nn.Module) -> float | None:
    """The mean of m² − w² over all active entries, or None without a product m ⊙ w."""
    found = scaling_by_weight(module).values()
    total = sum(one.mean * one.active for one in found)
    return total / sum(one.active for one in found) if found else None
