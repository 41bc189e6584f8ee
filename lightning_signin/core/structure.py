"""Checks that a saved value has the structure that its reader expects, before it is used.

An altered file is refused with the place that is wrong. The code that uses the value then needs no catch, so that its
own errors keep their traceback.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_signin.errors import ALTERED, SignInError

# Takes a value and its path in the whole, e.g. "['seen'][0]"; returns what is wrong with it, or None.
Expected = Callable[[Any, str], str | None]


def check_structure(what: str, value: object, expected: Expected) -> None:
    """Check that a saved value has the expected structure.

    Args:
        what: The part of the file that it is, at the start of the error message.
        value: The value.
        expected: Its description.

    Raises:
        SignInError: If it has another; the message says where.

    Example:
        >>> check_structure("The position", {"seen": [3, -1]}, entries({"seen": several(whole())}))
        Traceback (most recent call last):
        lightning_signin.SignInError: The position does not have the expected structure (['seen'][1] is -1, not ...
    """
    if wrong := expected(value, ""):
        raise SignInError(f"{what} does not have the expected structure ({wrong}): {ALTERED}")


def anything(value: object, path: str) -> None:
    """Every value."""


def of_type(*types: type) -> Expected:
    """A value of one of some types."""
    return lambda value, path: None if isinstance(value, types) else _wrong(value, path, types[0].__name__)


def one_of(*values: object) -> Expected:
    """One of some plain values."""
    listed = " or ".join(map(repr, values))
    plain = (str, int, float, bool)  # a tensor has no single truth value
    return lambda v, path: None if isinstance(v, plain) and v in values else _wrong(v, path, listed)


def whole(least: int = 0, most: int | None = None) -> Expected:
    """A whole number of at least ``least``, and at most ``most``."""
    allowed = f"a whole number of at least {least}" + ("" if most is None else f" and at most {most}")

    def check(value: Any, path: str) -> str | None:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        fits = is_whole and value >= least and (most is None or value <= most)
        return None if fits else _wrong(value, path, allowed)

    return check


def number(value: Any, path: str) -> str | None:
    """Any number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if is_number else _wrong(value, path, "a number")


def tensor(dtype: torch.dtype | None = None, shape: tuple[int, ...] | None = None) -> Expected:
    """A tensor of a dtype (default: any floating-point one) and a shape (default: any)."""
    allowed = f"a {dtype or 'floating-point'} tensor" + ("" if shape is None else f" of shape {shape}")

    def check(value: Any, path: str) -> str | None:
        fits = isinstance(value, Tensor) and (value.is_floating_point() if dtype is None else value.dtype == dtype)
        fits = fits and (shape is None or tuple(value.shape) == shape)
        return None if fits else _wrong(value, path, allowed)

    return check


def optional(expected: Expected) -> Expected:
    """None, or a value as described."""
    return lambda value, path: None if value is None else expected(value, path)


def both(one: Expected, other: Expected) -> Expected:
    """What is as in two descriptions; the second is not asked if the first does not fit."""
    return lambda value, path: one(value, path) or other(value, path)


def entries(required: Mapping[str, Expected], allowed: Mapping[str, Expected] | None = None) -> Expected:
    """A dict that has some entries, and may have others."""

    def check(value: Any, path: str) -> str | None:
        if not isinstance(value, dict):
            return _wrong(value, path, "dict")
        if missing := [name for name in required if name not in value]:
            return f"{path or 'it'} has no {missing[0]!r}"
        known = {**required, **(allowed or {})}
        return _first(known[name](value[name], f"{path}[{name!r}]") for name in known if name in value)

    return check


def each(expected: Expected) -> Expected:
    """A dict whose values are all as described, whatever the keys."""

    def check(value: Any, path: str) -> str | None:
        if not isinstance(value, dict):
            return _wrong(value, path, "dict")
        return _first(expected(entry, f"{path}[{name!r}]") for name, entry in value.items())

    return check


def several(expected: Expected, count: int | None = None) -> Expected:
    """A list or tuple whose entries are all as described; as many as ``count``, if given."""

    def check(value: Any, path: str) -> str | None:
        if not isinstance(value, list | tuple):
            return _wrong(value, path, "list")
        if count not in (None, len(value)):
            return f"{path or 'it'} has {len(value)} entries, not {count}"
        return _first(expected(entry, f"{path}[{index}]") for index, entry in enumerate(value))

    return check


def row(*expected: Expected) -> Expected:
    """A list or tuple with one entry for each description."""

    def check(value: Any, path: str) -> str | None:
        if wrong := several(anything, len(expected))(value, path):
            return wrong
        return _first(e(entry, f"{path}[{i}]") for i, (e, entry) in enumerate(zip(expected, value, strict=True)))

    return check


def _first(found: Iterable[str | None]) -> str | None:
    return next((wrong for wrong in found if wrong), None)


def _wrong(value: object, path: str, allowed: str) -> str:
    if isinstance(value, Tensor):
        shown = f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    else:
        shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return f"{path or 'it'} is {shown[:60]}, not {allowed}"
