"""Which weights of a layer are kept: scores, higher is kept. One function a score, one row in `SCORES`."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Score = Callable[[Mapping[str, Tensor], torch.Generator], dict[str, Tensor]]


def random(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Independent uniform scores: every mask of a given size is equally likely.

    Args:
        weights: The weights by name, in model order; only their shapes are used.
        generator: CPU generator; the scores are drawn in the order of ``weights``.

    Returns:
        Float64 scores on the CPU, of the weights' shapes, so that every device gets the same mask. (Float32 has only
        2²⁴ values below 1, too few for layers of millions of weights.)
    """
    return {
        name: torch.rand(weight.shape, generator=generator, dtype=torch.float64, device="cpu")
        for name, weight in weights.items()
    }


def magnitude(weights: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The absolute value of the weights. Arguments as in `random`; ``generator`` is not used.

    Returns:
        |θ| in the weights' own dtype and device.
    """
    return {name: weight.detach().abs() for name, weight in weights.items()}


SCORES: dict[str, Score] = {"random": random, "magnitude": magnitude}
