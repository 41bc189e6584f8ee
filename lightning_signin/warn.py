"""Warnings that name the user's line, however deep in this package they arise."""

import sys
import warnings


def warn(message: str) -> None:
    """A `UserWarning` at the line that called this package."""
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
