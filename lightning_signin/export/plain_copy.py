"""A plain copy of a model: merged, on the CPU, in eval mode."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lightning_signin.core.weights import sparse_weights
from lightning_signin.core.wrappers import unwrapped
from lightning_signin.verbs.model import merge_


def plain_copy(module: nn.Module) -> nn.Module:
    """Copy a module, sparse or plain, and merge the copy; the module itself is not changed.

    Args:
        module: Any module, even a LightningModule during a fit (its trainer is not copied).

    Returns:
        The copy: masked effective weights under their plain names, on the CPU, in eval mode.
    """
    module = unwrapped(module)
    with _without_trainer(module):
        twin = copy.deepcopy(module)
    if sparse_weights(twin):
        merge_(twin)
    return twin.cpu().eval()


@contextmanager
def _without_trainer(module: nn.Module) -> Iterator[None]:
    """Detach the trainer temporarily: it refers to data, loggers and the module itself."""
    parts = [(part, name) for part in module.modules() for name in ("_trainer", "_fabric")]
    owners = [(part, name, vars(part)[name]) for part, name in parts if vars(part).get(name) is not None]
    try:
        for part, name, _ in owners:
            object.__setattr__(part, name, None)
        yield
    finally:
        for part, name, value in owners:
            object.__setattr__(part, name, value)
