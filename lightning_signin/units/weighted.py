"""The operations that join units by weights, and how their weights are laid out."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from lightning_signin.units.labels import argument, collapse, operation

Arrange = Callable[[Tensor], Tensor]
_CONV = re.compile(r"conv(_transpose)?(\d)d")
_OPERANDS = {"linear": ("input", "weight"), "matmul": ("self", "other"), "mm": ("self", "mat2")}
_OPERANDS |= {"addmm": ("mat1", "mat2"), "embedding": ("indices", "weight")}


@dataclass(frozen=True)
class Weighted:
    """An operation that joins units by weights.

    Attributes:
        value: Its input.
        weight: Its weight.
        in_dim: The input's dimension that holds units; None if its elements are indices of rows of the weight.
        out_dim: The result's dimension that holds units.
        arrange: Brings the weight into (groups, units per group, inputs per group, kernel positions).
    """

    value: Node
    weight: Node
    in_dim: int | None
    out_dim: int
    arrange: Arrange

    def inputs(self, labels: Tensor) -> Tensor | None:
        """The label of each input (for an embedding, one for all); None if an input receives several units."""
        kept = None if self.in_dim is None else self.in_dim % labels.dim()
        return collapse(labels, [dim for dim in range(labels.dim()) if dim != kept])


def find_weight(node: Node, constants: Mapping[Node, Any]) -> Weighted | None:
    """The weighted operation of a node, or None.

    Convolutions and transposed convolutions of one to three dimensions, linear layers, products with a weight matrix
    from the right, and embeddings.

    Args:
        node: A call of an ATen operation.
        constants: The values that do not depend on the network's input.

    Returns:
        The operation with its weight, or None if the node is none of these.
    """
    name = operation(node)
    convolution = _CONV.fullmatch(name)
    if convolution is None and name not in _OPERANDS:
        return None
    value, weight = (argument(node, key) for key in _OPERANDS.get(name, ("input", "weight")))
    if not isinstance(constants.get(weight), Tensor):
        return None
    if convolution is not None:
        dim = -1 - int(convolution[2])
        return Weighted(value, weight, dim, dim, _kernels(argument(node, "groups") or 1, bool(convolution[1])))
    if constants[weight].dim() != 2:
        return None
    transposed = name != "linear"  # (inputs, units)
    in_dim = None if name == "embedding" else -1
    return Weighted(value, weight, in_dim, -1, lambda tensor: (tensor.T if transposed else tensor)[None, ..., None])


def _kernels(groups: int, transposed: bool) -> Arrange:
    def arrange(weight: Tensor) -> Tensor:
        blocks = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return blocks.transpose(1, 2) if transposed else blocks

    return arrange
