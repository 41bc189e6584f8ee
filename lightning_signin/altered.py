"""State that is read from a file and has not the form in which it is written here."""

from collections.abc import Iterator
from contextlib import contextmanager

WHO = "the file was altered, or another version wrote it. Use another one, or start anew from its state_dict."


@contextmanager
def told_if_altered(what: str, *also: type[Exception]) -> Iterator[None]:
    """Raise `ValueError` in words for the errors of code that takes a saved state apart.

    Args:
        what: The part of the file that is read inside.
        also: Further errors; `ValueError`, where nothing inside raises it in words of its own.

    Example:
        >>> with told_if_altered("The checkpoint's position"):
        ...     {}["epoch"]
        Traceback (most recent call last):
        ValueError: The checkpoint's position is not of the form that is written here (KeyError: 'epoch'): ...
    """
    kinds: tuple[type[Exception], ...] = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, *also)
    try:
        yield
    except kinds as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{what} is not of the form that is written here ({reason}): {WHO}") from error
