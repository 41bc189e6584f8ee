"""Warnings that name the user's line, however deep in this package they arise, and errors in one line."""

import sys
import warnings


def warn(message: str) -> None:
    """A `UserWarning` at the line that called this package."""
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def cause(error: BaseException) -> str:
    """The first line of an error, with its type where it is not one that this package words itself.

    Example:
        >>> cause(KeyError("labels"))
        "KeyError: 'labels'"
    """
    kind, said = type(error).__name__, str(error).strip().partition("\n")[0]
    if not said:
        return kind
    return said if isinstance(error, ValueError | RuntimeError) else f"{kind}: {said}"
