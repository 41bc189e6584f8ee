"""ProsPr: how sensitive the loss after a few training steps is to a weight.

Alizadeh et al.: "Prospect Pruning: Finding Trainable Weights at Initialization using Meta-Gradients", ICLR 2022.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_signin.core.numbers import check_field, number, whole_number
from lightning_signin.masks.task import Scores, Task
from lightning_signin.objective.second_derivatives import second_derivatives


@dataclass(frozen=True)
class ProsPr:
    """|∂L(θ_T)/∂c| at c = 1, where θ₀ = c ⊙ θ and T steps of SGD lead to θ_T (Algorithm 1).

    All trainable parameters take the steps; each step uses a batch of its own, and the final loss another one. Each
    rank takes steps of its own, and ∂L/∂c is averaged. All steps are differentiated through, while the reference code
    detaches the first step's gradient when it initializes the momentum.

    Args:
        steps: T, at least 1; the graph of all steps is held in memory.
        lr: Learning rate of the steps.
        momentum: Momentum of the steps, in [0, 1).

    Example:
        >>> ProsPr().steps, ProsPr().lr, ProsPr().momentum
        (3, 0.5, 0.9)
    """

    steps: int = 3
    lr: float = 0.5
    momentum: float = 0.9

    distribution: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        check_field(self, "steps", whole_number)
        check_field(self, "lr", number, "(0, inf)")
        check_field(self, "momentum", number, "[0, 1)")

    def __call__(self, task: Task) -> Scores:
        """The scores."""
        own = task.module.named_parameters()
        trained = {name: p.detach() for name, p in own if p.requires_grad or name in task.weights}
        gates = {name: torch.ones_like(weight, requires_grad=True) for name, weight in task.weights.items()}
        with torch.enable_grad():
            now = {name: theta * gates[name] if name in gates else theta.clone() for name, theta in trained.items()}
            now = {name: theta if theta.requires_grad else theta.requires_grad_() for name, theta in now.items()}
            velocity: Scores = {}
            for batch in task.batches(self.steps):
                gradients = task.gradients(now, batch, create_graph=True)
                velocity = {
                    name: self.momentum * velocity[name] + gradient if velocity else gradient
                    for name, gradient in gradients.items()
                }
                now = {name: theta - self.lr * velocity[name] for name, theta in now.items()}
            last = task.gradients(now, next(task.batches(1)))
        with second_derivatives(task.name, now.values()):
            found = torch.autograd.grad(
                list(now.values()), list(gates.values()), [last[name] for name in now], materialize_grads=True
            )
        scores = {name: task.data.average(score).abs() for name, score in zip(gates, found, strict=True)}
        task.check_felt(scores)
        task.check_scores(scores)
        return scores
