"""Errors in words of this package, and what to say of those that come from elsewhere."""


class SignInError(ValueError):
    """A `ValueError` that this package has put into words: it names the argument, the cause, and a way out."""


def in_one_line(error: BaseException) -> str:
    """The type of an error and the first line of what it says.

    Example:
        >>> in_one_line(KeyError("labels")), in_one_line(AssertionError())
        ("KeyError: 'labels'", 'AssertionError')
    """
    said = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
