"""When the factors are rescaled (Algorithm 1: every p epochs, before epoch T₂)."""

import sys
from dataclasses import dataclass
from math import inf

from lightning_signin.core.numbers import exact, whole_number
from lightning_signin.errors import SignInError
from lightning_signin.updates.schedule import passed


@dataclass(frozen=True)
class RescaleSchedule:
    """Rescales at the start of every p-th epoch, or after every n optimizer steps, up to a point of the run.

    Its steps are noticed as those of `lightning_signin.updates.Schedule` are (`passed`), but cannot be listed
    beforehand: how many optimizer steps an epoch has, or the run, may be unknown.

    Attributes:
        every_n_epochs: p, at least 1; None counts steps or never rescales.
        every_n_steps: The same in optimizer steps, at least 1; None counts epochs or never rescales.
        until: T₂: the first epoch without rescales (int), or a fraction of the run (float in [0, 1]) counted in its
            ``max_epochs``, or in ``max_steps`` if there is no ``max_epochs``.
    """

    every_n_epochs: int | None
    every_n_steps: int | None
    until: int | float

    def __post_init__(self) -> None:
        for argument, value in (("epochs", self.every_n_epochs), ("steps", self.every_n_steps)):
            if value is not None:
                checked = whole_number(f"rescale_every_n_{argument}", value, hint="Pass None to never rescale.")
                object.__setattr__(self, f"every_n_{argument}", checked)
        if self.every_n_epochs is not None and self.every_n_steps is not None:
            raise SignInError(
                f"`rescale_every_n_steps`={self.every_n_steps} and `rescale_every_n_epochs`={self.every_n_epochs} are "
                "both set. To count in steps, pass rescale_every_n_epochs=None."
            )
        fraction = isinstance(self.until, float)
        if isinstance(self.until, bool) or not isinstance(self.until, int | float) or not self.until >= 0:
            raise SignInError(f"`rescale_until` must be an epoch or a fraction of the run, got {self.until!r}.")
        if fraction:
            object.__setattr__(self, "until", float(self.until))  # as of NumPy, whose numbers print otherwise
        if fraction and self.until > 1:
            raise SignInError(f"`rescale_until` as a fraction must be in [0, 1], got {self.until}. An epoch is an int.")

    @property
    def ever(self) -> bool:
        """Whether rescales are enabled at all."""
        return self.every_n_epochs is not None or self.every_n_steps is not None

    def check_run(self, max_epochs: int | None, max_steps: int) -> None:
        """Raise `SignInError` if ``until`` is a fraction of a run without an end (−1 means no end)."""
        if self.ever and isinstance(self.until, float) and not _ends(max_epochs) and not _ends(max_steps):
            raise SignInError(
                f"`rescale_until`={self.until} is a fraction of the run, which has neither `max_epochs` nor "
                "`max_steps`. Pass an epoch (int), or give the Trainer one of these limits."
            )

    def never(self, max_epochs: int | None, max_steps: int, steps_per_epoch: float) -> bool:
        """Whether the run ends, or ``until`` comes, before the first rescale.

        Args:
            max_epochs: Limit of the run; None or −1 for no limit.
            max_steps: Limit of the run; −1 for no limit.
            steps_per_epoch: Optimizer steps per epoch; ``inf`` if unknown: then the answer considers epochs alone.

        Returns:
            Whether the run has no rescale.

        Example:
            >>> RescaleSchedule(every_n_epochs=5, every_n_steps=None, until=0.75).never(6, -1, 40)
            True
        """
        if not self.ever:
            return True
        if steps_per_epoch == inf and (self.every_n_steps or _ends(max_steps)):
            return False
        every_n_steps = self.every_n_steps or 0
        epoch = self.every_n_epochs or int(every_n_steps // steps_per_epoch)
        first = (epoch, every_n_steps or (0 if steps_per_epoch == inf else epoch * int(steps_per_epoch)))
        if max_epochs is not None and _ends(max_epochs) and first[0] >= max_epochs:
            return True
        if _ends(max_steps) and first[1] >= max_steps:
            return True
        return not self.due(first, (first[0] - 1, first[1] - 1), max_epochs, max_steps)

    def due(self, now: tuple[int, int], before: tuple[int, int], max_epochs: int | None, max_steps: int) -> bool:
        """Whether to rescale before the next batch.

        Args:
            now: (epoch, optimizer steps taken), from 0.
            before: The same at the previous batch, so that each epoch or step counts once, even after a resume.
            max_epochs: Limit of the run; None or −1 for no limit.
            max_steps: Limit of the run; −1 for no limit.

        Returns:
            Whether a rescale is due.
        """
        unit, every = (0, self.every_n_epochs) if self.every_n_epochs else (1, self.every_n_steps)
        if not every or not passed(range(every, sys.maxsize, every), before[unit], now[unit]):
            return False
        if isinstance(self.until, int):
            return now[0] < self.until
        if max_epochs is not None and _ends(max_epochs):
            return now[0] < exact(self.until) * max_epochs
        return now[1] < exact(self.until) * max_steps


def _ends(limit: int | None) -> bool:
    return limit is not None and limit >= 0
