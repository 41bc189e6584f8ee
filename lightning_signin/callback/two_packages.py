"""The classes of Lightning under both of its import names, `lightning.pytorch` and `pytorch_lightning`."""

import sys
from typing import Any


def in_both(*classes: type) -> Any:
    """These classes of `lightning.pytorch`, and their namesakes where the user has imported `pytorch_lightning`.

    The two packages hold the same code in different classes: an ``isinstance`` of one never sees the other's objects.

    Returns:
        A tuple for ``isinstance`` and ``except``: ``classes`` first, then the namesakes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> in_both(Trainer)[0] is Trainer
        True
    """
    found = list(classes)
    for cls in classes:
        namesake = sys.modules.get(cls.__module__.replace("lightning.pytorch", "pytorch_lightning", 1))
        if namesake is not None and namesake is not sys.modules[cls.__module__]:
            found.append(getattr(namesake, cls.__name__))
    return tuple(found)
