"""Numbers in arguments: whole ones, and decimals in exact arithmetic."""

from fractions import Fraction

from lightning_signin.errors import SignInError


def check_at_least_one(**arguments: object) -> None:
    """Raise `SignInError` unless every argument is a whole number of at least 1.

    Example:
        >>> check_at_least_one(num_batches=True)
        Traceback (most recent call last):
        lightning_signin.SignInError: `num_batches` must be a whole number of at least 1, got True.
    """
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SignInError(f"`{name}` must be a whole number of at least 1, got {value!r}.")


def exact(value: float) -> Fraction:
    """A number as it is printed: 0.9 is nine tenths, and not the nearest binary fraction.

    Example:
        >>> exact(0.9)
        Fraction(9, 10)
    """
    return Fraction(repr(float(value)))
