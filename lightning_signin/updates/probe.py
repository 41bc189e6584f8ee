"""The dense gradient of a weight, where one is wanted: also that of masked entries, which no factor has."""

from collections.abc import Callable, Mapping
from weakref import ref

import torch
from torch import Tensor

from lightning_signin.core.masked_product import strided
from lightning_signin.core.weights import SparseWeight


def probe_of(weight: SparseWeight) -> Tensor:
    """A zero tensor to add to θ, so that its ``grad`` becomes the gradient with respect to the whole θ.

    It goes with the gradients of the weight's factors: it adds up where they add up, over uses and accumulated batches,
    and begins anew where they do, after a ``zero_grad``.

    Args:
        weight: A sparse weight.

    Returns:
        Zeros of the weight's shape, which require a gradient.
    """
    factors = weight.factors
    weight.storage.release()  # θ with the probe added is a tensor of its own
    probe = torch.zeros(weight.storage.shape, dtype=factors[0].dtype, device=factors[0].device, requires_grad=True)
    itself = ref(probe)  # a hook that holds its tensor would keep it alive

    # Called before the probe's own gradient is added, and before those of the factors are, further back in the graph.
    def begin_anew(_: Tensor) -> None:
        known = itself()
        if known is not None and all(factor.grad is None or not factor.grad.any() for factor in factors):
            known.grad = None

    probe.register_hook(begin_anew)
    return probe


def dense_gradients(
    weights: Mapping[str, SparseWeight], average: Callable[[Tensor], Tensor], scale: float
) -> dict[str, Tensor]:
    """The gradients that probes have collected, averaged over ranks; zeros for weights that nothing went backward to.

    Every rank averages every weight, in the same order, whatever it has seen itself. The probes begin anew.

    Args:
        weights: Weights with a probe, by name.
        average: Averages a tensor over ranks.
        scale: What the loss was multiplied with.
    """
    found = {}
    for name, weight in weights.items():
        probe = weight.parametrization.probe
        assert probe is not None
        # After a `zero_grad` and no backward what it holds is that of another loss.
        begun = any(factor.grad is not None for factor in weight.factors)
        own = strided(probe.grad.detach()) if begun and probe.grad is not None else torch.zeros_like(probe)
        found[name], probe.grad = average(own).div_(scale), None
    return found
