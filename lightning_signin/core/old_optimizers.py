"""Optimizers that outlive the sparse weights: after the merge they train the plain parameters again.

They keep the factors until their next step, so that a checkpoint that is saved after a fit can be resumed.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakSet

from torch import Tensor
from torch.optim import Optimizer

from lightning_signin.core.masked import Masked
from lightning_signin.core.optimizer_parts import takes_hooks
from lightning_signin.core.weights import SparseWeight

_MERGED = "_merged_weight"  # among the attributes of factors that are no longer part of a module
_trains_factors: WeakSet[Optimizer] = WeakSet()
_outdated: WeakSet[Optimizer] = WeakSet()
_watched: WeakSet[Optimizer] = WeakSet()


def note_optimizer(optimizer: Optimizer) -> None:
    """Remember, as long as an optimizer exists, that it holds factors in place of plain parameters."""
    _trains_factors.add(optimizer)


def note_merged(weights: Iterable[SparseWeight]) -> None:
    """Let optimizers exchange the factors of merged weights for the plain parameters, before their next step."""
    factors = {id(tensor) for weight in weights for tensor in weight.tensors}
    for weight in weights:
        for tensor in weight.tensors:
            vars(tensor)[_MERGED] = weight.parametrization
    for optimizer in list(_trains_factors):
        if not any(id(parameter) in factors for group in optimizer.param_groups for parameter in group["params"]):
            continue
        _outdated.add(optimizer)
        if optimizer not in _watched and takes_hooks(optimizer):
            _watched.add(optimizer)
            optimizer.register_step_pre_hook(_before_step)


def give_back_parameters(optimizer: Optimizer) -> None:
    """Replace the factors of merged weights in an optimizer by the plain parameters; other optimizers are left alone.

    State of a plain masked weight goes along. That of the factors of a product does not describe their product: the
    optimizer starts anew on it.
    """
    if optimizer not in _outdated:
        return
    _outdated.discard(optimizer)
    for group in optimizer.param_groups:
        merged = {p: vars(p)[_MERGED] for p in group["params"] if _MERGED in vars(p)}
        for factor, parametrization in merged.items():
            state = optimizer.state.pop(factor, None)
            if state is not None and parametrization.names == ("theta",):
                optimizer.state[parametrization.plain_parameter] = _unpacked(state, parametrization, factor)
        put_plain(group, {id(factor): parametrization.plain_parameter for factor, parametrization in merged.items()})


def put_plain(group: dict[str, Any], plain: Mapping[int, Tensor]) -> None:
    """Put a plain parameter, once, in the place of the factors of a weight.

    Args:
        group: A group of an optimizer.
        plain: The plain parameters, by the ids of the factors.
    """
    names = group.get("param_names", [None] * len(group["params"]))
    given: dict[int, tuple[Tensor, str | None]] = {}
    for name, parameter in zip(names, group["params"], strict=True):
        if (own := plain.get(id(parameter))) is not None:
            parameter, name = own, name and name.rpartition(".")[0]
        given.setdefault(id(parameter), (parameter, name))
    group["params"][:] = [parameter for parameter, _ in given.values()]
    if "param_names" in group:
        group["param_names"] = [name for _, name in given.values()]


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    give_back_parameters(optimizer)


def _unpacked(state: dict[str, Any], merged: Masked, factor: Tensor) -> dict[str, Any]:
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.shape == factor.shape}
    return state | {key: merged.storage.unpack(value) for key, value in tensors.items()}
