"""The pattern in which a layer keeps its weights. One class per structure.

A structure divides a layer into units that are kept or masked as a whole, and gives the most weights that the layer can
keep. All structures read a weight as (outputs, inputs, kernel…).
"""

import re
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_signin.core.numbers import whole_number
from lightning_signin.errors import SignInError
from lightning_signin.masks.largest import largest

Shape = tuple[int, ...]


class Structure(Protocol):
    """What a pattern has to provide. The shape and the score are those of one layer, with inputs in dimension 1."""

    def unit(self, shape: Shape) -> int:
        """The layer keeps a multiple of this many weights.

        Raises:
            SignInError: If the pattern does not fit the shape.
        """
        ...

    def capacity(self, shape: Shape) -> int:
        """The most weights that the layer can keep, a multiple of its unit."""
        ...

    def values(self, score: Tensor) -> Tensor:
        """A vector of the mean score of each unit, by which the units of all layers compete."""
        ...

    def pick(self, score: Tensor, count: int) -> Tensor:
        """The mask of the ``count`` weights, a multiple of the unit, with the highest scores in the pattern."""
        ...


class Unstructured:
    """Any weight."""

    def unit(self, shape: Shape) -> int:
        """One weight."""
        return 1

    def capacity(self, shape: Shape) -> int:
        """All weights."""
        return prod(shape)

    def values(self, score: Tensor) -> Tensor:
        """The scores themselves."""
        return score.flatten()

    def pick(self, score: Tensor, count: int) -> Tensor:
        """The highest scores."""
        return largest(score, count)


class NMCap:
    """At most n of every m consecutive weights along the inputs, the format that 2:4 kernels read.

    The choice is otherwise free: the best n of each group compete. A shorter last group also keeps at most n.

    Args:
        n: The most weights to keep in each group.
        m: The size of a group.
    """

    def __init__(self, n: int, m: int) -> None:
        where = f"It is that of the structure '{n}:{m}'."
        self.n, self.m = whole_number("n", n, hint=where), whole_number("m", m, hint=where)
        if self.n > self.m:
            raise SignInError(f"`structure` '{n}:{m}' must keep 1 to {m} of each {m} weights.")

    def unit(self, shape: Shape) -> int:
        """One weight."""
        return 1

    def capacity(self, shape: Shape) -> int:
        """min(n, length) of each group."""
        whole, short = divmod(shape[1], self.m)
        return prod(shape) // shape[1] * (whole * self.n + min(self.n, short))

    def values(self, score: Tensor) -> Tensor:
        """The scores of the best n of each group."""
        return score[self.best(score)]

    def pick(self, score: Tensor, count: int) -> Tensor:
        """The highest of the best n of each group."""
        best = self.best(score)
        mask = torch.zeros_like(best)
        mask[best] = largest(score[best], count)
        return mask

    def best(self, score: Tensor) -> Tensor:
        """The mask of the n highest scores of each group; among equal ones the lower index."""
        inputs = score.shape[1]
        rows = score.movedim(1, -1)
        # Padding comes last in its group, so it is sorted last even among scores of −∞.
        groups = F.pad(rows, (0, -inputs % self.m), value=-float("inf")).unflatten(-1, (-1, self.m))
        order = groups.argsort(dim=-1, descending=True, stable=True)
        mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., : self.n], True)
        return mask.flatten(-2)[..., :inputs].movedim(-1, 1)


