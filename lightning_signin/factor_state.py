"""What a plain state dict cannot hold: factors and masks, as tensors and plain values."""

import hashlib
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.model import masks
from lightning_signin.storage import make_storage
from lightning_signin.weights import SparseWeight, sparse_weights

State = dict[str, Any]


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor as a uint8 vector, eight entries a byte, lowest bit first."""
    bits = torch.zeros(-(-mask.numel() // 8) * 8, dtype=torch.uint8)
    bits[: mask.numel()] = mask.flatten().to("cpu", torch.uint8)
    return (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool tensor of a shape that `pack_bits` packed.

    Example:
        >>> mask = torch.rand(3, 7) > 0.5
        >>> torch.equal(unpack_bits(pack_bits(mask), (3, 7)), mask)
        True
    """
    bits = (packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten()[: prod(shape)].view(shape).bool()


def mask_digest(module: nn.Module) -> str:
    """One string for all masks of a module: equal exactly when names, shapes and masks are."""
    return _digest(_packed_masks(module))


def factor_state(module: nn.Module) -> State:
    """The factors, masks and storages of all sparse weights; the factors are references, not copies."""
    packed = _packed_masks(module)
    weights = sparse_weights(module)
    return {
        "masks": packed,
        "digest": _digest(packed),
        "storage": {name: weight.storage.name for name, weight in weights.items()},
        "factors": {name: [factor.detach() for factor in weight.factors] for name, weight in weights.items()},
    }


def saved_masks(state: State) -> dict[str, Tensor]:
    """The masks in a `factor_state`.

    Raises:
        ValueError: If they do not fit their digest: the file was altered.
    """
    if _digest(state["masks"]) != state["digest"]:
        raise ValueError("The masks in this checkpoint do not fit their digest: the file is damaged. Use another one.")
    return {name: unpack_bits(saved["bits"], tuple(saved["shape"])) for name, saved in state["masks"].items()}


@torch.no_grad()
def load_factor_state(module: nn.Module, state: State) -> None:
    """Put saved masks and factors into a sparse module, bit for bit, in the storage that they were saved in.

    Where the number of active entries or the storage differs, the factors change shape: do this before optimizers are
    built.

    Raises:
        ValueError: If the module has other sparse weights, shapes or factors than were saved.
    """
    weights, saved = sparse_weights(module), saved_masks(state)
    for name in [*weights, *saved]:
        if name not in weights or name not in saved:
            here = "not sparse in this run" if name in saved else "not sparse in the checkpoint"
            raise ValueError(f"The checkpoint has other sparse weights than this run: {name} is {here}. {_FIX}")
    for name, weight in weights.items():
        _check_fits(name, weight, saved[name], state)
    for name, weight in weights.items():
        factors = state["factors"][name]
        # "auto" storage chose by the masks of this run, which may have other densities than the saved ones.
        weight.parametrization.storage = make_storage(state["storage"][name], saved[name].to(weight.factors[0].device))
        for factor, value in zip(weight.factors, factors, strict=True):
            if factor.shape == value.shape:
                factor.copy_(value)
            else:
                factor.data = value.to(factor, copy=True)


_FIX = "Resume with the callback's arguments and the model of the run that wrote it."


def _check_fits(name: str, weight: SparseWeight, mask: Tensor, state: State) -> None:
    if weight.storage.shape != mask.shape:
        raise ValueError(
            f"The checkpoint's mask of {name} has shape {tuple(mask.shape)}, the weight {tuple(weight.storage.shape)}. "
            f"{_FIX}"
        )
    if len(state["factors"][name]) != len(weight.factors):
        was = len(state["factors"][name]) > 1
        raise ValueError(f"The checkpoint was written with reparameterize={was}, this run has {not was}. {_FIX}")


def _packed_masks(module: nn.Module) -> dict[str, State]:
    return {name: {"shape": list(mask.shape), "bits": pack_bits(mask)} for name, mask in masks(module).items()}


def _digest(packed: dict[str, State]) -> str:
    digest = hashlib.sha256()
    for name, mask in packed.items():
        digest.update(f"{name} {list(mask['shape'])}".encode())
        digest.update(mask["bits"].numpy().tobytes())
    return digest.hexdigest()
