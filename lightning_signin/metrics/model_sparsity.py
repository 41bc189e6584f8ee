"""The sparsity of the whole model, as opposed to that of its sparse weights."""

from torch import nn

from lightning_signin.core.matrices import dense_matrices
from lightning_signin.core.weights import sparse_weights, sparsity


def model_sparsity(module: nn.Module) -> float:
    """The share of zeros among all entries of matrices that multiply activations, sparse and dense together.

    Returns:
        The share, in [0, 1].

    Example:
        >>> from lightning_signin import sparsify
        >>> net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
        >>> model_sparsity(sparsify(net, sparsity=0.8, exclude=["1.weight"]))
        0.4
    """
    size = sum(weight.storage.shape.numel() for weight in sparse_weights(module).values())
    return sparsity(module) * size / (size + sum(dense_matrices(module).values()))
