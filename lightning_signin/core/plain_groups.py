"""The groups of optimizers list plain parameters, for code that compares them with the parameters of a plain view."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_signin.core.old_optimizers import put_plain
from lightning_signin.core.optimizers import check_elementwise, masks_entries
from lightning_signin.core.plain_view import PLAIN_GROUPS, Factors, exchange_parameters
from lightning_signin.core.torch_internals import registered_parameters


@contextmanager
def plain_groups(optimizers: Iterable[Optimizer], behind: Factors) -> Iterator[None]:
    """Put plain parameters in the places of the factors in optimizers, and put the factors back at the end.

    Groups can be added and exchanged meanwhile. No optimizer can step.

    Args:
        optimizers: Those that train the weights.
        behind: The sparse weight behind each plain parameter that is shown, by its id, as `opened` yields it.

    Raises:
        SignInError: At the end, if an optimizer mixes the entries of a weight that it has got, or needs its shape.
    """
    optimizers = list(optimizers)
    plain: dict[int, Tensor] = {}
    for weight in behind.values():
        owner, attribute = weight.owners[0]
        parameter: Any = registered_parameters(owner)[attribute]
        plain |= dict.fromkeys(map(id, weight.tensors), parameter)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            put_plain(group, plain)
        PLAIN_GROUPS.add(optimizer)
    try:
        yield
    finally:
        for optimizer in optimizers:
            PLAIN_GROUPS.discard(optimizer)
            exchange_parameters(optimizer, behind)
    for optimizer in optimizers:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for weight in behind.values():
            if id(weight.tensors[0]) in held and masks_entries(weight):
                check_elementwise(weight, optimizer)
