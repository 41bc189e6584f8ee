"""GraSP: keep the gradient flowing.

Wang, Zhang, Grosse: "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020.
"""

from dataclasses import dataclass
from typing import ClassVar

from lightning_signin.masks.scores.arguments import check_at_least_one
from lightning_signin.masks.task import Scores, Task


@dataclass(frozen=True)
class GraSP:
    """θ ⊙ Hg: how much removing a weight would lower the gradient norm (eq. 8), with the Hessian H and gradient g.

    The paper's score is −θ ⊙ Hg and the largest are removed; here higher is kept, so the sign is the other one. g and
    Hg are averages over the same batches. The reference code divides the logits by 200 first, which needs a
    classifier; here the loss is the user's own.

    Args:
        num_batches: Training batches, at least 1; they are held in memory together.

    Example:
        >>> GraSP(num_batches=2).distribution
        'global'
    """

    num_batches: int = 1

    distribution: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        check_at_least_one(num_batches=self.num_batches)

    def __call__(self, task: Task) -> Scores:
        """The scores."""
        batches = list(task.batches(self.num_batches))
        gradients = task.mean_gradients(task.weights, batches)
        products = task.mean_products(task.weights, gradients, batches)
        return {name: product * task.weights[name] for name, product in products.items()}
