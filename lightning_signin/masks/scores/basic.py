"""Scores of the weights alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_signin.masks.task import Scores, Task


@dataclass(frozen=True)
class Random:
    """Independent uniform scores: every mask of a given size is equally likely.

    Float64 on the CPU, drawn in the order of the weights, so that every device gets the same mask. (Float32 has only
    2²⁴ values below 1, too few for layers of millions of weights.)
    """

    distribution: ClassVar[str] = "balanced"

    def __call__(self, task: Task) -> Scores:
        """The scores."""
        return {
            name: torch.rand(weight.shape, generator=task.generator, dtype=torch.float64, device="cpu")
            for name, weight in task.weights.items()
        }


@dataclass(frozen=True)
class Magnitude:
    """|θ|, in the weights' own dtype and device (Han et al.: "Learning both Weights and Connections", NeurIPS 2015)."""

    distribution: ClassVar[str] = "global"

    def __call__(self, task: Task) -> Scores:
        """The scores."""
        return {name: weight.abs() for name, weight in task.weights.items()}
