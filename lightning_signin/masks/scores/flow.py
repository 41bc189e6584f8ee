"""The flow through a network without signs, and an input with which it runs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from lightning_signin.core.torch_internals import tree_map
from lightning_signin.errors import SignInError, in_one_line, warn
from lightning_signin.objective.network import Network, in_dtype
from lightning_signin.objective.sample import tensors_of


def linear_(module: nn.Module) -> None:
    """Replace all parameters and buffers by their absolute values: a ReLU network becomes linear for inputs ≥ 0."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.abs_()


def flow_of(network: Network) -> Tensor:
    """R: the sum of all outputs, except a loss that the network returns besides."""
    with in_dtype(next(network.module.parameters()).dtype):  # for tensors that the forward creates
        outputs = tensors_of(network.module(*network.args, **network.kwargs))
    sums = [output.sum() for output in outputs if output.is_floating_point()]
    if not sums:
        raise TypeError("its forward returns no tensor of floating-point numbers")
    return torch.stack(sums).sum()


def runnable(network: Network, mask: str) -> Network:
    """The network with an input of ones in float64, or with the nearest alternative that runs.

    Models that check their inputs, e.g. the boxes of a detector, refuse ones: they get the example's own values. Models
    that cast to float32 internally fail in float64: they run in float32.

    Args:
        network: In float64, with the example's own values.
        mask: The name of the score.

    Returns:
        A network that runs.

    Raises:
        SignInError: If none of these runs.

    Warns:
        UserWarning: If it does not run with ones, or in float64.
    """
    failure = None
    for dtype in (torch.float64, torch.float32):
        network.module.to(dtype)
        own = _with_inputs(network, partial(Tensor.to, dtype=dtype))
        for found, name in ((_with_inputs(own, torch.ones_like), "ones"), (own, "the example's own values")):
            try:
                with torch.no_grad():
                    flow_of(found)
            except Exception as error:  # whatever a user's forward may raise
                failure = error
                continue
            if name != "ones":
                warn(f"mask={mask!r}: the network refuses an input of ones, so it is scored with {name}.")
            if dtype != torch.float64:
                warn(f"mask={mask!r}: the network does not run in float64, so it is scored in float32.")
            return found
    assert failure is not None
    raise SignInError(
        f"mask={mask!r} cannot run the network in eval mode, neither with an input of ones nor with the example's own "
        f"values, in float64 or float32 ({in_one_line(failure)}). Pass an input that its forward takes, as the "
        "module's `example_input_array` or in TrainingData(example_input=…), or choose another mask, e.g. 'snip'."
    ) from failure


def _with_inputs(network: Network, change: Callable[[Tensor], Tensor]) -> Network:
    def changed(leaf: object) -> object:
        return change(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    args, kwargs = tree_map(changed, (network.args, network.kwargs))
    return replace(network, args=args, kwargs=kwargs)
