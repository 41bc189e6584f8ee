"""Errors in words of this package, and what to say of those that come from elsewhere."""


class SignInError(ValueError):
    """A `ValueError` that this package has put into words: it names the argument, the cause, and a way out."""


def in_one_line(error: BaseException) -> str:
    """The first line of what an error says, without its full stop, after its type where the words are not our own.

    Example:
        >>> in_one_line(KeyError("labels")), in_one_line(AssertionError()), in_one_line(SignInError("Pass `data`."))
        ("KeyError: 'labels'", 'AssertionError', 'Pass `data`')
    """
    said = str(error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, SignInError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
