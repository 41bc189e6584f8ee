"""What a schedule is: when a mask changes, and how strongly. Those of the papers are in `updates/schedules.py`."""

from bisect import bisect_right
from collections.abc import Sequence

from lightning_signin.core.numbers import exact


class Schedule:
    """When a mask changes, and how strongly. Subclass it for a schedule of your own, and pass it to any rule.

    (Not itself a dataclass, unlike the schedules: command lines accept subclasses of plain classes only.)

    Example:
        >>> class Twice(Schedule):
        ...     def steps(self, total):
        ...         return [total // 4, total // 2]
        >>> from lightning_signin.updates import RigL
        >>> RigL(schedule=Twice())
        RigL(schedule=Twice(), drop_fraction=0.3)
    """

    def steps(self, total: int) -> Sequence[int]:
        """The optimizer steps before which the mask changes, rising, from 0, in a run of ``total`` steps."""
        raise TypeError(f"{type(self).__name__} must define `steps`.")

    def amount(self, step: int, total: int) -> float:
        """The share in [0, 1] of the rule's strength that acts at one of the `steps`.

        It is the share of the fraction that is dropped (SET, RigL, SRigL), of the mutation (MEST), or of the
        remaining distance to the final sparsity (GMP, AC/DC): these schedules fall to 0.

        Returns:
            The share.
        """
        return 1.0

    def __repr__(self) -> str:  # the default would show an address, and checkpoints compare it
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def passed(steps: Sequence[int], before: int, now: int) -> bool:
    """Whether one of ascending steps lies in (before, now]: each is noticed once, even if some are never looked at.

    Returns:
        Whether there is one.

    Example:
        >>> passed([10, 20], 9, 10), passed([10, 20], 10, 10), passed([10, 20], 10, 25)
        (True, False, True)
    """
    return bisect_right(steps, before) < bisect_right(steps, now)


def of_run(part: float, total: int, least: int = 0) -> int:
    """A share of a run in whole steps, in exact decimal arithmetic, rounded half to even, and at least ``least``."""
    return max(round(exact(part) * total), least)
