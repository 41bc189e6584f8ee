"""Masks and signs as bits: the form in which checkpoints and running metrics keep them."""

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor as a uint8 vector, eight entries per byte, lowest bit first."""
    return torch.from_numpy(np.packbits(mask.detach().flatten().cpu().numpy(), bitorder="little"))


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool tensor of a shape that `pack_bits` packed.

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
