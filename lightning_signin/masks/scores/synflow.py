"""SynFlow: the flow of synaptic strength, without data.

Tanaka, Kunin, Yamins, Ganguli: "Pruning neural networks without any data by iteratively conserving synaptic flow",
NeurIPS 2020.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_signin.core.numbers import check_field, whole_number
from lightning_signin.errors import SignInError
from lightning_signin.masks.scores.flow import flow_of, linear_, runnable
from lightning_signin.masks.scores.snip import below_all
from lightning_signin.masks.task import Scores, Task
from lightning_signin.objective.network import Network


@dataclass(frozen=True)
class SynFlow:
    """|∂R/∂θ ⊙ θ|, where R sums the outputs for an input of ones, and all parameters and buffers are |·| (eq. 2).

    After iteration k of n the share d^(k/n) is left, and what is pruned stays pruned (Algorithm 1). The network runs in
    eval mode and float64, since single precision overflows on deep networks. Integer inputs, such as tokens, stay as
    they are; a single number among other outputs, such as a loss, is not part of R.

    On networks of linear layers, convolutions, ReLU and average or max pooling, all scores are positive without the
    absolute value, and obey a conservation law (Theorems 1, 2): for each hidden unit those of incoming weights, bias
    included, sum to those of outgoing ones, and across every cut between input and output they sum to R. With
    LayerNorm, GELU or softmax some are negative, which is why the authors' code takes |·|, and the law does not hold.

    This law is why no layer of a chain collapses. Residual branches may, since flow can bypass them. Non-zero biases
    are additional sources of flow, so the layers before them may collapse at extreme sparsity.

    Args:
        iterations: n; one iteration leads to layer collapse.

    Example:
        >>> SynFlow().iterations
        100
    """

    iterations: int = 100

    distribution: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        check_field(self, "iterations", whole_number)

    def __call__(self, task: Task) -> Scores:
        """The scores of the last iteration; what is pruned ranks below everything else."""
        network = task.network()
        linear_(network.module)
        network = runnable(network, task.name)
        parameters = dict(network.module.named_parameters(remove_duplicate=False))
        weights = {name: parameters[inner] for name, inner in network.names.items()}
        full = {name: weight.detach().clone() for name, weight in weights.items()}
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in full.items()}
        for iteration in range(1, self.iterations + 1):
            with torch.no_grad():
                for name, weight in weights.items():
                    torch.mul(full[name], masks[name], out=weight)
            found = _scores(network, weights, task.name)
            scores = {name: below_all(score, masks[name]) for name, score in found.items()}
            if iteration == 1:
                task.check_scores(scores)
            if iteration < self.iterations:
                masks = task.select(scores, iteration / self.iterations, within=masks)
        return scores


def _scores(network: Network, weights: Mapping[str, Tensor], mask: str) -> Scores:
    """|∂R/∂θ ⊙ θ| at the current weights."""
    flow = flow_of(network)
    if not flow.isfinite():
        raise SignInError(f"mask={mask!r}: the flow is {flow.item()}. Check that the weights are finite.")
    given: tuple[Tensor | None, ...] = (None,) * len(weights)
    if flow.requires_grad:
        given = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
    gradients = dict(zip(weights, given, strict=True))
    if off := [name for name, gradient in gradients.items() if gradient is None]:
        raise SignInError(
            f"mask={mask!r} is undefined for {', '.join(off)}: in eval mode the network's output does not depend on "
            f"it. Leave it dense with exclude={off}."
        )
    return {name: (gradient * weights[name].detach()).abs() for name, gradient in gradients.items()}  # type: ignore[operator]
