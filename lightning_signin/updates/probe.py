"""The dense gradient of a weight, when needed: including that of masked entries, which the factors do not have."""

from collections.abc import Callable, Mapping
from weakref import ref

import torch
from torch import Tensor

from lightning_signin.core.masked_product import strided
from lightning_signin.core.weights import SparseWeight


def probe_of(weight: SparseWeight) -> Tensor:
    """A zero tensor to add to θ, so that its ``grad`` becomes the gradient with respect to the whole θ.

    It behaves like the gradients of the weight's factors: it accumulates when they do, over several uses and batches,
    and restarts when they do, after a ``zero_grad``.

    Args:
        weight: A sparse weight.

    Returns:
        Zeros of the weight's shape, which require a gradient.
    """
    factors = weight.factors
    weight.storage.release()  # θ plus the probe is a new tensor, so the lent memory is not needed
    probe = torch.zeros(weight.storage.shape, dtype=factors[0].dtype, device=factors[0].device, requires_grad=True)
    itself = ref(probe)  # a hook that holds its tensor would keep it alive

    # Called before the probe's own gradient is added, and before those of the factors, which are further back in the
    # graph.
    def begin_anew(_: Tensor) -> None:
        known = itself()
        if known is not None and all(factor.grad is None or not factor.grad.any() for factor in factors):
            known.grad = None

    probe.register_hook(begin_anew)
    return probe


def dense_gradients(
    weights: Mapping[str, SparseWeight], average: Callable[[Tensor], Tensor], scale: float
) -> dict[str, Tensor]:
    """The gradients that probes have collected, averaged over ranks; zeros for weights that no gradient has reached.

    Every rank averages every weight, in the same order, even if it has no gradient itself. The probes are then reset.

    Args:
        weights: Weights with a probe, by name.
        average: Averages a tensor over ranks.
        scale: The factor by which the loss was multiplied.

    Returns:
        ∂L/∂θ of the unscaled loss by name, each of its weight's full shape.
    """
    found = {}
    for name, weight in weights.items():
        probe = weight.parametrization.probe
        assert probe is not None
        # After a `zero_grad` without a backward, the probe still holds the gradient of an earlier loss.
        begun = any(factor.grad is not None for factor in weight.factors)
        own = strided(probe.grad.detach()) if begun and probe.grad is not None else torch.zeros_like(probe)
        found[name], probe.grad = average(own).div_(scale), None
    return found
