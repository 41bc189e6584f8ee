"""The dense gradient of a weight, where one is wanted: also that of masked entries, which no factor has."""

import torch
from torch import Tensor

from lightning_signin.weights import SparseWeight


class Probe:
    """A zero tensor that is added to θ, so that its ``grad`` is the gradient with respect to the whole θ.

    It goes with the gradients of the weight's factors: it adds up where they add up, over uses and accumulated batches,
    and begins anew where they do, after a ``zero_grad``.

    Args:
        weight: A sparse weight.

    Attributes:
        tensor: The zeros; they read as zeros and take no memory of their own until they are written to.
    """

    def __init__(self, weight: SparseWeight) -> None:
        self.factors = weight.factors
        like = self.factors[0]
        shape = weight.storage.shape
        self.tensor = torch.zeros(shape, dtype=like.dtype, device=like.device, requires_grad=True)
        # Before the probe's own gradient is added, and before those of the factors are, further back in the graph.
        self.tensor.register_hook(self._begin_anew)

    def _begin_anew(self, gradient: Tensor) -> None:
        if all(factor.grad is None or not factor.grad.any() for factor in self.factors):
            self.tensor.grad = None
