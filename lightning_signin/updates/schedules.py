"""The schedules of update rules: every few steps with a constant or falling strength, in phases, and once."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise

from lightning_signin.core.numbers import check_field, exact, share, whole_number
from lightning_signin.errors import SignInError
from lightning_signin.updates.schedule import Schedule, of_run


@dataclass(frozen=True)
class Periodic(Schedule):
    """Every few optimizer steps, up to a point of the run; the subclasses say from where, and how strongly.

    Args:
        every_n_steps: Optimizer steps between two updates.
        until: Share of the run in (0, 1] after which the mask stays.

    Raises:
        SignInError: For values out of range.
    """

    every_n_steps: int = 100
    until: float = 0.75

    def __post_init__(self) -> None:
        check_field(self, "every_n_steps", whole_number)
        check_field(self, "until", share)


@dataclass(frozen=True)
class Constant(Periodic):
    """Every few steps up to a point of the run, with the same strength.

    Args:
        every_n_steps: Optimizer steps between two updates; the first comes after that many.
        until: Share of the run in (0, 1] from which on the mask stays.

    Raises:
        SignInError: For values out of range.

    Example:
        >>> list(Constant(every_n_steps=100).steps(total=400))
        [100, 200]
    """

    def steps(self, total: int) -> Sequence[int]:
        """Δt, 2 Δt, … below the end."""
        return range(self.every_n_steps, of_run(self.until, total), self.every_n_steps)


@dataclass(frozen=True)
class Stages(Constant):
    """As `Constant`, with strengths that change from stage to stage, as in MEST.

    Args:
        every_n_steps: Optimizer steps between two updates.
        until: Share of the run in (0, 1] from which on the mask stays; after the last stage has begun.
        stages: For each stage the share of the run at which it begins, rising from 0, and its amount in [0, 1]. The
            default is MEST's: its 160 epochs halve the strength at epoch 90, and end it at epoch 120.

    Raises:
        SignInError: For values out of range.

    Example:
        >>> [Stages(every_n_steps=20).amount(step, total=160) for step in (80, 100, 120)]
        [1.0, 0.5, 0.0]
    """

    until: float = 1.0
    stages: tuple[tuple[float, float], ...] = ((0.0, 1.0), (90 / 160, 0.5), (120 / 160, 0.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        stages = tuple(map(tuple, self.stages))
        for stage in stages:
            if len(stage) != 2:
                raise SignInError(f"`stages` must be pairs of a share of the run and an amount, got {stage}.")
        plain = tuple(
            (share("stages", begin, zero=True), share("stages", amount, zero=True)) for begin, amount in stages
        )
        object.__setattr__(self, "stages", plain)
        begins = [begin for begin, _ in self.stages]
        if not begins or begins[0] != 0 or any(later <= begin for begin, later in pairwise(begins)):
            raise SignInError(f"`stages` must begin at rising shares of the run, the first at 0, got {self.stages}.")
        if self.until <= begins[-1]:
            raise SignInError(
                f"`until` must be above {begins[-1]}, where the last of `stages` begins, got {self.until}."
            )

    def amount(self, step: int, total: int) -> float:
        """That of the last stage that has begun."""
        return next(amount for begin, amount in reversed(self.stages) if step >= exact(begin) * total)


@dataclass(frozen=True)
class Cosine(Periodic):
    r"""From the first step on, every few steps, with a strength that falls as a cosine, as in RigL.

    .. math:: a(t) = \frac12 \left(1 + \cos\frac{\pi t}{T_{end}}\right)

    Args:
        every_n_steps: ΔT, the optimizer steps between two updates; the first comes before step 0.
        until: T_end as a share of the run in (0, 1], from which on the mask stays.

    Raises:
        SignInError: For values out of range.

    Example:
        >>> list(Cosine(every_n_steps=100).steps(total=400)), Cosine().amount(0, total=400)
        ([0, 100, 200], 1.0)
    """

    def steps(self, total: int) -> Sequence[int]:
        """0, ΔT, 2 ΔT, … below T_end."""
        return range(0, of_run(self.until, total), self.every_n_steps)

    def amount(self, step: int, total: int) -> float:
        """a(t)."""
        return (1 + math.cos(math.pi * step / of_run(self.until, total))) / 2


@dataclass(frozen=True)
class Cubic(Periodic):
    r"""Every few steps from t₀ to t₀ + nΔt, with a strength that falls as a cube, as in GMP.

    .. math:: a(t) = \left(1 - \frac{t - t_0}{n \Delta t}\right)^3

    Args:
        every_n_steps: Δt, the optimizer steps between two updates.
        until: Share of the run in (0, 1] by which the last update takes place.
        since: t₀ as a share of the run in [0, 1].

    Raises:
        SignInError: For values out of range.

    Example:
        >>> cubic = Cubic(every_n_steps=100)
        >>> [round(cubic.amount(step, total=400), 3) for step in cubic.steps(total=400)]
        [1.0, 0.296, 0.037, 0.0]
    """

    since: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "since", share, zero=True)
        if self.since > self.until:
            raise SignInError(f"`since`={self.since} is after `until`={self.until}.")

    def steps(self, total: int) -> Sequence[int]:
        """t₀, t₀ + Δt, …, t₀ + nΔt."""
        first, last = of_run(self.since, total), of_run(self.until, total)
        return range(first, min(last, total - 1) + 1, self.every_n_steps)

    def amount(self, step: int, total: int) -> float:
        """a(t)."""
        steps = self.steps(total)
        return float(((steps[-1] - step) / max(steps[-1] - steps[0], 1)) ** 3)


@dataclass(frozen=True)
class Phases(Schedule):
    """When sparse and dense phases begin, as in AC/DC: the amount is 0 in sparse ones, and 1 in dense ones.

    A dense warm-up; then phases of one length, sparse and dense in turn; then a longer dense phase, and a sparse one
    until the end. What is left of the run where the phases do not fill it makes the last dense phase longer still.
    The defaults are AC/DC's for ResNet-50 on ImageNet, 100 epochs: sparse at 10, 20, …, 70, dense at 15, 25, …, 75,
    sparse from 85 on.

    Args:
        warmup: Length of the dense warm-up, as a share of the run.
        phase: Length of a phase, as a share of the run.
        final_dense: The least length of the last dense phase.
        final_sparse: Length of the last sparse phase.

    Raises:
        SignInError: If shares are out of range, or leave no room for a sparse phase between warm-up and final phases.

    Example:
        >>> Phases().steps(total=100)
        [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85]
    """

    warmup: float = 0.1
    phase: float = 0.05
    final_dense: float = 0.1
    final_sparse: float = 0.15

    def __post_init__(self) -> None:
        for name in ("warmup", "phase", "final_dense", "final_sparse"):
            check_field(self, name, share)
        if self.warmup + self.phase + self.final_dense + self.final_sparse > 1 + 1e-9:
            raise SignInError(
                "`warmup` + `phase` + `final_dense` + `final_sparse` must be at most 1: they are shares of the run, "
                f"here {self.warmup}, {self.phase}, {self.final_dense}, {self.final_sparse}."
            )

    def steps(self, total: int) -> Sequence[int]:
        """When phases begin.

        Returns:
            The first steps of the phases: sparse, dense, …, dense, sparse.

        Raises:
            SignInError: If the run is too short for them.
        """
        if self._between(total) < 1:
            least = next(longer for longer in count(total + 1) if self._between(longer) >= 1)
            raise SignInError(f"{self} does not fit in {total} optimizer steps. Train longer: at least {least} steps.")
        first, length = of_run(self.warmup, total, least=1), of_run(self.phase, total, least=1)
        length = min(length, self._between(total))  # rounding may leave one step less
        sparse_phases = (self._between(total) + length) // (2 * length)
        return [*(first + i * length for i in range(2 * sparse_phases)), total - of_run(self.final_sparse, total, 1)]

    def _between(self, total: int) -> int:
        """The steps between the warm-up and the latest begin of the last dense phase."""
        return total - sum(of_run(part, total, least=1) for part in (self.warmup, self.final_dense, self.final_sparse))

    def amount(self, step: int, total: int) -> float:
        """1 if the phase is dense, 0 if it is sparse."""
        return 1.0 - bisect_right(self.steps(total), step) % 2


@dataclass(frozen=True)
class Once(Schedule):
    """Once in the run.

    Args:
        at: When, as a share of the run in [0, 1].

    Raises:
        SignInError: If ``at`` is out of range.

    Example:
        >>> Once(at=0.5).steps(total=40)
        [20]
    """

    at: float = 0.75

    def __post_init__(self) -> None:
        check_field(self, "at", share, zero=True)

    def steps(self, total: int) -> Sequence[int]:
        """The one step."""
        return [min(of_run(self.at, total), total - 1)]
