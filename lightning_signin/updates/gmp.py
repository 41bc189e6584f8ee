"""GMP and one-shot pruning: weights of small magnitude are dropped, for good."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_signin.core.numbers import check_field, number
from lightning_signin.errors import SignInError
from lightning_signin.updates.rule import Layer, Masks, Moment, UpdateRule
from lightning_signin.updates.schedule import Schedule
from lightning_signin.updates.schedules import Cubic, Once


@dataclass(frozen=True)
class GMP(UpdateRule):
    r"""Gradual magnitude pruning (Zhu, Gupta: "To Prune, or Not to Prune", 2017), with its cubic schedule.

    At every update the weights of smallest |θ| are dropped, from the sparsity S_i down to

    .. math:: S_t = S_f + (S_i - S_f) a(t)

    where a(t) is the amount of the schedule, and S_f the sparsity of the run, which the last update reaches whatever
    its amount. Intermediate masks are unstructured. Dropped weights never come back.

    Args:
        schedule: The steps t, and a(t).
        initial_sparsity: S_i in [0, 1).

    Raises:
        SignInError: For values out of range.

    Example:
        >>> gmp, total = GMP(schedule=Cubic(every_n_steps=100)), 400
        >>> [round(gmp.sparsity(0.9, gmp.schedule.amount(t, total)), 3) for t in gmp.schedule.steps(total)]
        [0.0, 0.633, 0.867, 0.9]
    """

    schedule: Schedule = Cubic()
    initial_sparsity: float = 0.0

    distribution: ClassVar[str | None] = "uniform"
    grows: ClassVar[bool] = False
    keeps_counts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "initial_sparsity", number, "[0, 1)")

    @property
    def start_sparsity(self) -> float:  # type: ignore[override]
        """S_i."""
        return self.initial_sparsity

    def check(self, density: float, total: int, capacity: float) -> None:
        """S_i must not be above S_f."""
        super().check(density, total, capacity)
        if self.initial_sparsity > 1 - density:
            raise SignInError(
                f"`initial_sparsity`={self.initial_sparsity} is above the sparsity of the run, {1 - density:.4g}."
            )

    def sparsity(self, final: float, amount: float) -> float:
        """S_t."""
        return final + (self.initial_sparsity - final) * amount

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        density = None
        if not moment.is_last:
            density = lambda final: 1 - self.sparsity(final, moment.amount)  # noqa: E731
        kept = {name: layer.kept for name, layer in layers.items()}
        yield from moment.choice.masks(magnitudes(layers), density, kept).items()


@dataclass(frozen=True)
class OneShot(UpdateRule):
    """Prunes once, to the largest |θ|: all weights are trained before that, only these after it.

    Args:
        schedule: When; at each of several steps the largest of those that are left would be kept.
    """

    schedule: Schedule = Once()

    distribution: ClassVar[str | None] = "global"
    start_sparsity: ClassVar[float | None] = 0.0
    grows: ClassVar[bool] = False
    keeps_counts: ClassVar[bool] = False

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        yield from moment.choice.masks(magnitudes(layers)).items()


def magnitudes(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """|θ| of the weights on the mask, −1 for the others."""
    return {name: layer.theta.abs().masked_fill_(~layer.mask, -1) for name, layer in layers.items()}
