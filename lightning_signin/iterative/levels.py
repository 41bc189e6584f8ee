"""The sparsity and the masks of each level."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from lightning_signin.core.layout import Layout
from lightning_signin.core.numbers import check_field, exact, number
from lightning_signin.errors import SignInError, warn
from lightning_signin.masks.build import StructureOf, check_choice, make_choice
from lightning_signin.masks.choice import Choice
from lightning_signin.masks.distributions import DISTRIBUTIONS, budget
from lightning_signin.masks.structures import parse_structure


@dataclass(frozen=True)
class Levels:
    r"""The levels of one run: level 0 is dense, and each later one keeps a share of the weights before it.

    The density of level i is

    .. math:: d_i = \max\left((1 - r)^i, 1 - S\right)

    Args:
        sparsity: S, the sparsity of the last level, in [0, 1).
        prune_rate: r, in (0, 1).
        distribution: How the kept weights are distributed over layers: "global", "balanced", "erk" or "uniform".
        structure: The pattern of the last mask; see `build_masks`. Masks before it are unstructured.

    Raises:
        SignInError: For values out of range and unknown names.

    Example:
        >>> levels = Levels(sparsity=0.9, prune_rate=0.5)
        >>> [levels.sparsity_at(level) for level in range(levels.last + 1)]
        [0.0, 0.5, 0.75, 0.875, 0.9]
    """

    sparsity: float
    prune_rate: float = 0.2
    distribution: str = "global"
    structure: StructureOf = "unstructured"

    def __post_init__(self) -> None:
        budget(self.sparsity, 1)
        check_field(self, "prune_rate", number, "(0, 1)", "Pass the share to prune, e.g. 0.2.")
        check_choice("distribution", self.distribution, [*DISTRIBUTIONS, "global"])
        given = self.structure
        for structure in given.values() if isinstance(given, Mapping) else [given]:
            parse_structure(structure)

    @property
    def last(self) -> int:
        """The number of the last level."""
        left, target, level = Fraction(1), 1 - exact(self.sparsity), 0
        while left > target:
            left, level = left * (1 - exact(self.prune_rate)), level + 1
        return level

    def sparsity_at(self, level: int) -> float:
        """1 − d of a level."""
        return float(1 - max((1 - exact(self.prune_rate)) ** level, 1 - exact(self.sparsity)))

    def choice(self, shapes: Mapping[str, tuple[int, ...]], layouts: Mapping[str, Layout]) -> Choice:
        """How scores become masks.

        Args:
            shapes: Shape of every weight by name, in model order.
            layouts: The layouts of weights that are not stored as (outputs, inputs, …).

        Returns:
            The choice of masks, the same for all levels.

        Raises:
            SignInError: If the structure does not fit a weight, or the last level is below one unit per layer.
        """
        return make_choice(shapes, self.sparsity, self.distribution, self.structure, layouts)

    def masks(
        self, level: int, choice: Choice, theta: Mapping[str, Tensor], before: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The masks of a level: the largest |θ| among the weights that the previous level kept.

        Without a structure, no pruned weight returns. With one, the last mask has to satisfy it, and takes pruned
        weights back where its pattern needs more weights than are left.

        Args:
            level: At least 1.
            choice: See `choice`.
            theta: The weights at the end of the previous level, by name.
            before: The masks of the previous level.

        Returns:
            Bool masks by name, of the weights' shapes; True keeps.

        Raises:
            SignInError: If a weight is not finite.

        Example:
            >>> import torch
            >>> levels, theta = Levels(sparsity=0.75, prune_rate=0.5), {"w": torch.tensor([[1.0, -4.0], [3.0, -2.0]])}
            >>> choice = levels.choice({"w": (2, 2)}, layouts={})
            >>> levels.masks(1, choice, theta, {"w": torch.ones(2, 2, dtype=torch.bool)})["w"].tolist()
            [[False, True], [True, False]]
        """
        for name, weight in theta.items():
            if not weight.isfinite().all():
                raise SignInError(
                    f"{name} is not finite at the end of level {level - 1}, so its magnitudes are meaningless. Train "
                    "with a lower learning rate, in a new folder."
                )
        scores = {name: theta[name].abs().masked_fill(~mask, -1) for name, mask in before.items()}
        left = {name: int(mask.sum()) for name, mask in before.items()}
        if level < self.last:
            return choice.masks(scores, lambda _: 1 - self.sparsity_at(level), left)
        masks = choice.masks(scores, None, left)
        kept, size = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
        if kept != choice.target:
            warn(
                f"structure={self.structure!r} cannot keep {choice.target} of the {size} weights: the last level keeps "
                f"{kept}, the nearest count that it can reach with the weights left (sparsity {1 - kept / size:.4f})."
            )
        return masks
