"""MEST: drops weights of small magnitude and gradient, and grows random ones, at first beyond the final number."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lightning_signin.core.numbers import check_field, number, share
from lightning_signin.errors import SignInError
from lightning_signin.masks.distributions import allocate
from lightning_signin.updates.rule import Layer, Masks, Moment, UpdateRule
from lightning_signin.updates.schedule import Schedule
from lightning_signin.updates.schedules import Stages


@dataclass(frozen=True)
class MEST(UpdateRule):
    """Memory-economic sparse training (Yuan et al., NeurIPS 2021): elastic mutation, with a soft memory bound.

    Importance is |θ| + λ |∂L/∂θ|. An update drops the least important weights and grows random ones. With the soft
    bound ("EM&S") it drops down to the sparsity s of the run and grows to s − μ, so that new weights compete with the
    old ones until the next update; without it ("EM") it drops to s + μ and grows back to s. The schedule halves μ at
    90/160 of the run and makes it 0 from 120/160 on, where the mask gets its final number of weights. Weights are
    divided among layers in proportion to what these kept at the start. A layer without a gradient uses |θ| alone. (In
    the released code the gradients are already masked at this point, so its λ has no effect.)

    Args:
        schedule: When, and with which share of μ; the paper has an update every five epochs.
        mutation: μ, as a share of all weights; the authors use 0.05 at 90 %.
        soft_memory_bound: EM&S if True, else EM.
        gradient_weight: λ ≥ 0; the default is ours.

    Raises:
        SignInError: For values out of range.
    """

    schedule: Schedule = Stages()
    mutation: float = 0.05
    soft_memory_bound: bool = True
    gradient_weight: float = 1.0

    looks_at_gradients: ClassVar[bool] = True
    works_without_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "mutation", share, zero=True)
        check_field(self, "gradient_weight", number, "[0, inf)", "It is MEST's λ.")

    @property
    def keeps_counts(self) -> bool:  # type: ignore[override]
        """True with a hard bound."""
        return not self.soft_memory_bound

    def check(self, density: float, total: int, capacity: float) -> None:
        """μ must leave weights and fit the structure; the last update must be late enough to reach the final number."""
        super().check(density, total, capacity)
        if self.soft_memory_bound and capacity <= density:
            raise SignInError(
                f"MEST has no room to grow beyond a density of {density:.4g}, which is all that the `structure` can "
                "keep. Pass soft_memory_bound=False, or a higher `sparsity`."
            )
        last = self.schedule.steps(total)[-1]
        if self.soft_memory_bound and (amount := self.schedule.amount(last, total)):
            raise SignInError(
                f"{self.schedule} gives MEST no update with an amount of 0, in which the mask gets its final number of "
                f"weights: in this run of {total} steps the last one, at step {last}, has {amount:.4g}. Lower "
                "`every_n_steps`, or use a schedule that ends at 0."
            )
        if not self.soft_memory_bound and self.mutation >= density:
            raise SignInError(
                f"`mutation`={self.mutation} would drop all of a density of {density:.4g}. Pass less than the density."
            )

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        targets = {name: layer.target for name, layer in layers.items()}
        sign = 1 if self.soft_memory_bound else -1
        changed = self._counts(layers, sign * self.mutation * moment.amount)
        for name, layer in layers.items():
            keep, count = (targets, changed) if self.soft_memory_bound else (changed, targets)
            assert layer.gradient is not None
            importance = layer.theta.abs() + self.gradient_weight * layer.gradient.abs()
            survivors = layer.survivors(importance, min(keep[name], layer.kept))
            yield name, layer.grow(survivors, moment.random(layer.theta), count[name])

    def _counts(self, layers: Mapping[str, Layer], more: float) -> dict[str, int]:
        """What each layer keeps if all together keep this share of all weights more (or less, if negative)."""
        units = [layer.unit for layer in layers.values()]
        most = [layer.capacity for layer in layers.values()]
        shares = [layer.target for layer in layers.values()]
        total = sum(shares) + round(more * sum(layer.mask.numel() for layer in layers.values()))
        counts = allocate(shares, units, most, min(max(total, sum(units)), sum(most)))
        return dict(zip(layers, counts, strict=True))
