"""Pieces of messages that several of them share."""

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many there are beside them.

    Example:
        >>> some(["a", "b", "c"], most=2), some([])
        ('a, b and 1 more', 'nothing')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
