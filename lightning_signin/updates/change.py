"""A new mask for a weight in training: what happens to its factors, gradients and optimizer state."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.compact import Compact
from lightning_signin.core.optimizer_parts import states_of
from lightning_signin.core.storage import Storage, make_storage
from lightning_signin.core.weights import SparseWeight
from lightning_signin.errors import SignInError


@torch.no_grad()
def change_mask_(
    weight: SparseWeight, mask: Tensor, optimizers: Iterable[Optimizer] = (), storage: str = "auto"
) -> float:
    """Give a weight another mask, in place.

    Entries that stay keep their factors, gradients and optimizer state, bit for bit. New entries start at θ = 0 with
    factors that let a gradient through (m = √β, w = 0), and with zero gradient and state. Dropped entries are
    discarded. The parameters stay the same objects; in compact storage their length changes with the number of entries.

    Args:
        weight: A sparse weight.
        mask: Bool mask of its shape, True keeps.
        optimizers: Optimizers that may hold state of its factors, as tensors of the factors' shape.
        storage: "compact", "dense" or "auto"; see `make_storage`.

    Returns:
        The share of the mask that was replaced: 1 − |old ∩ new| / max(|old|, |new|), in [0, 1].

    Raises:
        SignInError: If an entry would enter the mask, and the parametrization has no gradient at 0.
    """
    old = weight.storage
    before = old.mask
    mask = mask.to(before.device)
    kept, was, now = int((before & mask).sum()), int(before.sum()), int(mask.sum())
    if kept == was == now:
        return 0.0
    new = make_storage(storage, mask)
    come = new.pack(mask & ~before)
    grown = weight.parametrization.grown or ()
    if bool(come.any()) and not grown:
        raise SignInError(f"{weight.name} cannot grow weights: its parametrization has no gradient at 0.")
    for factor, start in zip(weight.factors, grown or [0.0] * len(weight.factors), strict=True):
        for optimizer in optimizers:
            _move_state(optimizer, factor, old, new)
        gradient, factor.grad = factor.grad, None
        moved = _moved(factor, old, new)
        _set(factor, torch.where(come, torch.full_like(moved, start), moved))
        factor.grad = None if gradient is None else _set_gradient(gradient, _moved(gradient, old, new))
    if isinstance(old, Compact) and isinstance(new, Compact) and old.active == new.active:
        old.move_to(new)
    else:
        weight.parametrization.storage = new
    if weight.parametrization.choice is not None:
        weight.parametrization.choice.reconsider(now)
    return 1 - kept / max(was, now)


def _moved(values: Tensor, old: Storage, new: Storage) -> Tensor:
    """Stored values under another mask, 0 where they had none."""
    return new.pack(old.unpack(values))


def _set(factor: nn.Parameter, value: Tensor) -> None:
    if factor.shape == value.shape:
        factor.copy_(value)
    else:
        factor.data = value


def _set_gradient(gradient: Tensor, value: Tensor) -> Tensor:
    # In place where it fits: DistributedDataParallel may have made the gradient a view of its bucket.
    return gradient.copy_(value) if gradient.shape == value.shape else value


def _move_state(optimizer: Optimizer, factor: nn.Parameter, old: Storage, new: Storage) -> None:
    for state in states_of(optimizer, factor):
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == factor.shape:
                state[key] = _moved(value, old, new)
