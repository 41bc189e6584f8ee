"""Modules that are wrapped as a whole: by DistributedDataParallel, DataParallel, `torch.compile`, or Fabric.

Names are those of the module inside, without "module.", "_orig_mod." or "_forward_module.". Classes are recognized
without importing their modules.
"""

import sys
from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lightning_signin.core.torch_internals import compiled_module


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside all wrappers; a module that is not wrapped, as it is.

    Returns:
        The innermost module.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> unwrapped(DataParallel(net)) is net, unwrapped(net) is net
        (True, True)
    """
    return list(_layers(module))[-1]


def replica(module: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel among the wrappers."""
    return next((layer for layer in _layers(module) if isinstance(layer, DistributedDataParallel)), None)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The module, and what it wraps, down to the module that wraps nothing; Fabric's wrapper holds two of them."""
    inside: object = module
    while isinstance(inside, nn.Module):
        yield inside
        if isinstance(inside, DistributedDataParallel | DataParallel):
            inside = inside.module
        elif (original := compiled_module(inside)) is not None:
            inside = original
        elif _is_of_fabric(inside):
            yield from _parallel(inside)
            inside = inside.module
        else:
            return


def _parallel(fabric_module: nn.Module) -> Iterator[nn.Module]:
    """What Fabric's wrapper runs, if it is not the module inside."""
    for child in fabric_module.children():
        if isinstance(child, DistributedDataParallel):
            yield child


def _is_of_fabric(module: nn.Module) -> bool:
    found = (sys.modules.get(name) for name in ("lightning.fabric", "lightning_fabric"))
    return any(fabric.is_wrapped(module) for fabric in found if fabric is not None)
