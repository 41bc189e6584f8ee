"""The single neuron of Section 5: its data, balanced starts, four sign cases, four methods, and when it has learned.

The teacher is ã = 1, w̃ = (1, 0, …, 0). At d = 1 a ReLU splits the samples by their sign, so the loss of n samples is
that of two, of which one is positive: C₊ = (1/n) Σ max(0, z)² and C₋ are all that a run's data tell.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from benchmarks.paper.student import Data, History, make_forms, taught, train

CASES = {"a > 0, w > 0": (1, 1), "a < 0, w > 0": (-1, 1), "a > 0, w < 0": (1, -1), "a < 0, w < 0": (-1, -1)}
WITHIN = 0.05  # recovered: a > 0 and ‖a·w − ã·w̃‖ ≤ WITHIN · ‖ã·w̃‖


@dataclass(frozen=True)
class Method:
    """A row of Table 6: the input dimension, the parametrization, and (β₁, β₂) of a and w."""

    d: int
    parametrization: str
    betas: tuple[float, float] = (1.0, 1.0)


METHODS = {
    "Sparse": Method(1, "plain"),
    "Overparam": Method(5, "plain"),
    "Sign-In": Method(1, "sign-in", (2.0, 1.0)),
    "Overparam + Sign-In": Method(5, "sign-in"),
}


@dataclass(frozen=True)
class Setting:
    """What the text leaves open or an axis of the picture moves: scale is σ of w ~ N(0, σ² I), rate is η."""

    runs: int = 100
    n: int = 200
    scale: float = 1.0
    rate: float = 0.01
    seed: int = 0

    def steps(self, time: float) -> int:
        """The number of steps of a time T = steps · η."""
        return round(time / self.rate)

    def but(self, **changes: float) -> "Setting":
        """The same with one value changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def written(self) -> dict[str, float]:
        """For the record."""
        return asdict(self)


def make_data(setting: Setting, d: int) -> Data:
    """Samples of N(0, I), fresh for every run, and what the teacher says to them."""
    source = torch.Generator().manual_seed(1000 + setting.seed)
    inputs = torch.randn(setting.runs, setting.n, d, generator=source, dtype=torch.float64)
    one = torch.ones(setting.runs, 1, dtype=torch.float64)
    data = taught(inputs, one, first_axis(d).expand(setting.runs, 1, d), apart=True)
    return condensed(data) if d == 1 else data


def first_axis(d: int) -> Tensor:
    """(1, 0, …, 0)."""
    return torch.eye(1, d, dtype=torch.float64)[0]


def condensed(data: Data) -> Data:
    """Two samples with the loss of all of them, up to a constant, for d = 1."""
    z = data.inputs[..., 0]
    halves = torch.stack([z.relu().square().mean(1).sqrt(), -(-z).relu().square().mean(1).sqrt()], dim=1) * 2**0.5
    return Data(halves.unsqueeze(2), halves.relu(), data.apart)


def make_start(setting: Setting, d: int, signs: Sequence[tuple[int, int | None]]) -> tuple[Tensor, Tensor]:
    """Balanced starts, a² = ‖w‖², one for each pair of signs of a and w₁; None leaves that of w₁ to chance."""
    source = torch.Generator().manual_seed(2000 + setting.seed)
    drawn = setting.scale * torch.randn(setting.runs, d, generator=source, dtype=torch.float64)
    w = torch.stack([drawn] * len(signs), dim=1)
    for case, (_, sign) in enumerate(signs):
        if sign is not None:
            w[:, case, 0] = sign * w[:, case, 0].abs()
    return w.norm(dim=2) * torch.tensor([float(sign) for sign, _ in signs]), w


def recovered(history: History, goal: Tensor | None = None) -> Tensor:
    """Which students are the teacher, by the rule of `WITHIN`, as (moments, runs, students); diverged ones are not.

    Args:
        history: What `train` returned.
        goal: ã·w̃ of every run, as (runs, 1, d); None is the first axis.

    Returns:
        Bool, of shape (moments, runs, students).
    """
    goal = first_axis(history.w.shape[3]) if goal is None else goal
    far = (history.a.unsqueeze(3) * history.w - goal).norm(dim=3) > WITHIN * goal.norm(dim=-1)
    return (history.a > 0) & ~far & history.a.isfinite()


def run_method(method: Method, setting: Setting, moments: Sequence[int], label: str, **options: bool) -> History:
    """All sign cases of a method, in their order, as the neurons of a row."""
    data, (a, w) = make_data(setting, method.d), make_start(setting, method.d, list(CASES.values()))
    forms = make_forms(method.parametrization, a, w, method.betas)
    return train(data, a, w, forms, setting.rate, moments, label=label, **options)


def count_cells(setting: Setting, times: Sequence[float], label: str) -> dict[str, dict[str, list[int]]]:
    """How many runs have recovered the teacher at each time, by method and sign case.

    At d = 1 the plain balanced start is kept on the manifold |a| = |w|, where exact arithmetic keeps it.

    Returns:
        By method and sign case, one count per time.
    """
    moments = [setting.steps(time) for time in times]
    counts: dict[str, dict[str, list[int]]] = {}
    for name, method in METHODS.items():
        on_manifold = method.d == 1 and method.parametrization == "plain"
        history = run_method(method, setting, moments, f"{label}: {name}", balanced=on_manifold)
        found = recovered(history).sum(1)
        counts[name] = {case: found[:, position].tolist() for position, case in enumerate(CASES)}
    return counts
