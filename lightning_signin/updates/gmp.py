"""GMP and one-shot pruning: weights of small magnitude are dropped, for good."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_signin.core.numbers import check_field, number, share
from lightning_signin.errors import SignInError
from lightning_signin.updates.rule import Layer, Masks, Moment, PeriodicRule, UpdateRule, of_run


@dataclass(frozen=True)
class GMP(PeriodicRule):
    r"""Gradual magnitude pruning (Zhu, Gupta: "To Prune, or Not to Prune", 2017), with its cubic schedule.

    Every Δt steps from t₀ to t₀ + nΔt the weights of smallest |θ| are dropped, down to the sparsity

    .. math:: S_t = S_f + (S_i - S_f) \left(1 - \frac{t - t_0}{n \Delta t}\right)^3

    Intermediate masks are unstructured. Dropped weights never come back.

    Args:
        update_every_n_steps: Δt.
        update_until: Share of the run by which the final sparsity S_f is reached.
        update_from: t₀ as a share of the run.
        initial_sparsity: S_i in [0, 1).

    Raises:
        SignInError: For values out of range.

    Example:
        >>> gmp = GMP(update_every_n_steps=100)
        >>> [round(gmp.sparsity(0.9, t, gmp.steps(total=400)), 3) for t in gmp.steps(total=400)]
        [0.0, 0.633, 0.867, 0.9]
    """

    update_from: float = 0.0
    initial_sparsity: float = 0.0

    distribution: ClassVar[str | None] = "uniform"
    grows: ClassVar[bool] = False
    keeps_counts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "update_from", share, zero=True)
        if self.update_from > self.update_until:
            raise SignInError(f"`update_from`={self.update_from} is after `update_until`={self.update_until}.")
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

    def steps(self, total: int) -> Sequence[int]:
        """t₀, t₀ + Δt, …, t₀ + nΔt."""
        first, last = of_run(self.update_from, total), of_run(self.update_until, total)
        return range(first, min(last, total - 1) + 1, self.update_every_n_steps)

    def sparsity(self, final: float, step: int, steps: Sequence[int]) -> float:
        """S_t."""
        left = (steps[-1] - step) / max(steps[-1] - steps[0], 1)
        return final + (self.initial_sparsity - final) * left**3

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        density = None
        if moment.step < moment.steps[-1]:
            density = lambda final: 1 - self.sparsity(final, moment.step, moment.steps)  # noqa: E731
        kept = {name: layer.kept for name, layer in layers.items()}
        yield from moment.choice.masks(magnitudes(layers), density, kept).items()


@dataclass(frozen=True)
class OneShot(UpdateRule):
    """Prunes once, to the largest |θ|: all weights are trained before that, only these after it.

    Args:
        at: When to prune, as a share of the run in [0, 1].

    Raises:
        SignInError: If ``at`` is out of range.
    """

    at: float = 0.75

    distribution: ClassVar[str | None] = "global"
    start_sparsity: ClassVar[float | None] = 0.0
    grows: ClassVar[bool] = False
    keeps_counts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_field(self, "at", share, zero=True)

    def steps(self, total: int) -> Sequence[int]:
        """The one step."""
        return [min(of_run(self.at, total), total - 1)]

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        yield from moment.choice.masks(magnitudes(layers)).items()


def magnitudes(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """|θ| of the weights on the mask, −1 for the others."""
    return {name: layer.theta.abs().masked_fill_(~layer.mask, -1) for name, layer in layers.items()}
