"""A copy of a model as it is without this package: merged, on the CPU, in eval mode."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lightning_signin.core.weights import sparse_weights
from lightning_signin.verbs.model import merge_


def plain_copy(module: nn.Module) -> nn.Module:
    """Copy a module, sparse or plain, and merge the copy; the module itself is left as it is.

    Args:
        module: Any module, also a LightningModule in the middle of a fit (its trainer is not copied).

    Returns:
        The copy: masked effective weights under their plain names, on the CPU, in eval mode.
    """
    with _without_trainer(module):
        twin = copy.deepcopy(module)
    if sparse_weights(twin):
        merge_(twin)
    return twin.cpu().eval()


@contextmanager
def _without_trainer(module: nn.Module) -> Iterator[None]:
    """A LightningModule refers to its trainer, and the trainer to data, loggers and the module again."""
    parts = [(part, name) for part in module.modules() for name in ("_trainer", "_fabric")]
    owners = [(part, name, vars(part)[name]) for part, name in parts if vars(part).get(name) is not None]
    try:
        for part, name, _ in owners:
            object.__setattr__(part, name, None)
        yield
    finally:
        for part, name, value in owners:
            object.__setattr__(part, name, value)
