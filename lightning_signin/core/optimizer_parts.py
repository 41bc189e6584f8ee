"""Optimizers inside optimizers: what wraps another one, and where the state of a parameter is."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.torch_internals import tree_leaves, without_step_hooks


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and all that it wraps, outermost first.

    Lookahead and SAM hold a base optimizer, and Lightning and Fabric wrap every optimizer; they are attributes, or in
    lists that are attributes.

    Returns:
        The optimizers, each once.

    Example:
        >>> import torch
        >>> [type(part).__name__ for part in parts_of(torch.optim.SGD([torch.zeros(1)]))]
        ['SGD']
    """
    found = {id(optimizer): optimizer}
    for inner in wrapped(optimizer):
        found |= {id(part): part for part in parts_of(inner)}
    return list(found.values())


def wrapped(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that one holds itself."""
    found = (inner for value in vars(optimizer).values() for inner in _within(value))
    return [inner for inner in found if isinstance(inner, Optimizer)]


def bare(optimizer: Optimizer) -> Optimizer:
    """An optimizer without wrappers that pass for what they wrap, as those of Lightning and Fabric do."""
    inner = next((inner for inner in wrapped(optimizer) if isinstance(optimizer, type(inner))), None)
    return optimizer if inner is None else bare(inner)


def distributes(optimizer: Optimizer) -> bool:
    """Whether it leaves the steps to optimizers that it wraps, and keeps lists of parameters: ZeRO over the ranks."""
    if not wrapped(optimizer):
        return False
    held = (item for key, value in vars(optimizer).items() if key != "param_groups" for item in _within(value))
    return any(isinstance(item, nn.Parameter) for item in held)


def holds_tensors(optimizer: Optimizer) -> bool:
    """Whether it holds tensors outside of its state, in lists of lists or dicts: copies of the parameters, perhaps."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    others = [value for key, value in vars(optimizer).items() if key not in ("param_groups", "state", "defaults")]
    leaves = (leaf for leaf in tree_leaves(others) if isinstance(leaf, Tensor))
    return any(leaf.numel() > 1 and id(leaf) not in own for leaf in leaves)


def takes_hooks(optimizer: Optimizer) -> bool:
    """Whether hooks can be given to its steps: not if its constructor has not called that of torch."""
    return without_step_hooks().keys() <= vars(optimizer).keys()


def states_of(optimizer: Optimizer, parameter: nn.Parameter) -> list[dict[str, Any]]:
    """The state of a parameter in an optimizer and in those that it wraps, without those that have none."""
    found = (part.state.get(parameter) for part in parts_of(optimizer))
    return list({id(state): state for state in found if state}.values())


def _within(value: Any) -> Iterator[Any]:
    """A value, or what a list or tuple holds."""
    yield from value if isinstance(value, list | tuple) else [value]
