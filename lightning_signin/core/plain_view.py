"""The plain view: the module temporarily shows its plain parameters, and optimizers get the factors behind them."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_signin.core.old_optimizers import give_back_parameters, note_optimizer
from lightning_signin.core.optimizers import check_elementwise, masks_entries
from lightning_signin.core.plain_layer import PlainLayer, layers_of
from lightning_signin.core.plain_parameter import shown
from lightning_signin.core.replaced_layers import complete, follow_parameters
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.core.write_back import Mirror

Factors = dict[int, SparseWeight]
PLAIN_GROUPS: WeakSet[Optimizer] = WeakSet()  # whose groups list plain parameters now: see `plain_groups`


@contextmanager
def plain_view(module: nn.Module) -> Iterator[nn.Module]:
    """Show sparse weights as plain parameters, with their names, shapes, order, values and owner modules.

    An optimizer that is built inside gets the factors in their place, at the time its groups are added, so optimizers
    that make their state in the constructor see the factors too. Thus parameter groups by name, by ``ndim`` or by
    module type, and optimizer factories, work unchanged.

    The parameters can be read and written. ``weight.grad`` is the gradient in θ, if the factors have one. At the end,
    and before an optimizer steps, what was written into a weight, its ``grad`` or its ``requires_grad`` goes to the
    factors: entries that were not changed keep theirs bit for bit, changed ones get m and w with m² − w² = β, whose
    product is the new value up to rounding. Off the mask a weight stays zero. (Where FSDP2 has sharded the factors,
    ``weight.grad`` is None.)

    Args:
        module: A module after `sparsify`. Without sparse weights, nothing happens.

    Raises:
        SignInError: While an optimizer is built that mixes the entries of a weight, or needs its shape; at the end, if
            a weight was given infinities, NaN, or another shape.

    Example:
        >>> import torch
        >>> from lightning_signin import sparsify
        >>> net = sparsify(nn.Linear(10, 10), sparsity=0.5)
        >>> with plain_view(net):
        ...     optimizer = torch.optim.SGD([p for p in net.parameters() if p.ndim > 1], lr=0.1)
        >>> [tuple(p.shape) for p in optimizer.param_groups[0]["params"]]
        [(50,), (50,)]
        >>> with plain_view(net):
        ...     _ = net.weight.data.clamp_(-0.1, 0.1)
        >>> bool((net.weight.abs() < 0.1001).all())
        True
    """
    weights = sparse_weights(module).values()
    with opened(weights) as behind, exchanged_in_optimizers(behind):
        yield module
    follow_parameters(module, weights)


@contextmanager
def opened(weights: Iterable[SparseWeight]) -> Iterator[Factors]:
    """Show sparse weights as `plain_view` does; all weights of a layer, and all users of a weight, belong together.

    Yields:
        The sparse weight behind each parameter, by its id.
    """
    weights = list(weights)
    layers, behind = show(weights)
    mirrors = [Mirror(weight) for weight in weights]

    def refresh(*_: object) -> None:
        for mirror in mirrors:
            mirror.refresh()

    def write_back(*_: object) -> None:
        for mirror in mirrors:
            mirror.write_back()

    with ExitStack() as closing:
        for layer in layers:
            closing.callback(layer.restore)
        for mirror in mirrors:
            closing.callback(mirror.write_back)
        closing.callback(register_optimizer_step_pre_hook(write_back).remove)
        closing.callback(register_optimizer_step_post_hook(refresh).remove)
        yield behind


def exchange_parameters(optimizer: Optimizer, behind: Factors) -> None:
    """Replace plain parameters by factors in an optimizer that was built before `sparsify`, as CLIs do.

    State that the optimizer has already made is given to each factor, restricted to the mask.

    Args:
        optimizer: Any optimizer that has taken no step.
        behind: The sparse weight behind each plain parameter, by the parameter's id.
    """
    give_back_parameters(optimizer)  # after an earlier fit
    note_optimizer(optimizer)
    for group in optimizer.param_groups:
        names = group.get("param_names", [None] * len(group["params"]))
        items = [(name, p) if name else p for name, p in zip(names, group["params"], strict=True)]
        exchanged = [factor for item in items for factor in _factors(item, behind)]
        for parameter in group["params"]:
            weight, state = behind.get(id(parameter)), optimizer.state.pop(parameter, None)
            if state is not None:
                for factor in [parameter] if weight is None else weight.tensors:
                    optimizer.state[factor] = state if weight is None else _packed(state, weight, factor)
        group["params"][:] = [item[1] if isinstance(item, tuple) else item for item in exchanged]
        if "param_names" in group:
            group["param_names"] = [item[0] for item in exchanged]


def show_plain(module: nn.Module) -> tuple[list[PlainLayer], Factors]:
    """Make the module plain: each sparse weight is one parameter with the masked effective values.

    Returns:
        The layers, which can be restored, and the sparse weight behind each new parameter, by its id.

    Raises:
        SignInError: If a layer has been given another parametrization meanwhile.
    """
    return show(sparse_weights(module).values())


def show(weights: Iterable[SparseWeight]) -> tuple[list[PlainLayer], Factors]:
    """`show_plain` for some of a module's weights."""
    weights, parameters, behind = list(weights), {}, Factors()
    for weight in weights:
        complete(weight)
        own: Any = weight.parametrization.plain_parameter
        with torch.inference_mode(False):  # the parameter is to be trained later
            parameters[weight.name] = shown(own, weight.plain(), weight.tensors[0].requires_grad)
        behind |= dict.fromkeys((id(own), id(parameters[weight.name])), weight)
    layers = layers_of(parameters, weights)
    for layer in layers:
        layer.show()
    return layers, behind


