"""RigL: drops the smallest weights, grows those with the largest gradients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lightning_signin.core.numbers import check_field, share
from lightning_signin.updates.rule import Layer, Masks, Moment, UpdateRule
from lightning_signin.updates.schedule import Schedule
from lightning_signin.updates.schedules import Cosine


@dataclass(frozen=True)
class RigL(UpdateRule):
    r"""The rigged lottery (Evci et al.: "Rigging the Lottery: Making All Tickets Winners", ICML 2020, Algorithm 1).

    Every ΔT steps t < T_end, from the first on, each layer with n weights drops its k = ⌊f(t) n⌋ of smallest |θ| and
    grows the k of largest |∂L/∂θ| among all that are then masked: a weight that was just dropped may return with its
    value and state. The batch of an update is not trained on: its optimizer step is skipped. f falls as a cosine:

    .. math:: f(t) = \frac{\alpha}{2} \left(1 + \cos\frac{\pi t}{T_{end}}\right)

    Among equal magnitudes the lower index is kept; the authors' code adds noise of 1e-5 instead. A weight with gradient
    0 is not grown: a layer with too few other gradients keeps the largest of its dropped weights instead, and one
    without any keeps its mask.

    Args:
        schedule: The steps t, and f(t) / α.
        drop_fraction: α, in [0, 1].

    Raises:
        SignInError: For values out of range.

    Example:
        >>> cosine = RigL(schedule=Cosine(every_n_steps=50), drop_fraction=0.4).schedule
        >>> [round(0.4 * cosine.amount(step, total=200), 3) for step in cosine.steps(total=200)]
        [0.4, 0.3, 0.1]
    """

    schedule: Schedule = Cosine()
    drop_fraction: float = 0.3

    looks_at_gradients: ClassVar[bool] = True
    skips_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "drop_fraction", share, zero=True)

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        fraction = self.drop_fraction * moment.amount
        for name, layer in layers.items():
            kept = layer.kept
            survivors = layer.survivors(layer.theta.abs(), kept - int(fraction * kept))
            yield name, layer.grow(survivors, layer.growth(), kept)
