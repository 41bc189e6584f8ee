"""Masks and signs as bits: what is kept of them in checkpoints and across a run."""

from math import prod

import torch
from torch import Tensor


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


def pack_signs(theta: Tensor) -> Tensor:
    """The signs of a tensor, two bits an entry: rows of `pack_bits` for positive and for negative ones."""
    return torch.stack([pack_bits(theta > 0), pack_bits(theta < 0)])


def unpack_signs(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The int8 tensor of −1, 0 and 1 that `pack_signs` packed.

    Example:
        >>> unpack_signs(pack_signs(torch.tensor([0.5, -3.0, 0.0])), (3,))
        tensor([ 1, -1,  0], dtype=torch.int8)
    """
    positive, negative = (unpack_bits(row, shape).to(torch.int8) for row in packed)
    return positive - negative