class NM(NMCap):
    """n of every m consecutive weights along the inputs, or none of them.

    At the sparsity 1 − n/m this is the usual n:m pattern with n in every group.

    Args:
        n: The number of weights to keep in a group.
        m: The size of a group; must divide the number of inputs.
    """

    def unit(self, shape: Shape) -> int:
        """The n weights of one group."""
        if shape[1] % self.m:
            raise SignInError(f"groups of {self.m} do not divide its {shape[1]} inputs")
        return self.n

    def values(self, score: Tensor) -> Tensor:
        """The mean of the best n of each group."""
        rows = score.movedim(1, -1)
        return rows[self.best(score).movedim(1, -1)].view(-1, self.n).double().mean(1)

    def pick(self, score: Tensor, count: int) -> Tensor:
        """The best n of the best groups."""
        best = self.best(score).movedim(1, -1)
        chosen = largest(self.values(score), count // self.n)
        whole = chosen.view(*best.shape[:-1], -1).repeat_interleave(self.m, -1)
        return (best & whole).movedim(-1, 1)


class Blocks:
    """Blocks of outputs × inputs, at each position of a kernel.

    Args:
        outputs: Height of a block; must divide the number of outputs.
        inputs: Width of a block; must divide the number of inputs.
    """

    def __init__(self, outputs: int, inputs: int) -> None:
        where = f"It is that of the structure '{outputs}x{inputs}-block'."
        self.block = (whole_number("outputs", outputs, hint=where), whole_number("inputs", inputs, hint=where))

    def unit(self, shape: Shape) -> int:
        """The weights of a block."""
        for size, step, side in zip(shape, self.block, ("outputs", "inputs"), strict=False):
            if size % step:
                raise SignInError(f"blocks of {step} do not divide its {size} {side}")
        return prod(self.block)

    def capacity(self, shape: Shape) -> int:
        """All weights."""
        return prod(shape)

    def values(self, score: Tensor) -> Tensor:
        """The mean score of each block."""
        rows, columns = self.block
        blocks = score.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))  # (block row, row, block column, column, …)
        return blocks.double().mean((1, 3)).flatten()

    def pick(self, score: Tensor, count: int) -> Tensor:
        """The best blocks."""
        rows, columns = self.block
        chosen = largest(self.values(score), count // prod(self.block))
        grid = chosen.view(score.shape[0] // rows, score.shape[1] // columns, *score.shape[2:])
        return grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


class ConstantFanIn:
    """The same number of weights for every output.

    (Lasby et al.: "Dynamic Sparse Training with Structured Sparsity", ICLR 2024.)
    """

    def unit(self, shape: Shape) -> int:
        """One weight for every output."""
        return shape[0]

    def capacity(self, shape: Shape) -> int:
        """All weights."""
        return prod(shape)

    def values(self, score: Tensor) -> Tensor:
        """The mean over outputs of their best scores, then of their second best, and so on."""
        return score.flatten(1).double().sort(1, descending=True).values.mean(0)

    def pick(self, score: Tensor, count: int) -> Tensor:
        """The best of each output."""
        order = score.flatten(1).argsort(dim=1, descending=True, stable=True)
        mask = torch.zeros_like(order, dtype=torch.bool)
        return mask.scatter_(1, order[:, : count // score.shape[0]], True).view(score.shape)


def parse_structure(structure: str | Structure) -> Structure:
    """The structure that a name stands for; a structure object is returned as it is.

    Args:
        structure: "unstructured"; "n:m", e.g. "2:4"; "n:m-cap", e.g. "2:4-cap"; "axb-block" with a outputs and b
            inputs, e.g. "4x4-block"; "constant-fan-in".

    Returns:
        The structure.

    Raises:
        SignInError: If it is none of these.

    Example:
        >>> parse_structure("2:4-cap").capacity((8, 16))
        64
    """
    if not isinstance(structure, type) and callable(getattr(structure, "pick", None)):
        return structure  # type: ignore[return-value]
    name = structure if isinstance(structure, str) else ""
    if name in ("unstructured", "constant-fan-in"):
        return Unstructured() if name == "unstructured" else ConstantFanIn()
    if match := re.fullmatch(r"(\d+):(\d+)(-cap)?", name):
        return (NMCap if match[3] else NM)(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"(\d+)x(\d+)-block", name):
        return Blocks(int(match[1]), int(match[2]))
    raise SignInError(
        "`structure` must be 'unstructured', 'n:m' (e.g. '2:4'), 'n:m-cap' (e.g. '2:4-cap'), 'axb-block' (e.g. "
        f"'4x4-block'), 'constant-fan-in', or a structure; got {structure!r}. (In YAML, quote '2:4'.)"
    )


def read_in_base_60(structure: Any) -> Any:
    """The n:m that YAML 1.1 reads as a time if it is not quoted: 2:4 becomes 2 · 60 + 4."""
    return "{}:{}".format(*divmod(structure, 60)) if isinstance(structure, int) else structure
