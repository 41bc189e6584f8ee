"""A linear layer forward and backward on the non-zeros of its weight."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lightning_signin.kernels.pattern import TwoWay
from lightning_signin.kernels.products import features_product, rows_product, sampled_product_, takes_csr, tiles


class Whole(NamedTuple):
    """The same product with the whole weight, for gradients that the kernels here cannot make.

    Attributes:
        product: A function of x, values and bias, in operations of torch.
        needed: Whether a gradient of the output needs it, beside those that are differentiated themselves.
    """

    product: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    needed: Callable[[Tensor], bool]


def sparse_linear(x: Tensor, values: Tensor, bias: Tensor | None, matrix: TwoWay, whole: Whole) -> Tensor:
    """``F.linear`` with a weight of which only the non-zeros exist, and its gradients at them.

    Args:
        x: [..., inputs], on the CPU, in float32 or float64 as all tensors here.
        values: The non-zeros of the weight.
        bias: [outputs], or None.
        matrix: Where they are in the weight [outputs, inputs].
        whole: The same product with the whole weight.

    Returns:
        [..., outputs].
    """
    flat = x.reshape(-1, matrix.pattern.width)
    out = cast(Tensor, _SparseLinear.apply(flat, values, bias, matrix, whole))
    return out.view(*x.shape[:-1], matrix.pattern.rows)


def gradients_of_whole(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...] | None:
    """The gradients of x, values and bias with the whole weight, where they must be; they can be differentiated again.

    Returns:
        None where the kernels can make them.
    """
    again = torch.is_grad_enabled()
    if not again and not ctx.whole.needed(gradient):
        return None
    inputs = ctx.saved_tensors[:3]
    if not again:
        inputs = [None if x is None else x.detach().requires_grad_(x.requires_grad) for x in inputs]
    wanted = [tensor for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
    with torch.enable_grad():
        out = ctx.whole.product(*inputs)
    found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=again))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad[:3])


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, matrix: TwoWay, whole: Whole) -> Tensor:
        # The columns are saved so that autograd notices if the mask moves before the backward pass.
        ctx.save_for_backward(x, values, bias, matrix.pattern.columns)
        ctx.matrix, ctx.whole = matrix, whole
        return rows_product(matrix.pattern, values, x, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if (found := gradients_of_whole(ctx, gradient)) is not None:
            return (*found, None, None)
        x, values, _, _ = ctx.saved_tensors
        matrix: TwoWay = ctx.matrix
        of_x_needed, of_values_needed, of_bias_needed = ctx.needs_input_grad[:3]
        pattern, of_x = matrix.pattern, None
        of_values = torch.zeros_like(values) if of_values_needed else None
        back = matrix.transposed(values) if of_x_needed else None
        by_rows = takes_csr(gradient)
        if back is not None:
            of_x = rows_product(*back, gradient) if by_rows else torch.empty_like(x)
        for rows in tiles(len(x), max(pattern.width, pattern.rows)):
            features = gradient[rows].t().contiguous()
            if of_values is not None:
                sampled_product_(of_values, pattern, features, x[rows].t())
            if back is not None and of_x is not None and not by_rows:
                of_x[rows].copy_(features_product(*back, features).t())
        return of_x, of_values, gradient.sum(0) if of_bias_needed else None, None, None
