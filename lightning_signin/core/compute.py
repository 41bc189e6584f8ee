"""How layers with sparse weights compute: with the whole weight, or on its non-zeros; as asked, or as measured."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

import torch

from lightning_signin.kernels.timing import GAIN, Compared, compare

COMPUTE = ("auto", "dense", "sparse")
Taken = Literal["dense", "sparse"]
SECONDS = 1.0  # that all measurements of a module may take together
# Below this size, a layer of "auto" stays dense: its time is that of calls, and too short to be told from noise.
LEAST_WEIGHTS = 2**15
_RUNS = 6  # calls of one measurement, about
_CLEAR = 1.5  # times that differ by this factor are not measured again
_CHANGED = 1.25  # a mask that changes its size by this factor is measured anew


class Compute:
    """What was asked for all layers of a module, and what was measured.

    Args:
        asked: "auto", "dense" or "sparse".
        layers: The number of layers that may be measured.

    Attributes:
        has_warned: Whether the warning was given that "sparse" is not possible.
        frozen: Whether no choice is made any more, since ranks would choose differently.
    """

    def __init__(self, asked: str, layers: int) -> None:
        self.asked, self.has_warned, self.frozen = asked, False, False
        self._left, self._layers = SECONDS, layers
        self._known: dict[Hashable, Compared] = {}  # layers of one form share a measurement

    @property
    def seconds(self) -> float:
        """The time that one call may take, for the layer that is measured next."""
        return max(self._left, 0.0) / max(self._layers, 1) / _RUNS

    def compared(self, form: Hashable, dense: Callable[[], object], sparse: Callable[[], object]) -> Compared:
        """The times of a layer, dense and on its non-zeros.

        Args:
            form: What layers have in common that take the same time.
            dense: One pass forward and backward.
            sparse: The same on the non-zeros.

        Returns:
            Medians, of more runs where they are close.
        """
        self._layers -= 1
        if form not in self._known:
            start = time.perf_counter()
            found = compare(dense, sparse, 0.0, least=1)
            if 1 / _CLEAR < found.gain < _CLEAR:
                found = compare(dense, sparse, self.seconds * _RUNS / 2, least=3)
            self._known[form] = found
            self._left -= time.perf_counter() - start
        return self._known[form]


@dataclass
class Choice:
    """How one weight is used.

    Attributes:
        of: What was asked for all weights.
        taken: What is done; None until the first batch of training.
        times: What was measured, forward and backward.
        reason: Why it is dense, where that was not measured.
        active: The number of kept weights for which it was measured.
    """

    of: Compute
    taken: Taken | None = None
    times: Compared | None = None
    reason: str = ""
    active: int = 0

    def take(self, times: Compared, active: int) -> None:
        """Take the faster way; dense unless the other is faster by a margin."""
        self.times, self.active = times, active
        self.taken = "sparse" if times.gain >= GAIN else "dense"

    def stay_dense(self, reason: str) -> None:
        """Take the whole weight, and remember why."""
        self.taken, self.reason = "dense", reason

    def reconsider(self, active: int) -> None:
        """Measure anew, in the next training forward, if the mask has become much smaller or larger since then."""
        known = self.times is not None and not self.of.frozen
        if known and not 1 / _CHANGED < active / max(self.active, 1) < _CHANGED:
            self.taken = self.times = None


def choice_of(compute: Compute, kind: bool, weights: int) -> Choice:
    """The choice for a weight, as far as it can be made before training.

    Args:
        compute: What was asked for all weights.
        kind: Whether the weight is that of a layer that can run on its non-zeros.
        weights: The number of its entries.

    Returns:
        The choice, which "auto" leaves open for larger layers.
    """
    choice = Choice(compute)
    if compute.asked == "dense":
        choice.stay_dense("as asked")
    elif not kind:
        choice.stay_dense("its kind of layer")
    elif compute.asked == "sparse":
        choice.taken = "sparse"
    elif weights < LEAST_WEIGHTS:
        choice.stay_dense("too small to gain")
    elif torch.are_deterministic_algorithms_enabled():
        choice.stay_dense("deterministic algorithms: no timing may decide")
    return choice
