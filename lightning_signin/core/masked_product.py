"""A product that is zero off a mask, whatever its factors hold there, at nearly the cost of the product.

``mask * m * w`` lets NaN and infinities through, and ``where`` takes ten times as long as the product on the CPU. Here
each mask entry has as many bits as a value, all ones or all zeros, and a bitwise "and" applies it to the result.
"""

from typing import Any, cast

import torch
from torch import Tensor

from lightning_signin.core.torch_internals import is_transformed

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def masked_product(a: Tensor, b: Tensor | None, bits: Tensor, memory: Tensor | None = None) -> Tensor:
    """Mask ⊙ a ⊙ b, or mask ⊙ a where b is None.

    It is linear in a and in b: each derivative is such a product again, zero off the mask as well.

    Args:
        a: The first factor.
        b: The second factor, or None.
        bits: The mask as −1 and 0, from `bits_like`.
        memory: The tensor to write the result into, if any.

    Returns:
        The product, of the shape of ``a``; exactly 0 off the mask, even where a factor is NaN or infinite.

    Example:
        >>> a, bits = torch.tensor([2.0, torch.nan]), torch.tensor([-1, 0], dtype=torch.int32)
        >>> masked_product(a, a, bits).tolist()
        [4.0, 0.0]
    """
    if is_transformed(a):  # which cannot handle the bits
        a, b = (None if factor is None else torch.where(bits.bool(), factor, 0) for factor in (a, b))  # type: ignore[assignment]
        return a if b is None else a * b
    return cast(Tensor, _MaskedProduct.apply(a, b, bits, memory))


def bits_like(bits: Tensor, values: Tensor) -> Tensor:
    """A mask of −1 and 0 in the form that ``values`` need: integers of their entry size, with their strides.

    Returns:
        The mask in that form; ``bits`` itself if it already has it.

    Example:
        >>> bits_like(torch.tensor([-1, 0]), torch.ones(2, dtype=torch.float16))
        tensor([-1,  0], dtype=torch.int16)
    """
    dtype = _INTEGERS[values.itemsize]
    if bits.dtype == dtype and bits.stride() == values.stride():
        return bits
    with torch.inference_mode(False):  # autograd may save it
        return torch.empty_strided(bits.shape, values.stride(), dtype=dtype, device=bits.device).copy_(bits)


def strided(gradient: Tensor) -> Tensor:
    """A gradient as an ordinary tensor: ``F.embedding(…, sparse=True)`` gives a sparse one.

    Returns:
        The same values with the layout ``torch.strided``.

    Example:
        >>> strided(torch.eye(2).to_sparse()).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _product(a: Tensor, b: Tensor | None, bits: Tensor, memory: Tensor | None = None) -> Tensor:
    if memory is None:
        product = a.clone() if b is None else a * b
    else:
        product = memory.copy_(a) if b is None else torch.mul(a, b, out=memory)
    product.view(bits.dtype).bitwise_and_(bits)
    return product


class _MaskedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor | None, bits: Tensor, memory: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b, bits)
        return _product(a, b, bits, memory)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b, bits = ctx.saved_tensors
        gradient = strided(gradient)
        product = masked_product if torch.is_grad_enabled() or is_transformed(gradient) else _product
        of_a = product(gradient, b, bits) if ctx.needs_input_grad[0] else None
        of_b = product(gradient, a, bits) if ctx.needs_input_grad[1] else None
        return of_a, of_b, None, None
