"""Errors and warnings worded by this package, and the wording that several of them share."""

import sys
import warnings
from collections.abc import Sequence

ALTERED = "the file was altered, or another version wrote it. Use another one, or start afresh from its state_dict."


class SignInError(ValueError):
    """An error worded by this package: it names the argument or file, the cause, and a remedy.

    The command line prints these errors in one line, and lets all others through with their traceback.
    """


class MissingFileError(FileNotFoundError, SignInError):
    """A file or folder does not exist."""


class WrongTypeError(TypeError, SignInError):
    """An argument is of a type that cannot be used."""


class NothingToSparsifyError(SignInError):
    """No weight is left that could be made sparse."""


# Users see and catch them as `lightning_signin.SignInError`, wherever this file is.
for _error in (SignInError, MissingFileError, WrongTypeError, NothingToSparsifyError):
    _error.__module__ = __name__.partition(".")[0]


def in_one_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop; preceded by its type if the message is not ours.

    Returns:
        One line, for use in another sentence.

    Example:
        >>> in_one_line(KeyError("labels")), in_one_line(AssertionError()), in_one_line(SignInError("Pass `data`."))
        ("KeyError: 'labels'", 'AssertionError', 'Pass `data`')
    """
    said = str(error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, SignInError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def warn(message: str) -> None:
    """Issue a `UserWarning` that points at the line that called this package."""
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe()  # noqa: SLF001 — documented by Python
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are.

    Returns:
        The names, separated by commas; "nothing" if there are none.

    Example:
        >>> some(["a", "b", "c"], most=2), some([])
        ('a, b and 1 more', 'nothing')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
