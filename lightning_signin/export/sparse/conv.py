"""`SparseConv1x1`: a convolution of kernel size 1 on the non-zeros of its weight.

Channels already come first, so each image can be passed to `SparseMatrix.bags` directly.
"""

import torch
from torch import Tensor, nn

from lightning_signin.export.sparse.matrix import Rows, SparseMatrix


class SparseConv1x1(SparseMatrix):
    """``nn.Conv2d`` of kernel size 1, without padding and groups, on the non-zeros of its weight."""

    def __init__(self, rows: Rows, inputs: int, bias: Tensor | None, stride: tuple[int, int]) -> None:
        super().__init__(rows, inputs, bias)
        self.stride = stride

    @classmethod
    def of(cls, layer: nn.Conv2d, rows: Rows | None = None) -> "SparseConv1x1":
        """Create it from a convolution; ``rows`` may be shared with another layer."""
        stride = (layer.stride[0], layer.stride[1])
        return cls(rows or Rows.of(layer.weight.flatten(1)), layer.in_channels, layer.bias, stride)

    @property
    def weight(self) -> Tensor:
        """The dense weight [outputs, inputs, 1, 1], computed on each access."""
        return super().weight[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, height, width] → [n, outputs, …], or the same without n."""
        x = x.to(self.values.dtype)
        x = x[..., :: self.stride[0], :: self.stride[1]]
        images = x if x.ndim == 4 else x.unsqueeze(0)
        n, _, height, width = images.shape
        if torch.compiler.is_compiling():
            # One product for the whole batch: a loop over the batch would fix its size.
            features = images.transpose(0, 1).reshape(self.inputs, -1)
            out = self.bags(features).reshape(self.outputs, n, height, width).transpose(0, 1).contiguous()
        else:
            products = [self.bags(image.reshape(self.inputs, -1)) for image in images]
            out = products[0].unsqueeze(0) if n == 1 else torch.stack(products)
            out = out.reshape(n, self.outputs, height, width)
        return out if x.ndim == 4 else out.squeeze(0)
