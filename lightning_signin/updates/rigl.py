"""RigL: drops the smallest weights, grows those with the largest gradients."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_signin.core.numbers import check_field, share
from lightning_signin.updates.rule import Layer, Masks, Moment, PeriodicRule, of_run


@dataclass(frozen=True)
class RigL(PeriodicRule):
    r"""The rigged lottery (Evci et al.: "Rigging the Lottery: Making All Tickets Winners", ICML 2020, Algorithm 1).

    Every ΔT steps t < T_end, from the first on, each layer with n weights drops its k = ⌊f(t) n⌋ of smallest |θ| and
    grows the k of largest |∂L/∂θ| among all that are then masked: a weight that was just dropped may return with its
    value and state. The batch of an update is not trained on: its optimizer step is skipped. f falls as a cosine:

    .. math:: f(t) = \frac{\alpha}{2} \left(1 + \cos\frac{\pi t}{T_{end}}\right)

    Among equal magnitudes the lower index is kept; the authors' code adds noise of 1e-5 instead. A weight with gradient
    0 is not grown: a layer with too few other gradients keeps the largest of its dropped weights instead, and one
    without any keeps its mask.

    Args:
        update_every_n_steps: ΔT.
        update_until: T_end as a share of the run.
        drop_fraction: α, in [0, 1].

    Example:
        >>> RigL(drop_fraction=0.3).fraction(0, total=1000), RigL().fraction(750, total=1000)
        (0.3, 0.0)
    """

    drop_fraction: float = 0.3

    looks_at_gradients: ClassVar[bool] = True
    skips_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "drop_fraction", share, zero=True)

    def steps(self, total: int) -> Sequence[int]:
        """0, ΔT, 2 ΔT, … below T_end."""
        return range(0, of_run(self.update_until, total), self.update_every_n_steps)

    def fraction(self, step: int, total: int) -> float:
        """f(t)."""
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * step / of_run(self.update_until, total)))

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        fraction = self.fraction(moment.step, moment.total)
        for name, layer in layers.items():
            kept = layer.kept
            survivors = layer.survivors(layer.theta.abs(), kept - int(fraction * kept))
            yield name, layer.grow(survivors, layer.growth(), kept)
