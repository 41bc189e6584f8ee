"""Whether a mask leaves a path through the network, so that layer collapse is found before training, not after it.

Paths are structural: a kept weight joins its two units whatever its value, biases start no path, and operations that
mix units, such as attention, join everything with everything.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from lightning_signin.errors import SignInError, in_one_line, some, warn
from lightning_signin.objective.network import Network
from lightning_signin.units.tracing import trace


def check_connected(masks: Mapping[str, Tensor], network: Callable[[], Network]) -> None:
    """Check that a path leads from the network's input to its output, and one through every layer.

    The graph is traced only if needed. If all units and all inputs of all layers keep a weight, every path can be
    continued to both ends, so every kept weight is on one. (This assumes that no layer reads constant channels or drops
    units. In grouped convolutions the inputs of all groups are checked together.) If only all units do, or only all
    inputs, there is still a path through the network, but perhaps not through every layer.

    Args:
        masks: The masks by plain name.
        network: Returns the network; called only if the masks alone do not decide.

    Raises:
        SignInError: If no path leads from the input through weights to the output.

    Warns:
        UserWarning: For layers whose kept weights are on no path, and if this cannot be checked, for whatever reason.

    Example:
        >>> import torch
        >>> check_connected({"fc.weight": torch.eye(3) > 0}, network=lambda: None)  # not called
    """
    full = _full(masks)
    if all(full):
        return
    try:
        cut, is_whole = _paths(network, masks)
    except Exception as error:  # whatever data, step and forward may raise; if it matters, the fit will raise it too
        if not any(full):
            warn(f"It could not be checked that the mask leaves a path from input to output: {in_one_line(error)}.")
        return
    if not is_whole:
        raise SignInError(
            f"The mask cuts the network from input to output: no path leads through {some(cut)}. Lower `sparsity`, or "
            "choose another `mask` or `distribution`."
        )
    if cut:
        warn(
            f"No path from input to output leads through the kept weights of {some(cut)}: they carry no information to "
            "the output. Lower `sparsity`, or choose another `mask` or `distribution`.",
        )


def cut_layers(network: Network, masks: Mapping[str, Tensor]) -> list[str]:
    """The layers that are on no path from the network's input to its output.

    Args:
        network: The network and an example input.
        masks: The masks by plain name; selected weights without one are dense.

    Returns:
        Plain names, in the order in which the layers run. Layers that the forward does not run are left out.

    Raises:
        SignInError: If the forward cannot be traced.
    """
    return trace(network.module, network.args, network.kwargs, network.names).cut(masks)


def may_cut(masks: Mapping[str, Tensor]) -> bool:
    """Whether masks alone do not answer `check_connected`, which then asks for the network.

    Returns:
        Whether the network is needed for an answer.

    Example:
        >>> import torch
        >>> may_cut({"fc.weight": torch.eye(3) > 0}), may_cut({"fc.weight": torch.eye(3)[:2] > 0})
        (False, True)
    """
    return not all(_full(masks))


def _full(masks: Mapping[str, Tensor]) -> tuple[bool, bool]:
    """Whether all units of all layers keep a weight, and whether all inputs do."""

    def covered(dim: int) -> bool:
        return all(bool(mask.transpose(0, dim).flatten(1).any(1).all()) for mask in masks.values())

    return covered(0), covered(1)


def _paths(network: Callable[[], Network], masks: Mapping[str, Tensor]) -> tuple[list[str], bool]:
    """The layers that are cut off, and whether the network is whole.

    A path around all weights, e.g. from the targets to a loss that the network computes itself, does not count.

    Returns:
        The names of the layers, and whether an input still reaches the output.
    """
    with _cycles_freed():  # `torch.export` leaves a reference cycle that holds the copy of the network
        found = network()
        graph = trace(found.module, found.args, found.kwargs, found.names)
        del found
    return graph.cut(masks), graph.joins(masks) and (graph.weighs(masks) or not graph.weighs({}))


@contextmanager
def _cycles_freed() -> Iterator[None]:
    """Free the reference cycles made inside, without the time that it takes to go through all other objects."""
    others = gc.get_freeze_count() == 0  # else `unfreeze` would bring back what the user has put aside
    if others:
        gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        if others:
            gc.unfreeze()
