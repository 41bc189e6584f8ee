"""From the argument ``mask`` to a score: a name, an import path, or anything that can be called."""

from collections.abc import Callable, Mapping

from torch import Tensor

from lightning_signin.core.naming import named
from lightning_signin.errors import SignInError
from lightning_signin.masks.scores.basic import Magnitude, Random
from lightning_signin.masks.scores.grasp import GraSP
from lightning_signin.masks.scores.npb import NPB
from lightning_signin.masks.scores.phew import PHEW
from lightning_signin.masks.scores.prospr import ProsPr
from lightning_signin.masks.scores.snip import FORCE, SNIP, IterativeSNIP
from lightning_signin.masks.scores.synflow import SynFlow
from lightning_signin.masks.task import Task

Score = Callable[[Task], Mapping[str, Tensor]]

SCORES: dict[str, Callable[[], Score]] = {
    "random": Random,
    "magnitude": Magnitude,
    "snip": SNIP,
    "iterative-snip": IterativeSNIP,
    "force": FORCE,
    "grasp": GraSP,
    "synflow": SynFlow,
    "npb": NPB,
    "phew": PHEW,
    "prospr": ProsPr,
}


def parse_score(mask: str | Score) -> Score:
    """The score that an argument stands for.

    Args:
        mask: A name in `SCORES`; the import path of a function ``score(task)`` or of a class without arguments; or
            such a function or object itself, e.g. ``SNIP(num_batches=10)``.

    Returns:
        The score.

    Raises:
        SignInError: If it is none of these.

    Example:
        >>> parse_score("snip") == parse_score("lightning_signin.masks.SNIP") == SNIP()
        True
    """
    found = named("mask", mask, SCORES)
    if not callable(found):
        raise SignInError(f"`mask` must be a name, an import path, or a function of a Task; got {mask!r}.")
    return found
