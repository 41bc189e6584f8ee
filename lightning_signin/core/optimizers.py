"""Which optimizers can train the factors of a weight, and the decay of θ that the package adds itself."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_signin.core.optimizer_experiments import needs_shape
from lightning_signin.core.optimizer_parts import bare, distributes
from lightning_signin.core.optimizer_trial import TrialError
from lightning_signin.core.weights import SparseWeight
from lightning_signin.errors import SignInError

# Their update of an entry depends on other entries, according to the shape of the tensor. With the first kind zeros
# still stay zero; the second fills them.
_NEEDS_SHAPE = ("Adafactor", "AdafactorBigVision", "AdamP", "Mars", "SGDP")  # Mars is AdamW on vectors
_MIXES_ENTRIES = ("Muon", "AdaMuon", "NadaMuon", "Shampoo", "SOAP", "Kron")


def check_optimizers(weights: Iterable[SparseWeight], optimizers: Iterable[Optimizer], moving: bool) -> None:
    """Raise unless the optimizers can train the weights that they hold, and weights whose masks move are in one.

    Args:
        weights: The sparse weights. Those whose masks have no zeros, and do not move, take any optimizer.
        optimizers: All optimizers of the run.
        moving: Whether an update rule moves the masks. Entries that it grows begin at zero, and have to train.

    Raises:
        SignInError: If an optimizer fills the zeros of a weight or needs its shape, or a moving one is in none.
    """
    owner = {id(p): (o, group) for o in optimizers for group in o.param_groups for p in group["params"]}
    tried = set()
    for weight in weights:
        if moving and any(factor.requires_grad and id(factor) not in owner for factor in weight.tensors):
            raise SignInError(
                f"{weight.name} is in no optimizer, and its mask moves: what it grows would never train. Give it to "
                "an optimizer in `configure_optimizers`, or leave it dense with `exclude`."
            )
        optimizer, group = owner.get(id(weight.factors[0]), (None, {}))
        if optimizer is not None and (moving or masks_entries(weight)):
            check_elementwise(weight, optimizer)
            if not distributes(optimizer) and (id(group), weight.storage.name) not in tried:
                _check_steps(weight, bare(optimizer), group)
                tried.add((id(group), weight.storage.name))


def masks_entries(weight: SparseWeight) -> bool:
    """Whether a weight has zeros that an optimizer must leave, or is stored as a vector, not in its shape."""
    return weight.storage.name == "compact" or weight.kept < weight.storage.shape.numel()


def add_frobenius_decay_(weights: Iterable[SparseWeight], strength: float, parameters: Iterable[nn.Parameter]) -> None:
    """Add the gradient of (λ/2)·‖m ⊙ w‖² to the gradients of the factors (Table 5); for a plain weight, (λ/2)·‖v‖².

    λ then acts on θ as SGD's ``weight_decay`` λ does. The paper writes the loss term λ‖m ⊙ w‖², which is 2λ here.

    Args:
        weights: The sparse weights; for a plain masked one θ itself decays.
        strength: λ ≥ 0.
        parameters: Those that are about to be stepped; factors among them that have a gradient are changed.
    """
    stepped = {id(parameter) for parameter in parameters}
    with torch.no_grad():
        for weight in weights:
            factors = weight.factors
            theta = weight.inner()
            for factor, other in zip(factors, reversed(factors), strict=True):
                if factor.grad is not None and id(factor) in stepped:
                    factor.grad.add_(theta if len(factors) == 1 else theta * other, alpha=strength)


def check_elementwise(weight: SparseWeight, optimizer: Optimizer) -> None:
    """Refuse an optimizer whose class is known to mix the entries of a weight, or to need its shape.

    The optimizer is still being built, so its steps cannot be tried yet.

    Raises:
        SignInError: If it is one of these.
    """
    names = {cls.__name__ for cls in type(optimizer).__mro__}
    if names.intersection(_MIXES_ENTRIES):
        raise SignInError(_mixes(weight, optimizer))
    if names.intersection(_NEEDS_SHAPE) and weight.storage.name == "compact":
        raise SignInError(_needs_shape(weight, optimizer))


def _check_steps(weight: SparseWeight, optimizer: Optimizer, group: dict[str, Any]) -> None:
    """Refuse an optimizer of any class whose steps depend on the shape of a weight that is stored as a vector.

    Dense storage keeps the shape, and what the optimizer writes into masked factors does not reach θ.

    Raises:
        SignInError: If its steps do.
    """
    try:
        if weight.storage.name == "compact" and needs_shape(optimizer, group):
            raise SignInError(_needs_shape(weight, optimizer))
    except TrialError:  # it may insist on another shape, another gradient or a loop of its own
        return


def _mixes(weight: SparseWeight, optimizer: Optimizer) -> str:
    return (
        f"{type(optimizer).__name__} mixes the entries of a weight, which would fill the zeros of {weight.name}. "
        "Use an elementwise optimizer (SGD, Adam, AdamW, …) for the sparse weights."
    )


def _needs_shape(weight: SparseWeight, optimizer: Optimizer) -> str:
    return (
        f"The update of {type(optimizer).__name__} depends on the shape of a weight, and {weight.name} is stored "
        "as a vector of its non-zeros. Pass storage='dense', or use an elementwise optimizer (SGD, Adam, AdamW, …)."
    )
