"""Masks and signs as bits: the form in which checkpoints and running metrics keep them."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_signin.core.structure import Expected, anything, each, entries, one_of, optional, tensor


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor as a uint8 vector, eight entries per byte, lowest bit first."""
    return torch.from_numpy(np.packbits(mask.detach().flatten().cpu().numpy(), bitorder="little"))


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool tensor of a shape that `pack_bits` packed.

    Returns:
        The tensor, in memory of its own.

    Example:
        >>> mask = torch.rand(3, 7) > 0.5
        >>> torch.equal(unpack_bits(pack_bits(mask), (3, 7)), mask)
        True
    """
    bits = np.unpackbits(packed.numpy(), count=prod(shape), bitorder="little")
    return torch.from_numpy(bits).view(shape).bool()


def pack_signs(values: Tensor) -> dict[str, Any]:
    """The signs of a vector as tensors and plain values: one bit per entry, and a second only if there are zeros."""
    values = values.detach().flatten()
    nonzero = None if values.all() else pack_bits(values != 0)
    return {"positive": pack_bits(values > 0), "nonzero": nonzero, "size": values.numel()}


def unpack_signs(packed: dict[str, Any]) -> Tensor:
    """The int8 vector of −1, 0 and 1 that `pack_signs` packed.

    Returns:
        The signs, on the CPU.

    Example:
        >>> unpack_signs(pack_signs(torch.tensor([0.5, -3.0, 0.0])))
        tensor([ 1, -1,  0], dtype=torch.int8)
    """
    shape = (packed["size"],)
    signs = unpack_bits(packed["positive"], shape).to(torch.int8) * 2 - 1
    return signs if packed["nonzero"] is None else signs * unpack_bits(packed["nonzero"], shape)


def full_signs(packed: dict[str, Any], mask: Tensor) -> Tensor:
    """The int8 tensor of a mask's shape whose kept entries have the packed signs, the others 0."""
    full = torch.zeros(mask.shape, dtype=torch.int8)
    full[mask.cpu()] = unpack_signs(packed)
    return full


def expected_bits(size: int | None = None) -> Expected:
    """What `pack_bits` returns for a number of entries; by default, for any."""
    return tensor(torch.uint8, None if size is None else (-(-size // 8),))


def expected_signs(now: Mapping[str, Tensor]) -> Expected:
    """The signs that weights had at an earlier moment, on the masks of that moment.

    Args:
        now: The bool masks now, by name. Where the saved value has no masks, they were the same.

    Returns:
        A dict of "signs" and "masks", each by name; "masks" may be None.
    """
    of_masks = entries({name: expected_bits(mask.numel()) for name, mask in now.items()})

    def check(value: Any, path: str) -> str | None:
        if wrong := entries({"signs": each(anything), "masks": optional(of_masks)})(value, path):
            return wrong
        then = value["masks"]
        masks = now if then is None else {name: unpack_bits(then[name], tuple(now[name].shape)) for name in now}
        return entries({name: _signs(int(mask.sum())) for name, mask in masks.items()})(
            value["signs"], f"{path}['signs']"
        )

    return check


def _signs(size: int) -> Expected:
    bits = expected_bits(size)
    return entries({"positive": bits, "nonzero": optional(bits), "size": one_of(size)})
