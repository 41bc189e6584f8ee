"""From scores and a distribution to one exact mask a layer."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_signin.masks.distributions import DISTRIBUTIONS, budget
from lightning_signin.masks.scores import SCORES


def build_masks(
    weights: Mapping[str, Tensor],
    *,
    sparsity: float = 0.9,
    mask: str = "random",
    distribution: str = "balanced",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Choose the weights to keep.

    Args:
        weights: The weights by name, in model order.
        sparsity: Fraction of zeros over all weights, in [0, 1).
        mask: Name of the score: "random" or "magnitude".
        distribution: How the kept weights are spread: "balanced", "erk", "uniform", or "global", where the scores of
            all layers compete.
        seed: Seed of the scores' generator.

    Returns:
        A bool mask for each weight, True keeps. Together they keep exactly (1 − sparsity) · N weights, rounded half to
        even, and at least one in each layer (under "global" each layer's best weight is kept first, and a warning says
        where it mattered). Equal scores keep the lower index.

    Raises:
        ValueError: If a name is unknown, ``sparsity`` is out of range, a score is NaN, or the budget is below one
            weight a layer.

    Example:
        >>> masks = build_masks({"a": torch.randn(10, 10), "b": torch.randn(100, 100)}, sparsity=0.9)
        >>> {name: int(mask.sum()) for name, mask in masks.items()}
        {'a': 100, 'b': 910}
    """
    check_choice("mask", mask, SCORES)
    check_choice("distribution", distribution, [*DISTRIBUTIONS, "global"])
    total = budget(sparsity, sum(weight.numel() for weight in weights.values()))
    if total < len(weights):
        raise ValueError(
            f"`sparsity`={sparsity} keeps {total} weights, but there are {len(weights)} layers and each must keep at "
            "least one. Lower `sparsity`, or leave layers dense with `exclude`."
        )
    scores = SCORES[mask](weights, torch.Generator().manual_seed(seed))
    for name, score in scores.items():
        if score.isnan().any():
            raise ValueError(f"`mask`={mask!r} gave NaN scores for {name!r}. Check that its weights are finite.")
    if distribution == "global":
        return _top_global(scores, total)
    counts = DISTRIBUTIONS[distribution]([tuple(weight.shape) for weight in weights.values()], total)
    return {name: top(score, count) for (name, score), count in zip(scores.items(), counts, strict=True)}


def top(score: Tensor, count: int) -> Tensor:
    """The mask of the ``count`` highest scores, 1 to numel; equal scores keep the lower index, on every device."""
    flat = score.flatten()
    threshold = flat.kthvalue(flat.numel() - count + 1).values
    mask = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    mask[ties[: count - int(mask.sum())]] = True
    return mask.view(score.shape)


def check_choice(argument: str, value: object, allowed: object) -> None:
    """Raise `ValueError` unless ``value`` is among the names ``allowed``."""
    names = list(allowed)  # type: ignore[call-overload]
    if value not in names:
        raise ValueError(f"`{argument}` must be one of {', '.join(map(repr, names))}; got {value!r}.")


def _top_global(scores: dict[str, Tensor], total: int) -> dict[str, Tensor]:
    best = {name: top(score, 1) for name, score in scores.items()}
    flat = torch.cat([score.flatten().double().cpu() for score in scores.values()])
    unrepaired = top(flat, total)
    flat[torch.cat([mask.flatten().cpu() for mask in best.values()])] = float("inf")
    repaired = top(flat, total)
    sizes = [score.numel() for score in scores.values()]
    empty = [name for name, part in zip(scores, unrepaired.split(sizes), strict=True) if not part.any()]
    if empty:
        warnings.warn(
            f"distribution='global' would leave {', '.join(empty)} without any weight: each keeps its best one.",
            UserWarning,
            stacklevel=4,
        )
    parts = zip(scores.items(), repaired.split(sizes), strict=True)
    return {name: part.view(score.shape).to(score.device) for (name, score), part in parts}
