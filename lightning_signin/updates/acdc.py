"""AC/DC: sparse and dense phases in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_signin.core.numbers import check_field, share
from lightning_signin.errors import SignInError
from lightning_signin.updates.gmp import magnitudes
from lightning_signin.updates.rule import Layer, Masks, Moment, UpdateRule, of_run


@dataclass(frozen=True)
class ACDC(UpdateRule):
    """Alternating compressed/decompressed training (Peste et al., NeurIPS 2021).

    A dense warm-up; then phases, sparse and dense in turn; then a longer dense phase, and a sparse one until the end.
    A sparse phase begins with a new mask of the largest |θ|. In a dense phase the masked weights come back at 0 and
    without momentum, so no stale state of an earlier dense phase acts on them. The defaults are the authors' schedule
    for ResNet-50 on ImageNet, 100 epochs: sparse at 10, 20, …, 70, dense at 15, 25, …, 75, sparse from 85 on.

    Args:
        warmup: Length of the dense warm-up, as a share of the run.
        phase: Length of a phase, as a share of the run.
        final_dense: Length of the last dense phase.
        final_sparse: Length of the last sparse phase.

    Raises:
        SignInError: If shares are out of range, or leave no room for a sparse phase between warm-up and final phases.

    Example:
        >>> ACDC().steps(total=100)
        [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85]
    """

    warmup: float = 0.1
    phase: float = 0.05
    final_dense: float = 0.1
    final_sparse: float = 0.15

    distribution: ClassVar[str | None] = "global"
    start_sparsity: ClassVar[float | None] = 0.0
    keeps_counts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("warmup", "phase", "final_dense", "final_sparse"):
            check_field(self, name, share)
        if self.warmup + self.phase + self.final_dense + self.final_sparse > 1 + 1e-9:
            raise SignInError(
                "`warmup` + `phase` + `final_dense` + `final_sparse` of AC/DC must be at most 1: they are shares of "
                f"the run, and are {self.warmup}, {self.phase}, {self.final_dense}, {self.final_sparse}."
            )

    def steps(self, total: int) -> Sequence[int]:
        """The steps at which phases begin: sparse, dense, …, dense, sparse."""
        first, length = of_run(self.warmup, total), max(of_run(self.phase, total), 1)
        last = total - of_run(self.final_sparse, total)
        dense = last - of_run(self.final_dense, total)
        sparse_phases = max((dense - first + length) // (2 * length), 1)
        begins = [first + i * length for i in range(2 * sparse_phases - 1)]
        return [*begins, max(dense, begins[-1] + 1), max(last, begins[-1] + 2)]

    def masks(self, layers: Mapping[str, Layer], moment: Moment) -> Masks:
        """The new masks."""
        if moment.steps.index(moment.step) % 2:
            yield from ((name, torch.ones_like(layer.mask)) for name, layer in layers.items())
        else:
            yield from moment.choice.masks(magnitudes(layers)).items()