@contextmanager
def exchanged_in_optimizers(behind: Factors) -> Iterator[None]:
    """Let optimizers that are built in the block get the factors behind plain parameters."""
    plain_add_param_group = Optimizer.add_param_group

    def add_param_group(self: Optimizer, param_group: dict[str, Any]) -> None:
        takes_factors = self not in PLAIN_GROUPS
        if takes_factors and isinstance(param_group, dict) and not isinstance(param_group["params"], set):
            params = param_group["params"]
            params = [params] if isinstance(params, Tensor) else list(params)
            for item in params:
                if weight := behind.get(id(item[1] if isinstance(item, tuple) else item)):
                    if masks_entries(weight):
                        check_elementwise(weight, self)
                    note_optimizer(self)
            param_group["params"] = [exchanged for item in params for exchanged in _factors(item, behind)]
        plain_add_param_group(self, param_group)

    # On the class, because subclasses call it from their constructors; other optimizers' parameters pass unchanged.
    Optimizer.add_param_group = add_param_group  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.add_param_group = plain_add_param_group  # type: ignore[method-assign]


def _packed(state: dict[str, Any], weight: SparseWeight, tensor: Tensor) -> dict[str, Any]:
    """The optimizer state of a plain parameter, converted to that of one of its trainable tensors."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    of_entries = {key: value for key, value in tensors.items() if value.shape == weight.storage.shape}
    packed = {key: value.clone() for key, value in tensors.items()}
    for key, value in of_entries.items():  # before the first step all entries are equal, so a scalar takes any
        packed[key] = value.flatten()[0].clone() if tensor.ndim == 0 else weight.storage.pack(value)
    return state | packed


def _factors(item: Any, behind: Factors) -> list[Any]:
    """The factors behind a placeholder, with names if it is named; anything else as it is."""
    name, parameter = item if isinstance(item, tuple) else (None, item)
    weight = behind.get(id(parameter))
    if weight is None:
        return [item]
    if name is None:
        return list(weight.tensors)
    return [(f"{name}.{part}", f) for part, f in zip(weight.parametrization.names, weight.tensors, strict=True)]
