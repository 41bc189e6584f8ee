"""Values by glob pattern on weight names, where the first pattern that matches wins."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from lightning_signin.errors import SignInError

Value = TypeVar("Value")


def by_first_match(argument: str, patterns: Mapping[str, object], names: Sequence[str]) -> dict[str, str]:
    """The first glob pattern that matches each weight.

    Args:
        argument: The argument's name in error messages.
        patterns: Patterns in order, with whatever values.
        names: Names of the weights.

    Returns:
        The pattern of each name, in the order of ``names``.

    Raises:
        SignInError: If a pattern matches no name, or only names of earlier patterns, or a name is matched by none.

    Example:
        >>> by_first_match("structure", {"fc.*": "2:4", "*": "unstructured"}, ["conv.weight", "fc.weight"])
        {'conv.weight': '*', 'fc.weight': 'fc.*'}
    """
    first = {name: next((p for p in patterns if fnmatchcase(name, p)), None) for name in names}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SignInError(f"`{argument}` pattern {pattern!r} matches no sparse weight of: {', '.join(names)}.")
        if pattern not in first.values():
            raise SignInError(
                f"`{argument}` pattern {pattern!r} has no effect: earlier ones match all that it matches, and the "
                "first match wins. Put it before them."
            )
    if missing := [name for name, pattern in first.items() if pattern is None]:
        raise SignInError(f"`{argument}` has no pattern for {', '.join(missing)}. End it with a default, '*': value.")
    return {name: pattern for name, pattern in first.items() if pattern is not None}


def by_pattern(argument: str, value: Value | Mapping[str, Value], names: Sequence[str]) -> dict[str, Value]:
    """Spread one value, or a dict of glob pattern → value, over weight names; errors as in `by_first_match`.

    Returns:
        The value of each name.

    Example:
        >>> by_pattern("beta", {"fc.*": 2.0, "*": 1.0}, ["conv.weight", "fc.weight"])
        {'conv.weight': 1.0, 'fc.weight': 2.0}
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    return {name: value[pattern] for name, pattern in by_first_match(argument, value, names).items()}
