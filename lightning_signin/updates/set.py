"""SET: drops the smallest weights of either sign, and grows as many random ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_signin.core.numbers import check_field, share
from lightning_signin.updates.rule import Layer, Masks, Moment, UpdateRule
from lightning_signin.updates.schedule import Schedule
from lightning_signin.updates.schedules import Constant


@dataclass(frozen=True)
class SET(UpdateRule):
    """Sparse evolutionary training (Mocanu et al., Nature Communications 2018).

    At every update a layer drops the share ζ of its positive weights that are smallest and the share ζ of its negative
    weights that are nearest to 0, and grows as many at random among all that are then masked. Weights that are exactly
    0 count as positive ones, and are dropped first. The paper starts new weights at random; here they start at 0, as in
    later benchmarks of the method. In patterns made of units, the units of smallest mean |θ| are dropped.

    Args:
        schedule: When, and with which share of ζ.
        drop_fraction: ζ, in [0, 1].

    Raises:
        SignInError: For values out of range.
    """

    schedule: Schedule = Constant()
    drop_fraction: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "drop_fraction", share, zero=True)

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        fraction = self.drop_fraction * moment.amount
        for name, layer in layers.items():
            if layer.unit == 1:
                negative = layer.theta < 0
                parts = (replace(layer, mask=layer.mask & of_sign) for of_sign in (~negative, negative))
                survivors = torch.stack([_largest(part, fraction) for part in parts]).any(0)
            else:
                survivors = _largest(layer, fraction)
            yield name, layer.grow(survivors, moment.random(layer.theta), layer.kept)


def _largest(layer: Layer, dropped: float) -> Tensor:
    """The mask of a layer's weights without the share of smallest |θ|."""
    return layer.survivors(layer.theta.abs(), layer.kept - int(dropped * layer.kept))
