"""GraSP: keep the gradient flowing.

Wang, Zhang, Grosse: "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

from lightning_signin.core.numbers import check_field, number, whole_number
from lightning_signin.masks.logits import divided_logits
from lightning_signin.masks.task import Scores, Task


@dataclass(frozen=True)
class GraSP:
    """θ ⊙ Hg: how much removing a weight would lower the gradient norm (eq. 8), with the Hessian H and gradient g.

    The paper's score is −θ ⊙ Hg and the largest are removed; here the highest are kept, so the sign is opposite. g and
    Hg are averages over the same batches.

    Args:
        num_batches: Training batches, at least 1; they are held in memory together.
        temperature: T > 0: the network's floating-point outputs, except single numbers, are divided by T before the
            training step computes the loss. The authors' code has T = 200; 1 leaves the user's loss as it is.

    Example:
        >>> GraSP(num_batches=2).distribution
        'global'
    """

    num_batches: int = 1
    temperature: float = 1.0

    distribution: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        hint = "Pass 200 for that of the paper's code, or 1.0 for the loss as it is."
        check_field(self, "temperature", number, "(0, inf)", hint)
        check_field(self, "num_batches", whole_number)

    def __call__(self, task: Task) -> Scores:
        """The scores."""
        batches = list(task.batches(self.num_batches))
        divided = divided_logits(task.module, task.weights, self.temperature, task.name)
        with nullcontext() if self.temperature == 1 else divided:
            gradients = task.mean_gradients(task.weights, batches)
            products = task.mean_products(task.weights, gradients, batches)
        scores = {name: product * task.weights[name] for name, product in products.items()}
        task.check_scores(scores)
        return scores
