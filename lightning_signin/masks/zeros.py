"""Scores of exactly zero: they say nothing, so a choice among them is refused, or left to chance."""

import warnings
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from lightning_signin.errors import SignInError
from lightning_signin.masks.choice import Choice
from lightning_signin.warn import warn

_LEAST = 2.0**-1000  # stands for zero: above what ranks below all, and below the product of any two float32 numbers
_SHOWN = 5


def check_competing(scores: Mapping[str, Tensor], total: int, mask: str) -> None:
    """Refuse scores of layers that compete, where they say nothing.

    Args:
        scores: By name; a layer of one weight may have any.
        total: How many weights are to be kept. All is no choice.
        mask: The name of the score.

    Raises:
        SignInError: If a layer has no score other than zero, or fewer weights have one than are to be kept.
    """
    said = {name: int(score.count_nonzero()) for name, score in scores.items()}
    if total == sum(score.numel() for score in scores.values()):
        return
    what, ways = (
        "their scores are all zero",
        "Start branches that begin at zero elsewhere (timm: `zero_init_last=False`)",
    )
    layers = [name for name, score in scores.items() if not said[name] and score.numel() > 1]
    if not layers and total > sum(said.values()):
        what = f"many scores are zero: {sum(said.values())} are not, and {total} weights are to be kept"
        ways = "Raise `sparsity`, or score with more batches"
        layers = [name for name, score in scores.items() if said[name] < score.numel()]
    if not layers:
        return
    raise SignInError(
        f"mask={mask!r} cannot choose in {some(layers)}: {what}, and distribution='global' lets the scores of all "
        f"layers compete. {ways}; leave layers that no gradient reaches, such as an unused head or a teacher, dense "
        f"with exclude={_listed(layers)}, or freeze them; choose mask='random'; or pass distribution='erk', with which "
        "such weights are chosen at random."
    )


def decided(
    scores: Mapping[str, Tensor], choice: Choice, generator: torch.Generator, mask: str
) -> Mapping[str, Tensor]:
    """Scores that need no choice among zeros.

    Args:
        scores: By name; higher is kept.
        choice: What will be made of them.
        generator: CPU generator.
        mask: The name of the score.

    Returns:
        The same scores, if the masks are the same whichever of the weights that score zero come first; else scores in
        which these have a random order.

    Raises:
        SignInError: If they would not be the same, and `check_competing` refuses the scores where layers compete.

    Warns:
        UserWarning: If they would not be the same otherwise.
    """
    if not any(bool((scores[name] == 0).any()) for name in scores):
        return scores
    scores = {name: score.detach().cpu() for name, score in scores.items()}  # where there is float64
    if not (layers := _undecided(scores, choice)):
        return scores
    if choice.is_global:
        check_competing(scores, choice.target, mask)
    warn(f"mask={mask!r} says nothing about weights of {some(layers)}, since their scores are zero: chance chooses.")
    return at_random(scores, generator)


def at_random(scores: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The scores, in which those of zero have a random order, below all positive and above all negative ones.

    Example:
        >>> found = at_random({"a": torch.tensor([1.0, 0.0, 0.0, -1.0])}, torch.Generator().manual_seed(0))["a"]
        >>> found.argsort(descending=True).tolist() in ([0, 1, 2, 3], [0, 2, 1, 3])
        True
    """
    return {name: _replaced(score, generator) for name, score in scores.items()}


def some(layers: Collection[str]) -> str:
    """The first names, and how many there are besides."""
    first = ", ".join(list(layers)[:_SHOWN])
    return f"{first} and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else first


def _listed(layers: Sequence[str]) -> str:
    return f"[{', '.join(map(repr, layers[:_SHOWN]))}{', …' if len(layers) > _SHOWN else ''}]"


def _undecided(scores: Mapping[str, Tensor], choice: Choice) -> list[str]:
    """The layers whose masks differ between the first zeros first and the last zeros first."""
    size = sum(score.numel() for score in scores.values())
    turned, start = {}, 0
    for name, score in scores.items():
        turned[name] = _replaced(score, torch.arange(start, start + score.numel(), dtype=torch.float64) / size)
        start += score.numel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to warn of is said of the masks that are taken
        first, last = choice.masks(scores), choice.masks(turned)
    return [name for name in scores if not torch.equal(first[name], last[name])]


def _replaced(score: Tensor, order: torch.Generator | Tensor) -> Tensor:
    """The score in float64 with least numbers for zeros; one without zeros itself."""
    zero = score == 0
    if not zero.any():
        return score
    if isinstance(order, torch.Generator):
        order = torch.rand(score.numel(), generator=order, dtype=torch.float64)
    return score.double().where(~zero, _LEAST * (1 + order.view(score.shape).to(score.device)))
