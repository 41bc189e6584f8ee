"""The plain state dict, both ways: hooks on each layer with a sparse weight, and its weights where it saves itself.

On saving, ``layer.weight`` is the masked effective weight, under its plain name and at its plain position. On loading,
a plain weight is masked and turned into the trainable tensors; its zeros are never taken for a mask.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from lightning_signin.core.masked import Masked
from lightning_signin.core.sharded import is_sharded, same_entries, sharded_like, whole
from lightning_signin.core.torch_internals import (
    registered_parameters,
    remove_state_hooks,
    set_registered_parameters,
    versions_of,
)


def install_plain_state(owner: nn.Module, plain_order: list[str]) -> None:
    """Give a parametrized layer the state dict it had as a plain layer.

    Args:
        owner: A layer with sparse weights.
        plain_order: The names of its own parameters before it was parametrized, in their order.
    """
    owner.parametrizations.plain_order = plain_order  # type: ignore[union-attr]
    # Module-level functions, which `uninstall_plain_state` finds by identity in a deep copy of the layer too.
    owner.register_state_dict_post_hook(_save_plain)
    owner.register_load_state_dict_pre_hook(_load_plain)


def uninstall_plain_state(owner: nn.Module) -> None:
    """Undo `install_plain_state`."""
    remove_state_hooks(owner, _save_plain, _load_plain)


def plain_order(owner: nn.Module) -> list[str]:
    """The names of a layer's own parameters in the order they had before it was parametrized."""
    return list(owner.parametrizations.plain_order)  # type: ignore[union-attr, arg-type]


def saving_plain(save: Callable[..., None]) -> Callable[..., None]:
    """The method with which a layer saves its own tensors, its sparse weights among them.

    Args:
        save: That of its class, which may change them.

    Returns:
        A method that takes the place of ``save``.
    """

    def _save_to_state_dict(owner: nn.Module, state_dict: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        own, sparse = registered_parameters(owner), dict(_masked(owner))
        values = {n: _tied(h, prefix + n, _plain_value(h, keep_vars), state_dict) for n, h in sparse.items()}
        tensors: dict[str, Any] = {**own, **values}
        in_order = {name: tensors[name] for name in plain_order(owner) if name in tensors}
        set_registered_parameters(owner, {**in_order, **tensors})
        try:
            save(owner, state_dict, prefix, keep_vars)
        finally:
            set_registered_parameters(owner, own)
        for name, value in values.items():
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and same_entries(saved, value):
                state_dict[prefix + name] = value  # torch detaches it, and one could write into that

    return _save_to_state_dict


def _save_plain(owner: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    if not hasattr(owner, "parametrizations"):
        return
    for name, holder in _masked(owner):
        for i in range(holder.ntensors):
            state_dict.pop(f"{prefix}parametrizations.{name}.original{i}", None)
    metadata = versions_of(state_dict)
    for key in [key for key in metadata if f"{key}.".startswith(f"{prefix}parametrizations.")]:
        del metadata[key]


def _plain_value(holder: ParametrizationList, keep_vars: bool) -> Tensor:
    if keep_vars:
        return holder()
    # Writing into this copy would not change the module. As an inference tensor it raises an error on the attempt.
    factor: Any = holder.original0
    with torch.inference_mode():
        return sharded_like(holder(), factor)


def _tied(holder: Any, name: str, value: Tensor, state_dict: dict[str, Any]) -> Tensor:
    """The tensor that another layer with the same weight has just saved, so that files hold it once; else the value."""
    saved = state_dict.get(getattr(holder, "saved_as", name))
    holder.saved_as = name
    if not isinstance(saved, Tensor) or is_sharded(value) or saved.dtype != value.dtype:
        return value
    return saved if torch.equal(saved, value) else value


def _load_plain(
    owner: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    for name, holder in _masked(owner) if hasattr(owner, "parametrizations") else ():
        theta = state_dict.pop(prefix + name, None)
        current = [getattr(holder, f"original{i}") for i in range(holder.ntensors)]
        masked: Any = holder[0]
        shape = masked.storage.shape
        if theta is None:
            missing_keys.append(prefix + name)
        elif theta.shape != shape:
            error_msgs.append(
                f"size mismatch for {prefix + name}: copying a param with shape {tuple(theta.shape)} from checkpoint, "
                f"the shape in current model is {tuple(shape)}."
            )
        elif reason := masked.refusal(prefix + name, cast := whole(theta).to(current[0].device, current[0].dtype)):
            error_msgs.append(reason)
        else:
            with torch.no_grad():
                values = masked.right_inverse(cast)
                current = [sharded_like(value, held) for value, held in zip(values, current, strict=True)]
        # Where nothing could be loaded, the current values stand in, so that only the plain name is reported.
        for i, value in enumerate(current):
            state_dict[f"{prefix}parametrizations.{name}.original{i}"] = value


def _masked(owner: nn.Module) -> Iterator[tuple[str, ParametrizationList]]:
    for name, holder in owner.parametrizations.items():  # type: ignore[union-attr, operator]
        if isinstance(holder[0], Masked):
            yield name, holder
