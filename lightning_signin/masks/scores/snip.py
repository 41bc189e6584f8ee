"""SNIP and its iterative forms: how sensitive the loss is to a weight.

Lee, Ajanthan, Torr: "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019 [1]; de Jorge et
al.: "Progressive Skeletonization: Trimming more fat from a network at initialization", ICLR 2021 [2].
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_signin.core.numbers import check_field, whole_number
from lightning_signin.masks.task import Scores, Task


@dataclass(frozen=True)
class SNIP:
    """|∂L/∂c| at c = 1 where θ = c ⊙ θ₀, which is |g ⊙ θ₀| with the gradient g of the training loss ([1], eq. 5).

    The gradient is averaged over batches and ranks before the absolute value, as for one larger batch. The paper
    divides by the sum, which does not change the order. The weights scored are those that are trained; the reference
    code scores one initialization and trains another.

    Args:
        num_batches: Training batches, at least 1.

    Example:
        >>> SNIP(num_batches=10)
        SNIP(num_batches=10)
    """

    num_batches: int = 1

    distribution: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        check_field(self, "num_batches", whole_number)

    def __call__(self, task: Task) -> Scores:
        """The scores."""
        gradients = task.mean_gradients(task.weights, task.batches(self.num_batches))
        scores = {name: gradient.mul_(task.weights[name]).abs_() for name, gradient in gradients.items()}
        task.check_scores(scores)
        return scores


@dataclass(frozen=True)
class IterativeSNIP:
    """SNIP in steps: after step k of T the share d^(k/T) is left, and is scored again ([2], Section 4.2).

    What is pruned stays pruned: it ranks below everything else.

    Args:
        steps: T; the paper uses up to 300, its code 10 or 60.
        num_batches: Training batches per step; each step continues where the last one ended.

    Example:
        >>> IterativeSNIP(steps=10).num_batches
        1
    """

    steps: int = 60
    num_batches: int = 1

    distribution: ClassVar[str] = "global"
    _can_return: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_field(self, "steps", whole_number)
        check_field(self, "num_batches", whole_number)

    def __call__(self, task: Task) -> Scores:
        """The scores of the last step."""
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in task.weights.items()}
        for step in range(1, self.steps + 1):
            kept = {name: weight * masks[name] for name, weight in task.weights.items()}
            gradients = task.mean_gradients(kept, task.batches(self.num_batches))
            scores = {name: self._score(gradient, name, kept, task) for name, gradient in gradients.items()}
            if not self._can_return:
                scores = {name: below_all(score, masks[name]) for name, score in scores.items()}
            if step == 1:
                task.check_scores(scores)
            if step < self.steps:
                masks = task.select(scores, step / self.steps, within=None if self._can_return else masks)
        return scores

    def _score(self, gradient: Tensor, name: str, kept: Scores, task: Task) -> Tensor:
        return (gradient * kept[name]).abs()


@dataclass(frozen=True)
class FORCE(IterativeSNIP):
    """Like `IterativeSNIP`, but pruned weights may come back ([2], Section 4.1).

    The gradient is that of the pruned network, with respect to all weights, and is multiplied by the unpruned weights.
    The arguments are the same.
    """

    _can_return: ClassVar[bool] = True

    def _score(self, gradient: Tensor, name: str, kept: Scores, task: Task) -> Tensor:
        return (gradient * task.weights[name]).abs()


def below_all(score: Tensor, mask: Tensor) -> Tensor:
    """Scores ≥ 0, with those outside the mask below all others by so little that sums over blocks do not change."""
    return torch.where(mask, score.double(), -torch.finfo(torch.float64).tiny)
