"""Layers that multiply with their non-zeros only, on the CPU, by torch's own kernels.

Two kernels serve one matrix of compressed rows (CSR). For few columns it is torch's CSR product, MKL's. For many it is
``embedding_bag``, which sums for each output the input's rows that its non-zeros name, each times its value: the same
product through FBGEMM's vector code. That one reads and writes features first, so a `SparseLinear` turns its input and
output around, in tiles of rows that stay in a core's cache.
"""

import warnings
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CSR_ROWS = 16  # up to so many rows at once, the CSR product is the faster of the two (benchmarks/sparse_inference.py)
TILE_VALUES, TILE_ROWS = 2**18, (32, 128)  # a tile of the input: so many values, between so many rows


class Rows(NamedTuple):
    """The non-zeros of a matrix [outputs, inputs], row by row.

    Attributes:
        starts: Where each row begins, and the end: int32, [outputs + 1].
        columns: The input of each non-zero: int32, [non-zeros].
        values: The non-zeros.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "Rows":
        """Those of a dense matrix; NaN is a non-zero."""
        kept = matrix.detach() != 0
        starts = F.pad(kept.sum(1).cumsum(0), (1, 0)).int()
        return cls(starts, kept.nonzero()[:, 1].int(), matrix.detach()[kept])


class SparseMatrix(nn.Module):
    """What `SparseLinear` and `SparseConv1x1` have in common: a matrix of non-zeros, and a bias.

    Its buffers ``starts``, ``columns``, ``values`` and ``bias`` are its state dict.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, rows: Rows, inputs: int, bias: Tensor | None) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, len(rows.starts) - 1
        for name, tensor in rows._asdict().items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew: for code that looks at a layer's weight instead of calling the layer."""
        rows = torch.repeat_interleave(torch.arange(self.outputs, device=self.starts.device), self.starts.diff())
        dense = self.values.new_zeros(self.outputs, self.inputs)
        return dense.index_put((rows, self.columns.long()), self.values)

    def bags(self, features: Tensor) -> Tensor:
        """The product with a contiguous [inputs, n], by ``embedding_bag``, with the bias: [outputs, n]."""
        out = F.embedding_bag(
            self.columns, features, self.starts, mode="sum", per_sample_weights=self.values, include_last_offset=True
        )
        return out if self.bias is None else out.add_(self.bias.unsqueeze(1))

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        kept = len(self.values) / max(self.inputs * self.outputs, 1)
        return f"in={self.inputs}, out={self.outputs}, density={kept:.4f}, bias={self.bias is not None}"


class SparseLinear(SparseMatrix):
    """``nn.Linear`` on the non-zeros of its weight.

    Example:
        >>> layer = nn.Linear(8, 4)
        >>> _ = layer.weight.data.masked_fill_(torch.rand(4, 8) < 0.9, 0)
        >>> x = torch.randn(3, 8)
        >>> torch.allclose(SparseLinear.of(layer)(x), layer(x), atol=1e-6)
        True
    """

    @classmethod
    def of(cls, layer: nn.Linear, rows: Rows | None = None) -> "SparseLinear":
        """Of a linear layer; its ``rows`` may be shared with another one."""
        return cls(rows or Rows.of(layer.weight), layer.in_features, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[…, inputs] → […, outputs]."""
        x = x.to(self.values.dtype)  # under autocast other layers hand on 16 bits
        flat = x.reshape(-1, self.inputs)
        if torch.compiler.is_compiling():  # compilers and exporters know no CSR; the number of tiles would be fixed
            out = self.bags(flat.t().contiguous()).t().contiguous()
        elif flat.shape[0] <= CSR_ROWS and self._has_csr_kernel(flat):
            out = self._csr_product(flat)
        else:
            out = self._tiled(flat)
        return out.reshape(*x.shape[:-1], self.outputs)

    def _has_csr_kernel(self, x: Tensor) -> bool:
        fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        return fits and torch.backends.mkl.is_available() and not (x.requires_grad and torch.is_grad_enabled())

    def _csr_product(self, x: Tensor) -> Tensor:
        # Made anew at each call, in some microseconds: a module that held it could not be copied or exported.
        _take_note_that_csr_is_beta()
        size = (self.outputs, self.inputs)
        matrix = torch.sparse_csr_tensor(self.starts, self.columns, self.values, size, check_invariants=False)
        product = torch.mv(matrix, x[0]).unsqueeze(1) if x.shape[0] == 1 else torch.mm(matrix, x.t())
        out = product.t().contiguous()
        return out if self.bias is None else out.add_(self.bias)

    def _tiled(self, x: Tensor) -> Tensor:
        rows = min(max(TILE_VALUES // self.inputs, TILE_ROWS[0]), TILE_ROWS[1])
        tiles = [self.bags(tile.t().contiguous()) for tile in x.split(rows)]
        if len(tiles) == 1 or (x.requires_grad and torch.is_grad_enabled()):
            return torch.cat(tiles, 1).t().contiguous()
        out = x.new_empty(x.shape[0], self.outputs)
        for place, tile in zip(out.split(rows), tiles, strict=True):
            place.copy_(tile.t())
        return out


@cache
def _take_note_that_csr_is_beta() -> None:
    """Make the first CSR tensor of the process here, since torch warns about it once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


class SparseConv1x1(SparseMatrix):
    """``nn.Conv2d`` of kernel size 1, without padding and groups, on the non-zeros of its weight."""

    def __init__(self, rows: Rows, inputs: int, bias: Tensor | None, stride: tuple[int, int]) -> None:
        super().__init__(rows, inputs, bias)
        self.stride = stride

    @classmethod
    def of(cls, layer: nn.Conv2d, rows: Rows | None = None) -> "SparseConv1x1":
        """Of a convolution; its ``rows`` may be shared with another one."""
        stride = (layer.stride[0], layer.stride[1])
        return cls(rows or Rows.of(layer.weight.flatten(1)), layer.in_channels, layer.bias, stride)

    @property
    def weight(self) -> Tensor:
        """The dense weight [outputs, inputs, 1, 1], made anew."""
        return super().weight[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, height, width] → [n, outputs, …], or the same without n."""
        x = x.to(self.values.dtype)
        x = x[..., :: self.stride[0], :: self.stride[1]]
        images = x if x.ndim == 4 else x.unsqueeze(0)
        n, _, height, width = images.shape
        if torch.compiler.is_compiling():
            # One product for the whole batch: a loop over it would fix its size.
            features = images.transpose(0, 1).reshape(self.inputs, -1)
            out = self.bags(features).reshape(self.outputs, n, height, width).transpose(0, 1).contiguous()
        else:
            products = [self.bags(image.reshape(self.inputs, -1)) for image in images]
            out = products[0].unsqueeze(0) if n == 1 else torch.stack(products)
            out = out.reshape(n, self.outputs, height, width)
        return out if x.ndim == 4 else out.squeeze(0)
