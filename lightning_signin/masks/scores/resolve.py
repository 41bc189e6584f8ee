"""From the argument ``mask`` to a score: a name, an import path, or anything that can be called."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from lightning_signin.masks.scores.basic import Magnitude, Random
from lightning_signin.masks.scores.grasp import GraSP
from lightning_signin.masks.scores.npb import NPB
from lightning_signin.masks.scores.phew import PHEW
from lightning_signin.masks.scores.prospr import ProsPr
from lightning_signin.masks.scores.snip import FORCE, SNIP, IterativeSNIP
from lightning_signin.masks.scores.synflow import SynFlow
from lightning_signin.masks.task import Scores, Task

Score = Callable[[Task], Scores]

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

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> parse_score("snip") == parse_score("lightning_signin.masks.SNIP") == SNIP()
        True
    """
    found: Any = mask
    if isinstance(mask, str):
        path, _, attribute = mask.rpartition(".")
        try:
            found = SCORES[mask] if mask in SCORES else getattr(import_module(path), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            reason = f" ({error})" if path else ""
            raise ValueError(
                f"`mask` must be one of {', '.join(map(repr, SCORES))}, or the import path of a function or class; got "
                f"{mask!r}{reason}."
            ) from None
    if isinstance(found, type):
        found = found()
    if not callable(found):
        raise ValueError(f"`mask` must be a name, an import path, or a function of a Task; got {mask!r}.")
    return found


def score_name(mask: str | Score) -> str:
    """The mask argument as one line: itself, or what its object shows of itself."""
    if isinstance(mask, str):
        return mask
    return f"{mask.__module__}.{mask.__qualname__}" if hasattr(mask, "__qualname__") else repr(mask)
