"""Fits of a `Tuner`, which promises to leave the module as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def as_it_was(module: nn.Module) -> Iterator[None]:
    """At the end, all parameters have the values that they have now: a mask alone would leave zeros.

    Args:
        module: A module that is plain now, and again at the end.

    Example:
        >>> from lightning_signin import merge_, sparsify
        >>> net = nn.Linear(10, 10)
        >>> with as_it_was(net):
        ...     _ = merge_(sparsify(net, sparsity=0.5))
        >>> int((net.weight != 0).sum())
        100
    """
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(before[name])
