"""Scores that depend on the weights alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_signin.masks.task import Scores, Task


@dataclass(frozen=True)
class Random:
    """Independent uniform scores: every mask of a given size is equally likely.

    Float64 on the CPU, drawn in the order of the weights, so that every device gets the same mask. (Float32 has only
    2²⁴ values below 1, too few for layers of millions of weights.)
    """

    distribution: ClassVar[str] = "balanced"

    def __call__(self, task: Task) -> Mapping[str, Tensor]:
        """The scores."""
        return _Drawn({name: weight.shape for name, weight in task.weights.items()}, task.generator)


class _Drawn(Mapping[str, Tensor]):
    """Scores that are redrawn, with the same values, on each access: together they take twice the weights' memory."""

    def __init__(self, shapes: Mapping[str, torch.Size], generator: torch.Generator) -> None:
        self._shapes, self._states = shapes, {}
        for name, shape in shapes.items():
            self._states[name] = generator.get_state()
            torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")  # advances to the next start

    def __getitem__(self, name: str) -> Tensor:
        generator = torch.Generator().set_state(self._states[name])
        return torch.rand(self._shapes[name], generator=generator, dtype=torch.float64, device="cpu")

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@dataclass(frozen=True)
class Magnitude:
    """|θ|, in the weights' own dtype and device (Han et al.: "Learning both Weights and Connections", NeurIPS 2015)."""

    distribution: ClassVar[str] = "global"

    def __call__(self, task: Task) -> Scores:
        """The scores."""
        return {name: weight.abs() for name, weight in task.weights.items()}
