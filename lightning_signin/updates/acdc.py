"""AC/DC: sparse and dense phases in turn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_signin.errors import SignInError
from lightning_signin.updates.gmp import magnitudes
from lightning_signin.updates.rule import Layer, Masks, Moment, UpdateRule
from lightning_signin.updates.schedule import Schedule
from lightning_signin.updates.schedules import Phases


@dataclass(frozen=True)
class ACDC(UpdateRule):
    """Alternating compressed/decompressed training (Peste et al., NeurIPS 2021).

    A sparse phase begins with a new mask of the largest |θ|. In a dense phase the masked weights come back at 0 and
    without momentum, so no stale state of an earlier dense phase acts on them.

    Args:
        schedule: When phases begin; those with an amount above 0 are dense. The last one must be sparse.
    """

    schedule: Schedule = Phases()

    distribution: ClassVar[str | None] = "global"
    start_sparsity: ClassVar[float | None] = 0.0
    keeps_counts: ClassVar[bool] = False

    def check(self, density: float, total: int, capacity: float) -> None:
        """The run must end sparse."""
        super().check(density, total, capacity)
        if self.schedule.amount(last := self.schedule.steps(total)[-1], total):
            raise SignInError(
                f"`schedule` of AC/DC must have an amount of 0 at its last step, {last} of {total}, where the final "
                f"sparse phase begins; {self.schedule} has not. Use e.g. {type(self).schedule}."
            )

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        if moment.amount:
            yield from ((name, torch.ones_like(layer.mask)) for name, layer in layers.items())
        else:
            yield from moment.choice.masks(magnitudes(layers)).items()
