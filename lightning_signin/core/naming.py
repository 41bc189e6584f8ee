"""From an argument to the object that it names: a name in a table, an import path, or the object itself."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from lightning_signin.errors import SignInError

Kind = TypeVar("Kind")


def named(argument: str, value: Any, table: Mapping[str, Callable[[], Any]]) -> Any:
    """The object that a string stands for; a class is instantiated, other values are returned as they are.

    Args:
        argument: The argument's name in error messages.
        value: A name in ``table``, an import path, a class, or anything else.
        table: Makers by name.

    Returns:
        The object; an instance, if a class was named or given.

    Raises:
        SignInError: If a string is neither a name nor an import path.
    """
    found = value
    if isinstance(value, str):
        path, _, attribute = value.rpartition(".")
        try:
            found = table[value] if value in table else getattr(import_module(path), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            reason = f" ({error})" if path else ""
            raise SignInError(
                f"`{argument}` must be one of {', '.join(map(repr, table))}, or the import path of a function or "
                f"class; got {value!r}{reason}."
            ) from None
    return found() if isinstance(found, type) else found


def resolve(argument: str, value: str | Kind, table: Mapping[str, Callable[[], Kind]], kind: type[Kind]) -> Kind:
    """The object of a given kind that an argument stands for; see `named`.

    Returns:
        The object.

    Raises:
        SignInError: If it is not of that kind.
    """
    found = named(argument, value, table)
    if not isinstance(found, kind):
        names = ", ".join(map(repr, table))
        raise SignInError(f"`{argument}` must be one of {names}, or a class with arguments; got {value!r}.")
    return found


def name_of(value: Any, table: Mapping[str, Callable[[], Any]]) -> Any:
    """The name in ``table`` of an object; if it has other arguments than those made there, what `shown` gives.

    Returns:
        A name in ``table``, or a value that can be shown and saved.

    Example:
        >>> from fractions import Fraction
        >>> name_of(Fraction(), {"zero": Fraction}), name_of(Fraction(1, 2), {"zero": Fraction})
        ('zero', 'Fraction(1, 2)')
    """
    return next((name for name, make in table.items() if make() == value), shown(value))


def shown(choice: Any) -> Any:
    """A choice as one line: a string as it is, a function or class by its path, an object with its arguments."""
    if isinstance(choice, str) or choice is None:
        return choice
    if hasattr(choice, "__qualname__"):
        return f"{choice.__module__}.{choice.__qualname__}"
    own: Any = type(choice).__repr__
    if own is not object.__repr__:
        return repr(choice)
    # The default repr would show an address.
    return f"{type(choice).__module__}.{type(choice).__qualname__}({vars(choice)})"
