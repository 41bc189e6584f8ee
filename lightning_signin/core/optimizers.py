"""What the package knows about optimizers: how their state changes with the factors, and which cannot be used."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.weights import SparseWeight
from lightning_signin.errors import SignInError

MOMENTUM = ("keep", "carry", "clear")

# The degree of each state tensor in the gradient: 1 for averages of gradients, 2 for averages of their squares.
# (ZeroRedundancyOptimizer is missing on purpose: it may keep the states of m and w on different ranks.)
_ADAM = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
_STATE_DEGREES: dict[str, dict[str, int]] = {
    "SGD": {"momentum_buffer": 1},
    "SGDW": {"momentum_buffer": 1},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "AdamWLegacy": _ADAM,
    "Lamb": _ADAM,
    "NAdam": _ADAM,
    "NAdamW": _ADAM,
    "RAdam": _ADAM,
    "Lion": {"exp_avg": 1},
    "RMSprop": {"square_avg": 2, "grad_avg": 1},
    "Adagrad": {"sum": 2},
}
# Their update of an entry depends on other entries, according to the shape of the tensor. With the first kind zeros
# stay zero all the same; the second fills them.
_NEEDS_SHAPE = ("Adafactor", "AdafactorBigVision", "AdamP", "Mars", "SGDP")  # Mars is AdamW on vectors
_MIXES_ENTRIES = ("Muon", "AdaMuon", "NadaMuon", "Shampoo", "SOAP", "Kron")


def at_rescale(
    momentum: str, optimizers: Iterable[Optimizer], factors: Sequence[Tensor], renewed: Sequence[Tensor]
) -> None:
    """Change the optimizers' state of one product m ⊙ w before its factors are renewed; see `model.rescale_`.

    A θ-gradient g gives states of degree d as s_m = wᵈ gᵈ and s_w = mᵈ gᵈ. "carry" finds gᵈ by least squares and
    inserts the renewed factors; "clear" zeroes the states of degree 1.
    """
    if momentum == "keep":
        return
    for optimizer in optimizers:
        states = [optimizer.state[factor] for factor in factors if factor in optimizer.state]
        if len(states) != len(factors):
            continue  # they belong to another optimizer, or no step was taken yet
        for key, degree in _degrees(optimizer, states[0], factors[0]).items():
            of_m, of_w = (state[key] for state in states)
            if momentum == "clear" and degree == 1:
                of_m.zero_(), of_w.zero_()
            elif momentum == "carry":
                m, w = (factor**degree for factor in factors)
                norm = m * m + w * w
                gradient = torch.where(norm > 0, (w * of_m + m * of_w) / norm, 0)
                of_m.copy_(renewed[1] ** degree * gradient)
                of_w.copy_(renewed[0] ** degree * gradient)


def check_rescale(momentum: str, optimizers: Iterable[Optimizer]) -> None:
    """Raise `SignInError`, before training, if a later rescale has no rule for an optimizer's state."""
    for optimizer in optimizers if momentum != "keep" else ():
        name = type(optimizer).__name__
        if name not in _STATE_DEGREES:
            raise SignInError(_no_rule(name))
        if name == "RMSprop" and any(group["momentum"] for group in optimizer.param_groups):
            raise SignInError(_no_rule("the momentum of RMSprop, which averages steps and not gradients"))


def check_optimizers(weights: Iterable[SparseWeight], optimizers: Iterable[Optimizer]) -> None:
    """Raise unless every trainable weight is in an optimizer that can train it.

    Raises:
        SignInError: If a weight's factors are in no optimizer, or in one whose update depends on the weight's shape.
    """
    groups = [(optimizer, group["params"]) for optimizer in optimizers for group in optimizer.param_groups]
    owner = {id(parameter): optimizer for optimizer, parameters in groups for parameter in parameters}
    for weight in weights:
        for factor in weight.tensors:
            if id(factor) not in owner and factor.requires_grad:
                raise SignInError(
                    f"{weight.name} is in no optimizer: it would never train. Give it to one in "
                    "`configure_optimizers`, freeze it, or leave it dense with `exclude`. In your own loop, build the "
                    "optimizer inside `with plain_view(module):`."
                )
        if id(weight.factors[0]) in owner:
            check_elementwise(weight, owner[id(weight.factors[0])])


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


def _degrees(optimizer: Optimizer, state: dict[str, object], factor: Tensor) -> dict[str, int]:
    known = _STATE_DEGREES.get(type(optimizer).__name__, {})
    tensors = [key for key, value in state.items() if isinstance(value, Tensor) and value.shape == factor.shape]
    if unknown := [key for key in tensors if key not in known]:
        raise SignInError(_no_rule(f"the state {unknown} of {type(optimizer).__name__}"))
    return {key: known[key] for key in tensors}


def _no_rule(what: str) -> str:
    return (
        f"A rescale has no rule for {what}. Use momentum='keep' (the callback's rescale_momentum='keep'), or one of "
        f"{', '.join(_STATE_DEGREES)}."
    )


def check_elementwise(weight: SparseWeight, optimizer: Optimizer) -> None:
    """Raise `SignInError` if an optimizer cannot train the factors of a weight: it mixes entries or needs shapes."""
    names = {cls.__name__ for cls in type(optimizer).__mro__}
    if names.intersection(_MIXES_ENTRIES):
        raise SignInError(
            f"{type(optimizer).__name__} mixes the entries of a weight, which would fill the zeros of {weight.name}. "
            "Use an elementwise optimizer (SGD, Adam, AdamW, …) for the sparse weights."
        )
    if names.intersection(_NEEDS_SHAPE) and weight.storage.name == "compact":
        raise SignInError(
            f"The update of {type(optimizer).__name__} depends on the shape of a weight, and {weight.name} is stored "
            "as a vector of its non-zeros. Pass storage='dense', or use an elementwise optimizer (SGD, Adam, AdamW, …)."
        )
