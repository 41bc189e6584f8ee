"""A product that is zero off a mask, whatever its factors hold there, at nearly the cost of the product.

``mask * m * w`` lets NaN and infinities through, and ``where`` takes ten times as long as the product on the CPU. Here a
mask has as many bits as a value, all of them ones or zeros, and a bitwise "and" puts it on the result.
"""

from typing import Any

import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_like(bits: Tensor, values: Tensor) -> Tensor:
    """A mask of −1 and 0 as `MaskedProduct` wants it for some values: their size of an entry, and their strides.

    Example:
        >>> bits_like(torch.tensor([-1, 0]), torch.ones(2, dtype=torch.float16))
        tensor([-1,  0], dtype=torch.int16)
    """
    dtype = _INTEGERS[values.itemsize]
    if bits.dtype == dtype and bits.stride() == values.stride():
        return bits
    with torch.inference_mode(False):  # autograd may save it
        return torch.empty_strided(bits.shape, values.stride(), dtype=dtype, device=bits.device).copy_(bits)


class MaskedProduct(torch.autograd.Function):
    """mask ⊙ a ⊙ b, or mask ⊙ a where b is None, for a mask of `bits_like`; with memory to write it into, if any.

    It is linear in a and in b, so that each derivative is such a product again, zero off the mask as well.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor | None, bits: Tensor, memory: Tensor | None) -> Tensor:
        """The product."""
        if b is not None:
            product = torch.mul(a, b, out=memory)
        else:
            product = a.clone() if memory is None else memory.copy_(a)
        product.view(bits.dtype).bitwise_and_(bits)
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor, Tensor | None], output: Tensor) -> None:
        """Keep the factors and the mask."""
        ctx.save_for_backward(*inputs[:3])
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """The gradient times the other factor."""
        a, b, bits = ctx.saved_tensors
        gradient = strided(gradient)
        of_a = MaskedProduct.apply(gradient, b, bits, None)
        return of_a, None if b is None else MaskedProduct.apply(gradient, a, bits, None), None, None

    @staticmethod
    def jvp(ctx: Any, of_a: Tensor, of_b: Tensor | None, *_: None) -> Tensor:
        """The sum over the factors."""
        a, b, bits = ctx.saved_tensors
        tangent = MaskedProduct.apply(of_a, b, bits, None)
        return tangent if b is None else tangent + MaskedProduct.apply(a, of_b, bits, None)


def strided(gradient: Tensor) -> Tensor:
    """A gradient as an ordinary tensor: that of ``F.embedding(…, sparse=True)`` is a sparse one.

    Example:
        >>> strided(torch.eye(2).to_sparse()).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return gradient if gradient.layout == torch.strided else gradient.to_dense()
