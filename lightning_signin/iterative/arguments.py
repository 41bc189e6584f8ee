"""The arguments of a run as plain values, and their comparison with those in a folder."""

import os
from collections.abc import Mapping
from typing import Any

from lightning_signin.callback import SignInCallback
from lightning_signin.core.naming import shown
from lightning_signin.errors import SignInError
from lightning_signin.masks.build import StructureOf

State = dict[str, Any]

OWNED = (
    *("sparsity", "distribution", "structure", "mask", "mask_from"),
    *("update", "signs_from", "magnitudes_from", "flip_signs"),
)
# They change no weight: the seed is that of random masks, the others say what is logged.
IDLE = (
    *("seed", "log_layers", "warmup_epochs", "export"),
    *("sharpness_every_n_epochs", "sharpness_batches", "sharpness_mode"),
)


def plain_sign_in(sign_in: Mapping[str, Any]) -> State:
    """The arguments of the callbacks, with defaults, as plain values.

    Args:
        sign_in: Arguments of `SignInCallback`.

    Raises:
        SignInError: For values out of range, and arguments that IterativePruning decides.

    Example:
        >>> plain_sign_in({"parametrization": "plain"})["frobenius_decay"]
        0.0
    """
    for name in OWNED:
        if name in sign_in:
            raise SignInError(
                f"`sign_in` must not have {name!r}: IterativePruning decides it, and has its own `sparsity`, "
                "`distribution` and `structure`."
            )
    callback = SignInCallback(**sign_in)
    start = callback.start
    if start.form.prunes:
        raise SignInError(
            f"`sign_in`: parametrization={shown(start.parametrization)!r} makes zeros by itself, so the sparsity "
            "would not be exact. Use 'sign-in', 'plain' or 'powerprop'."
        )
    plain = arguments_of(callback) | start.saved()
    return {name: value for name, value in plain.items() if name not in (*OWNED, *IDLE)}


def arguments_of(callback: SignInCallback) -> State:
    """The arguments that a callback was created with, by name.

    Example:
        >>> arguments_of(SignInCallback(frobenius_decay=1e-4))["frobenius_decay"]
        0.0001
    """
    given = {name: value for part in (callback.start, callback.options) for name, value in vars(part).items()}
    schedule = given.pop("schedule")
    return {
        **given,
        "export": callback.exports or None,
        "rescale_every_n_epochs": schedule.every_n_epochs,
        "rescale_every_n_steps": schedule.every_n_steps,
        "rescale_until": schedule.until,
    }


def plain_structure(structure: StructureOf) -> Any:
    """A structure as a string, or one string per pattern."""
    return {n: shown(s) for n, s in structure.items()} if isinstance(structure, Mapping) else shown(structure)


def check_same_arguments(begun_with: State, here: State, folder: os.PathLike) -> None:
    """Raise `SignInError` if a folder was started with other arguments than this run's."""
    for name, value in here.items():
        if begun_with.get(name) != value:
            raise SignInError(
                f"The run in {folder} was started with {name}={begun_with.get(name)!r}, but here it is {value!r}. Pass "
                f"{name}={begun_with.get(name)!r} to resume it, or choose another folder."
            )
