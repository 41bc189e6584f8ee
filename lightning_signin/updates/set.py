"""SET: the smallest weights of either sign go, as many random ones come."""

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_signin.updates.rule import Layer, Masks, Moment, PeriodicRule, check_share


@dataclass(frozen=True)
class SET(PeriodicRule):
    """Sparse evolutionary training (Mocanu et al., Nature Communications 2018).

    At every update a layer drops the share ζ of its positive weights that are smallest and the share ζ of its negative
    weights that are nearest to 0, and grows as many at random among all that are masked then. Weights that are exactly
    0 go with the positive ones, first. Where the paper starts new weights at random, these start at 0, as in the later
    benchmarks of the method.

    Args:
        update_every_n_steps: Optimizer steps between two updates.
        update_until: Share of the run in (0, 1] after which the mask stays.
        drop_fraction: ζ, in [0, 1].

    Example:
        >>> list(SET(update_every_n_steps=100).steps(total=400))
        [100, 200]
    """

    drop_fraction: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("drop_fraction", self.drop_fraction, zero=True)

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        for name, layer in layers.items():
            survivors = layer.mask & False
            for of_sign in (layer.mask & (layer.theta >= 0), layer.mask & (layer.theta < 0)):
                count = int(of_sign.sum())
                of_one = Layer(layer.theta, of_sign, layer.structure, layer.transposed, count)
                survivors |= of_one.largest(layer.theta.abs(), count - int(self.drop_fraction * count))
            yield name, layer.grow(survivors, moment.random(layer.theta), layer.kept)
