"""The optimizers of a run, each with the sparse weights that it trains and the steps that it has taken."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch.optim import Optimizer

from lightning_signin.core.weights import SparseWeight
from lightning_signin.errors import SignInError


@dataclass
class Lane:
    """An optimizer, the sparse weights that it trains, its steps so far, and the step of its last update.

    Attributes:
        waits: Whether a due update is waiting for a finite gradient, of which the user has been warned.
    """

    optimizer: Optimizer
    weights: dict[str, SparseWeight]
    steps: int = 0
    updated: int = -1
    waits: bool = False


def lanes_of(weights: Mapping[str, SparseWeight], optimizers: Iterable[Optimizer]) -> list[Lane]:
    """A lane for each optimizer that trains sparse weights.

    Raises:
        SignInError: If none does.
    """
    lanes = []
    for optimizer in optimizers:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        theirs = {name: weight for name, weight in weights.items() if id(weight.factors[0]) in held}
        if theirs:
            lanes.append(Lane(optimizer, theirs))
    if not lanes:
        raise SignInError("`optimizers` train no sparse weight: build them inside `with plain_view(module):`.")
    return lanes
