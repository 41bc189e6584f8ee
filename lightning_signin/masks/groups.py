"""Groups of weights that share one budget: all weights together, or groups with a sparsity of their own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lightning_signin.errors import SignInError
from lightning_signin.masks.distributions import DISTRIBUTIONS, budget, check_sparsity
from lightning_signin.masks.patterns import by_first_match

Share = float | str | Mapping[str, float]
Distribution = str | Mapping[str, Share]
SPREADS = (*DISTRIBUTIONS, "global")
_LIMIT = "max_sparsity"


@dataclass(frozen=True)
class Group:
    """Weights over which one budget is spread.

    Attributes:
        names: Their names, in model order.
        size: Their number of entries.
        total: How many entries are kept.
        spread: How they are spread: a name in `DISTRIBUTIONS`, or "global".
        sparsity: The fraction of zeros that ``total`` stands for.
        least: The fewest entries that a weight keeps, if its sparsity has a maximum.
    """

    names: list[str]
    size: int
    total: int
    spread: str
    sparsity: float
    least: dict[str, int] = field(default_factory=dict)

    def on_the_way(self, density: Callable[[float], float]) -> int:
        """How many entries are kept in an intermediate mask that keeps the share ``density(sparsity)``."""
        return round(self.size * density(self.sparsity))


def check_distribution(sparsity: float | None, distribution: Distribution | None) -> None:
    """Raise `SignInError` for values out of range and unknown names."""
    if sparsity is not None:
        check_sparsity(sparsity)
    if not isinstance(distribution, Mapping):
        if distribution is not None and distribution not in SPREADS:
            raise SignInError(f"`distribution` must be one of {_names()}; got {distribution!r}.")
        return
    spreads = {value for value in distribution.values() if isinstance(value, str)}
    for pattern, value in distribution.items():
        _check_share(pattern, value)
    if len(spreads) > 1:
        raise SignInError(f"`distribution` can spread the rest in one way, got {', '.join(sorted(spreads))}.")
    if not spreads and any(isinstance(value, Mapping) for value in distribution.values()):
        raise SignInError(
            f"`distribution` has a {_LIMIT} and no spread by which these weights compete. End it with '*': 'global'."
        )
    if not spreads and sparsity is not None:
        raise SignInError(
            "`sparsity` must be left out where `distribution` gives it for each group; got both. To spread the rest of "
            "one budget, end `distribution` with '*': 'erk' (or 'balanced', 'uniform', 'global')."
        )


def has_groups_alone(distribution: Distribution | None) -> bool:
    """Whether groups give the sparsity of all weights, so that an overall sparsity is not needed."""
    if not isinstance(distribution, Mapping):
        return False
    return not any(isinstance(value, str) for value in distribution.values())


def make_groups(sizes: Mapping[str, int], sparsity: float, distribution: Distribution) -> list[Group]:
    """The groups of a distribution.

    Args:
        sizes: The number of entries of each weight by name, in model order.
        sparsity: Fraction of zeros over all weights, in [0, 1).
        distribution: A name, for all weights. Or a dict of glob pattern → value; the first match wins. A number is the
            sparsity of what matches, spread uniformly. A name spreads the part of the whole budget that the numbers
            leave over the weights that match it. ``{"max_sparsity": s}`` adds a weight to these, but lets it keep at
            least the share 1 − s.

    Returns:
        The groups, with the number of weights that each keeps.

    Raises:
        SignInError: If a pattern matches nothing, a weight is in no group, or the numbers leave nothing for the rest,
            or more than it can keep.

    Example:
        >>> [g.total for g in make_groups({"a": 100, "b": 100, "c": 200}, 0.9, {"a": 0.8, "*": "erk"})]
        [20, 20]
    """
    if not isinstance(distribution, Mapping):
        size = sum(sizes.values())
        return [Group(list(sizes), size, budget(sparsity, size), distribution, sparsity)]
    patterns = by_first_match("distribution", distribution, list(sizes))
    groups, competing = [], [name for name in sizes if isinstance(distribution[patterns[name]], str | Mapping)]
    for pattern, value in distribution.items():
        names = [name for name in sizes if patterns[name] == pattern]
        if not isinstance(value, str | Mapping):
            size = sum(sizes[name] for name in names)
            groups.append(Group(names, size, budget(value, size), "uniform", check_sparsity(value)))
    if competing:
        groups.append(_rest(sizes, competing, sparsity, distribution, patterns, sum(group.total for group in groups)))
    return groups


def _rest(
    sizes: Mapping[str, int],
    names: list[str],
    sparsity: float,
    distribution: Mapping[str, Share],
    patterns: Mapping[str, str],
    taken: int,
) -> Group:
    spread = next(value for value in distribution.values() if isinstance(value, str))
    limits = {name: distribution[patterns[name]] for name in names}
    least = {n: budget(limit[_LIMIT], sizes[n]) for n, limit in limits.items() if isinstance(limit, Mapping)}
    size, total = sum(sizes[name] for name in names), budget(sparsity, sum(sizes.values())) - taken
    if not 0 < total <= size:
        raise SignInError(
            f"`sparsity`={sparsity} keeps {total + taken} of {sum(sizes.values())} weights, and the groups of "
            f"`distribution` take {taken} of them: {total} would be left for the {size} weights of the others. Change "
            "`sparsity` or the groups."
        )
    return Group(names, size, total, spread, 1 - total / size, least)


def _check_share(pattern: str, value: object) -> None:
    if isinstance(value, str) and value in SPREADS:
        return
    if isinstance(value, Mapping) and list(value) == [_LIMIT]:
        check_sparsity(value[_LIMIT], f"distribution[{pattern!r}]['{_LIMIT}']")
    elif not isinstance(value, str | Mapping):
        check_sparsity(value, f"distribution[{pattern!r}]")
    else:
        raise SignInError(
            f"`distribution` of {pattern!r} must be a sparsity in [0, 1), one of {_names()} for the rest, or "
            f"{{'{_LIMIT}': s}}; got {value!r}."
        )


def _names() -> str:
    return ", ".join(map(repr, SPREADS))
