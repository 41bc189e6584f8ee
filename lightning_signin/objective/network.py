"""Finding the network in a module: the one call that runs all the weights, whatever else a training step does."""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.core.torch_internals import tree_map
from lightning_signin.errors import SignInError, in_one_line
from lightning_signin.objective.sample import Call, one_sample, tensors_of


@dataclass(frozen=True)
class Network:
    """A network that can be called: in float64 and eval mode, with one example input.

    Attributes:
        module: The outermost module that runs all selected weights. It returns a list of the tensors of its output, see
            `lightning_signin.objective.sample.tensors_of`.
        args: Positional arguments of a call, of batch size 1 where they were recorded.
        kwargs: Its keyword arguments.
        names: The name within ``module`` of each selected weight.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: dict[str, str]


def recorded_network(module: nn.Module, weights: Collection[str], step: Callable[[nn.Module], None]) -> Network:
    """The network in a module, and the input that a training step gives it.

    Args:
        module: A copy that may be changed.
        weights: Names of the weights that the network has to run.
        step: Runs one training step of the module.

    Returns:
        The network in float64, its input, and the names of the weights in it.

    Raises:
        SignInError: If no single call of a training step runs all the weights.
    """
    part, prefix, call = _record(module.eval(), weights, step)
    return as_network(part, prefix, weights, one_sample(part, call))


def network_with(module: nn.Module, weights: Collection[str], example: Any) -> Network:
    """A module as a network, with an example of its input.

    Args:
        module: A copy that may be changed.
        weights: Names of the weights.
        example: A tensor, a tuple of arguments or a dict of keyword arguments.

    Returns:
        The network in float64 and in eval mode.
    """
    example = example if isinstance(example, dict | tuple) else (example,)
    call = ((), example) if isinstance(example, dict) else (example, {})
    return as_network(module.eval(), "", weights, call)


def as_network(part: nn.Module, prefix: str, weights: Collection[str], call: Call) -> Network:
    """A part of a module, which may be changed and is in eval mode, as a network.

    Args:
        part: The module that runs all the weights.
        prefix: What the names of its weights begin with.
        weights: Those names.
        call: An example of its input.

    Returns:
        The network in float64, with the names of the weights in it.
    """
    device = next(part.parameters()).device
    device = torch.device("cpu") if device.type in ("mps", "xla") else device  # they have no float64
    args, kwargs = tree_map(lambda leaf: _to_double(leaf, device), call)
    part.register_forward_hook(lambda _, inputs, output: tensors_of(output) or output)
    return Network(part.to(device).double(), args, kwargs, {name: name.removeprefix(prefix) for name in weights})


def parts_with_all(module: nn.Module, weights: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """The module and those of its parts that have all the weights, from the outside in, each after its names' prefix.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        >>> [prefix for prefix, _ in parts_with_all(net, ["0.0.weight", "0.1.weight"])]
        ['', '0.']
    """
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        if all(weight.startswith(prefix) for weight in weights):
            yield prefix, part


def no_call() -> SignInError:
    """What to raise if no call of a training step can be recorded."""
    return SignInError(
        "No single call in the training step runs all the selected weights, so the network's input is not known. Set "
        "`example_input_array` and `forward` of the module, or choose weights of one network with `include`."
    )


def in_double() -> AbstractContextManager[None]:
    """Inside, tensors that a forward creates, e.g. the first state of a recurrence, are float64, like a `Network`."""
    return in_dtype(torch.float64)


@contextmanager
def in_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, floating-point tensors that a forward creates are of this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _record(
    module: nn.Module, weights: Collection[str], step: Callable[[nn.Module], None]
) -> tuple[nn.Module, str, Call]:
    calls: list[tuple[nn.Module, str, Call]] = []

    def recorder(prefix: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda part, args, kwargs: calls.append((part, prefix, (args, kwargs)))

    hooks = [
        part.register_forward_pre_hook(recorder(prefix), with_kwargs=True)
        for prefix, part in parts_with_all(module, weights)
    ]
    try:
        with torch.no_grad():
            step(module)
    except Exception as error:  # whatever a user's step may raise
        if not calls:  # errors after the recorded call, e.g. of a backward without gradients, do not matter
            why = f"since a training step cannot run: {in_one_line(error)}."
            raise SignInError(f"The network's input is not known, {why}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        raise no_call()
    return calls[0]


def _to_double(leaf: Any, device: torch.device) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach().to(device, torch.float64 if leaf.is_floating_point() else None)
