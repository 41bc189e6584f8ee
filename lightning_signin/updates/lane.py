"""The optimizers of a run, each with the sparse weights that it trains and the steps that it has taken."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.optim import Optimizer

from lightning_signin.core.optimizer_parts import parts_of
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
    """A lane for each optimizer that trains sparse weights; an optimizer and its wrapper are one.

    Returns:
        The lanes, in the order of ``optimizers``.

    Raises:
        SignInError: If none does.
    """
    lanes: list[Lane] = []
    for optimizer in optimizers:
        theirs = _trained(weights, optimizer)
        if theirs and _sharing(lanes, optimizer) is None:
            lanes.append(Lane(optimizer, theirs))
    if not lanes:
        raise SignInError("`optimizers` train no sparse weight: build them inside `with plain_view(module):`.")
    return lanes


def lane_of(lanes: Sequence[Lane], optimizer: Optimizer) -> Lane | None:
    """The lane of an optimizer, of what it wraps, or of its wrapper; None if it trains no sparse weight.

    Returns:
        The lane, or None.

    Raises:
        SignInError: If it trains sparse weights of the lanes, but has none.
    """
    for lane in lanes:
        if lane.optimizer is optimizer:
            return lane
    if (shared := _sharing(lanes, optimizer)) is not None:
        return shared
    weights = {name: weight for lane in lanes for name, weight in lane.weights.items()}
    if theirs := _trained(weights, optimizer):
        raise SignInError(
            f"This {type(optimizer).__name__} trains {next(iter(theirs))}, but it is none of the `optimizers` of the "
            "mask updates, nor wraps one. Make `MaskUpdates` with the optimizers that take the steps."
        )
    return None


def _sharing(lanes: Iterable[Lane], optimizer: Optimizer) -> Lane | None:
    """The lane whose optimizer is part of another, or has it as a part."""
    parts = {id(part) for part in parts_of(optimizer)}
    return next((lane for lane in lanes if any(id(part) in parts for part in parts_of(lane.optimizer))), None)


def _trained(weights: Mapping[str, SparseWeight], optimizer: Optimizer) -> dict[str, SparseWeight]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: weight for name, weight in weights.items() if id(weight.factors[0]) in held}
