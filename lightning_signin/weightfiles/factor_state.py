"""Factors and masks, which a plain state dict cannot hold, as tensors and plain values."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.core.compute import Taken
from lightning_signin.core.sharded import gathered, is_sharded, sharded_like
from lightning_signin.core.storage import make_storage
from lightning_signin.core.structure import Expected, each, entries, of_type, one_of, optional, several, tensor, whole
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.errors import SignInError
from lightning_signin.verbs.model import masks
from lightning_signin.weightfiles.bits import expected_bits, pack_bits, unpack_bits

State = dict[str, Any]

# What `mask_state` and `factor_state` return, before the masks are compared with their digest.
MASKS: dict[str, Expected] = {
    "masks": each(entries({"shape": several(whole()), "bits": expected_bits()})),
    "digest": of_type(str),
    "makes_zeros": of_type(bool),
    "storage": each(one_of("compact", "dense")),
    "compute": each(optional(one_of("dense", "sparse"))),
}
FACTORS = {**MASKS, "factors": each(several(tensor()))}


def mask_digest(module: nn.Module) -> str:
    """One string for all masks of a module: equal exactly when names, shapes and masks are equal."""
    return _digest(_packed_masks(module))


def factor_state(module: nn.Module) -> State:
    """The factors, masks and storages of all sparse weights; the factors are references, not copies.

    Those of a sharded module are gathered: all ranks have to call this together.

    Returns:
        Tensors and plain values only, as ``torch.load(weights_only=True)`` reads them.
    """
    return {**mask_state(module), "factors": saved_factors(module)}


def mask_state(module: nn.Module) -> State:
    """The part of `factor_state` that every rank knows without communication: all but the factors."""
    packed = _packed_masks(module)
    weights = sparse_weights(module)
    return {
        "masks": packed,
        "digest": _digest(packed),
        "makes_zeros": any(weight.parametrization.makes_zeros for weight in weights.values()),
        "storage": {name: weight.storage.name for name, weight in weights.items()},
        "compute": {name: chosen(weight) for name, weight in weights.items()},
    }


def saved_factors(module: nn.Module) -> dict[str, list[Tensor]]:
    """The factors of `factor_state`."""
    weights = sparse_weights(module)
    return {name: [gathered(tensor.detach()) for tensor in weight.tensors] for name, weight in weights.items()}


def saved_masks(state: State) -> dict[str, Tensor]:
    """The masks in a `factor_state`.

    Returns:
        Bool masks of the weights' shapes, by name.

    Raises:
        SignInError: If they do not match their digest: the file was altered.
    """
    if _digest(state["masks"]) != state["digest"]:
        raise SignInError("The checkpoint's masks do not match their digest: the file is damaged. Use another one.")
    return {name: unpack_bits(saved["bits"], tuple(saved["shape"])) for name, saved in state["masks"].items()}


@torch.no_grad()
def load_factor_state(module: nn.Module, state: State) -> None:
    """Load saved masks and factors into a sparse module, bit for bit, in the storage that they were saved in.

    If the number of active entries or the storage differs, the factors change shape: call this before optimizers are
    built.

    Raises:
        SignInError: If the module has other sparse weights, shapes or factors than were saved.
    """
    weights, saved = sparse_weights(module), check_factor_state(module, state)
    for name, weight in weights.items():
        factors = state["factors"][name]
        # "auto" storage was chosen by the masks of this run, which may have other densities than the saved ones.
        weight.parametrization.storage = make_storage(state["storage"][name], saved[name].to(weight.factors[0].device))
        choose(weight, state["compute"].get(name))
        for factor, value in zip(weight.tensors, factors, strict=True):
            if factor.shape == value.shape:
                factor.copy_(sharded_like(value.to(factor.device), factor))
            else:
                factor.data = value.to(factor, copy=True)


def chosen(weight: SparseWeight) -> Taken | None:
    """How a weight is used: on its non-zeros, as a whole, or not decided yet."""
    choice = weight.parametrization.choice
    return "dense" if choice is None else choice.taken


def choose(weight: SparseWeight, taken: Taken | None) -> None:
    """Use a weight as another run has chosen, for the same sums; what was asked for here comes first."""
    choice = weight.parametrization.choice
    if choice is not None and choice.of.asked == "auto" and choice.taken is None:
        choice.taken, choice.reason = taken, "as saved" if taken == "dense" else ""


def check_factor_state(module: nn.Module, state: State) -> dict[str, Tensor]:
    """Make the checks of `load_factor_state`, without loading anything.

    Returns:
        The saved masks.

    Raises:
        SignInError: If the module has other sparse weights, shapes or factors than were saved.
    """
    weights, saved = sparse_weights(module), saved_masks(state)
    for name in [*weights, *saved]:
        if name not in weights or name not in saved:
            here = "not sparse in this run" if name in saved else "not sparse in the checkpoint"
            raise SignInError(f"The checkpoint has other sparse weights than this run: {name} is {here}. {_FIX}")
    for name, weight in weights.items():
        _check_fits(name, weight, saved[name], state)
    return saved


_FIX = "Resume with the arguments and the model of the run that wrote it."


def _check_fits(name: str, weight: SparseWeight, mask: Tensor, state: State) -> None:
    if weight.storage.shape != mask.shape:
        raise SignInError(
            f"The checkpoint's mask of {name} has shape {tuple(mask.shape)}, but the weight has shape "
            f"{tuple(weight.storage.shape)}. {_FIX}"
        )
    factors = state["factors"].get(name, ())
    if len(factors) != len(weight.tensors):
        raise SignInError(f"The checkpoint was written with another `parametrization` of {name}. {_FIX}")
    shape = tuple(make_storage(state["storage"].get(name, "auto"), mask).pack(mask).shape)
    if is_sharded(weight.factors[0]) and tuple(weight.factors[0].shape) != shape:
        raise SignInError(
            f"The checkpoint's factors of {name} have shape {shape}, but those of this run, which is sharded, have "
            f"shape {tuple(weight.factors[0].shape)}. Give `sparsify` the arguments of the run that wrote it."
        )
    for value, own in zip(factors[len(weight.factors) :], weight.tensors[len(weight.factors) :], strict=True):
        if value.shape != own.shape:
            raise SignInError(
                f"The checkpoint's parameters of {name} have shape {tuple(value.shape)}, but the parametrization needs "
                f"{tuple(own.shape)}: the file is damaged. Use another one."
            )
    for value in factors[: len(weight.factors)]:
        if tuple(value.shape) != shape:
            raise SignInError(
                f"The checkpoint's factors of {name} have shape {tuple(value.shape)}, but its mask needs {shape}: the "
                "file is damaged. Use another one."
            )


def _packed_masks(module: nn.Module) -> dict[str, State]:
    return {name: {"shape": list(mask.shape), "bits": pack_bits(mask)} for name, mask in masks(module).items()}


def _digest(packed: dict[str, State]) -> str:
    digest = hashlib.sha256()
    for name, mask in packed.items():
        digest.update(f"{name} {list(mask['shape'])}".encode())
        digest.update(mask["bits"].numpy().tobytes())
    return digest.hexdigest()
