"""Checks of the arguments of scores."""


def check_at_least_one(**arguments: int) -> None:
    """Raise `ValueError` unless every argument is a whole number of at least 1."""
    for name, value in arguments.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
