"""The arguments of a run as plain values, and their comparison with those in a folder."""

import os
from collections.abc import Mapping
from typing import Any

from lightning_signin.arguments import Arguments, owned_by
from lightning_signin.core.naming import shown
from lightning_signin.errors import SignInError
from lightning_signin.masks.build import StructureOf

State = dict[str, Any]


def plain_sign_in(sign_in: Mapping[str, Any]) -> State:
    """The arguments of the callbacks, with defaults, as plain values.

    Args:
        sign_in: Arguments of `SignInCallback`.

    Returns:
        The arguments that must be the same in all levels, by name.

    Raises:
        SignInError: For values out of range, and arguments that IterativePruning decides.

    Example:
        >>> plain_sign_in({"parametrization": "plain"})["frobenius_decay"]
        0.0
    """
    for name in owned_by("prune", "both"):
        if name in sign_in:
            raise SignInError(
                f"`sign_in` must not have {name!r}: IterativePruning decides it, and has its own `sparsity`, "
                "`distribution` and `structure`."
            )
    arguments = Arguments(**sign_in)
    if arguments.form.prunes:
        raise SignInError(
            f"`sign_in`: parametrization={shown(arguments.parametrization)!r} makes zeros by itself, so the sparsity "
            "would not be exact. Use 'sign-in', 'plain' or 'powerprop'."
        )
    return arguments.that_are_same("levels")


def plain_structure(structure: StructureOf) -> Any:
    """A structure as a string, or one string per pattern."""
    return {n: shown(s) for n, s in structure.items()} if isinstance(structure, Mapping) else shown(structure)


def check_same_arguments(begun_with: State, here: State, folder: os.PathLike[str]) -> None:
    """Raise `SignInError` if a folder was started with other arguments than this run's."""
    for name, value in here.items():
        if begun_with.get(name) != value:
            raise SignInError(
                f"The run in {folder} was started with {name}={begun_with.get(name)!r}, but here it is {value!r}. Pass "
                f"{name}={begun_with.get(name)!r} to resume it, or choose another folder."
            )
