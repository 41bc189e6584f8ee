"""A two-dimensional convolution forward and backward on the non-zeros of its weight.

The weight is a matrix from the inputs under the kernel (channels × kernel positions) to the output channels. Features
come first already, so images go into the product as they are, or several small ones together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_signin.kernels.linear import Whole, gradients_of_whole
from lightning_signin.kernels.pattern import TwoWay
from lightning_signin.kernels.products import features_product, sampled_product_

_LEAST_COLUMNS = 96  # images with fewer output pixels are taken together


@dataclass(frozen=True)
class Window:
    """What a convolution's kernel sees: the sizes that ``F.unfold`` takes."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def is_pixel(self) -> bool:
        """Whether it is one pixel of the image itself."""
        return self.kernel == (1, 1) and self.padding == (0, 0)

    def out_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the output for images of this size."""
        parts = zip(size[-2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in parts)
        return height, width

    def columns(self, images: Tensor) -> Tensor:
        """[n, channels, height, width] → [n, channels · kernel size, pixels of the output]."""
        if self.is_pixel:
            return images[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)
        return F.unfold(images, self.kernel, self.dilation, self.padding, self.stride)

    def images(self, columns: Tensor, size: torch.Size) -> Tensor:
        """The transpose of `columns`: sums what each pixel of an image of this size was copied to."""
        if not self.is_pixel:
            return F.fold(columns, size[-2:], self.kernel, self.dilation, self.padding, self.stride)
        if self.stride == (1, 1):
            return columns.view(size)
        found = columns.new_zeros(size)
        found[:, :, :: self.stride[0], :: self.stride[1]] = columns.unflatten(2, self.out_size(size))
        return found


def sparse_conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, matrix: TwoWay, window: Window, whole: Whole
) -> Tensor:
    """``F.conv2d`` with a weight of which only the non-zeros exist, and its gradients at them.

    Args:
        x: [n, channels, height, width], or without n; on the CPU, in float32 or float64 as all tensors here.
        values: The non-zeros of the weight.
        bias: [outputs], or None.
        matrix: Where they are in the matrix [outputs, channels · kernel size]; that of groups has blocks.
        window: What the kernel sees.
        whole: The same convolution with the whole weight.

    Returns:
        [n, outputs, …].
    """
    images = x if x.ndim == 4 else x.unsqueeze(0)
    out = cast(Tensor, _SparseConv.apply(images, values, bias, matrix, window, whole))
    return out if x.ndim == 4 else out.squeeze(0)


def _groups(n: int, pixels: int) -> Iterator[slice]:
    size = max(1, _LEAST_COLUMNS // max(pixels, 1))
    return (slice(start, start + size) for start in range(0, n, size))


def _side_by_side(maps: Tensor) -> Tensor:
    """[n, features, pixels] → [features, n · pixels], contiguous."""
    return maps[0].contiguous() if len(maps) == 1 else maps.transpose(0, 1).reshape(maps.shape[1], -1)


def _apart(features: Tensor, n: int) -> Tensor:
    return features.unsqueeze(0) if n == 1 else features.unflatten(1, (n, -1)).transpose(0, 1)


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, matrix: TwoWay, window: Window, whole: Whole
    ) -> Tensor:
        ctx.save_for_backward(x, values, bias, matrix.pattern.columns)  # the columns as in a linear layer
        ctx.matrix, ctx.window, ctx.whole = matrix, window, whole
        size = window.out_size(x.shape)
        out = x.new_empty(len(x), matrix.pattern.rows, *size)
        maps = out.flatten(2)  # no view is returned: layers that follow may change the output in place
        for part in _groups(len(x), maps.shape[2]):
            features = _side_by_side(window.columns(x[part]))
            maps[part] = _apart(features_product(matrix.pattern, values, features, bias), len(x[part]))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if (found := gradients_of_whole(ctx, gradient)) is not None:
            return (*found, None, None, None)
        x, values, _, _ = ctx.saved_tensors
        matrix: TwoWay = ctx.matrix
        window: Window = ctx.window
        of_x_needed, of_values_needed, of_bias_needed = ctx.needs_input_grad[:3]
        back = matrix.transposed(values) if of_x_needed else None
        of_x = torch.empty_like(x, memory_format=torch.contiguous_format) if of_x_needed else None
        of_values = torch.zeros_like(values) if of_values_needed else None
        maps = gradient.flatten(2)
        for part in _groups(len(x), maps.shape[2]):
            features = _side_by_side(maps[part])
            if of_values is not None:
                sampled_product_(of_values, matrix.pattern, features, _side_by_side(window.columns(x[part])))
            if of_x is not None and back is not None:
                columns = _apart(features_product(*back, features), len(x[part]))
                of_x[part] = window.images(columns, x[part].shape)
        return of_x, of_values, gradient.sum((0, 2, 3)) if of_bias_needed else None, None, None, None
