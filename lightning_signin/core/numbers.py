"""Numbers in arguments: what counts as one, the range that it must be in, and decimals in exact arithmetic.

A number is any real number: Python's, NumPy's, or a tensor of no dimensions. It is returned as a plain Python number,
so that states, logs and YAML hold nothing else. A bool and a string are not numbers.
"""

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_signin.errors import SignInError


def number(argument: str, value: object, allowed: str = "(-inf, inf)", hint: str = "") -> float:
    """A finite number in an interval.

    Args:
        argument: The argument's name in error messages.
        value: What was passed.
        allowed: The interval, e.g. "[0, 1)". "inf" is a bound that no value reaches.
        hint: A sentence that ends the error message.

    Returns:
        An int if the value is an integer, else a float: the one that is printed alike, so float32's 0.9 is 0.9.

    Raises:
        SignInError: If the value is not a number, or outside the interval.

    Example:
        >>> number("beta", np.float32(0.9), "(0, inf)"), number("sparsity", torch.tensor(0), "[0, 1)")
        (0.9, 0)
        >>> number("sparsity", 90, "[0, 1)", "Pass the fraction of zeros, e.g. 0.9.")
        Traceback (most recent call last):
        lightning_signin.SignInError: `sparsity` must be in [0, 1), got 90. Pass the fraction of zeros, e.g. 0.9.
    """
    plain = _plain(value)
    low, high = (float(bound) for bound in allowed[1:-1].split(","))
    if plain is not None:
        above = plain > low or (allowed.startswith("[") and plain == low)
        if above and (plain < high or (allowed.endswith("]") and plain == high)):
            return plain
    raise SignInError(f"`{argument}` must be {_words(allowed, plain)}, got {_shown(value)}.{' ' * bool(hint)}{hint}")


def share(argument: str, value: object, zero: bool = False, hint: str = "Pass a fraction, e.g. 0.3.") -> float:
    """A share in (0, 1], or with ``zero`` in [0, 1]; see `number`."""
    return number(argument, value, "[0, 1]" if zero else "(0, 1]", hint)


def whole_number(argument: str, value: object, least: int | None = 1, hint: str = "") -> int:
    """A whole number of at least ``least``; with None any that has 64 bits, e.g. a seed. 2.0 is not a whole number.

    Args:
        argument: The argument's name in error messages.
        value: What was passed.
        least: The smallest value that is allowed.
        hint: A sentence that ends the error message.

    Returns:
        The number as an ``int``.

    Raises:
        SignInError: If the value is anything else.

    Example:
        >>> whole_number("num_batches", np.int64(3))
        3
        >>> whole_number("num_batches", True)
        Traceback (most recent call last):
        lightning_signin.SignInError: `num_batches` must be a whole number of at least 1, got True.
    """
    plain = _plain(value)
    low, high = (-(2**63), 2**64) if least is None else (least, math.inf)
    if isinstance(plain, int) and low <= plain < high:
        return plain
    words = "that fits into 64 bits" if least is None else f"of at least {least}"
    raise SignInError(f"`{argument}` must be a whole number {words}, got {_shown(value)}.{' ' * bool(hint)}{hint}")


def check_field(owner: object, name: str, check: Callable[..., float], *args: Any, **options: Any) -> None:
    """Check a numeric field of a frozen dataclass in its ``__post_init__``, and make it a plain number.

    Args:
        owner: The object.
        name: The field.
        check: One of the functions above.
        args: Further arguments of the check.
        options: The same, by name.
    """
    object.__setattr__(owner, name, check(name, getattr(owner, name), *args, **options))


def exact(value: float) -> Fraction:
    """A number as it is printed: 0.9 is nine tenths, and not the nearest binary fraction.

    Returns:
        The fraction with the digits of the shortest decimal that gives this float.

    Example:
        >>> exact(0.9)
        Fraction(9, 10)
    """
    return Fraction(repr(float(value)))


def _plain(value: object) -> int | float | None:
    """The Python number that a value stands for; None if it is no number."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # which has no bfloat16
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return None
    if isinstance(value, Integral):
        return int(value)
    # float() of a float32 would have digits that nobody wrote.
    return float(str(value)) if isinstance(value, np.floating) else float(value)


def _words(allowed: str, plain: float | None) -> str:
    low, high = (bound.strip() for bound in allowed[1:-1].split(","))
    if high != "inf":
        return f"a number in {allowed}" if plain is None else f"in {allowed}"
    if low == "-inf":
        return "a finite number"
    bound = f"at least {low}" if allowed.startswith("[") else f"above {low}"
    if plain is None:
        return f"a number of {bound}" if allowed.startswith("[") else f"a number {bound}"
    return bound if math.isfinite(plain) else f"{bound} and finite"


def _shown(value: object) -> str:
    """A value in an error message: numbers as they are printed, all else as Python writes it."""
    plain = _plain(value)
    return repr(value) if plain is None else str(plain)
