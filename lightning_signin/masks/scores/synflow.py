"""SynFlow: the flow of synaptic strength, without data.

Tanaka, Kunin, Yamins, Ganguli: "Pruning neural networks without any data by iteratively conserving synaptic flow",
NeurIPS 2020.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_signin.masks.network import in_double
from lightning_signin.masks.scores.arguments import check_at_least_one
from lightning_signin.masks.scores.snip import below_all
from lightning_signin.masks.task import Scores, Task


@dataclass(frozen=True)
class SynFlow:
    """∂R/∂θ ⊙ θ, where R is the sum of the outputs for an input of ones and all parameters and buffers are |·| (eq. 2).

    After iteration k of n the share d^(k/n) is left (Algorithm 1). In eval mode and float64: single precision
    overflows on deep networks. Inputs that are whole numbers, such as tokens, stay as they are.

    On networks of linear layers, convolutions, ReLU and average or max pooling, the scores obey a conservation law
    (Theorems 1, 2): for each hidden unit those of incoming weights, bias included, sum to those of outgoing ones, and
    across every cut between input and output they sum to R. It does not hold for LayerNorm, GELU or softmax.

    That is why no layer of a chain collapses. Residual branches may: the flow goes past them. Biases that are not 0 are
    sources of flow of their own, so that at extreme sparsity the layers before them may collapse.

    Args:
        iterations: n; one iteration leads to layer collapse.

    Example:
        >>> SynFlow().iterations
        100
    """

    iterations: int = 100

    distribution: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        check_at_least_one(iterations=self.iterations)

    def __call__(self, task: Task) -> Scores:
        """The scores of the last iteration; what is pruned ranks below everything else."""
        network = task.network()
        args, kwargs = tree_map(_ones, (network.args, network.kwargs))
        linear_(network.module)
        parameters = dict(network.module.named_parameters(remove_duplicate=False))
        weights = {name: parameters[inner] for name, inner in network.names.items()}
        full = {name: weight.detach().clone() for name, weight in weights.items()}
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in full.items()}
        for iteration in range(1, self.iterations + 1):
            with torch.no_grad():
                for name, weight in weights.items():
                    torch.mul(full[name], masks[name], out=weight)
            try:
                with in_double():
                    flow = flow_of(network.module, args, kwargs)
            except RuntimeError as error:
                raise ValueError(
                    f"mask='synflow' cannot run the network in float64 and eval mode: {error}. Check the example "
                    "input, and let the forward make and cast tensors in the dtype of its input."
                ) from error
            if not flow.isfinite():
                raise ValueError(f"mask='synflow': the flow is {flow.item()}. Check that the weights are finite.")
            gradients = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
            if off := [name for gradient, name in zip(gradients, weights, strict=True) if gradient is None]:
                raise ValueError(
                    f"mask='synflow' is undefined for {', '.join(off)}: in eval mode the network's output does not "
                    f"depend on it. Leave it dense with exclude={off}."
                )
            scores = {
                name: below_all(gradient * weight.detach(), masks[name])
                for gradient, (name, weight) in zip(gradients, weights.items(), strict=True)
            }
            if iteration < self.iterations:
                masks = task.select(scores, iteration / self.iterations)
        return scores


def linear_(module: nn.Module) -> None:
    """Make all parameters and buffers their absolute values: a ReLU network becomes linear for inputs ≥ 0."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.abs_()


def flow_of(module: nn.Module, args: tuple, kwargs: dict) -> Tensor:
    """R: the sum of all outputs."""
    outputs = tree_leaves(module(*args, **kwargs))
    return sum(o.sum() for o in outputs if isinstance(o, Tensor) and o.is_floating_point())  # type: ignore[return-value]


def _ones(leaf: object) -> object:
    return torch.ones_like(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
