"""Scores of exactly zero: they carry no information, so a choice among them is refused, or made at random."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_signin.errors import SignInError, some, warn
from lightning_signin.masks.choice import Choice

_LEAST = 2.0**-1000  # stands for zero: above what ranks below all, and below the product of any two float32 numbers


def check_competing(scores: Mapping[str, Tensor], choice: Choice, mask: str) -> None:
    """Refuse scores of competing layers where zeros would have to be ranked.

    Args:
        scores: By name; higher is kept.
        choice: How they become masks. Groups that keep all weights are not checked.
        mask: The name of the score.

    Raises:
        SignInError: If all scores of a layer with more than one weight are zero, or fewer scores are non-zero than
            weights are to be kept.
    """
    for group in choice.groups:
        if group.spread != "global" or group.total == group.size:
            continue
        said = {name: int(scores[name].count_nonzero()) for name in group.names}
        number = sum(said.values())
        if layers := [name for name in group.names if not said[name] and scores[name].numel() > 1]:
            all_zero = f"in {some(layers)}: their scores are all zero"
            way = "Start branches that begin at zero elsewhere (timm: `zero_init_last=False`)"
            raise SignInError(_refused(all_zero, way, layers, mask))
        if group.total > number:
            layers = [name for name in group.names if said[name] < scores[name].numel()]
            too_few = f"many scores are zero: {number} are not, and {group.total} weights are to be kept"
            way = "Raise `sparsity`, or score with more batches"
            raise SignInError(_refused(f"in {some(layers)}: {too_few}", way, layers, mask))


def decided(
    scores: Mapping[str, Tensor], choice: Choice, generator: torch.Generator, mask: str
) -> Mapping[str, Tensor]:
    """Scores that need no choice among zeros.

    Args:
        scores: By name; higher is kept.
        choice: How they become masks.
        generator: CPU generator.
        mask: The name of the score.

    Returns:
        The same scores, if the order of the weights that score zero does not affect the masks; else scores in which
        these have a random order.

    Raises:
        SignInError: If that order matters, and `check_competing` refuses the scores.

    Warns:
        UserWarning: If that order matters otherwise.
    """
    if not any(bool((scores[name] == 0).any()) for name in scores):
        return scores
    scores = {name: score.detach().cpu() for name, score in scores.items()}  # the CPU has float64
    if not (layers := _undecided(scores, choice)):
        return scores
    check_competing(scores, choice, mask)
    warn(f"mask={mask!r} cannot rank weights of {some(layers)}, since their scores are zero: the choice is random.")
    return at_random(scores, generator)


def at_random(scores: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The scores, with those of zero in a random order, below all positive and above all negative ones.

    Returns:
        Scores of the same shapes, in which all that were zero differ.

    Example:
        >>> found = at_random({"a": torch.tensor([1.0, 0.0, 0.0, -1.0])}, torch.Generator().manual_seed(0))["a"]
        >>> found.argsort(descending=True).tolist() in ([0, 1, 2, 3], [0, 2, 1, 3])
        True
    """
    return {name: _replaced(score, generator) for name, score in scores.items()}


def _refused(what: str, way: str, layers: Sequence[str], mask: str) -> str:
    named = ", ".join(map(repr, layers[:5])) + (", …" if layers[5:] else "")
    return (
        f"mask={mask!r} cannot choose {what}, and distribution='global' lets the scores of all layers compete. {way}; "
        f"leave layers that no gradient reaches, such as an unused head or a teacher, dense with exclude=[{named}], or "
        "freeze them; choose mask='random'; or pass distribution='erk', with which such weights are chosen at random."
    )


def _undecided(scores: Mapping[str, Tensor], choice: Choice) -> list[str]:
    """The layers whose masks depend on the order of zeros: first to last, or last to first."""
    size = sum(score.numel() for score in scores.values())
    turned, start = {}, 0
    for name, score in scores.items():
        turned[name] = _replaced(score, torch.arange(start, start + score.numel(), dtype=torch.float64) / size)
        start += score.numel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the masks that are used in the end give these warnings
        first, last = choice.masks(scores), choice.masks(turned)
    return [name for name in scores if not torch.equal(first[name], last[name])]


def _replaced(score: Tensor, order: torch.Generator | Tensor) -> Tensor:
    """The score in float64 with tiny numbers for zeros; a score without zeros is returned as it is."""
    zero = score == 0
    if not zero.any():
        return score
    if isinstance(order, torch.Generator):
        order = torch.rand(score.numel(), generator=order, dtype=torch.float64)
    return score.double().where(~zero, _LEAST * (1 + order.view(score.shape).to(score.device)))
