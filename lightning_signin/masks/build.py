"""From a score, a distribution and a structure to one exact mask per weight."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_signin.core.layout import Layout
from lightning_signin.core.naming import shown
from lightning_signin.core.numbers import whole_number
from lightning_signin.errors import SignInError, in_one_line, warn
from lightning_signin.masks.choice import Choice
from lightning_signin.masks.distributions import check_sparsity
from lightning_signin.masks.groups import Distribution, check_distribution
from lightning_signin.masks.patterns import by_pattern
from lightning_signin.masks.scores import Score, parse_score
from lightning_signin.masks.structures import Structure, parse_structure
from lightning_signin.masks.task import Task
from lightning_signin.masks.zeros import decided
from lightning_signin.objective.training_data import Objective

StructureOf = str | Structure | Mapping[str, str | Structure]
DEFAULT_SPARSITY = 0.9


def build_masks(
    weights: Mapping[str, Tensor],
    *,
    sparsity: float | None = None,
    mask: str | Score = "random",
    distribution: Distribution | None = None,
    structure: StructureOf = "unstructured",
    seed: int = 0,
    module: nn.Module | None = None,
    data: Objective | None = None,
    layouts: Mapping[str, Layout] | None = None,
) -> dict[str, Tensor]:
    """Choose the weights to keep.

    Args:
        weights: The weights by name, in model order.
        sparsity: Fraction of zeros over all weights, in [0, 1). Default: 0.9, or that of groups in ``distribution``.
        mask: Which weights are kept: the name of a score, its import path, or a score, e.g. ``SNIP(num_batches=10)``.
        distribution: How the kept weights are spread: "balanced", "erk", "uniform"; "global", where the scores of all
            layers compete; or a dict of glob pattern → sparsity, a name for the rest, or ``{"max_sparsity": s}``, where
            the first match wins: see `make_groups`. Default: that of the score's paper.
        structure: The pattern in which weights are kept, see `parse_structure`; or a dict of glob pattern → structure.
        seed: Seed of the scores' generator.
        module: The plain module that has the weights, for scores that run it.
        data: Loss and batches, for scores that train or run it.
        layouts: The layouts of weights that are not stored as (outputs, inputs, …), e.g. of transposed convolutions.

    Returns:
        A bool mask for each weight, True keeps. Together they keep exactly (1 − sparsity) · N weights, rounded half to
        even, or the nearest count that the structure allows, with a warning (per group, if there are groups); and at
        least one unit of the structure in each layer (under "global" each layer's best is kept first, and a warning
        names the layers that would have kept nothing). Among equal scores the lower index is kept; among scores of zero
        the choice is random, with a warning.

    Raises:
        SignInError: If a name is unknown, ``sparsity`` is out of range, a structure does not fit, or the budget is
            below one unit per layer.
        SignInError: If a score fails, is undefined or not finite, or leaves a choice among zeros where layers compete.

    Example:
        >>> masks = build_masks({"a": torch.randn(10, 10), "b": torch.randn(100, 100)}, sparsity=0.9)
        >>> {name: int(mask.sum()) for name, mask in masks.items()}
        {'a': 100, 'b': 910}
    """
    score, name = parse_score(mask), shown(mask)
    if distribution is None:
        distribution = getattr(score, "distribution", "balanced")
    check_distribution(sparsity, distribution)
    shapes = {n: tuple(weight.shape) for n, weight in weights.items()}
    choice = make_choice(shapes, sparsity, distribution, structure, layouts)
    generator = torch.Generator().manual_seed(whole_number("seed", seed, least=None))
    task = Task(module, weights, choice, generator, data, name)
    scores = _scored(score, task)
    _check_scores(scores, task)
    masks = choice.masks(decided(scores, choice, task.generator, name))
    for names, target in choice.targets:
        _say_nearest({n: masks[n] for n in names}, target, structure)
    return masks


def make_choice(
    shapes: Mapping[str, tuple[int, ...]],
    sparsity: float | None,
    distribution: Distribution,
    structure: StructureOf,
    layouts: Mapping[str, Layout] | None,
) -> Choice:
    """The choice that the arguments of `build_masks` stand for."""
    structures = by_pattern("structure", structure, list(shapes))
    parsed = {name: parse_structure(value) for name, value in structures.items()}  # type: ignore[arg-type]
    zeros = DEFAULT_SPARSITY if sparsity is None else check_sparsity(sparsity)
    return Choice(shapes, zeros, distribution, parsed, layouts)


def check_choice(argument: str, value: object, allowed: object) -> None:
    """Raise `SignInError` unless ``value`` is among the values ``allowed``."""
    names = list(allowed)  # type: ignore[call-overload]
    if not any(isinstance(value, type(name)) and value == name for name in names):  # 1 is not True
        shown = ", ".join(repr(name) for name in names if name is not None)
        raise SignInError(f"`{argument}` must be one of {shown}; got {value!r}.")


def _scored(score: Score, task: Task) -> Mapping[str, Tensor]:
    try:
        with torch.enable_grad():
            return score(task)
    except (SignInError, Warning):
        raise
    except Exception as error:  # whatever torch, the user's model or the user's score may raise
        raise SignInError(
            f"mask={task.name!r} could not be computed: {in_one_line(error)}. Check what the score runs, the training "
            "step or the forward, on a first batch; or choose a mask that runs nothing, 'random' or 'magnitude'."
        ) from error


def _check_scores(scores: object, task: Task) -> None:
    weights, name = task.weights, task.name
    if not isinstance(scores, Mapping):
        raise SignInError(f"`mask`={name!r} must return a dict of weight name → score, got {type(scores).__name__}.")
    for weight in [*weights, *(other for other in scores if other not in weights)]:
        score = scores.get(weight)
        if weight not in weights or not isinstance(score, Tensor) or score.shape != weights[weight].shape:
            raise SignInError(
                f"`mask`={name!r} must give one tensor of the weight's shape for each weight; see {weight!r}."
            )
        task.check_numbers({weight: score})


def _say_nearest(masks: Mapping[str, Tensor], target: int, structure: object) -> None:
    kept, size = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    if kept != target:
        first, *others = masks
        warn(
            f"structure={structure!r} cannot keep {target} of the {size} weights of {first}"
            f"{f' and {len(others)} more' if others else ''}: it keeps {kept}, the nearest count that it can make "
            f"(sparsity {1 - kept / size:.4f})."
        )
